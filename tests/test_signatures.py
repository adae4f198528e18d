"""Signatures: what tells one program of a mapping from another, and what a call takes in."""

import gc
import weakref

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import statemap as sm
from statemap._cache import Cache


XS = jnp.arange(3.0)
ALL = {"state_in_axes": {0: ...}}


def vectors(n=3, **fields):
    return sm.States({k: sm.ShortTermState(jnp.full(n, v)) for k, v in fields.items()})


def add_all(states, x):
    return x, states.update({p: states[p] + x for p, _ in states})


def test_a_context_of_the_same_shapes_and_other_names():
    mapping = sm.vmap2(add_all, **ALL)
    for _ in range(3):
        for one in (vectors(a=1.0, b=2.0), vectors(c=3.0, d=4.0), vectors(b=5.0, a=6.0)):
            _, new = mapping(one, XS)
            assert [p for p, _ in new] == [p for p, _ in one]
            for path, _ in one:
                assert new[path].tolist() == (one[path] + XS).tolist()


def test_the_same_name_and_another_kind():
    seen = []

    def f(states, x):
        ((_, state),) = states
        seen.append(type(state))
        return x, states

    mapping = sm.vmap2(f, state_in_axes={0: sm.ParamState})
    kinds = (sm.ShortTermState, sm.ParamState, sm.LongTermState)
    for _ in range(2):
        for kind in kinds:
            given = sm.States(a=kind(XS))
            _, new = mapping(given, XS)
            ((_, state),) = new
            assert type(state) is kind
            expected = 0 if kind is sm.ParamState else "shared"
            assert mapping.plan(given, XS)["a"].axis_in == expected
    assert seen == list(kinds)


def test_a_number_at_a_second_shape(runs):
    mapping = sm.vmap2(runs(lambda s, x, scale: (x * scale, s)))
    for n in (3, 4, 3):
        for scale in (2.0, 3.0, 5):
            out, _ = mapping(sm.States(), jnp.ones(n), scale)
            assert out.shape == (n,) and (out == scale).all()
    assert runs.count == 4  # by the number's type and the shape


@pytest.mark.parametrize("as_argument", [False, True])
def test_a_state_of_which_the_shape_alone_is_read(as_argument):
    def f(states, x):
        return x * states["buf"].shape[0], states.set("v", states["v"] + x)

    mapping = sm.vmap2(f, state_in_axes={0: "v" if as_argument else sm.ShortTermState})
    states = sm.States(v=sm.ShortTermState(XS, tag="v"), buf=sm.LongTermState(jnp.zeros(5)))
    bigger = sm.States(v=sm.ShortTermState(XS, tag="v"), buf=sm.LongTermState(jnp.zeros(7)))
    for _ in range(2):
        for given, n in ((states, 5), (bigger, 7), (bigger, 7), (states, 5)):
            for _ in range(3):
                out, given = mapping(given, jnp.ones(3))
                assert out.tolist() == [float(n)] * 3
    assert mapping.lower(states, XS).in_tree.num_leaves == 2  # `buf` does not go in


@pytest.mark.parametrize("donate", [False, True])
def test_signatures_that_write_other_states(donate):
    def f(states, x):
        name = "a" if x.ndim else "b"
        return None, states.set(name, states[name] + x.sum())

    mapping = sm.vmap2(f, donate=donate, **ALL)
    states = vectors(a=0.0, b=0.0, c=7.0)
    one, two = jnp.ones(3), jnp.ones((3, 2))
    for k, x in enumerate((one, two, two, one, two, one, one)):
        before, arrays = states, {n: states[n] for n in "abc"}
        _, states = mapping(states, x)
        written = "a" if x.ndim == 2 else "b"
        for name, array in arrays.items():
            assert array.is_deleted() is (donate and name == written)
            assert (states[name] is array) is (name != written)
        if donate:
            with pytest.raises(sm.DonatedStatesError, match="reused its memory"):
                before["c"]
    assert [states[n][0] for n in "abc"] == [6.0, 4.0, 7.0]


def donated(lowered):
    return [info.donated for info in jax.tree.leaves(lowered.args_info)]


