"""The functions on members of a population under transforms and over meshes, what they cost, what
counts as the same, and what they refuse.
"""

import contextlib

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import statemap as sm
from statemap._indices import last_copies

from .models import leaves_are, LIF
from .populations import same


AXES = {0: [sm.ShortTermState, sm.RandomState]}
KEEP = np.array([True, False, True])


def population(n=3, seed=0, t=0.0):
    v = jnp.arange(float(2 * n)).reshape(n, 2) + 10 * seed
    return sm.States(
        v=sm.ShortTermState(v),
        rng=sm.RandomState(jr.split(jr.key(seed), n)),
        w=sm.ParamState(jnp.ones(2)),
        t=sm.NonBatchState(t),
    )


def test_gradients_are_those_of_plain_jax():
    old, new = population(), population(seed=1)
    index = jnp.array([2, 0])

    def by_verbs(x):
        states = old.set("v", x)
        states = sm.where(KEEP, states.set("v", jnp.sin(x)), states, AXES)
        part = sm.lane(states, AXES, index)
        states = sm.put(states, AXES, index, part.set("v", part["v"] ** 2))
        both = sm.concatenate([states, sm.stack(sm.unstack(new, AXES), AXES)], AXES)
        return jnp.sum(jnp.cos(both["v"]))

    def by_hand(x):
        x = jnp.where(KEEP[:, None], jnp.sin(x), x)
        x = x.at[index].set(x[index] ** 2)
        return jnp.sum(jnp.cos(jnp.concatenate([x, new["v"]])))

    for grad in (jax.grad, lambda f: jax.jit(jax.grad(f))):
        np.testing.assert_allclose(grad(by_verbs)(old["v"]), grad(by_hand)(old["v"]), rtol=1e-6)


def test_under_scan_and_vmap():
    def step(states, i):
        part = sm.lane(states, AXES, i)
        states = sm.put(states, AXES, i, part.set("v", part["v"] + 1.0))
        new = states.set("v", 2 * states["v"])
        return sm.where(states["v"][:, 0] > 3.0, new, states, AXES), part["v"]

    states, seen = population(), []
    for i in (0, 2, 2):
        states, v = step(states, i)
        seen.append(v)
    scanned, vs = jax.lax.scan(step, population(), jnp.array([0, 2, 2]))
    same(scanned, states)
    np.testing.assert_array_equal(vs, jnp.stack(seen))
    several = jax.vmap(lambda i: sm.lane(population(), AXES, i))(jnp.array([1, 0]))
    same(several, jax.vmap(lambda s: s)(several))
    np.testing.assert_array_equal(several["v"], population()["v"][jnp.array([1, 0])])


def equations(fn, *args):
    return len(jax.make_jaxpr(fn)(*args).eqns)


def test_where_touches_what_was_written():
    old = population()
    new = old.set("v", old["v"] + 1.0)
    chosen = sm.where(KEEP, new, old, AXES)
    names = [name for name in ("rng", "w", "t")]
    assert leaves_are(
        [chosen.select(sm.PathContains(n)) for n in names],
        [old.select(sm.PathContains(n)) for n in names],
    )
    assert sm.where(KEEP, old, old, AXES)["v"] is old["v"]

    def one(mask, states):
        return sm.where(mask, states.set("v", states["v"] + 1.0), states, AXES)

    def by_hand(mask, states):
        v = states["v"]
        return states.set("v", jnp.where(mask.reshape(3, 1), v + 1.0, v))

    assert equations(one, KEEP, old) == equations(by_hand, KEEP, old)
    assert equations(lambda m, s: sm.where(m, s, s, AXES), KEEP, old) == 0
    assert equations(lambda s: sm.lane(s, {0: sm.ShortTermState}, slice(3)), old) <= 1


