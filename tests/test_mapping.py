"""`StatefulMapping` as an object: what it shows, its plan, its programs, and its caches."""

import functools
import gc
import pickle
import threading
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import statemap as sm
from statemap import _programs

from .models import add, counter, LIF


XS = jnp.arange(3.0)
SHORT = {0: sm.OfType(sm.ShortTermState)}


def test_what_it_shows():
    mapping = sm.vmap2(add, in_axes=0, out_axes=0, state_in_axes=SHORT, axis_name="i", axis_size=3)
    assert mapping.origin_fun is add
    assert (mapping.in_axes, mapping.out_axes) == (0, 0)
    assert (mapping.axis_name, mapping.axis_size) == ("i", 3)
    assert mapping.state_in_axes == SHORT and mapping.state_out_axes == {}
    assert repr(mapping.state_in_axes) == "{0: OfType(ShortTermState)}"
    assert "StatefulMapping(add, in_axes=0" in repr(mapping)
    assert sm.vmap2(add, state_in_axes=sm.ShortTermState).state_in_axes == SHORT


def test_plan_tells_each_state():
    model, states = sm.make_with_states(LIF)(3, 4, key=jr.key(0))
    states = states.merge(sm.States(idle=sm.LongTermState(1.0)))
    plan = sm.vmap2(model, state_out_axes=SHORT).plan(states, jnp.ones((5, 3)))
    assert len(plan) == 4 and [r.path for r in plan] == ["idle", "rng", "v", "weight"]
    assert plan["idle"][3:7] == (False, False, "shared", "shared")
    assert plan["rng"][3:7] == (True, True, "split", "shared")
    assert plan["v"][1:7] == ("ShortTermState", "f32[4]", True, True, "shared", 0)
    assert plan["weight"][3:7] == (True, False, "shared", "shared")
    text = repr(plan)
    for word in ("path", "kind", "axis in", "axis out", "why", "OfType", "split"):
        assert word in text
    with pytest.raises(KeyError, match="nothing"):
        plan["nothing"]


def test_cache_keys_and_jaxprs(runs):
    mapping = sm.vmap2(runs(add), state_in_axes=SHORT)
    states = counter()
    mapping(states, XS)
    key = mapping.get_arg_cache_key(states, XS)
    assert key == mapping.get_arg_cache_key(states, XS + 1)
    assert hash(key) == hash(mapping.get_arg_cache_key(states, XS + 1))
    assert key != mapping.get_arg_cache_key(states, XS.astype(int))
    assert "f32[3]" in repr(key)
    jaxpr = mapping.get_jaxpr_by_cache(key)
    assert [str(eqn.primitive) for eqn in jaxpr.eqns] == ["add"]
    assert runs.count == 1
    with pytest.raises(TypeError, match="is no key of a mapping"):
        mapping.get_jaxpr_by_cache("key")


def test_lower_and_abstract_arguments(runs):
    mapping = sm.vmap2(runs(add), state_in_axes=SHORT)
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    lowered = mapping.lower(counter(), shape)
    assert "add" in lowered.as_text() and lowered.compile() is not None
    abstract = jax.eval_shape(counter)
    assert mapping.plan(abstract, shape)["counter"].axis_out == 0
    mapping(counter(), XS)
    assert runs.count == 1


def test_it_is_a_pytree_with_the_function_as_its_child():
    model = eqx.nn.Linear(2, 2, key=jr.key(0))

    def apply(model, states, x):
        return model(x), states

    mapping = sm.vmap2(jax.tree_util.Partial(apply, model))
    doubled = jax.tree.map(lambda a: 2 * a if eqx.is_array(a) else a, mapping)
    x = jnp.ones((3, 2))
    np.testing.assert_allclose(
        doubled(sm.States(), x)[0], 2 * mapping(sm.States(), x)[0], rtol=1e-6
    )
    out, _ = eqx.filter_jit(lambda m, x: m(sm.States(), x))(mapping, x)
    assert out.shape == (3, 2)
    grads = eqx.filter_grad(lambda m: m(sm.States(), x)[0].sum())(mapping)
    assert grads.origin_fun.args[0].bias.tolist() == [3.0, 3.0]


