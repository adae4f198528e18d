"""`Map`: a model over a population, made and called by one object."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import statemap as sm

from .models import LIF


class Linear(eqx.Module):
    params: sm.ParamState
    buffer: sm.State
    shared: sm.NonBatchState

    def __init__(self, size, *, key=None):
        self.params = sm.ParamState(jnp.ones(size) if key is None else jr.normal(key, size))
        self.buffer = sm.State(jnp.zeros(size))
        self.shared = sm.NonBatchState(2.0)

    def __call__(self, states, x):
        return x @ states[self.params], states.set(self.buffer, x)

    def predict(self, states, x):
        return x @ states[self.params], states

    def process(self, states, x, y):
        return (x + y, x * y), states

    def centre(self, states, x):
        return x - jax.lax.pmean(x, "batch"), states


@pytest.fixture(params=["vmap", "pmap"])
def behavior(request):
    return request.param


def made(behavior="vmap", n=8, **kwargs):
    population = sm.Map(Linear, n, in_axes=0, behavior=behavior, **kwargs)
    return population.init_all_states(size=(5,), key=jr.key(0))


X = jnp.arange(40.0).reshape(8, 5)


def test_the_examples_of_the_document(behavior):
    population, states = made(behavior, axis_name="batch")
    weights = states[population.module.params]
    assert weights.shape == (8, 5)
    out, new = population.update(states, X)
    np.testing.assert_allclose(out, (X * weights).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(new[population.module.buffer], X)
    out2, _ = population(states, X)
    np.testing.assert_array_equal(out, out2)
    predictions, _ = population.map("predict", in_axes=0)(states, X)
    np.testing.assert_allclose(predictions, out, rtol=1e-5)
    (total, product), _ = population.map("process", in_axes=(0, None), out_axes=(0, 0))(
        states, X, jnp.ones(5)
    )
    np.testing.assert_array_equal(total, X + 1)
    assert product.shape == (8, 5)

    def custom(module, states, x, s):
        y, states = module.predict(states, x)
        return y * s, states

    scaled, _ = population.map(lambda m, st, x, s: custom(m, st, x, s))(
        states, X, s=jnp.full(8, 2.0)
    )
    np.testing.assert_allclose(scaled, 2 * out, rtol=1e-5)
    only, _ = population.map("__call__", state_axes={0: sm.OfType(sm.ParamState)})(states, X)
    np.testing.assert_allclose(only, out, rtol=1e-5)


def test_axis_name_reaches_initialisation_calls_and_map():
    def make(*, key):
        jax.lax.axis_index("batch")
        return Linear((5,), key=key)

    population = sm.Map(make, 8, axis_name="batch")
    population, states = population.init_all_states(key=0)
    out, _ = population.map("centre")(states, X)
    np.testing.assert_allclose(out, X - X.mean(0), rtol=1e-6)
    with pytest.raises(NameError, match="unbound axis name"):
        population.map("centre", axis_name="other")(states, X)


def test_what_it_shows(behavior):
    population = sm.Map(Linear, 8, state_tag="pop", behavior=behavior)
    assert population.dict_vmap_states is None and population.module is Linear
    assert "no states yet" in repr(population)
    population, states = population.init_all_states(size=(5,))
    by_axis = population.dict_vmap_states
    assert list(by_axis) == [0, None] and len(by_axis[0]) == 2
    assert states[by_axis[None][0]] == 2.0 and by_axis[0][0].shape == (8, 5)
    assert population.init_map_size == 8 and population.behavior == behavior
    assert len(states.select("pop")) == 3 and "params" in repr(population)


def test_axes_of_states():
    population = sm.Map(Linear, 8, init_state_axes={1: sm.ParamState})
    population, states = population.init_all_states(size=(5,))
    assert states[population.module.params].shape == (5, 8)
    out, _ = population(states, X)
    np.testing.assert_array_equal(out, X.sum(1))
    # What `map` says takes precedence for what it matches
    assert (
        population.map("predict", state_axes={None: sm.ParamState})
        .plan(states, X)["params"]
        .axis_in
        == "shared"
    )
    called = sm.Map(Linear, 8, call_state_axes={None: sm.PathContains("shared")})
    called, states = called.init_all_states(size=(5,))
    assert called(states, X)[0].shape == (8,)


def test_the_second_update_traces_nothing(runs, behavior):
    class Counted(Linear):
        def __call__(self, states, x):
            runs.count += 1
            return super().__call__(states, x)

        def predict(self, states, x):
            runs.count += 1
            return super().predict(states, x)

    population, states = sm.Map(Counted, 8, behavior=behavior).init_all_states(size=(5,))
    for _ in range(3):
        _, states = population.update(states, X)
    assert runs.count == 1
    for _ in range(3):
        population.map("predict")(states, X)
    assert runs.count == 2


def test_errors():
    population = sm.Map(Linear, 8)
    for use in (lambda: population(None, X), lambda: population.update(None, X),
                lambda: population.map("predict"), lambda: population.axes):  # fmt: skip
        with pytest.raises(ValueError, match="comes after `init_all_states`"):
            use()
    population, states = population.init_all_states(size=(5,))
    with pytest.raises(AttributeError, match="no method `predct`. Did you mean `predict`"):
        population.map("predct")
    with pytest.raises(ValueError, match="`behavior` is 'vmap' or 'pmap', not 'xmap'"):
        sm.Map(Linear, 8, behavior="xmap")
    with pytest.raises(ValueError, match="leave `spmd_axis_name` out"):
        sm.Map(Linear, 8, behavior="pmap", spmd_axis_name="x")
    with pytest.raises(ValueError, match="`devices` is for `behavior='pmap'`"):
        sm.Map(Linear, 8, devices=jax.devices())
    with pytest.raises(TypeError, match="Right:  sm.Map"):
        sm.Map(Linear((5,)), 8)
    with pytest.raises(TypeError, match="is not a filter"):
        sm.Map(Linear, 8, init_state_axes={0: 3})
    with pytest.raises(ValueError, match="8 devices"):
        sm.Map(Linear, 9, behavior="pmap").init_all_states(size=(5,))


def test_it_is_a_pytree_and_needs_no_call_method():
    class Updates(eqx.Module):
        w: sm.ParamState

        def __init__(self):
            self.w = sm.ParamState(jnp.ones(2))

        def update(self, states, x):
            return states[self.w] * x, states

    population, states = sm.Map(Updates, 3).init_all_states()
    assert population(states, jnp.ones(3))[0].shape == (3, 2)
    leaves, treedef = jax.tree.flatten(population)
    again = jax.tree.unflatten(treedef, leaves)
    assert again(states, jnp.ones(3))[0].shape == (3, 2)
    assert jax.tree.structure(again) == treedef
    jitted = eqx.filter_jit(lambda p, s: p(s, jnp.ones(3)))(population, states)
    assert jitted[0].shape == (3, 2)


def test_random_streams_of_members():
    population, states = sm.Map(LIF, 6).init_all_states(n_in=3, n_out=4, key=jr.key(0))
    spikes, new = population(states, jnp.ones((6, 3)))
    model, expected, axes = sm.vmap2_new_states(
        LIF, dict(n_in=3, n_out=4), key=jr.key(0), axis_size=6
    )
    _, expected = sm.vmap2(model, state_in_axes=axes)(expected, jnp.ones((6, 3)))
    np.testing.assert_array_equal(new[population.module.v], expected[model.v])
    volts, _ = population.map("membrane", in_axes=None)(states, 2.0)
    assert volts.shape == (6, 4) and spikes.shape == (6, 4)