def test_put_of_traced_numbers():
    states, part = population(), population(seed=1)
    put = jax.jit(lambda i: sm.put(states, AXES, i, part))
    twice = put(jnp.array([1, 1, -2]))  # the last counts
    np.testing.assert_array_equal(twice["v"][1], part["v"][2])
    np.testing.assert_array_equal(twice["v"][::2], states["v"][::2])
    assert twice["rng"][1] == part["rng"][2]
    outside = put(jnp.array([3, -4, 0]))
    np.testing.assert_array_equal(outside["v"][0], part["v"][2])
    np.testing.assert_array_equal(outside["v"][1:], states["v"][1:])
    one = jax.jit(lambda i: sm.put(states, AXES, i, sm.lane(part, AXES, 0)))
    np.testing.assert_array_equal(one(-4)["v"], states["v"])
    np.testing.assert_array_equal(one(-3)["v"][0], part["v"][0])


def test_of_those_that_repeat_the_last_is_left():
    for numbers, expected in (([1, 1, 2, 1], [4, 4, 2, 1]), ([4, 0, 4], [4, 0, 4]), ([], [])):
        found = jax.jit(lambda at: last_copies(at, 4))(jnp.array(numbers, jnp.int32))
        assert found.tolist() == expected


def test_inside_a_lane():
    """Members of a population inside a lane, by another mapping around it."""
    inner = {0: sm.ShortTermState}
    states = sm.States(v=sm.ShortTermState(jnp.arange(6.0).reshape(2, 3)), w=sm.ParamState(1.0))

    def f(states, i):
        part = sm.lane(states, inner, i)
        states = sm.put(states, inner, i, part.set("v", part["v"] + states["w"]))
        return part["v"], sm.where(KEEP, states, states.set("v", -states["v"]), inner)

    mapping = sm.vmap2(f, state_in_axes={0: sm.ShortTermState})
    for _ in range(2):
        out, new = mapping(states, jnp.array([0, 2]))
    assert out.tolist() == [0.0, 5.0] and new["w"] is states["w"]
    assert new["v"].tolist() == [[1.0, -1.0, 2.0], [3.0, -4.0, 6.0]]
    assert not mapping.plan(states, jnp.array([0, 2]))["w"].written


def test_arrays_of_numpy():
    states = population()
    loaded = jax.tree.map(np.asarray, states)
    part = sm.lane(loaded, AXES, [2, 2])
    same(part, sm.lane(states, AXES, [2, 2]))
    same(sm.put(loaded, AXES, [0, 1], part), sm.put(states, AXES, [0, 1], part))
    same(sm.where(KEEP, loaded, states, AXES), states)
    same(sm.concatenate([loaded, states], AXES), sm.concatenate([states, states], AXES))
    same(sm.stack(sm.unstack(loaded, AXES), AXES), states)
    twice = lambda states: sm.broadcast(states, {0: ...}, axis_size=2)[0]
    same(twice(loaded), twice(states))
    same(sm.reseed(loaded, 0, AXES), sm.reseed(states, 0, AXES))


def test_lane_of_traced_numbers_clamps_and_then_counts():
    states = population()
    taken = jax.jit(lambda i: sm.lane(states, AXES, i))(jnp.array([9, 2, -1, -9], jnp.int8))
    same(taken, sm.lane(states, AXES, [2, 2, -1, 0]))
    inside = jax.jit(lambda i: sm.lane(states, AXES, [i, 0]))(2)
    same(inside, sm.lane(states, AXES, [2, 0]))


def test_a_copy_draws_nothing_that_its_member_draws():
    states = sm.lane(population(), AXES, [0, 0, 0])
    firsts = jr.split(population()["rng"][0], 8)
    keys = {bytes(np.asarray(jr.key_data(k))) for k in firsts}
    for copy in (1, 2):
        assert bytes(np.asarray(jr.key_data(states["rng"][copy]))) not in keys


# What is shared


