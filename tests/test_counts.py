"""Exact figures: runs of the function, compiled instructions, inputs, jaxprs, live arrays."""

import gc
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

import statemap as sm

from .models import add, counter, LIF


def instructions(compiled) -> list[str]:
    """The opcodes of a compiled program."""
    lines = re.findall(r"^\s+(?:ROOT )?%?\S+ = (.*)$", compiled.as_text(), re.M)
    return sorted(op for line in lines for op in re.findall(r" ([a-z][a-z0-9-]*)\(", line)[:1])


def many(n):
    return {f"s{i:04d}": jnp.full((32, 4), float(i)) for i in range(n)}


def step_all(values, x):
    return {k: 0.5 * v + x for k, v in values.items()}


@pytest.mark.parametrize("n", [1, 10, 100])
def test_compiled_instructions_are_those_of_vmap(n):
    values, x = many(n), jnp.ones((32, 4))

    def by_hand(values, x):
        return x.sum(), step_all(values, x)

    def stateful(states, x):
        old = {k: states[k] for k in values}
        return x.sum(), states.update(step_all(old, x))

    states = sm.States({k: sm.ShortTermState(v) for k, v in values.items()})
    mapping = sm.vmap2(stateful, state_in_axes={0: ...})
    expected = instructions(jax.jit(jax.vmap(by_hand)).lower(values, x).compile())
    assert len(expected) > n
    assert instructions(mapping.lower(states, x).compile()) == expected
    outer = jax.jit(lambda states, x: mapping(states, x)).lower(states, x)
    assert instructions(outer.compile()) == expected


def test_compiled_instructions_with_axes_and_random_streams():
    key, x = jr.key(0), jnp.ones((5, 3))

    def by_hand(data, w, x):
        new, *_ = keys = jr.split(jr.wrap_key_data(data), 6)

        def lane(key, w, x):
            _, draw = jr.split(key)
            return w @ x + jr.normal(draw, (2,))

        return jax.vmap(lane, in_axes=(0, 1, 0), out_axes=1)(keys[1:], w, x), jr.key_data(keys[0])

    @sm.vmap2(state_in_axes={1: sm.ParamState}, out_axes=1)
    def f(states, x):
        noise, states = sm.random.normal(states, "rng", (2,))
        return states["w"] @ x + noise, states

    w = jnp.ones((2, 5, 3))
    states = sm.States(rng=sm.RandomState(key), w=sm.ParamState(w))
    expected = instructions(jax.jit(by_hand).lower(jr.key_data(key), w, x).compile())
    assert instructions(f.lower(states, x).compile()) == expected


@pytest.mark.parametrize("n", [2, 10, 1000])
def test_only_touched_states_go_in_and_only_written_ones_come_out(n):
    values, x = many(n), jnp.ones((32, 4))
    states = sm.States({k: sm.ShortTermState(v) for k, v in values.items()})

    @sm.vmap2(state_in_axes={0: ...})
    def f(states, x):
        new = states["s0000"] + states["s0001"] + x
        return None, states.set("s0000", new)

    lowered = f.lower(states, x)
    assert lowered.in_tree.num_leaves == 3
    assert lowered.out_tree.num_leaves == 1
    _, new = f(states, x)
    assert sum(a is not b for a, b in zip(jax.tree.leaves(states), jax.tree.leaves(new))) == 1


def test_the_jaxpr_under_jit_is_that_of_vmap():
    def by_hand(v, x):
        return jax.vmap(lambda v, x: (v + x, v + x))(v, x)

    mapping = sm.vmap2(add, state_in_axes={0: ...})
    inlined = jax.make_jaxpr(lambda s, x: mapping(s, x))(counter(), jnp.ones(3))
    expected = jax.make_jaxpr(by_hand)(jnp.zeros(3), jnp.ones(3))
    assert [e.primitive for e in inlined.eqns] == [e.primitive for e in expected.eqns][:1]


def test_runs_cold_and_warm(runs):
    model, states = sm.make_with_states(LIF)(3, 4, key=jr.key(0))
    mapping = sm.vmap2(runs(model), state_out_axes={0: sm.ShortTermState})
    x = jnp.ones((5, 3))
    mapping(states, x)
    assert runs.count == 1
    for _ in range(3):
        mapping(states, x)
    assert runs.count == 1
    stateless = sm.vmap2(runs(lambda s, x: (x * 2, s)))
    stateless(sm.States(), x)
    stateless(sm.States(), x)
    assert runs.count == 2


def in_scan(f):
    return lambda x: jax.lax.scan(lambda c, _: (c, f(x)), 0, None, length=3)[1]


def in_while(f):
    return lambda x: jax.lax.while_loop(lambda c: c < 3, lambda c: c + 1 + f(x), x)


def in_cond(f):
    return lambda x: jax.lax.cond(x > 0, f, lambda x: 0.0, x)


def in_vmap(f):
    return lambda x: jax.vmap(f)(jnp.stack([x, x]))


@pytest.mark.parametrize(
    "around",
    [jax.jit, jax.grad, lambda f: jax.jit(jax.grad(f)), jax.checkpoint, eqx.filter_jit,
     in_scan, in_while, in_cond, in_vmap, lambda f: jax.jit(in_scan(jax.grad(f)))],
)  # fmt: skip
def test_one_run_under_each_transform(around, runs):
    mapping = sm.vmap2(runs(add), state_in_axes={0: ...})
    f = around(lambda x: mapping(counter(), x * jnp.ones(3))[0].sum())
    f(jnp.ones(()))
    assert runs.count == 1


def test_nested_mappings_run_the_function_once(runs):
    inner = sm.vmap2(runs(add), state_in_axes={0: ...})
    outer = sm.vmap2(inner, state_in_axes={0: ...})
    states = sm.States(counter=sm.ShortTermState(jnp.zeros((2, 3))))
    for _ in range(3):
        _, states = outer(states, jnp.ones((2, 3)))
    assert runs.count == 1 and states["counter"].tolist() == [[3.0] * 3] * 2


def test_a_mapping_written_inside_a_loop_compiles_once():
    model, states = sm.make_with_states(LIF)(3, 4, key=jr.key(0))

    @eqx.debug.assert_max_traces(max_traces=1)
    def step(states, x):
        return model(states, x)

    for _ in range(5):
        _, new = sm.vmap2(step, state_out_axes={0: sm.ShortTermState})(states, jnp.ones((5, 3)))


def test_live_arrays_after_many_calls():
    mapping = sm.vmap2(add, state_in_axes={0: ...})
    states, x = counter(), jnp.ones(3)
    out, states = mapping(states, x)
    gc.collect()
    before = len(jax.live_arrays())
    for _ in range(1000):
        out, states = mapping(states, x)
    gc.collect()
    assert len(jax.live_arrays()) <= before  # fewer where garbage of other tests goes


def test_donated_bytes():
    values = {k: sm.ShortTermState(v) for k, v in many(10).items()}

    def f(states, x):
        return None, jax.tree.map(lambda a: a + x, states)

    x = jnp.ones((32, 4))
    kept = sm.vmap2(f, state_in_axes={0: ...}).lower(sm.States(values), x).compile()
    given = sm.vmap2(f, state_in_axes={0: ...}, donate=True)
    given(sm.States(jax.tree.map(jnp.copy, values)), x)
    donated = given.lower(sm.States(values), x).compile()
    assert kept.memory_analysis().alias_size_in_bytes == 0
    assert donated.memory_analysis().alias_size_in_bytes == 10 * 32 * 4 * 4