def test_mappings_made_anew_reuse_what_was_compiled(runs):
    model, states = sm.make_with_states(LIF)(3, 4, key=jr.key(0))
    x = jnp.ones((5, 3))

    class Counted(eqx.Module):
        model: LIF
        offset: jax.Array

        def __call__(self, states, x):
            runs.count += 1
            return self.model(states, x + self.offset)

        def named(self, states, x):
            runs.count += 1
            return x * self.offset, states

    def loop(make):
        runs.count = 0
        for i in range(4):
            make(jnp.array(float(i)))
        return runs.count

    def mapping(fn):
        return sm.vmap2(fn, state_out_axes={0: sm.ShortTermState})

    assert loop(lambda a: mapping(Counted(model, a))(states, x)) == 1  # arrays are inputs
    assert loop(lambda a: mapping(Counted(model, a).named)(states, x)) == 1

    def f(a, states, x):
        runs.count += 1
        return a * x, states

    assert loop(lambda a: mapping(jax.tree_util.Partial(f, a))(states, x)) == 1
    assert loop(lambda a: mapping(functools.partial(f, a))(states, x)) == 0  # equal to that
    assert loop(lambda a: mapping(mapping(functools.partial(f, a)))(states, x[None])) == 0
    # An equal model, made anew, is equal to the first of these
    anew = sm.make_with_states(LIF)(3, 4, key=jr.key(1))[0]
    assert loop(lambda a: mapping(Counted(anew, a))(states, x)) == 0


def test_arrays_in_the_function_are_inputs_and_not_constants():
    big = jnp.arange(10_000.0)
    mapping = sm.vmap2(jax.tree_util.Partial(lambda big, s, x: (x + big.sum(), s), big))
    jaxpr = mapping.get_jaxpr_by_cache(mapping.get_arg_cache_key(sm.States(), XS))
    assert jaxpr.consts == [] and big.shape in [v.aval.shape for v in jaxpr.jaxpr.invars]


def test_other_shapes_dtypes_structures_and_contexts(runs):
    mapping = sm.vmap2(runs(add), state_in_axes=SHORT)
    for n, dtype in [(3, jnp.float32), (4, jnp.float32), (3, jnp.float16), (3, jnp.float32)]:
        states = sm.States(counter=sm.ShortTermState(jnp.zeros(n, dtype)))
        out, new = mapping(states, jnp.ones(n, dtype))
        assert out.shape == (n,) and new["counter"].dtype == dtype
    assert runs.count == 3
    more = counter().merge(sm.States(extra=sm.ParamState(1.0)))
    assert len(mapping(more, XS)[1]) == 2
    assert runs.count == 4


def test_what_is_read_may_depend_on_the_shapes(runs):
    @sm.vmap2
    @runs
    def f(states, x):
        return x + states["a" if x.ndim == 1 else "b"], states

    states = sm.States(a=sm.State(1.0), b=sm.State(2.0))
    for _ in range(3):
        assert f(states, jnp.zeros((2, 2)))[0].tolist() == [[1.0, 1.0]] * 2
        assert f(states, jnp.zeros(2))[0].tolist() == [2.0, 2.0]
    assert runs.count <= 3


def test_a_dead_closure_leaves_the_cache():
    def make():
        array = jnp.ones(3)
        return weakref.ref(array), sm.vmap2(lambda s, x: (x + array.sum(), s))

    gc.collect()
    before = len(_programs._shared)
    ref, mapping = make()
    mapping(sm.States(), XS)
    assert len(_programs._shared) == before + 1
    del mapping
    gc.collect()
    assert len(_programs._shared) == before and ref() is None


