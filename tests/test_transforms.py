"""Mappings inside other transforms, and other transforms inside mappings."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import statemap as sm

from .models import LIF


X = jnp.linspace(-1.0, 1.0, 15).reshape(5, 3)


@pytest.fixture
def setup():
    model, states = sm.make_with_states(LIF)(3, 4, key=jr.key(0))
    return model, states, sm.vmap2(model, state_out_axes={0: sm.ShortTermState})


def population(n=5):
    keys = jr.split(jr.key(0), n)
    states = jax.vmap(lambda k: sm.make_with_states(LIF)(3, 4, key=k)[1])(keys)
    model, _ = sm.make_with_states(LIF)(3, 4, key=keys[0])
    return model, states, sm.vmap2(model, state_in_axes={0: ...})


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


pytestmark = pytest.mark.leaks


def test_jit(setup):
    _, states, mapping = setup
    close(jax.jit(mapping)(states, X), mapping(states, X))
    close(eqx.filter_jit(mapping)(states, X), mapping(states, X))
    close(jax.jit(jax.jit(lambda s: mapping(s, X)))(states), mapping(states, X))


def test_grad_jvp_and_hessian():
    model, states, mapping = population()
    params, rest = states.partition(sm.ParamState, ...)

    def loss(params, mapping=mapping):
        _, new = mapping(rest.merge(params), X)
        return jnp.sum(new[model.v] ** 2)

    def loop(params):
        def one(i):
            lane = jax.tree.map(lambda x: x[i], rest.merge(params))
            return jnp.sum(model(lane, X[i])[1][model.v] ** 2)

        return sum(one(i) for i in range(5))

    close(jax.grad(loss)(params), jax.grad(loop)(params))
    close(jax.jit(jax.grad(loss))(params), jax.grad(loop)(params))
    close(jax.value_and_grad(jax.checkpoint(loss))(params), jax.value_and_grad(loop)(params))
    ones = jax.tree.map(jnp.ones_like, params)
    close(jax.jvp(loss, (params,), (ones,)), jax.jvp(loop, (params,), (ones,)))
    flat, unravel = ravel_pytree(params)
    close(
        jax.hessian(lambda f: loss(unravel(f)))(flat), jax.hessian(lambda f: loop(unravel(f)))(flat)
    )
    close(eqx.filter_grad(loss)(params), jax.grad(loop)(params))


def test_scan_while_loop_cond_and_fori():
    model, states, mapping = population()

    def step(states, x):
        out, states = mapping(states, x)
        return states, out

    xs = jnp.stack([X, X + 1, X - 1])
    new, outs = jax.lax.scan(step, states, xs)
    expected, spikes = states, []
    for x in xs:
        expected, out = step(expected, x)
        spikes.append(out)
    close(new._values, expected._values)
    close(outs, jnp.stack(spikes))
    n, looped = jax.lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, step(c[1], X)[0]), (0, states)
    )
    close(looped._values, jax.lax.fori_loop(0, 3, lambda i, s: step(s, X)[0], states)._values)
    assert n == 3
    taken = jax.lax.cond(n == 3, lambda s: step(s, X)[0], lambda s: s, states)
    close(taken._values, step(states, X)[0]._values)


def test_vmap_around_and_maps_inside(setup):
    model, states, mapping = setup
    many = jnp.stack([X, X + 1])
    out, new = jax.vmap(mapping, in_axes=(None, 0))(states, many)
    for i, x in enumerate(many):
        single, alone = mapping(states, x)
        close(out[i], single)
        close(jax.tree.map(lambda a: a[i], new), alone)
    out, _ = eqx.filter_vmap(mapping, in_axes=(None, 0))(states, many)
    assert out.shape == (2, 5, 4)
    assert eqx.filter_eval_shape(mapping, states, X)[0].shape == (5, 4)


def test_transforms_inside_a_mapping():
    @sm.vmap2(state_in_axes={0: sm.ShortTermState})
    def f(states, x):
        def body(states, u):
            v = states["v"] * 0.5 + u * states["w"]
            return states.set("v", v), v

        states, vs = jax.lax.scan(body, states, jnp.stack([x, x]))
        params, rest = states.partition(sm.ParamState, ...)
        grads = jax.grad(lambda p: (rest.merge(p)["w"] * x).sum())(params)
        states = jax.lax.cond(x > 0, lambda s: s.set("v", -s["v"]), lambda s: s, states)
        return (vs, grads["w"], eqx.filter_jit(lambda s: s["v"])(states)), states

    states = sm.States(v=sm.ShortTermState(jnp.ones(3)), w=sm.ParamState(2.0), z=sm.State(0.0))
    xs = jnp.array([-1.0, 0.0, 1.0])
    (vs, grads, v), new = f(states, xs)
    expected = jnp.stack([0.5 + 2 * xs, 0.25 + 3 * xs], 1)
    close(vs, expected)
    close(grads, xs)
    close(new["v"], jnp.where(xs > 0, -expected[:, 1], expected[:, 1]))
    assert new["z"] is states["z"]


def test_effects_are_kept():
    seen = []

    @sm.vmap2
    def f(states, x):
        jax.debug.callback(lambda x: seen.append(float(x)), x)
        return x, states

    f(sm.States(), jnp.arange(3.0))
    f(sm.States(), jnp.arange(3.0))
    jax.effects_barrier()
    assert sorted(seen) == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]


def test_disable_jit_and_x64(setup):
    _, states, mapping = setup
    expected = mapping(states, X)
    with jax.disable_jit():
        close(mapping(states, X)[0], expected[0])
    with jax.enable_x64(True):
        wide = sm.States(v=sm.ShortTermState(np.zeros(3)))
        out, new = sm.vmap2(lambda s, x: (x, s.set("v", s["v"] + x)), state_in_axes=...)(
            wide, jnp.ones(3)
        )
        assert new["v"].dtype == jnp.float64


def test_closures_over_outer_tracers():
    def outer(states, x):
        def inner(states, y):
            return x * y, states.set("c", states["c"] + x)

        return sm.vmap2(inner, state_in_axes={0: sm.ShortTermState})(states, jnp.arange(3.0))

    states = sm.States(c=sm.ShortTermState(jnp.zeros((2, 3))))
    mapping = sm.vmap2(outer, state_in_axes={0: sm.ShortTermState})
    for _ in range(2):
        out, new = mapping(states, jnp.array([1.0, 2.0]))
        close(out, jnp.outer(jnp.array([1.0, 2.0]), jnp.arange(3.0)))
        close(new["c"], jnp.repeat(jnp.array([[1.0], [2.0]]), 3, 1))


PASS = {
    "jit": lambda f: jax.jit(f),
    "checkpoint": lambda f: jax.checkpoint(f),
    "filter_jit": lambda f: eqx.filter_jit(f),
    "filter_checkpoint": lambda f: eqx.filter_checkpoint(f),
    "scan": lambda f: lambda s: jax.lax.scan(lambda s, _: (f(s), None), s, None, length=2)[0],
    "while": lambda f: (
        lambda s: jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, f(c[1])), (0, s))[1]
    ),
    "fori": lambda f: lambda s: jax.lax.fori_loop(0, 2, lambda _, s: f(s), s),
    "fori_dynamic": lambda f: (
        lambda s: jax.lax.fori_loop(0, s["w"].astype(int), lambda _, s: f(s), s)
    ),
    "cond": lambda f: lambda s: jax.lax.cond(s["w"] > 0, f, lambda s: s, s),
    "two": lambda f: jax.jit(lambda s: jax.checkpoint(f)(s)),
}


@pytest.mark.parametrize("around", PASS.values(), ids=PASS.keys())
@pytest.mark.parametrize("mapping", [sm.vmap2, sm.pmap2])
def test_what_passes_through_a_transform_in_a_lane_is_not_changed(around, mapping):
    states = sm.States(
        v=sm.ShortTermState(jnp.zeros(8)),
        w=sm.ParamState(2.0),
        r=sm.RandomState(0),
        idle=sm.ShortTermState(jnp.ones((8, 2))),
    )
    f = around(lambda s: s.set("v", s["v"] + s["w"]))
    mapped = mapping(lambda s, x: (x, f(s)), state_in_axes={0: sm.ShortTermState})
    plan = mapped.plan(states, jnp.ones(8))
    assert [row.path for row in plan if row.written] == ["v"]
    _, new = mapped(states, jnp.ones(8))
    assert new["v"][0] in (2.0, 4.0)
    assert new["r"] == states["r"] and new["w"] == 2.0
    if mapping is sm.vmap2:
        for a, b in zip(new._values[:2], states._values[:2]):
            assert a is b


def test_a_collective():
    def centre(states, x):
        mean = jax.lax.pmean(x, "batch")
        return x - mean, states.set("mean", mean)

    states = sm.States(mean=sm.LongTermState(jnp.zeros(())), other=sm.ParamState(jnp.ones(2)))
    out, states = sm.vmap2(centre, axis_name="batch")(states, jnp.arange(3.0))
    assert out.tolist() == [-1.0, 0.0, 1.0] and states["mean"] == 1.0
