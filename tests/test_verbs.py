"""Laws of the functions on members of a population, on random populations, to the bit."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from hypothesis import given, settings, strategies as st

import statemap as sm

from .models import leaves_are, LIF
from .populations import bits, indices, populations, same


# Each example compiles many small programs, for shapes of its own.
few = settings(max_examples=max(8, settings.default.max_examples // 3))


def draw_index(data, n, unique=True):
    return data.draw(indices(n, unique))


def numbers(index, n):
    """The members that an index means, as NumPy has it."""
    if not isinstance(index, slice):
        index = np.asarray(index)
        index = index.astype(int) if index.size == 0 else index
    return np.arange(n)[index]


@few
@given(populations(), st.data())
def test_a_lane_is_that_of_numpy(sample, data):
    states, n = sample.states(), sample.size
    index = draw_index(data, n)
    expected = sample.taken(states, numbers(index, n))
    same(sm.lane(states, sample.axes, index), expected)
    if not isinstance(index, slice) and np.asarray(index).dtype != bool and n:
        traced = jax.jit(lambda s, i: sm.lane(s, sample.axes, i))(states, jnp.asarray(index, int))
        same(traced, expected)


@few
@given(populations(), st.data())
def test_what_was_taken_is_put_back(sample, data):
    states, axes, n = sample.states(), sample.axes, sample.size
    index = draw_index(data, n)
    part = sm.lane(states, axes, index)
    same(sm.put(states, axes, index, part), states)
    # And the other way round: what was put is what is taken.
    other = sm.lane(sample.states(seed=1), axes, index)
    there = sm.put(states, axes, index, other)
    same(sm.lane(there, axes, index), other)
    rest = np.setdiff1d(np.arange(n), numbers(index, n))
    same(sample.taken(there, rest), sample.taken(states, rest))
    if not isinstance(index, slice) and np.asarray(index).dtype != bool and n:
        put = jax.jit(lambda s, i, p: sm.put(s, axes, i, p, shared="old"))
        shared_new = sm.put(states, axes, index, other, shared="old")
        same(put(states, jnp.asarray(index, int), other), shared_new)


@few
@given(populations(), st.data())
def test_where_is_a_choice_for_each_member(sample, data):
    n, axes = sample.size, sample.axes
    old, new = sample.states(), sample.states(seed=1)
    mask = np.asarray(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool)
    same(sm.where(np.ones(n, bool), new, old, axes), new)
    same(sm.where(np.zeros(n, bool), new, old, axes), old)
    chosen = sm.where(mask, new, old, axes)
    for k in range(n):
        same(sample.taken(chosen, k), sample.taken(new if mask[k] else old, k))
    traced = jax.jit(lambda m, a, b: sm.where(m, a, b, axes, shared="old"))
    same(traced(mask, new, old), chosen)
    same(sm.put(old, axes, mask, sm.lane(new, axes, mask)), chosen)


@few
@given(populations(), st.lists(st.integers(0, 3), max_size=2))
def test_slices_make_a_whole(sample, cuts):
    states, axes = sample.states(), sample.axes
    cuts = [0, *sorted(min(c, sample.size) for c in cuts), sample.size]
    parts = [sm.lane(states, axes, slice(a, b)) for a, b in zip(cuts, cuts[1:])]
    same(sm.concatenate(parts, axes), states)
    same(sm.concatenate(iter(parts), axes), states)
    joined = jax.jit(lambda ps: sm.concatenate(ps, axes, shared="first"))(parts)
    same(joined, states)


@few
@given(populations())
def test_concatenated_members_are_stacked_members(sample):
    more = 2
    a, b = sample.states(), sample.states(seed=1, size=more)
    both = sm.concatenate([a, b], sample.axes)
    members = sm.unstack(a, sample.axes) + sm.unstack(b, sample.axes)
    assert len(members) == sample.size + more
    same(both, sm.stack(members, sample.axes))
    for k, member in enumerate(members):
        same(sm.lane(both, sample.axes, k), member)
        same(sm.lane(both, sample.axes, k - len(members)), member)


@few
@given(populations())
def test_members_by_a_loop(sample):
    states, axes = sample.states(), sample.axes
    members = sm.unstack(states, axes)
    for mine, expected in zip(members, sample.members(states), strict=True):
        same(mine, expected)
    if members:
        same(sm.stack(members, axes), states)
        same(sm.stack(iter(members), axes), states)
        again = jax.jit(lambda s: sm.stack(sm.unstack(s, axes), axes))(states)
        same(again, states)


@few
@given(populations(sizes=st.sampled_from([1, 3])), st.sampled_from([0, 2]))
def test_broadcast_members_are_alike_but_for_their_streams(sample, n):
    axes = sample.axes
    one = sm.lane(sample.states(), axes, 0)
    states, found = sm.broadcast(one, axes, axis_size=n)
    assert {a for a in found if a is not None} == set(axes)
    for k, member in enumerate(sm.unstack(states, found)):
        fixed = sm.Not(sm.RandomState)
        same(member.select(fixed), one.select(fixed))
        for slot, i in zip(sample.slots, range(len(sample.slots))):
            name = f"s{i}"
            if slot.kind is sm.RandomState and slot.axis is not None:
                keys = one[name].reshape(-1)
                lanes = [jr.split(key, n + 1)[k + 1] for key in keys]
                mine = member[name].reshape(-1)
                assert bits([jr.key_data(x) for x in mine]) == bits([jr.key_data(x) for x in lanes])
            elif slot.kind is sm.RandomState:
                assert (member[name] == one[name]).all()


@few
@given(populations(), st.data())
def test_on_types(sample, data):
    """What a function gives for types are the types of what it gives for arrays."""
    n, axes = sample.size, sample.axes
    states, other = sample.states(), sample.states(seed=1)
    index = draw_index(data, n, unique=False)
    once = draw_index(data, n)
    mask = np.ones(n, bool)
    part = sm.lane(other, axes, once)
    calls = [
        lambda s, o, p: sm.lane(s, axes, index),
        lambda s, o, p: sm.put(s, axes, once, p),
        lambda s, o, p: sm.where(mask, o, s, axes),
        lambda s, o, p: sm.concatenate([s, o], axes),
        lambda s, o, p: sm.unstack(s, axes),
        lambda s, o, p: sm.stack([s, o], {0: ...}) if other else s,
        lambda s, o, p: sm.broadcast(s, {-1: ...}, axis_size=3)[0],
        lambda s, o, p: sm.broadcast(s, {-1: ...}, axis_size=3, key=0)[0],
        lambda s, o, p: sm.reseed(s, 0, axes),
    ]
    types = [jax.eval_shape(lambda x: x, x) for x in (states, other, part)]
    for call in calls:
        try:
            given = call(states, other, part)
        except ValueError:  # contexts that share different values, or none that can have members
            continue
        found = call(*types)
        assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(found))
        assert jax.tree.structure(found) == jax.tree.structure(given)
        assert [(x.shape, x.dtype) for x in jax.tree.leaves(found)] == [
            (x.shape, x.dtype) for x in jax.tree.leaves(given)
        ]


@few
@given(populations(sizes=st.sampled_from([1, 3])), st.data())
def test_a_member_taken_again_has_streams_of_its_own(sample, data):
    states, axes, n = sample.states(), sample.axes, sample.size
    index = data.draw(st.lists(st.integers(-n, n - 1), max_size=6))
    fresh = sm.lane(states, axes, index)
    alike = sm.lane(states, axes, index, streams="same")
    traced = jax.jit(lambda s, i: sm.lane(s, axes, i))(states, jnp.asarray(index, jnp.int32))
    same(traced, fresh)
    same(alike, sample.taken(states, np.asarray(index, int)))
    same(fresh.select(sm.Not(sm.RandomState)), alike.select(sm.Not(sm.RandomState)))
    for i, slot in enumerate(sample.slots):
        if slot.kind is not sm.RandomState or slot.axis is None:
            continue
        only = sample.axes
        taken = [k % n for k in index]
        for place, k in enumerate(taken):
            copy = taken[:place].count(k)
            mine = sm.lane(fresh, only, place)[f"s{i}"].reshape(-1)
            for key, found in zip(sm.lane(states, only, k)[f"s{i}"].reshape(-1), mine):
                if copy:
                    key = jr.fold_in(jr.fold_in(key, 0x636F7079), copy)
                assert bits(jr.key_data(key)) == bits(jr.key_data(found))


@few
@given(populations(sizes=st.sampled_from([1, 3])), st.integers(1, 4))
def test_new_streams_depend_on_the_path_alone(sample, fewer):
    axes = sample.axes
    new = sm.reseed(sample.states(), 7, axes)
    random = new.select(sm.RandomState)
    same(random, sm.reseed(sample.states(seed=5, shared=5).select(sm.RandomState), jr.key(7), axes))
    fixed = sm.Not(sm.RandomState)
    assert leaves_are(sm.reseed(new, 1).select(fixed), new.select(fixed))
    fewer = min(fewer, sample.size)
    less = sm.reseed(sm.lane(sample.states(), axes, slice(fewer)), 7, axes)
    same(less, sm.lane(new, axes, slice(fewer)))
    for i, slot in enumerate(sample.slots):
        if slot.kind is sm.RandomState:
            assert str(jr.key_impl(new[f"s{i}"])) == slot.impl
    keys = [
        bytes(row) for _, s in random for row in np.asarray(s.data).reshape(-1, s.data.shape[-1])
    ]
    assert len(set(keys)) == len(keys)


def test_a_mapped_call_is_a_loop_over_members():
    def made(seed, n=3):
        return sm.vmap2_new_states(LIF, dict(n_in=3, n_out=2), key=jr.key(seed), axis_size=n)

    model, states, axes = made(0)
    _, other, _ = made(1)
    _, one = sm.make_with_states(LIF)(3, 2, key=jr.key(2))
    like, found = sm.broadcast(one, {0: ...}, axis_size=3)
    step = sm.vmap2(model, state_in_axes=axes, state_out_axes=axes)
    for made_so in (
        sm.lane(states, axes, [2, 0, 2]),
        sm.put(states, axes, [1, 2], sm.lane(other, axes, [0, 1])),
        sm.where(np.array([True, False, True]), other, states, axes),
        sm.concatenate([sm.lane(states, axes, slice(1)), sm.lane(other, axes, slice(2))], axes),
        sm.reseed(states, 3, axes),
        like,
    ):
        xs = jnp.arange(9.0).reshape(3, 3)
        out, new = step(made_so, xs)
        for k, member in enumerate(sm.unstack(made_so, axes)):
            expected, after = model(member, xs[k])
            np.testing.assert_array_equal(out[k], expected)
            for name in ("weight", "v"):
                np.testing.assert_allclose(new[name][k], after[name], rtol=1e-6)
            assert new["rng"][k] == after["rng"]
    assert set(found[0]) == set(axes[0])