def test_the_same_is_to_the_bit():
    nan = jnp.array([jnp.nan, 0.0])
    a, b = population().set("w", nan), population(seed=1).set("w", nan + 0.0)
    for joined in (sm.concatenate([a, b], AXES), sm.where(KEEP, b, a, AXES)):
        assert joined["w"] is nan
    with pytest.raises(ValueError, match="`t` .* is shared by all members, and .* different"):
        sm.concatenate([population(t=0.0), population(t=-0.0)], AXES)


def test_shared_values_that_differ():
    old, new = population(t=1.0), population(seed=1, t=2.0)
    part = sm.lane(new, AXES, [0])
    ways = r'(?s)`t` \(NonBatchState\).*`shared="new"` or `shared="old"`.*\.set\("t"'
    with pytest.raises(ValueError, match=ways):
        sm.where(KEEP, new, old, AXES)
    with pytest.raises(ValueError, match=ways):
        sm.put(old, AXES, [0], part)
    with pytest.raises(ValueError, match='`populations.0.` and `populations.1.`.*shared="last"'):
        sm.concatenate([old, new], AXES)
    for shared, t in (("new", 2.0), ("old", 1.0)):
        assert sm.where(KEEP, new, old, AXES, shared=shared)["t"] == t
        assert sm.put(old, AXES, [0], part, shared=shared)["t"] == t
    for shared, t in (("first", 1.0), ("last", 2.0)):
        assert sm.concatenate([old, new], AXES, shared=shared)["t"] == t
    with pytest.raises(ValueError, match='`shared` is "new", "old" or None, not'):
        sm.where(KEEP, new, old, AXES, shared="first")
    with pytest.raises(ValueError, match='`shared` is "first", "last" or None, not'):
        sm.concatenate([old, new], AXES, shared="old")


def test_traced_arrays_that_are_not_known_to_be_one():
    old, new = population(), population(seed=1)
    with pytest.raises(ValueError, match="`t` .* while a program is traced it can't be told"):
        jax.jit(lambda a, b: sm.where(KEEP, a, b, AXES))(new, old)
    jax.jit(lambda a, b: sm.where(KEEP, a, b, AXES, shared="old"))(new, old)
    jax.jit(lambda a: sm.where(KEEP, a.set("v", -a["v"]), a, AXES))(old)
    types = jax.eval_shape(lambda: (old, new))
    sm.where(KEEP, *types, AXES)


def test_a_shared_stream_that_moved_on():
    axes = {0: sm.ShortTermState}
    old = population().select(sm.Not(sm.RandomState)).merge(sm.States(rng=sm.RandomState(0)))
    _, new = sm.random.normal(old, "rng")
    assert sm.where(KEEP, new, old, axes)["rng"] == new["rng"]
    assert sm.put(old, axes, 0, sm.lane(new, axes, 0))["rng"] == new["rng"]
    assert sm.where(KEEP, new, old, axes, shared="old")["rng"] == old["rng"]
    with pytest.raises(ValueError, match="`rng` .* is shared"):
        sm.concatenate([old, new], axes)


# Which states are the same


def made(n=3, seed=0, n_out=2, make=LIF, **kwargs):
    kwargs = dict(n_in=3, n_out=n_out) | kwargs
    return sm.vmap2_new_states(make, kwargs, key=jr.key(seed), axis_size=n)


def test_a_population_made_later_joins():
    model, states, axes = made()
    _, later, _ = made(2, seed=1)
    both = sm.concatenate([states, later], axes)
    assert both[model.v].shape == (5, 2) and both._slots is states._slots
    tagged = sm.vmap2_new_states(
        LIF, dict(n_in=3, n_out=2), key=jr.key(0), axis_size=2, state_tag="late"
    )[1]
    assert tagged._slots is not states._slots
    same(sm.concatenate([states, tagged], axes), sm.concatenate([states, made(2)[1]], axes))


class Other(LIF):
    """Another class with the same states."""


