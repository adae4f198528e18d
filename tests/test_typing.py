"""What a type checker infers. The assertions are those of pyright and of mypy, which check this
file in `test_checkers.py`. At run time `assert_type` does nothing, and what is here runs.
"""

import functools
from typing import Any, assert_type

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import Array, Float

import statemap as sm
from statemap import compat


SHORT = {0: sm.ShortTermState}


class Model(eqx.Module):
    v: sm.ShortTermState[Float[Array, " n"]]
    level: sm.LongTermState[Float[Array, ""]]
    pair: sm.State[tuple[Array, int]]
    loose: sm.ParamState
    rng: sm.RandomState
    mlp: sm.ParamState[eqx.nn.MLP]
    norm: eqx.nn.LayerNorm

    def __init__(self, n: int, *, key: Any = 0):
        self.mlp = sm.ParamState(eqx.nn.MLP(n, n, n, 1, key=jr.key(0)))
        self.norm = sm.declare(eqx.nn.LayerNorm(n), sm.ParamState)
        self.v = sm.ShortTermState(jnp.zeros(n))
        self.level = sm.LongTermState(0.0)
        self.pair = sm.State((jnp.zeros(n), 1))
        self.loose = sm.ParamState({"a": jnp.zeros(n)})
        self.rng = sm.RandomState(key)

    def __call__(self, states: sm.States, x: Array) -> tuple[Array, sm.States]:
        assert_type(states[self.v], Float[Array, " n"])
        assert_type(states[self.level], Array)
        assert_type(states[self.pair][0], Array)
        assert_type(states[self.loose], Any)
        assert_type(states[self.rng], Array)
        assert_type(states["v"], Any)
        assert_type(states[("v",)], Any)
        assert_type(states[self.mlp], eqx.nn.MLP)
        assert_type(states[self.norm], eqx.nn.LayerNorm)
        assert_type(states[[self.norm]], list[eqx.nn.LayerNorm])
        states = states.set(self.norm, states[self.norm]).set(self.mlp, states[self.mlp])
        noise, states = sm.random.normal(states, self.rng)
        assert_type(noise, Array)
        assert_type(states, sm.States)
        coin, states = sm.random.bernoulli(states, "rng", p=0.5)
        assert_type(coin, Array)
        states = states.set(self.level, 1).set(self.rng, 3).set("v", states[self.v])
        states = states.update({self.level: 2.0, self.pair: states[self.pair]})
        return states[self.v] + x + noise, states.update({"v": states[self.v] + x, self.level: 1})

    @sm.vmap2(state_in_axes=SHORT)
    def step(self, states: sm.States, x: Array) -> tuple[Array, sm.States]:
        return states[self.v] + x, states

    @sm.vmap2
    def bare(self, states: sm.States, x: Array) -> tuple[Array, sm.States]:
        return x, states

    def total(self, states: sm.States) -> tuple[str, sm.States]:
        return "total", states


class Fields(eqx.Module):
    n: int
    w: sm.ParamState[Float[Array, " n"]] = sm.field(lambda self, key: jr.normal(key, (self.n,)))
    v: sm.ShortTermState[Float[Array, " n"]] = sm.field(lambda self: jnp.zeros(self.n), tag="fast")
    cell: sm.ParamState[eqx.nn.Linear] = sm.field(lambda key: eqx.nn.Linear(2, 2, key=key))
    gain: sm.ParamState[Array] = sm.field(1.0)
    rng: sm.RandomState = sm.field()

    def __call__(self, states: sm.States, x: Array) -> tuple[Array, sm.States]:
        assert_type(states[self.v], Float[Array, " n"])
        assert_type(states[self.cell], eqx.nn.Linear)
        return states[self.w] * x, states


def test_fields():
    model, states = sm.make_with_states(Fields)(3, key=jr.key(0))
    assert_type(model, Fields)
    assert_type(states, sm.States)
    again, _ = sm.make_with_states(lambda: Fields(3, v=sm.ShortTermState(jnp.ones(3))))(key=0)
    assert_type(again, Fields)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        sm.make_with_states(Fields)()  # type: ignore
    with pytest.raises(TypeError, match="unexpected keyword"):
        Fields(3, gian=sm.ParamState(1.0))  # type: ignore


def make_pair(*, n: int, key: Array) -> tuple[Model, sm.States]:
    return sm.make_with_states(Model)(n, key=key)


