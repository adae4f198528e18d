"""`scan`: the loop in Python, inside and outside of mappings."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import statemap as sm

from .models import LIF


def step(states, x):
    noise, states = sm.random.normal(states, "rng")
    v = states["w"] * states["v"] + x + noise
    return v, states.set("v", v)


def context():
    return sm.States(
        v=sm.ShortTermState(0.5), w=sm.ParamState(0.9), rng=sm.RandomState(0), n=sm.LongTermState(0)
    )


def loop(step, states, *xs, reverse=False):
    outs = [None] * len(xs[0])
    order = range(len(outs))
    for t in reversed(order) if reverse else order:
        outs[t], states = step(states, *(x[t] for x in xs))
    return jnp.stack(outs), states


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


@settings(deadline=None, max_examples=20)
@given(n=st.integers(1, 6), reverse=st.booleans(), unroll=st.integers(1, 3))
def test_it_is_the_loop(n, reverse, unroll):
    xs = jnp.linspace(-1.0, 1.0, n)
    expected = loop(step, context(), xs, reverse=reverse)
    steps = sm.scan(step, reverse=reverse, unroll=unroll)
    for run in (steps, jax.jit(steps)):
        outs, after = run(context(), xs)
        close(outs, expected[0])
        close(after, expected[1])
        assert after["rng"] == expected[1]["rng"]


def test_several_arguments_and_none():
    add = lambda states, x, y: (x + y["a"], states.set("n", states["n"] + 1))
    outs, after = sm.scan(add)(context(), jnp.arange(3), {"a": jnp.arange(3)})
    assert outs.tolist() == [0, 2, 4] and after["n"] == 3
    count = lambda states: (states["n"], states.set("n", states["n"] + 1))
    outs, after = sm.scan(count, length=4)(context())
    assert outs.tolist() == [0, 1, 2, 3] and after["n"] == 4


def test_a_step_that_writes_a_python_number():
    outs, after = sm.scan(lambda states, x: (x, states.set("v", 1)))(context(), jnp.arange(2))
    assert after["v"] == 1.0 and after["v"].dtype == jnp.float32


@pytest.mark.parametrize("options", [{}, {"chunk_size": 3}])
def test_streams_of_their_own_make_inside_and_outside_equal(options):
    xs = jnp.linspace(0.0, 1.0, 5)
    states, axes = sm.broadcast(context(), {0: ...}, axis_size=8)
    lanes = dict(in_axes=None, state_in_axes=axes, **options)
    inside = sm.vmap2(sm.scan(step), **lanes)(states, xs)
    outside = sm.scan(sm.vmap2(step, **lanes))(states, xs)
    over_devices = sm.pmap2(sm.scan(step), in_axes=None, state_in_axes=axes)(states, xs)
    left = [jr.key_data(after["rng"]) for _, after in (inside, outside, over_devices)]
    np.testing.assert_array_equal(left[0], left[1])
    np.testing.assert_array_equal(left[0], left[2])
    by_lane = [loop(step, sm.lane(states, axes, i), xs) for i in range(8)]
    for outs, after in (inside, (outside[0].T, outside[1]), over_devices):
        close(outs, jnp.stack([outs for outs, _ in by_lane]))
        close(after["v"], jnp.stack([after["v"] for _, after in by_lane]))


def test_one_stream_is_dealt_out_once_or_at_each_step():
    axes = {0: sm.ShortTermState}
    states, _ = sm.broadcast(context(), axes, axis_size=3)
    lanes = dict(in_axes=None, state_in_axes=axes)
    xs = jnp.zeros(4)
    inside, _ = sm.vmap2(sm.scan(step), **lanes)(states, xs)
    outside, _ = sm.scan(sm.vmap2(step, **lanes))(states, xs)
    close(inside[:, 0], outside[0])
    assert not jnp.any(jnp.isclose(inside[:, 1:], outside[1:].T))


def test_what_no_step_writes_is_not_written():
    quiet = sm.vmap2(sm.scan(lambda states, x: (states["w"] * x, states)), in_axes=1)
    plan = quiet.plan(context(), jnp.ones((2, 3)))
    assert not any(row.written for row in plan)


def test_in_transforms():
    model, states = sm.make_with_states(LIF)(3, 4, key=jr.key(0))
    xs = jr.normal(jr.key(1), (6, 3))
    params, rest = states.partition(sm.ParamState, ...)

    def membrane(states, x):
        v = 0.9 * states[model.v] + states[model.weight] @ x
        return v, states.set(model.v, v)

    def loss(run, params):
        return jnp.sum(run(rest.merge(params), xs)[0] ** 2)

    by_scan = jax.grad(lambda params: loss(sm.scan(membrane), params))(params)
    by_loop = jax.grad(lambda params: loss(lambda *a: loop(membrane, *a), params))(params)
    close(by_scan, by_loop)
    shapes = jax.eval_shape(sm.scan(model), states, jnp.zeros((6, 3)))
    assert shapes[0].shape == (6, 4) and shapes[1][model.v].shape == (4,)


def test_a_container_of_states():
    states = {"v": sm.ShortTermState(1.0)}
    double = lambda states, x: (x, {"v": states["v"].set(2 * states["v"].value)})
    _, after = sm.scan(double)(states, jnp.zeros(3))
    assert after["v"].value == 8.0


def test_messages():
    xs = jnp.zeros(3)
    with pytest.raises(ValueError, match="no argument has an axis of time"):
        sm.scan(step)(context())
    with pytest.raises(
        TypeError, match=r"A step returns `\(out, states\)`, and `<lambda>` returned"
    ):
        sm.scan(lambda states, x: x)(context(), xs)
    with pytest.raises(ValueError, match="It lacks `n`, `rng`, `v`"):
        sm.scan(lambda states, x: (x, states.select(sm.ParamState)))(context(), xs)
    with pytest.raises(ValueError, match="was given a context and returned"):
        sm.scan(lambda states, x: (states, x))(context(), xs)
    for alike in (1.0, jnp.array(1.0), {"a": xs, "b": np.float32(1.0)}, "a word"):
        with pytest.raises(
            ValueError, match=r"Argument 1 \(`by.* has no axis of time(.|\n)*Right:"
        ):
            sm.scan(lambda states, x, by: step(states, x))(context(), xs, alike)
    with pytest.raises(
        ValueError, match=r"of steps differs:\n +3  argument 0 \(`x`\)\n +4  argument 1 \(`y`\)"
    ):
        sm.scan(lambda states, x, y: step(states, x))(context(), xs, jnp.zeros(4))
    with pytest.raises(ValueError, match=r"of steps differs:\n +4  `length`\n +3  arg"):
        sm.scan(step, length=4)(context(), xs)

    gives_lanes = sm.vmap2(step, in_axes=None, axis_size=2, state_out_axes={0: sm.ShortTermState})
    with pytest.raises(ValueError, match="`v`") as caught:
        sm.scan(gives_lanes)(context(), xs)
    assert "sm.broadcast" in "".join(caught.value.__notes__)