def test_states_of_another_model_are_refused():
    _, states, axes = made()
    with pytest.raises(ValueError, match="`rng` has another model in `new` than in `old`: `Other`"):
        sm.where(KEEP, made(make=Other)[1], states, axes)
    with pytest.raises(
        ValueError,
        match=r"`v` of `populations\[1\]` does not fit .*: expected an "
        r"array of dtype float32 and shape \(members, 2\), got .* \(3, 4\)",
    ):
        sm.concatenate([states, made(n_out=4)[1]], axes)
    with pytest.raises(ValueError, match=r"`rng` of `part` .* shape \(\), got .* shape \(1,\)"):
        sm.put(states, axes, 0, sm.lane(states, axes, [0]))
    part = sm.lane(states, axes, 0)
    part = part.select(sm.Not(sm.ShortTermState)).merge(sm.States(x=sm.State(1.0)))
    with pytest.raises(ValueError, match="`part` has other .* lacks `v`, and it has `x` besides"):
        sm.put(states, axes, 0, part)


X = jnp.ones(3)
UNLIKE = {
    "another kind": (sm.ParamState(X), sm.State(X), "kind .*: ParamState instead of State"),
    "another implementation": (
        sm.RandomState(jr.split(jr.key(0, impl="rbg"), 3)),
        sm.RandomState(jr.split(jr.key(0), 3)),
        "`impl` in `new` than in `old`: 'rbg' instead of 'threefry2x32'",
    ),
    "another structure": (sm.State({"a": X}), sm.State([X]), "structure in `new` than in `old`"),
    "another function": (
        sm.State([X, jnp.tanh]),
        sm.State([X, jnp.sin]),
        r"`\[1\]` in `new` than in `old`: <.*tanh> instead of <.*sin>",
    ),
    "an array": (
        sm.State([X, X, jnp.tanh]),
        sm.State([X, jnp.sin, jnp.tanh]),
        r"`\[1\]` in `new` than in `old`: an array instead of <.*sin>",
    ),
    "arrays alone": (
        sm.State([X, jnp.tanh]),
        sm.State([X, X]),
        r"structure .*: \[.*tanh.* instead of arrays alone",
    ),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_states_that_are_not_alike_are_refused(name):
    new, old, match = UNLIKE[name]
    with pytest.raises(ValueError, match=f"The state `x` has another {match}"):
        sm.where(KEEP, sm.States(x=new), sm.States(x=old), {0: ...})


# What is refused


ONE = sm.States(v=sm.ShortTermState(jnp.arange(3.0)))
REFUSED = {
    "a bool": (lambda: sm.lane(ONE, {0: ...}, True), TypeError, "not by True"),
    "a float": (lambda: sm.lane(ONE, {0: ...}, 1.0), TypeError, "an integer, a slice, integers"),
    "text": (lambda: sm.lane(ONE, {0: ...}, "v"), TypeError, "an integer, a slice, integers"),
    "ragged": (lambda: sm.lane(ONE, {0: ...}, [[0], [1, 2]]), TypeError, "an integer, a slice"),
    "two dimensions": (lambda: sm.lane(ONE, {0: ...}, [[0, 1]]), TypeError, "in one dimension"),
    "bounds": (lambda: sm.lane(ONE, {0: ...}, slice(0.0, 1)), TypeError, "integers as bounds"),
    "outside": (lambda: sm.lane(ONE, {0: ...}, [0, 3]), IndexError, "no member 3: .* has 3"),
    "put outside": (lambda: sm.put(ONE, {0: ...}, -4, ONE), IndexError, "There is no member -4"),
    "a short mask": (lambda: sm.lane(ONE, {0: ...}, [True]), IndexError, r"shape \(1,\) .* 3 mem"),
    "where": (lambda: sm.where([True], ONE, ONE, {0: ...}), IndexError, r"shape \(1,\) .* 3 mem"),
    "one bool": (lambda: sm.where(True, ONE, ONE, {0: ...}), IndexError, r"shape \(\) .* 3 mem"),
    "no bools": (lambda: sm.where([1, 0, 1], ONE, ONE, {0: ...}), TypeError, "(?s)of bools.*Right"),
    "a random key": (lambda: sm.lane(ONE, {0: ...}, jr.key(0)), TypeError, "an integer, a slice"),
    "a random mask": (lambda: sm.where(jr.key(0), ONE, ONE, {0: ...}), TypeError, "array of bools"),
    "ragged mask": (
        lambda: sm.where([[True], [True, False]], ONE, ONE, {0: ...}),
        TypeError,
        "A mask is an array of bools",
    ),
    "no mask": (lambda: sm.where([], ONE, ONE, {0: ...}), IndexError, r"shape \(0,\) .* 3 members"),
    "repeated": (
        lambda: sm.put(ONE, {0: ...}, [1, -2], sm.lane(ONE, {0: ...}, [0, 1])),
        ValueError,
        "Member 1 is to be written twice",
    ),
    "fewer": (
        lambda: sm.put(ONE, {0: ...}, [1], sm.lane(ONE, {0: ...}, [0, 1])),
        ValueError,
        "`index` is for 1 members, and `part` holds 2",
    ),
    "other sizes": (
        lambda: sm.where(KEEP, sm.lane(ONE, {0: ...}, [0]), ONE, {0: ...}),
        ValueError,
        "`new` holds 1 members, and `old` 3",
    ),
    "streams": (lambda: sm.lane(ONE, {0: ...}, 0, "new"), ValueError, '"fresh" or "same", not'),
    "no members": (lambda: sm.lane(ONE, {}, 0), ValueError, "it has no members"),
    "none to put": (lambda: sm.put(ONE, {}, 0, ONE), ValueError, "it has no members"),
    "none to choose": (lambda: sm.where([], ONE, ONE, {}), ValueError, "it has no members"),
    "none to join": (lambda: sm.concatenate([ONE], {}), ValueError, "it has no members"),
    "no population": (lambda: sm.concatenate([], {0: ...}), ValueError, "at least one population"),
    "none to stack": (lambda: sm.stack([ONE, ONE], {}), ValueError, "nothing to stack"),
    "none to repeat": (lambda: sm.broadcast(ONE, {}, axis_size=2), ValueError, "nothing to broad"),
    "no such axis": (
        lambda: sm.broadcast(ONE, {2: ...}, axis_size=2),
        ValueError,
        r"`v` has shape \(3,\), and can't have its members on axis 2",
    ),
    "minus one": (lambda: sm.broadcast(ONE, {0: ...}, axis_size=-1), ValueError, "`axis_size` is"),
    "several keys": (lambda: sm.reseed(ONE, jr.split(jr.key(0))), ValueError, "takes one key"),
    "no key": (lambda: sm.reseed(ONE, 0.5), TypeError, "integer seed, not 0.5"),
    "half a key": (
        lambda: sm.reseed(ONE, np.zeros(3, np.uint32)),
        TypeError,
        r"integer seed, not an array of dtype uint32 and shape \(3,\)",
    ),
    "shared by its kind": (
        lambda: sm.lane(population(), {0: sm.NonBatchState}, 0),
        ValueError,
        "gives the state `t` the axis 0, and a NonBatchState never has lanes",
    ),
    "stacked populations": (
        lambda: sm.stack([ONE, sm.lane(ONE, {0: ...}, [0, 1])], {0: ...}),
        ValueError,
        r"(?s)`v` differs in shape: \(3,\) .*\(2,\).*Right:  sm.concatenate\(populations, axes\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    call, error, match = REFUSED[name]
    before = np.asarray(ONE["v"]).copy()
    with pytest.raises(error, match=match):
        call()
    np.testing.assert_array_equal(ONE["v"], before)


LABELS = ONE.labels({...: "fast"})


@pytest.mark.parametrize(
    "call",
    [
        lambda: sm.lane(LABELS, {0: ...}, 0),
        lambda: sm.put(LABELS, {0: ...}, 0, ONE),
        lambda: sm.put(ONE, {0: ...}, [0, 1, 2], LABELS),
        lambda: sm.where(KEEP, LABELS, ONE, {0: ...}),
        lambda: sm.where(KEEP, ONE, LABELS, {0: ...}),
        lambda: sm.concatenate([ONE, LABELS], {0: ...}),
        lambda: sm.stack([LABELS, LABELS], {0: ...}),
        lambda: sm.unstack(LABELS, {0: ...}),
        lambda: sm.broadcast(LABELS, {0: ...}, axis_size=2),
        lambda: sm.reseed(LABELS, 0),
        lambda: sm.vmap2(lambda states, x: (x, states))(LABELS, jnp.arange(3.0)),
    ],
)
def test_labels_are_no_population(call):
    with pytest.raises(TypeError, match="The state `v` of .* holds 'fast' .*`states.labels`"):
        call()


def test_a_mask_may_be_a_list_of_traced_bools_or_empty():
    new = ONE.set("v", -ONE["v"] - 1)
    chosen = jax.jit(lambda m: sm.where(m, new, ONE, {0: ...}))([True, False, True])
    assert chosen["v"].tolist() == [-1.0, 1.0, -3.0]
    none = sm.lane(ONE, {0: ...}, [])
    same(sm.where([], none, none, {0: ...}), none)


def test_what_is_refused_of_traced_indices():
    with pytest.raises(TypeError, match="an integer, a slice, integers"):
        jax.eval_shape(lambda i: sm.lane(ONE, {0: ...}, [i, None]), 0)
    trace = lambda f, *args: jax.eval_shape(f, *args)
    with pytest.raises(TypeError, match="(?s)A traced mask can't choose members.*sm.where"):
        trace(lambda m: sm.lane(ONE, {0: ...}, m), KEEP)
    with pytest.raises(TypeError, match="(?s)A slice with traced bounds.*jnp.arange"):
        trace(lambda i: sm.lane(ONE, {0: ...}, slice(i, i + 2)), 0)
    with pytest.raises(TypeError, match="dtype float32"):
        trace(lambda i: sm.lane(ONE, {0: ...}, i), 0.5)
    with pytest.raises(IndexError, match="the population has 0 members"):
        trace(lambda i: sm.lane(sm.lane(ONE, {0: ...}, []), {0: ...}, i), 0)


# Meshes


@pytest.fixture(params=["auto", "explicit", "set_mesh"])
def mesh(request):
    kind = AxisType.Auto if request.param == "auto" else AxisType.Explicit
    mesh = jax.make_mesh((4, 2), ("lane", "feature"), axis_types=(kind,) * 2)
    with jax.set_mesh(mesh) if request.param == "set_mesh" else contextlib.nullcontext():
        yield mesh


def test_over_a_mesh(mesh):
    def laid(states):
        specs = {"v": P("lane", "feature"), "rng": P("lane"), "w": P("feature"), "t": P()}
        put = lambda x, path: jax.device_put(x, NamedSharding(mesh, specs[path]))
        data = {s.path[0]: x for s, x in zip(states._slots.entries, states._values)}
        treedef = jax.tree.structure(states)
        return jax.tree.unflatten(treedef, [put(data[k], k) for k in sorted(data)])

    def spec(states):
        found = states["v"].sharding.spec
        return tuple(found) + (None,) * (states["v"].ndim - len(found))

    plain = [population(8), population(8, seed=1)]
    old, new = map(laid, plain)
    mask = np.arange(8) % 3 == 0
    index = [0, 5, 5, 6]
    calls = {
        "four": (lambda a, b: sm.lane(a, AXES, index), ("lane", "feature")),
        "half": (lambda a, b: sm.lane(a, AXES, slice(4)), ("lane", "feature")),
        "three": (lambda a, b: sm.lane(a, AXES, [1, 0, 2]), (None, "feature")),
        "one": (lambda a, b: sm.lane(a, AXES, 3), ("feature",)),
        "put": (
            lambda a, b: sm.put(a, AXES, [5, 2], sm.lane(b, AXES, [0, 1])),
            ("lane", "feature"),
        ),
        "put one": (lambda a, b: sm.put(a, AXES, 5, sm.lane(b, AXES, 0)), ("lane", "feature")),
        "where": (lambda a, b: sm.where(mask, b, a, AXES), ("lane", "feature")),
        "both": (lambda a, b: sm.concatenate([a, b], AXES), ("lane", "feature")),
        "again": (lambda a, b: sm.stack(sm.unstack(a, AXES), AXES), (None, "feature")),
        "more": (lambda a, b: sm.broadcast(a, {0: ...}, axis_size=2)[0], (None, "lane", "feature")),
        "reseed": (lambda a, b: sm.reseed(a, 0, AXES), ("lane", "feature")),
    }
    for name, (call, expected) in calls.items():
        found, wanted = call(old, new), call(*plain)
        assert spec(found) == expected, name
        same(found, wanted)
        if mesh.axis_types[0] == AxisType.Explicit and name not in (
            "put",
            "put one",
            "where",
            "both",
        ):
            assert spec(jax.jit(lambda a: call(a, None))(old)) == expected, name
    # What is not on the mesh joins what is.
    for call in (calls["where"][0], calls["both"][0], calls["put"][0]):
        same(call(old, plain[1]), call(*plain))
        assert spec(call(old, plain[1])) == ("lane", "feature")


def test_where_no_numbers_come_out_over_a_mesh(mesh):
    lay = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
    v, empty = jnp.arange(16.0).reshape(8, 2), jnp.zeros((8, 0))
    states = sm.States(v=sm.ShortTermState(lay(v, "lane", "feature")))
    none = sm.lane(states, {0: ...}, [])
    assert np.asarray(none["v"]).shape == (0, 2)
    assert jax.jit(lambda s: sm.lane(s, {0: ...}, []))(states)["v"].shape == (0, 2)
    same(sm.put(states, {0: ...}, [], none), states)
    for spec in ((), ("lane",)):
        states = sm.States(v=sm.ShortTermState(lay(empty, *spec)))
        for index, shape in ((1, (0,)), ([1, 1, 2], (3, 0)), (slice(2), (2, 0)), ([], (0, 0))):
            take = lambda states, i=index: sm.lane(states, {0: ...}, i)
            assert take(states)["v"].shape == jax.jit(take)(states)["v"].shape == shape


def test_over_devices():
    model, states, axes = made(8)
    step = sm.pmap2(model, state_in_axes=axes, state_out_axes=axes)
    alone = sm.vmap2(model, state_in_axes=axes, state_out_axes=axes)
    xs = jnp.ones((8, 3))
    _, new = step(states, xs)
    _, expected = alone(states, xs)
    mask = np.arange(8) < 3
    kept = sm.where(mask, new, states, axes)
    same(kept, sm.where(mask, expected, states, axes))
    assert kept["v"].sharding == new["v"].sharding
    assert step(kept, xs)[1]["rng"].sharding == new["rng"].sharding


def test_eight_hundred_members_in_few_programs():
    members = [sm.States(v=sm.ShortTermState(jnp.full(2, float(i)))) for i in range(800)]
    states = sm.stack(members, {0: ...})
    np.testing.assert_array_equal(states["v"][:, 0], np.arange(800.0))
    for i, member in enumerate(sm.unstack(states, {0: ...})):
        assert float(member["v"][0]) == i
    joined = sm.concatenate(
        [sm.lane(states, {0: ...}, slice(k, k + 1)) for k in range(20)], {0: ...}
    )
    np.testing.assert_array_equal(joined["v"][:, 0], np.arange(20.0))
