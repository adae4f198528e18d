"""Programs of brainstate's layers, on brainstate alone and on the shim: equal numbers."""

import sys
from collections.abc import Callable
from typing import Any

import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest


PROGRAMS: list[Callable[[Any], Any]] = []


def program(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    PROGRAMS.append(fn)
    return fn


@pytest.mark.parametrize("fn", PROGRAMS, ids=lambda fn: fn.__name__)
def test_equal_numbers(both, fn):
    theirs, ours = both(fn)
    assert jax.tree.structure(theirs) == jax.tree.structure(ours)
    for a, b in zip(jax.tree.leaves(theirs), jax.tree.leaves(ours)):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)


@program
def linear(bs):
    return bs.transform.jit(bs.nn.Linear(3, 2))(jnp.ones((4, 3)))


@program
def batch_norm(bs):
    norm = bs.nn.BatchNorm1d((5, 3))
    step = bs.transform.jit(norm)
    with bs.environ.context(fit=True):
        out = step(jnp.arange(30.0).reshape(2, 5, 3)), step(jnp.ones((2, 5, 3)))
    return out, values(norm)


def values(module: Any) -> dict[str, Any]:
    return {".".join(map(str, path)): state.value for path, state in module.states().items()}


@program
def fit_and_not_fit(bs):
    net = bs.nn.Sequential(bs.nn.Linear(3, 4), bs.nn.Dropout(0.5), bs.nn.BatchNorm0d(4))
    outs = []
    for fit in True, False, True, False:
        with bs.environ.context(fit=fit):
            step = bs.transform.jit(net)  # brainstate would not look at `fit` again
            outs.append(step(jnp.arange(6.0).reshape(2, 3)))
    return outs


@program
def recurrent(bs):
    cell = bs.nn.GRUCell(3, 4)
    bs.nn.init_all_states(cell, 2)
    return bs.transform.for_loop(cell, jnp.ones((5, 2, 3))), values(cell)


@program
def gradient(bs):
    net = bs.nn.Sequential(bs.nn.Linear(3, 8), bs.nn.ReLU(), bs.nn.Linear(8, 1))
    weights = net.states(bs.ParamState)
    grads, loss = bs.transform.grad(
        lambda: (net(jnp.arange(18.0).reshape(6, 3)) ** 2).mean(), weights, return_value=True
    )()
    return loss, jax.tree.leaves(grads)


@program
def training(bs):
    net = bs.nn.Linear(3, 1)
    weights = net.states(bs.ParamState)

    @bs.transform.jit
    def step(x):
        grads, loss = bs.transform.grad(lambda: (net(x) ** 2).mean(), weights, return_value=True)()
        for path, grad in grads.items():
            weights[path].value = jax.tree.map(lambda w, g: w - 0.1 * g, weights[path].value, grad)
        return loss

    return [step(jnp.ones((4, 3))) for _ in range(4)], values(net)


@program
def population(bs):
    members = bs.nn.Map(bs.nn.GRUCell(3, 4), init_map_size=6)
    members.init_all_states()
    return members(jnp.ones((6, 3))), members(jnp.ones((6, 3)))


@program
def mapped_states(bs):
    cell = bs.nn.GRUCell(3, 4)
    bs.nn.vmap_init_all_states(cell, axis_size=6, state_tag="new")
    axes = {0: bs.util.filter.OfType(bs.HiddenState)}
    step = bs.transform.vmap2(cell, state_in_axes=axes, state_out_axes=axes)
    return step(jnp.ones((6, 3))), step(jnp.ones((6, 3))), cell.h.value


@program
def noise_in_lanes(bs):
    return bs.transform.vmap2(lambda x: x + bs.random.normal(size=(2,)))(jnp.arange(3.0))


@program
def auto(bs):
    seen = bs.ShortTermState(jnp.array(0.0))

    def see(x):
        seen.value = x

    bs.transform.vmap2(see)(jnp.arange(3.0))
    return seen.value


@program
def delay(bs):
    with bs.environ.context(dt=0.1):
        memory = bs.nn.Delay(jax.ShapeDtypeStruct((2,), jnp.float32), entries={"a": 1.0})
        bs.nn.init_all_states(memory)

        def step(i):
            with bs.environ.context(t=i * 0.1, i=i):
                memory.update(jnp.ones(2) * i)
                return memory.at("a")

        return bs.transform.for_loop(step, jnp.arange(15))


