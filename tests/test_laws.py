"""Laws, on random programs: a mapping is a Python loop over lanes, whatever is around it."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

import statemap as sm

from .programs import assert_states_close, by_axis, Program, programs


def run(program: Program, call=lambda f, *a: f(*a), **options):
    """Checks a call of a program's mapping against the loop; whether it was refused."""
    states, args = program.inputs()
    snapshot = copy.deepcopy(states)
    expected = program.loop(states, args)
    mapping = program.mapping(**options)
    if isinstance(expected, str):
        with pytest.raises(sm.BatchAxisError, match=r"The state `s\d`"):
            call(mapping, states, *args)
        assert states == snapshot
        return
    for _ in range(2):  # cold and warm
        out, new = call(mapping, states, *args)
        np.testing.assert_allclose(out["acc"], expected[0]["acc"], rtol=2e-5, atol=2e-5)
        assert_states_close(new, expected[1])
    assert states == snapshot  # the old context is still valid, and as it was


@given(programs())
def test_a_mapping_is_a_loop_over_lanes(program):
    run(program)


@given(programs(), st.integers(1, 4))
def test_in_chunks(program, chunk_size):
    run(program, chunk_size=chunk_size)


@given(programs(lanes=st.sampled_from([2, 4])))
def test_over_devices(program):
    run(program, devices=jax.devices()[:2])


@given(programs(policy=st.just("ignore"), lanes=st.just(4)), st.integers(1, 3))
def test_a_lane_does_not_depend_on_the_number_of_lanes(program, fewer):
    states, args = program.inputs()
    if isinstance(program.loop(states, args), str):
        return
    less = dataclasses.replace(program, lanes=fewer)
    some = slice(0, fewer)
    ins, _ = less.axes()
    fewer_states = sm.lane(states, ins, some) if ins else states
    fewer_args = [
        a if axis is None else jnp.moveaxis(jnp.moveaxis(a, axis, 0)[some], 0, axis)
        for a, axis in zip(args, program.arg_axes)
    ]
    out, _ = program.mapping()(states, *args)
    out2, _ = less.mapping()(fewer_states, *fewer_args)
    np.testing.assert_allclose(out["acc"][some], out2["acc"], rtol=1e-6, atol=1e-6)


@given(programs(policy=st.just("ignore")))
def test_unstack_then_stack_is_the_identity(program):
    states, args = program.inputs()
    ins, _ = program.axes()
    if ins:
        assert sm.stack(sm.unstack(states, ins), ins) == states


@given(programs())
def test_under_jit(program):
    run(program, lambda mapping, *args: jax.jit(mapping)(*args))


@given(programs())
def test_under_scan(program):
    def call(mapping, states, *args):
        def body(carry, _):
            out, new = mapping(states, *args)
            return carry, (out, new)

        _, stacked = jax.lax.scan(body, 0, None, length=2)
        return jax.tree.map(lambda x: x[1], stacked)

    run(program, call)


@given(programs())
def test_what_is_not_touched_is_the_same_to_the_bit(program):
    states, args = program.inputs()
    extra = sm.States(idle=sm.ShortTermState(jnp.arange(3.0)), spare=sm.RandomState(9))
    states = states.merge(extra)
    _, written = program.differs()
    try:
        _, new = program.mapping()(states, *args)
    except sm.BatchAxisError:
        return
    for (path, before), (_, after) in zip(states, new):
        moved = [s for s in program.slots if s.name == path[0] and s.axis_in is not None]
        if path[0] not in written and not moved:
            assert after.data is before.data


@given(programs(policy=st.just("ignore")))
def test_under_grad(program):
    states, args = program.inputs()
    if isinstance(program.loop(states, args), str):
        return
    params, rest = states.partition(sm.ParamState, ...)
    mapping = program.mapping()

    def loss(fn):
        def total(params):
            out, new = fn(rest.merge(params), *args)
            new = new.select(sm.Not(sm.RandomState))
            return out["acc"].sum() + sum(jnp.sum(x) for x in jax.tree.leaves(new))

        return total

    actual = jax.grad(loss(mapping))(params)
    expected = jax.grad(loss(lambda states, *args: program.loop(states, list(args))))(params)
    assert_states_close(actual, expected)


@given(programs(policy=st.just("ignore")), st.integers(1, 3))
def test_two_levels(program, members):
    """A map over members around the program's map, against a loop over members."""
    states, args = program.inputs()
    expected_one = program.loop(states, args)
    if isinstance(expected_one, str):
        return
    population = jax.vmap(lambda i: jax.tree.map(lambda x: x + i.astype(x.dtype), states))(
        jnp.arange(members)
    )
    inner = program.mapping()
    outer = sm.vmap2(
        lambda states, *args: inner(states, *args),
        in_axes=None,
        state_in_axes={0: ...},
        state_out_axes={0: ...},
        axis_size=members,
    )
    out, new = outer(population, *args)
    for i in range(members):
        alone = jax.tree.map(lambda x: x[i], population)
        expected = program.loop(alone, args)
        np.testing.assert_allclose(out["acc"][i], expected[0]["acc"], rtol=2e-5, atol=2e-5)
        lane = jax.tree.map(lambda x: x[i], new)
        assert_states_close(lane, expected[1])


@given(programs(policy=st.just("ignore")))
def test_the_plan_says_what_happens(program):
    states, args = program.inputs()
    mapping = program.mapping()
    differs, written = program.differs()
    try:
        plan = mapping.plan(states, *args)
    except sm.BatchAxisError:
        return
    _, new = mapping(states, *args)
    for slot in program.slots:
        row = plan[slot.name]
        if slot.name not in written and slot.axis_in is None:
            assert (row.written, row.axis_out) == (False, "shared")
        axis = slot.axis_out if slot.listed_out else slot.axis_in
        if slot.name in written and axis is not None:
            assert row.written and row.axis_out == axis
        changed = new[slot.name] is not states[slot.name]
        assert row.written == changed


@given(programs(), st.integers(0, 9))
def test_new_states_made_in_lanes_are_those_made_one_by_one(program, seed):
    def make(*, key):
        return {
            slot.name: slot.kind(jax.random.normal(jax.random.fold_in(key, i), slot.shape))
            for i, slot in enumerate(program.slots)
        } | {f"r{i}": sm.RandomState(jax.random.fold_in(key, 100 + i)) for i, _ in enumerate("ab")}

    wanted = {s.name: s.axis_out for s in program.slots if s.axis_out is not None}
    _, states, axes = sm.vmap2_new_states(
        make, key=seed, axis_size=program.lanes, state_out_axes=by_axis(wanted)
    )
    keys = jax.random.split(jax.random.key(seed), program.lanes)
    alone = [sm.make_with_states(make)(key=key)[1] for key in keys]
    assert_states_close(sm.stack(alone, axes), states)
    for member, expected in zip(sm.unstack(states, axes), alone):
        assert_states_close(member, expected)
