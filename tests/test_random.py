"""The law of random streams, and the functional draws."""

import inspect

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import statemap as sm

from .models import LIF


def stream(key=0):
    return sm.States(rng=sm.RandomState(key))


@sm.vmap2
def draw_two(states, x):
    a, states = sm.random.normal(states, "rng")
    b, states = sm.random.uniform(states, "rng", (2,))
    return {"a": a * x, "b": b}, states


def by_the_law(key, n):
    """What lane i draws, written out with jax.random alone."""
    new, *lanes = jr.split(key, n + 1)
    out = []
    for lane in lanes:
        carry, first = jr.split(lane)
        carry, second = jr.split(carry)
        out.append({"a": jr.normal(first), "b": jr.uniform(second, (2,))})
    return jax.tree.map(lambda *xs: jnp.stack(xs), *out), new


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def data(states):
    return jr.key_data(states["rng"])


def test_the_law_to_the_bit_cold_and_warm():
    expected, new = by_the_law(jr.key(7), 4)
    for _ in range(2):
        out, states = draw_two(stream(7), jnp.ones(4))
        same(out, expected)
        same(data(states), jr.key_data(new))
    jitted, states = jax.jit(lambda s: draw_two(s, jnp.ones(4)))(stream(7))
    same(jitted, expected)
    same(data(states), jr.key_data(new))


def test_a_lane_does_not_depend_on_how_many_there_are():
    many, _ = draw_two(stream(3), jnp.ones(9))
    for n in range(1, 9):
        few, _ = draw_two(stream(3), jnp.ones(n))
        same(few, jax.tree.map(lambda x: x[:n], many))


def test_the_samples_that_the_documents_print():
    def normal(states, scale):
        x, states = sm.random.normal(states, "rng")
        return x * scale, states

    scales = jnp.array([1.0, 2.0, 3.0, 4.0])
    samples, _ = sm.vmap2(normal)(stream(42), scales)
    np.testing.assert_allclose(samples, [-1.0413289, -1.4796011, 2.222502, 6.412178], rtol=1e-6)

    def multiple(states, mean):
        a, states = sm.random.uniform(states, "rng")
        b, states = sm.random.normal(states, "rng")
        return a + (b + mean), states

    results, _ = sm.vmap2(multiple)(stream(123), jnp.array([0.0, 1.0, 2.0]))
    np.testing.assert_array_equal(results, np.float32([1.063001, 2.0858884, 3.2780576]))

    def dropout(states, x):
        u, states = sm.random.uniform(states, "rng", x.shape)
        return jnp.where(u > 0.3, x / (1 - 0.3), 0.0), states

    dropped, _ = sm.vmap2(dropout)(stream(456), jnp.ones((4, 5)))
    kept = [[0, 1, 1, 0, 1], [1, 1, 1, 1, 0], [1, 0, 1, 0, 0], [0, 1, 1, 1, 0]]
    np.testing.assert_array_equal(dropped, np.float32(kept) * np.float32(1.4285715))


def test_a_stream_that_is_not_used_does_not_advance():
    states = stream(1).merge(sm.States(other=sm.RandomState(2)))
    _, new = draw_two(states, jnp.ones(2))
    assert new._values[0] is states._values[0]
    _, new = sm.vmap2(lambda s, x: (x, s))(states, jnp.ones(2))
    assert new is states


def test_use_is_a_draw_or_a_read():
    key = jr.key(5)
    new, *lanes = jr.split(key, 3)

    def dropped(states, x):  # the sample is not used, and the stream moves on nevertheless
        _, states = sm.random.normal(states, "rng")
        return x, states

    def read(states, x):
        return jr.normal(states["rng"]), states

    _, states = sm.vmap2(dropped)(stream(key), jnp.ones(2))
    same(data(states), jr.key_data(new))
    out, states = sm.vmap2(read)(stream(key), jnp.ones(2))
    same(data(states), jr.key_data(new))
    same(out, jnp.stack([jr.normal(lane) for lane in lanes]))


def test_under_none_all_lanes_draw_the_same():
    mapping = sm.vmap2(draw_two.origin_fun, state_in_axes={None: sm.RandomState})
    out, states = mapping(stream(7), jnp.ones(3))
    alone, after = draw_two.origin_fun(stream(7), 1.0)
    same(out, jax.tree.map(lambda x: jnp.stack([x] * 3), alone))
    same(data(states), data(after))


def test_on_an_axis_every_lane_keeps_its_own_stream():
    keys = jr.split(jr.key(7), 3)
    mapping = sm.vmap2(draw_two.origin_fun, state_in_axes={0: sm.RandomState})
    out, states = mapping(stream(keys), jnp.ones(3))
    assert states["rng"].shape == (3,)
    for i, key in enumerate(keys):
        alone, after = draw_two.origin_fun(stream(key), 1.0)
        same(jax.tree.map(lambda x: x[i], out), alone)
        same(data(states)[i], data(after))
    moved = sm.vmap2(
        draw_two.origin_fun, state_in_axes={-1: ...}, state_out_axes={0: ...}
    )  # axes count keys, not the words in them
    same(data(moved(stream(keys), jnp.ones(3))[1]), data(states))