def test_caches_hold_no_states_and_are_bounded():
    mapping = sm.vmap2(add, state_in_axes=SHORT)
    states = counter()
    refs = [weakref.ref(states), weakref.ref(states["counter"])]
    out, states = mapping(states, XS)
    del out
    gc.collect()
    assert [r() for r in refs] == [None, None]
    for i in range(_programs._PROGRAMS + 10):
        sm.vmap2(lambda s, x, tag: (x, s))  # not called: nothing is kept
    many = sm.vmap2(lambda s, x, tag: (x, s))
    for i in range(3):
        many(sm.States(), XS, f"tag{i}")
    assert len(many._programs.made) == 3
    cache = _programs.Cache(4)
    for i in range(9):
        cache.add(i, i)
        cache.get(2)  # used again and again, it outlives what came after it
    assert len(cache) == 4 and cache.get(2) == 2 and cache.get(3) is None


@pytest.mark.leaks
def test_one_mapping_in_many_threads(runs):
    mapping = sm.vmap2(runs(add), state_in_axes=SHORT)
    results = {}

    def work(i):
        states = counter(i + 1)
        for _ in range(5):
            _, states = mapping(states, jnp.full(i + 1, float(i)))
        results[i] = states["counter"].tolist()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == {i: [5.0 * i] * (i + 1) for i in range(6)}


def test_contexts_and_models_pickle_with_their_results():
    model, states = sm.make_with_states(LIF)(3, 4, key=jr.key(0))
    model2, states2 = pickle.loads(pickle.dumps((model, states)))
    step = lambda m, s: sm.vmap2(m, state_out_axes={0: sm.ShortTermState})(s, jnp.ones((2, 3)))
    assert eqx.tree_equal(step(model, states), step(model2, states2))


@pytest.mark.parametrize("values", [(1, 1.0, True), (0.0, -0.0), ((1,), (1.0,)), ((0.0,), (-0.0,))])
def test_static_values_that_python_has_equal(values):
    class Model(eqx.Module):
        n: object = eqx.field(static=True)

        def __call__(self, states, x):
            seen.append(repr(self.n))
            return x, states

    def static(states, x, n):
        seen.append(repr(n))
        return x, states

    wanted = [repr(v) for v in values]
    for call in (
        lambda v: sm.vmap2(Model(v))(sm.States(), XS),
        lambda v: sm.vmap2(static, static_argnums=1)(sm.States(), XS, v),
    ):
        seen = []
        for v in values:
            call(v)
        assert seen == wanted


def test_numbers_in_a_container_that_python_has_equal():
    seen = []

    def container(states, x):
        seen.append(type(states["n"]))
        return x, states

    for n in (1, 1.0, True):
        sm.vmap2(container)({"v": sm.State(0.0), "n": n}, XS)
    assert seen == [int, float, bool]


def test_static_arguments_are_resolved_as_jit_resolves_them():
    def power(states, x, n):
        return sum(x**i for i in range(n)), states

    for options in ({"static_argnames": "n"}, {"static_argnums": 1}):
        mapping = sm.vmap2(power, **options)
        assert mapping(sm.States(), XS, 2)[0].tolist() == (1 + XS).tolist()
        assert mapping(sm.States(), XS, n=2)[0].tolist() == (1 + XS).tolist()
    assert sm.vmap2(power, static_argnums=None, static_argnames=None) is not None
    with pytest.raises(TypeError, match="static argument .* is not hashable"):
        sm.vmap2(power, static_argnames="n")(sm.States(), XS, n={})


def test_mappings_and_maps_pickle_after_a_call():
    mapping = sm.vmap2(add, state_in_axes=SHORT)
    population, states = sm.Map(LIF, 2).init_all_states(n_in=2, n_out=2, key=0)
    for _ in range(2):
        again = pickle.loads(pickle.dumps(mapping))
        np.testing.assert_array_equal(again(counter(), XS)[0], mapping(counter(), XS)[0])
        copied = pickle.loads(pickle.dumps(population))
        out = copied(states, jnp.ones((2, 2)))[0]
        np.testing.assert_array_equal(out, population(states, jnp.ones((2, 2)))[0])


def test_the_object_of_a_method_is_not_kept_alive():
    class Simulation:
        def __init__(self):
            self.gain = jnp.ones(3)

        def step(self, states, x):
            return x * self.gain[0], states

    simulation = Simulation()
    ref = weakref.ref(simulation)
    sm.vmap2(simulation.step)(sm.States(), XS)
    del simulation
    gc.collect()
    assert ref() is None