def test_what_is_only_written_is_not_donated_in():
    mapping = sm.vmap2(lambda s, x: (s["b"], s.set("a", x)), donate=True, **ALL)
    lowered = mapping.lower(vectors(a=0.0, b=1.0), XS)
    assert donated(lowered) == [False, False]
    assert lowered.compile().memory_analysis().alias_size_in_bytes == 0
    both = sm.vmap2(lambda s, x: (s["b"], s.set("a", s["a"] + x)), donate=True, **ALL)
    lowered = both.lower(vectors(a=0.0, b=1.0), XS)
    assert sorted(donated(lowered)) == [False, False, True]
    assert lowered.compile().memory_analysis().alias_size_in_bytes == 12
    states = vectors(a=0.0, b=1.0)
    a, b = states["a"], states["b"]
    mapping(states, XS)
    assert not a.is_deleted() and not b.is_deleted()


def test_the_key_of_a_split_stream_is_donated():
    def f(states, x):
        noise, states = sm.random.normal(states, "r")
        return x + noise, states

    mapping = sm.vmap2(f, donate=True)
    states = sm.States(r=sm.RandomState(0), idle=sm.RandomState(1))
    lowered = mapping.lower(states, XS)
    assert sorted(donated(lowered)) == [False, True]
    assert lowered.compile().memory_analysis().alias_size_in_bytes == 8
    for _ in range(3):
        ((_, idle), (_, r)) = states
        _, states = mapping(states, XS)
        assert r.data.is_deleted() and not idle.data.is_deleted()


def test_donated_arguments_tell_programs_apart():
    f = lambda s, x, y: ((x + 1, y + 2), s)
    expected = {(): [False, False], (0,): [True, False], (1,): [False, True], (0, 1): [True, True]}
    for _ in range(2):
        for nums, flags in expected.items():
            mapping = sm.StatefulMapping(f, donate_argnums=nums)
            x, y = XS + 0, XS + 1
            assert sorted(donated(mapping.lower(sm.States(), x, y))) == sorted(flags)
            out, _ = mapping(sm.States(), x, y)
            assert out[0].tolist() == (XS + 1).tolist() and out[1].tolist() == (XS + 3).tolist()
            assert [x.is_deleted(), y.is_deleted()] == flags


def test_keywords_in_any_order_are_one_trace(runs):
    mapping = sm.vmap2(runs(lambda s, *, a, b, c=None: (a - b, s)))
    for _ in range(2):
        for given in ({"a": XS, "b": XS + 1}, {"b": XS + 1, "a": XS}):
            assert mapping(sm.States(), **given)[0].tolist() == [-1.0] * 3
    assert runs.count == 1
    key = mapping.get_arg_cache_key(sm.States(), a=XS, b=XS)
    assert key == mapping.get_arg_cache_key(sm.States(), b=XS, a=XS)


def test_cache_keys_of_what_python_has_equal():
    mapping = sm.vmap2(lambda s, x, n: (x, s), static_argnums=1)
    keys = [mapping.get_arg_cache_key(sm.States(), XS, n) for n in (1, 1.0, True)]
    loose = sm.vmap2(lambda s, x, n: (x, s))
    more = [loose.get_arg_cache_key(sm.States(), XS, (n,)) for n in (1, 1.0, True, "1")]
    for some in (keys, more):
        assert len(set(some)) == len(some)
    assert keys[0] == mapping.get_arg_cache_key(sm.States(), XS, 1)
    assert loose.get_jaxpr_by_cache(more[0]).jaxpr is not None


def test_a_cache_drops_what_was_used_longest_ago():
    cache = Cache(4)
    for k in "abcd":
        cache.add(k, k)
    assert cache.get("a") == "a"  # now `b` was used longest ago
    cache.add("e", "e")
    assert [k for k in "abcde" if cache.get(k)] == ["a", "c", "d", "e"]
    assert cache.add("c", "other") == "c"
    cache.replace("c", "new")
    for k in "fgh":
        cache.add(k, k)
    assert list(cache.items) == ["c", "f", "g", "h"] and cache.get("c") == "new"


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_arrays_of_four_generations_die(chunk_size):
    mapping = sm.vmap2(add_all, chunk_size=chunk_size, **ALL)
    states, generations = vectors(a=0.0, b=1.0), []
    for k in range(5):
        generations.append([weakref.ref(states["a"]), weakref.ref(states["b"])])
        out, states = mapping(states, XS + k)
        del out
    gc.collect()
    assert [[r() for r in refs] for refs in generations] == [[None, None]] * 5