@pytest.mark.parametrize(
    "listed",
    [
        {0: sm.ShortTermState},
        {0: (sm.ShortTermState, sm.RandomState)},
        {None: sm.RandomState, 0: sm.ShortTermState},
        sm.ShortTermState,
    ],
)
def test_the_axes_of_a_broadcast_deal_streams_out_as_its_own_did(listed):
    """A random state that was not listed is not one that all lanes were told to share."""
    one = sm.States(rng=sm.RandomState(0), v=sm.ShortTermState(0.0), w=sm.ParamState(2.0))
    states, axes = sm.broadcast(one, listed, axis_size=4)

    def step(states):
        noise, states = sm.random.normal(states, "rng")
        return states["w"] * noise, states.set("v", noise)

    out, after = sm.vmap2(step, state_in_axes=axes, state_out_axes=axes)(states)
    expected, expected_after = sm.vmap2(step, state_in_axes=listed)(states)
    same(out, expected)
    assert after == expected_after
    is_shared = isinstance(listed, dict) and None in listed
    assert len(set(out.tolist())) == (1 if is_shared else 4)


def test_split_lanes_may_come_out():
    mapping = sm.vmap2(draw_two.origin_fun, state_out_axes={0: sm.RandomState})
    out, states = mapping(stream(7), jnp.ones(2))
    same(out, by_the_law(jr.key(7), 2)[0])
    assert states["rng"].shape == (2,)


def test_two_levels_split_twice():
    outer = sm.vmap2(lambda states, row: draw_two(states, row))
    out, states = outer(stream(7), jnp.ones((2, 3)))
    new, *members = jr.split(jr.key(7), 3)
    for i, member in enumerate(members):
        same(jax.tree.map(lambda x: x[i], out), by_the_law(member, 3)[0])
    same(data(states), jr.key_data(new))


@pytest.mark.parametrize(
    "key", [3, np.int64(3), jr.key(3), jr.PRNGKey(3), np.asarray(jr.PRNGKey(3)), jnp.array(3)]
)
def test_keys_of_every_form(key):
    states = stream(key)
    assert jnp.issubdtype(states["rng"].dtype, jax.dtypes.prng_key)
    same(data(states), jr.PRNGKey(3))
    same(data(stream(0).set("rng", key)), jr.PRNGKey(3))


def test_other_implementations():
    states = stream(jr.key(0, impl="rbg"))
    x, states = sm.random.normal(states, "rng")
    same(x, jr.normal(jr.split(jr.key(0, impl="rbg"))[1]))
    assert str(jr.key_impl(states["rng"])) == "rbg"
    out, _ = draw_two(states, jnp.ones(2))
    assert out["b"].shape == (2, 2)


SAMPLERS = {
    "ball": (2,),
    "beta": (1.0, 2.0),
    "binomial": (3, 0.5),
    "categorical": (jnp.zeros(4),),
    "chisquare": (2.0,),
    "choice": (5,),
    "dirichlet": (jnp.ones(3),),
    "f": (2.0, 3.0),
    "gamma": (2.0,),
    "generalized_normal": (2.0,),
    "geometric": (0.5,),
    "loggamma": (2.0,),
    "double_sided_maxwell": (0.0, 1.0),
    "multinomial": (jnp.array(3.0), jnp.ones(3) / 3),
    "multivariate_normal": (jnp.zeros(2), jnp.eye(2)),
    "orthogonal": (2,),
    "pareto": (2.0,),
    "permutation": (5,),
    "poisson": (2.0,),
    "randint": ((2,), 0, 9),
    "rayleigh": (2.0,),
    "t": (2.0,),
    "triangular": (0.0, 0.5, 1.0),
    "truncated_normal": (-1.0, 1.0),
    "wald": (jnp.array(1.0),),
    "weibull_min": (1.0, 2.0),
}


def draws():
    names = [n for n, f in vars(sm.random).items() if inspect.isfunction(f) and f.__doc__]
    return sorted(n for n in names if hasattr(jr, n))


@pytest.mark.parametrize("name", draws())
def test_every_draw_is_that_of_jax_random(name):
    args = SAMPLERS.get(name, ())
    sample, states = getattr(sm.random, name)(stream(1), "rng", *args)
    carry, key = jr.split(jr.key(1))
    expected = getattr(jr, name)(key, *args)
    if name == "split":
        sample, expected = jr.key_data(sample), jr.key_data(expected)
    same(sample, expected)
    same(data(states), jr.key_data(carry))
    assert list(inspect.signature(getattr(sm.random, name)).parameters)[:2] == ["states", "rng"]


def test_what_jax_random_offers_is_offered():
    makes_or_takes_keys = {"Key", "PRNGKey", "clone", "fold_in", "key", "key_data", "key_dtype",
                           "key_impl", "random_gamma_p", "wrap_key_data"}  # fmt: skip
    offered = {n for n in dir(jr) if not n.startswith("_") and callable(getattr(jr, n))}
    assert offered - makes_or_takes_keys <= set(draws())


def test_next_key_and_handles():
    model, states = sm.make_with_states(LIF)(2, 2, key=jr.key(0))
    key, after = sm.random.next_key(states, model.rng)
    carry, draw = jr.split(states[model.rng])
    assert jnp.array_equal(key, draw) and jnp.array_equal(after[model.rng], carry)
