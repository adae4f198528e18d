"""Laws, on random programs: other transforms around a mapping, mappings around mappings."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, strategies as st

import statemap as sm

from .programs import assert_states_close, by_axis, check, programs


@given(programs())
def test_under_jit(program):
    check(program, lambda mapping, *args: jax.jit(mapping)(*args))


@given(programs())
def test_under_scan(program):
    def call(mapping, states, *args):
        def body(carry, _):
            out, new = mapping(states, *args)
            return carry, (out, new)

        _, stacked = jax.lax.scan(body, 0, None, length=2)
        return jax.tree.map(lambda x: x[1], stacked)

    check(program, call)


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
