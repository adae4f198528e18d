"""Contexts and mappings inside a `jax.shard_map` of the user's, and `random.fold_axis`."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax import NamedSharding, P
from jax.sharding import AxisType

import statemap as sm


@pytest.fixture(params=[AxisType.Explicit, AxisType.Auto])
def mesh(request):
    return jax.make_mesh((8,), ("d",), axis_types=(request.param,))


def _put(x, mesh, *spec):
    return jax.device_put(x, NamedSharding(mesh, P(*spec)))


def _states():
    return sm.States(rng=sm.RandomState(7), v=sm.ShortTermState(jnp.array(0.0)))


def _draw(states, x):
    noise, states = sm.random.normal(states, "rng", x.shape)
    return x + noise, states


def _folding(fn, axis="d"):
    """The documented program: each shard with a stream of its own, the shared one moved on."""

    def folding(states, x):
        _, after = sm.random.next_key(states, "rng")
        out, states = fn(sm.random.fold_axis(states, "rng", axis), x)
        return out, states.set("rng", after["rng"])

    return folding


def _expected(states, fn, shards):
    """A plain loop over shards."""
    carry, draw = jr.split(states["rng"])
    outs = [fn(states.set("rng", jr.fold_in(draw, i)), x)[0] for i, x in enumerate(shards)]
    return jnp.concatenate(outs), states.set("rng", carry)


BODIES = {
    "draw": _draw,
    "vmap2": sm.vmap2(_draw),
    "chunks": sm.vmap2(_draw, chunk_size=1),
    "scan": lambda states, x: jax.lax.scan(lambda s, x: _draw(s, x)[::-1], states, x)[::-1],
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("jit", [False, True])
def test_each_shard_draws_its_own(mesh, body, jit):
    fn = BODIES[body]
    mapped = jax.shard_map(_folding(fn), mesh=mesh, in_specs=(P(), P("d")), out_specs=(P("d"), P()))
    states, x = _states(), jnp.zeros(16)
    out, new = (jax.jit(mapped) if jit else mapped)(states, _put(x, mesh, "d"))
    expected, after = _expected(states, fn, x.reshape(8, 2))
    np.testing.assert_array_equal(out, expected)
    assert new == after and len(np.unique(out)) == 16


def test_without_it_shards_draw_the_same(mesh):
    mapped = jax.shard_map(_draw, mesh=mesh, in_specs=(P(), P("d")), out_specs=(P("d"), P()))
    out, _ = mapped(_states(), _put(jnp.zeros(16), mesh, "d"))
    assert len(np.unique(out)) == 2


def test_keys_do_not_meet():
    """Over shards and steps, all the keys in use are different: those of the shards, and what the
    shared state and theirs move on to.
    """
    key, seen = jr.key(0), []
    states = sm.States(rng=sm.RandomState(key))
    for _ in range(4):
        folded = jax.vmap(lambda _: sm.random.fold_axis(states, "rng", "d")["rng"], axis_name="d")(
            jnp.arange(4)
        )
        _, states = sm.random.next_key(states, "rng")
        for one in folded:
            seen += [one, *jr.split(one)]
        seen.append(states["rng"])
    data = [tuple(np.asarray(jr.key_data(k)).tolist()) for k in seen]
    assert len(set(data)) == len(data)


def test_other_named_axes():
    states, zeros = _states(), jnp.zeros(8)
    expected, _ = _expected(states, _draw, zeros.reshape(8, 1))
    draw = lambda x: _draw(sm.random.fold_axis(states, "rng", "d"), x)[0]
    lanes = zeros.reshape(8, 1)
    for named in (jax.vmap, jax.pmap):
        np.testing.assert_array_equal(named(draw, axis_name="d")(lanes).ravel(), expected)
    shared = sm.vmap2(lambda s, x: (draw(x), s), axis_name="d", state_in_axes={None: ...})
    np.testing.assert_array_equal(shared(states, lanes)[0].ravel(), expected)


def test_several_axes():
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    mapped = lambda axis: jax.shard_map(
        _folding(_draw, axis),
        mesh=mesh,
        in_specs=(P(), P(("a", "b"))),
        out_specs=(P(("a", "b")), P()),
    )
    x = _put(jnp.zeros(8), mesh, ("a", "b"))
    out, _ = mapped(("a", "b"))(_states(), x)
    np.testing.assert_array_equal(out, _expected(_states(), _draw, jnp.zeros((8, 1)))[0])
    only_a, _ = mapped("a")(_states(), x)
    assert len(np.unique(only_a)) == 4  # shards that differ in `b` alone draw the same


def test_lanes_that_lie_on_the_shards(mesh):
    """Random states with a key a lane need nothing: a shard has the keys of its lanes."""
    keys = jr.split(jr.key(0), 16)
    states = sm.States(rng=sm.RandomState(keys))
    step = sm.vmap2(_draw, state_in_axes={0: ...}, state_out_axes={0: ...})
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(P("d"), P("d")), out_specs=(P("d"), P("d")))
    out, new = jax.jit(mapped)(
        jax.tree.map(lambda x: _put(x, mesh, "d"), states), _put(jnp.zeros(16), mesh, "d")
    )
    expected, after = step(states, jnp.zeros(16))
    np.testing.assert_array_equal(out, expected)
    assert new == after


def test_arrays_of_keys():
    keys = jr.split(jr.key(0), 6).reshape(3, 2)
    states = sm.States(rng=sm.RandomState(keys))
    folded = jax.vmap(lambda _: sm.random.fold_axis(states, "rng", "d")["rng"], axis_name="d")(
        jnp.arange(2)
    )
    assert folded.shape == (2, 3, 2)
    expected = jr.fold_in(jr.split(keys[1, 0])[1], 1)
    assert (jr.key_data(folded[1, 1, 0]) == jr.key_data(expected)).all()


def test_other_implementations_and_skeletons():
    states = sm.States(rng=sm.RandomState(jr.key(0, impl="rbg")))
    fold = lambda s: jax.vmap(lambda _: sm.random.fold_axis(s, "rng", "d"), axis_name="d")(
        jnp.arange(2)
    )
    assert fold(states)["rng"].shape == (2,)
    assert jax.eval_shape(fold, states) == jax.eval_shape(lambda: fold(states))


def test_names_that_are_not_bound():
    states = _states()
    for fold in (
        lambda: sm.random.fold_axis(states, "rng", "d"),
        lambda: jax.vmap(lambda _: sm.random.fold_axis(states, "rng", "d"), axis_name="e")(X),
    ):
        with pytest.raises(NameError, match="the random state `rng` over .d., and there is"):
            fold()
    with pytest.raises(TypeError, match="`v` is a ShortTermState"):
        sm.random.fold_axis(states, "v", "d")
    with pytest.raises(sm.StateNotFoundError, match="No state `rgn`. Did you mean `rng`"):
        sm.random.fold_axis(states, "rgn", "d")


X = jnp.zeros(2)


def test_what_differs_does_not_come_out_as_one(mesh):
    """JAX sees that it was forgotten to put the shared state back."""
    wrong = lambda states, x: _draw(sm.random.fold_axis(states, "rng", "d"), x)
    mapped = jax.shard_map(wrong, mesh=mesh, in_specs=(P(), P("d")), out_specs=(P("d"), P()))
    with pytest.raises(ValueError, match="replicat"):
        mapped(_states(), _put(jnp.zeros(8), mesh, "d"))
