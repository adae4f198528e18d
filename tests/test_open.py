"""Laws that do not hold yet."""

import jax
import jax.numpy as jnp
import pytest

import statemap as sm


def one_by_one(fn, *, in_axes, out_axes, axis_size, axis_name=None):
    """Maps a lane at a time, and stacks what `out_axes` says is shared."""
    return lambda *args: jax.lax.map(lambda args: fn(*args), args)


def test_a_mapping_function_that_stacks_what_lanes_share_is_refused():
    states = sm.States(v=sm.State(jnp.zeros(2)))
    mapping = sm.StatefulMapping(lambda s, x: (x, s.set("v", s["v"] + 1)), mapping_fn=one_by_one)
    with pytest.raises(ValueError, match="`mapping_fn`"):
        mapping(states, jnp.arange(3.0))