def colony(*, key: Array) -> tuple[Model, sm.States, sm.MemberAxes]:
    return sm.vmap2_new_states(Model, dict(n=3), key=key, axis_size=2)


class Spikes(sm.ShortTermState[Array]):
    """A kind of the user's, with a field of its own."""

    unit: str = eqx.field(static=True, default="Hz")


def test_states():
    v = sm.ShortTermState(jnp.zeros(3), tag="membrane")
    assert_type(v, sm.ShortTermState[Array])
    assert_type(v.set(jnp.ones(3)), sm.ShortTermState[Array])
    assert_type(v.value, Array)
    assert_type(sm.State(0.0), sm.State[Array])
    assert_type(sm.State(np.zeros(3)), sm.State[Array])
    assert_type(sm.ParamState(0.0).set(1), sm.ParamState[Any])
    assert_type(sm.ParamState({"a": jnp.zeros(3)}), sm.ParamState[dict[str, Array]])
    spikes = Spikes(jnp.zeros(3), name="spikes")
    assert_type(spikes, Spikes)
    assert_type(spikes.set(np.ones(3, np.float32)).value, Array)
    assert {spikes.unit: v} == {"Hz": v}


def test_contexts():
    others = {"w": sm.ParamState(jnp.ones(3)), "b": sm.ParamState(0.0)}
    states = sm.States(v=sm.ShortTermState(jnp.zeros(3)), **others)
    assert_type(states, sm.States)
    params, rest = states.partition(sm.ParamState, ...)
    assert_type(params, sm.States)
    assert_type(rest.merge(params), sm.States)
    assert_type(states.select(sm.Not(sm.ParamState)), sm.States)
    for path, state in states.items():
        assert_type(path, tuple[Any, ...])
        assert_type(state, sm.State[Any])
    assert states.set("b", 1.0)["b"] == 1.0


def test_making():
    model, states = sm.make_with_states(Model)(3, key=1)
    assert_type(model, Model)
    assert_type(states, sm.States)
    assert_type(sm.make_with_states(lambda: Model(3))()[0], Model)
    assert_type(sm.make_with_states(functools.partial(Model, 3))()[0], Model)
    assert_type(sm.make_with_states(lambda: {"m": Model(3)})()[0], dict[str, Model])


def test_mappings():
    model, states = sm.make_with_states(Model)(3)
    mapped = sm.vmap2(model, state_out_axes=SHORT)
    out, wide = mapped(states, jnp.ones((2, 3)))
    assert_type(out, Array)
    assert_type(wide, sm.States)
    assert_type(mapped.plan(states, jnp.ones((2, 3)))["v"].axis_out, int | str)
    for row in mapped.plan(states, jnp.ones((2, 3))):
        assert_type(row.path, str)
        assert_type(row.written, bool)
    decorated = sm.vmap2(in_axes=0, state_in_axes=SHORT)(model)
    assert_type(decorated(wide, jnp.ones((2, 3))), tuple[Array, sm.States])
    over = sm.pmap2(axis_name="lanes", in_axes=1, state_out_axes=SHORT)(model)
    assert_type(over(states, jnp.ones((3, 8))), tuple[Array, sm.States])
    assert out.shape == (2, 3)


def test_mapped_methods():
    model, states = sm.make_with_states(Model)(3)
    assert_type(model.step(states, jnp.ones(3)), tuple[Array, sm.States])
    out, states = model.bare(states, jnp.ones(3))
    assert_type(out, Array)
    assert_type(states, sm.States)


