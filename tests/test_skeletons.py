"""Contexts of shapes, from `jax.eval_shape`: all that does not need numbers works on them."""

import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

import statemap as sm

from .models import LIF


def _make():
    return sm.make_with_states(LIF)(3, 4, key=jr.key(0))


@pytest.fixture
def both():
    model, states = _make()
    return model, states, jax.eval_shape(lambda: _make()[1])


def _shapes(tree):
    return jax.eval_shape(lambda: tree)


def test_looking(both):
    model, states, shapes = both
    assert repr(shapes) == repr(states)
    assert len(shapes) == len(states) and model.v in shapes and "v" in shapes
    assert shapes[model.v] == jax.ShapeDtypeStruct((4,), jnp.float32)
    assert shapes[model.rng] == jax.eval_shape(lambda: states[model.rng])
    for (path, state), (_, real) in zip(shapes, states.items()):
        assert state.struct == real.struct and repr(state) == repr(real)
        assert state.value == _shapes(real.value)
    assert shapes == _shapes(states) and shapes != states and states != shapes
    assert pickle.loads(pickle.dumps(shapes)) == shapes


def test_taking_apart(both):
    _, states, shapes = both
    by_shape = lambda path, state: state.shape == (4,)
    for filter in (sm.ParamState, sm.RandomState, by_shape, ..., None):
        assert shapes.select(filter) == _shapes(states.select(filter))
    params, rest = shapes.partition(sm.ParamState, ...)
    assert rest.merge(params) == shapes
    assert params.merge(states.select(sm.ParamState)) == states.select(sm.ParamState)
    assert params.labels({...: "x"}) == states.select(sm.ParamState).labels({...: "x"})
    assert states.select(sm.RandomState).merge(states) == states


def test_writing(both):
    model, states, shapes = both
    struct = jax.ShapeDtypeStruct
    laid = struct((4,), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[1]))
    assert shapes.set(model.v, laid)[model.v].sharding == laid.sharding
    assert shapes.set("rng", shapes["rng"]) == shapes
    filled = shapes.update({key: states[key] for key in ("v", "weight", "rng")})
    assert filled == states  # filled in, state by state
    assert shapes.set("v", states["v"]).partition("none", ...)[1]["v"] is states["v"]
    with pytest.raises(ValueError, match="`v` was given a value of another shape"):
        shapes.set("v", struct((5,), jnp.float32))
    with pytest.raises(ValueError, match="`v` was given a value of another dtype"):
        shapes.set("v", struct((4,), jnp.int32))
    with pytest.raises(ValueError, match="`v` was given a value of another shape"):
        shapes.set("v", jnp.ones(5))
    with pytest.raises(ValueError, match="`v` holds arrays, and was given ShapeDtypeStruct"):
        states.set("v", struct((4,), jnp.float32))
    state = shapes.select(sm.RandomState).items().__next__()[1]
    assert state.set(state.value).struct == state.struct


def test_serialised(both, tmp_path):
    _, states, shapes = both
    eqx.tree_serialise_leaves(tmp_path / "states.eqx", states)
    assert eqx.tree_deserialise_leaves(tmp_path / "states.eqx", shapes) == states


def test_populations_without_numbers():
    make = lambda: sm.vmap2_new_states(LIF, dict(n_in=3, n_out=4), key=jr.key(0), axis_size=8)
    model, states, axes = make()
    got = eqx.filter_eval_shape(
        sm.vmap2_new_states, LIF, dict(n_in=3, n_out=4), key=jr.key(0), axis_size=8
    )
    assert got[0] == model and got[1] == _shapes(states) and got[2] == axes
    assert jax.eval_shape(lambda: make()[1]) == got[1]
    assert got[2].tree(got[1]) == axes.tree(states)
    step = sm.vmap2(got[0], state_in_axes=got[2], state_out_axes=got[2])
    x = jnp.ones((8, 3))
    assert jax.eval_shape(step, got[1], x) == jax.eval_shape(step, states, x)
    assert repr(step.plan(got[1], x)) == repr(step.plan(states, x))
    assert got[1].load(states)[0] == states


def test_kinds_that_decode():
    """A kind with a view of its own of what it stores."""

    class Logarithmic(sm.State):
        def encode(self, value):
            return jnp.log(value)

        def decode(self, data):
            return {"value": jnp.exp(data)}

    shapes = _shapes(sm.States(x=Logarithmic(jnp.ones(2))))
    assert shapes["x"] == {"value": jax.ShapeDtypeStruct((2,), jnp.float32)}
    assert shapes.set("x", jax.ShapeDtypeStruct((2,), jnp.float32)) == shapes
