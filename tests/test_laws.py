"""Laws, on random programs: a mapping is a Python loop over lanes, whatever is around it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, strategies as st

import statemap as sm

from .programs import check, programs


@given(programs())
def test_a_mapping_is_a_loop_over_lanes(program):
    check(program)


@given(programs(), st.integers(1, 4))
def test_in_chunks(program, chunk_size):
    check(program, chunk_size=chunk_size)


@given(programs(lanes=st.sampled_from([2, 4])))
def test_over_devices(program):
    check(program, devices=jax.devices()[:2])


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
