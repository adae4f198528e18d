"""States that a mapping inside a lane moves, and values that a lane passes on, two deep."""

import jax
import jax.numpy as jnp
import pytest

import statemap as sm


B = sm.PathContains("b")


def move(states, ys):
    inner = lambda s, y: (y, s.set("b", s["b"] + y))
    return sm.vmap2(inner, state_in_axes={0: B}, state_out_axes={-1: B})(states, ys)[1]


def draw(states, ys):
    return sm.vmap2(lambda s, y: sm.random.uniform(s, "r"))(states, ys)[1]


@pytest.mark.parametrize("around", [lambda f: f, jax.jit, jax.checkpoint])
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_a_second_map_in_a_lane_keeps_what_the_first_has_moved(around, chunk_size):
    def fn(states, x):
        states = around(lambda s: draw(move(s, jnp.arange(3.0)), jnp.arange(3.0)))(states)
        return x, states.set("r", states["r"])

    states = sm.States(b=sm.ParamState(jnp.zeros((3, 2))), r=sm.RandomState(0))
    out, new = sm.vmap2(fn, chunk_size=chunk_size)(states, jnp.arange(2.0))
    assert new["b"].tolist() == [[0.0, 1.0, 2.0]] * 2


def through_cond(states, x):
    branch = lambda s: jax.checkpoint(lambda s: s)(s)
    return jax.lax.cond(x > 0, branch, lambda s: s, states)


def through_while(states, x):
    body = lambda c: (jax.jit(lambda s: s)(c[0]), c[1] + 1)
    return jax.lax.while_loop(lambda c: c[1] < x, body, (states, 0.0))[0]


def through_scan(states, x):
    body = lambda s, _: (through_cond(s, x), None)
    return jax.lax.scan(body, states, None, length=2)[0]


@pytest.mark.parametrize("through", [through_cond, through_while, through_scan])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_what_is_written_alike_is_alike_after_it_was_passed_on(through, chunk_size):
    def fn(states, x):
        return x, through(states.set("c", states["c"] + 1), x)

    states = sm.States(c=sm.ParamState(jnp.zeros(())))
    mapping = sm.vmap2(fn, chunk_size=chunk_size)
    out, new = mapping(states, jnp.arange(3.0))
    assert new["c"].shape == () and new["c"] == 1.0
    assert mapping.plan(states, jnp.arange(3.0))["c"].why == "written alike in every lane"
    grad = jax.grad(lambda c: mapping(states.set("c", c), jnp.arange(3.0))[1]["c"])
    if through is not through_while:  # no derivative backwards, in JAX
        assert grad(0.0) == 1.0


def test_a_part_of_a_filter_that_does_not_match_names_nothing():
    states = sm.States(a=sm.NonBatchState(0.0), v=sm.ParamState(jnp.zeros(2)))
    never = sm.All(sm.PathContains("v"), sm.PathContains("a"))
    spec = {0: sm.Any(sm.Not(sm.PathContains("x")), never)}
    plan = sm.vmap2(lambda s, x: (x, s), state_in_axes=spec).plan(states, jnp.arange(2.0))
    assert plan["a"].axis_in == "shared" and plan["v"].axis_in == 0
    with pytest.raises(ValueError, match="`a` the axis 0, and a NonBatchState never has lanes"):
        sm.vmap2(lambda s, x: (x, s), state_in_axes={0: sm.PathContains("a")})(states, jnp.ones(2))