def test_donation_under_grad_of_the_states():
    mapping = sm.vmap2(add_all, donate=True, **ALL)
    states = vectors(a=2.0, b=3.0)

    def loss(states):
        _, new = mapping(states, XS)
        _, new = mapping(new, XS)
        return (new["a"] * new["b"]).sum()

    for _ in range(2):
        grads = jax.grad(loss)(states)
        np.testing.assert_array_equal(grads["a"], 3 + 2 * XS)
        np.testing.assert_array_equal(grads["b"], 2 + 2 * XS)
        jax.jit(jax.grad(loss))(states)
        assert states["a"].tolist() == [2.0] * 3  # the context is alive
    _, new = mapping(states, XS)
    assert new["a"].tolist() == (2 + XS).tolist()


def compiled_of(mapping):
    return [p.jitted._cache_size() + p.donating._cache_size() for p in
            mapping._programs.made.items.values()]  # fmt: skip


def test_unplaced_arguments_compile_once_over_devices(runs):
    mapping = sm.pmap2(runs(add_all), **ALL)
    states, x = vectors(8, a=0.0), np.ones(8, np.float32)
    for k in range(4):
        given = (jnp.asarray(x), x, jax.device_put(x, jax.devices()[3]))[k % 3]
        out, states = mapping(states, given)
    assert runs.count == 1 and compiled_of(mapping) == [1]
    assert states["a"].tolist() == [4.0] * 8


def test_constant_outputs_over_devices_lie_where_the_lanes_do():
    def f(states, x):
        return {"const": jnp.ones(2), "static": "a", "one": 3.0}, states.set("a", jnp.zeros(()))

    out, new = sm.pmap2(f, **ALL)(vectors(8, a=1.0), jnp.ones(8))
    assert out["const"].sharding.spec == out["one"].sharding.spec == P("lanes")
    assert new["a"].sharding.spec == P("lanes") and out["static"] == "a"
    alike, _ = sm.pmap2(f, out_axes=None, **ALL)(vectors(8, a=1.0), jnp.ones(8))
    assert alike["const"].sharding.spec == P() and len(alike["const"].sharding.device_set) == 8


def test_a_string_before_an_array_on_axis_1_over_devices():
    f = lambda s, how, x: (x.sum() if how == "sum" else x.max(), s)
    x = jr.normal(jr.key(0), (3, 8))
    mapping = sm.pmap2(f, in_axes=(0, 1))
    for _ in range(2):
        np.testing.assert_allclose(mapping(sm.States(), "sum", x)[0], x.sum(0), rtol=1e-5)
        np.testing.assert_array_equal(mapping(sm.States(), "max", x)[0], x.max(0))
    assert mapping(sm.States(), "sum", x)[0].sharding.spec == P("lanes")


SETTINGS = {
    "x64": (jax.enable_x64, False, True),
    "precision": (jax.default_matmul_precision, "default", "highest"),
    "promotion": (jax.numpy_dtype_promotion, "strict", "standard"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_changed_settings_trace_again_and_are_right(name, runs):
    setting, one, other = SETTINGS[name]

    def g(x):
        y = jnp.asarray(np.arange(3.0)) + 1.0
        dot = jnp.dot(y, y)
        return x + dot.astype(x.dtype), dot

    def f(states, x):
        return g(x), states.set("a", states["a"] + x)

    mapping, by_hand = sm.vmap2(runs(f), **ALL), jax.jit(jax.vmap(g))
    for _ in range(2):
        states = vectors(a=0.0)
        for value in (one, other, other, one):
            with setting(value):
                (out, dot), states = mapping(states, XS)
                expected, dot_expected = by_hand(XS)
                assert dot.dtype == dot_expected.dtype, value
                np.testing.assert_array_equal(out, expected)
                jaxpr = str(mapping.get_jaxpr_by_cache(mapping.get_arg_cache_key(states, XS)))
                assert ("HIGHEST" in jaxpr) is (value == "highest")
                assert ("f64" in jaxpr) is (value is True)
    assert runs.count == 2
    assert states["a"].tolist() == (4 * XS).tolist()