def test_filters():
    fn = lambda states, x: (x, states)
    axes = sm.MemberAxes({("v",): 0})
    states, x = sm.States(v=sm.ShortTermState(jnp.zeros(3))), jnp.zeros(3)
    short: dict[int, type[sm.ShortTermState]] = {0: sm.ShortTermState}
    handle = sm.make_with_states(Model)(3)[0].v
    beside = {sm.Reduce("mean"): sm.ParamState, **axes}
    for mapped in (
        sm.vmap2(fn, state_in_axes=short, unexpected_out_state_mapping="warn"),
        sm.vmap2(fn, state_in_axes={0: sm.Any(sm.ShortTermState, "a"), None: ...}),
        sm.vmap2(fn, state_in_axes=sm.ShortTermState, state_out_axes=sm.ShortTermState),
        sm.vmap2(fn, state_in_axes=(sm.ParamState, sm.ShortTermState)),
        sm.vmap2(fn, state_in_axes={0: [sm.OfType(sm.ShortTermState), sm.Nothing()]}),
        sm.vmap2(fn, state_in_axes={None: handle, 0: lambda path, state: state.ndim == 1}),
        sm.vmap2(fn, state_in_axes=True, unexpected_out_state_mapping="raise"),
        sm.vmap2(fn, state_in_axes=...),
        sm.vmap2(fn, state_in_axes=axes, state_out_axes=axes),
        sm.vmap2(fn, state_out_axes={sm.Reduce("mean"): sm.ParamState, **axes}),
        sm.vmap2(
            fn, state_out_axes={sm.Restore: handle, sm.Reduce("sum"): [handle], **axes, 0: ...}
        ),
        sm.vmap2(fn, state_out_axes=beside),
        sm.vmap2(fn, state_in_axes={**axes, None: ...}, unexpected_out_state_mapping="ignore"),
    ):
        out, _ = mapped(states, x)
        assert out.shape == (3,)
    for given in (short, axes, {0: sm.ShortTermState, None: ...}):
        assert_type(sm.lane(states, given, 1), sm.States)
    assert_type(sm.unstack(states, {0: sm.ShortTermState}), list[sm.States])
    assert_type(sm.stack([sm.lane(states, axes, 0)], short), sm.States)


def test_populations():
    key = jr.key(0)
    model, states, axes = sm.vmap2_new_states(Model, dict(n=3), key=key, axis_size=4)
    assert_type(model, Model)
    assert_type(states, sm.States)
    assert_type(axes, sm.MemberAxes)
    step = sm.vmap2(model, in_axes=None, state_in_axes=axes, state_out_axes=axes)
    out, states = step(states, jnp.ones(3))
    assert_type(out, Array)
    assert_type(states, sm.States)
    given = sm.vmap2_new_states(make_pair, dict(n=3), key=key, axis_size=4)
    assert_type(given, tuple[Model, sm.States, sm.MemberAxes])
    made = sm.vmap2_new_states(lambda *, key: Model(3, key=key), key=key, axis_size=4)
    assert_type(made, tuple[Model, sm.States, sm.MemberAxes])
    again = sm.vmap2_new_states(colony, key=key, axis_size=4)
    assert_type(again, tuple[Model, sm.States, sm.MemberAxes])
    over = sm.pmap2_new_states(Model, dict(n=3), key=key, axis_size=8)
    assert_type(over, tuple[Model, sm.States, sm.MemberAxes])
    wide = sm.pmap2_new_states(make_pair, dict(n=3), key=key)
    assert_type(wide, tuple[Model, sm.States, sm.MemberAxes])
    assert out.shape == (4, 3)


def test_maps():
    def scaled(model: Model, states: sm.States, x: Array) -> tuple[bool, sm.States]:
        return True, states.set(model.level, 0.0)

    population = sm.Map(Model, init_map_size=4, in_axes=None, behavior="vmap")
    assert_type(population, sm.Map[Model])
    population, states = population.init_all_states(n=3, key=jr.key(0))
    assert_type(population, sm.Map[Model])
    assert_type(population.module, Model)
    assert_type(population.axes, sm.MemberAxes)
    out, states = population(states, jnp.ones(3))
    assert_type(out, Array)
    assert_type(states, sm.States)
    assert_type(population.update(states, jnp.ones(3)), tuple[Array, sm.States])
    assert_type(population.map("total")(states), tuple[Any, sm.States])
    assert_type(population.map(Model.total)(states), tuple[str, sm.States])
    assert_type(population.map(scaled, in_axes=None)(states, out), tuple[bool, sm.States])
    pairs = sm.Map(make_pair, init_map_size=4, in_axes=None)
    assert_type(pairs, sm.Map[Model])
    assert_type(pairs.init_all_states(n=3, key=jr.key(0))[0].module, Model)
    assert out.shape == (4, 3)


def test_compat():
    v = compat.ShortTermState(jnp.zeros(3))
    assert_type(v, compat.ShortTermState[Array])
    assert_type(v.value, Array)
    sample = compat.random.normal(size=3)
    assert_type(sample, Array)

    @compat.transform.vmap2(state_in_axes={0: compat.ShortTermState})
    def add(x):
        v.value = v.value + x

    add(sample)
    assert v.value.tolist() == sample.tolist()