@program
def units(bs):
    v = bs.HiddenState(jnp.zeros(4) * u.mV)

    def step(i):
        with bs.environ.context(t=i * 0.1 * u.ms):
            dv = (-v.value + 30 * u.mV) / (5 * u.ms)
            v.value = v.value + dv * bs.environ.get_dt()
        return v.value

    with bs.environ.context(dt=0.1 * u.ms):
        out = bs.transform.for_loop(step, np.arange(20))
        with bs.environ.context(dt=0.2 * u.ms):
            again = bs.transform.for_loop(step, np.arange(20))
    return out.to_decimal(u.mV), again.to_decimal(u.mV)


@program
def parameters(bs):
    scale = bs.nn.Param(jnp.ones(3) * 0.5, t=bs.nn.SoftplusT(0.0))
    return bs.transform.jit(lambda: scale.value().sum())()


@program
def split_and_merge(bs):
    net = bs.nn.Linear(3, 2)
    graph, states = bs.graph.treefy_split(net)
    return jax.jit(lambda states, x: bs.graph.treefy_merge(graph, states)(x))(states, jnp.ones(3))


@program
def split_in_a_transform(bs):
    net = bs.nn.Linear(3, 2)

    @bs.transform.jit
    def double(x):
        for state in net.states().values():
            state.value = jax.tree.map(lambda w: 2 * w, state.value)
        copy = bs.graph.treefy_merge(*bs.graph.treefy_split(net))
        for state in copy.states().values():
            state.value = jax.tree.map(lambda w: w + 1, state.value)
        return copy(x), net(x)

    return double(jnp.ones(3)), double(jnp.ones(3)), values(net)


@program
def states_of_several_arrays(bs):
    group = bs.HiddenTreeState({"v": jnp.zeros(3) * u.mV, "g": jnp.ones(3)})

    @bs.transform.jit
    def step():
        group.set_value({"v": group.get_value("v") + 1 * u.mV, "g": group.get_value("g") * 2})

    step()
    step()
    return group.value


@program
def a_container_that_is_changed_in_place(bs):
    counts = bs.ShortTermState({"low": jnp.array(0), "high": jnp.array(0)})

    def count(name):
        now = counts.value
        now[name] = now[name] + 1
        counts.value = now

    for x in jnp.array([1.0, 5.0, 7.0]):
        bs.transform.cond(x > 3, lambda: count("high"), lambda: count("low"))
    return counts.value


@program
def forward_gradient(bs):
    if not hasattr(bs.transform, "fwd_grad"):
        return None
    weight = bs.ParamState(jnp.array([1.0, 2.0]))
    return bs.transform.fwd_grad(lambda: (weight.value**2).sum(), weight)()


def test_bars_are_those_of_brainstate(layers, monkeypatch, capsys):
    monkeypatch.setattr(layers.transform._progress_bar, "tqdm_installed", False)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    total = layers.State(jnp.zeros(()))

    def step(x):
        total.value = total.value + x
        return x

    describe = lambda data: {"i": data["i"], "total": total.value}
    described = layers.transform.ProgressBar(freq=2, desc=("at {i}: {total}", describe))
    for bar in (described, 2):
        total.value = jnp.zeros(())
        assert layers.transform.for_loop(step, jnp.ones(4), pbar=bar).tolist() == [1.0] * 4
        jax.effects_barrier()
        assert total.value == 4
        assert "4/4" in capsys.readouterr().err


def test_what_sets_a_setting_does_not_read_all(layers):
    runs = []

    @layers.transform.jit
    def step(i):
        runs.append(i)
        with layers.environ.context(i=i, t=i * layers.environ.get("dt")):
            return layers.environ.get("t")

    for i in range(3):
        with layers.environ.context(i=i, t=-1.0, dt=0.5):
            assert step(float(i)) == 0.5 * i
    assert len(runs) == 1
    with layers.environ.context(dt=2.0):
        assert step(3.0) == 6.0 and len(runs) == 2
