"""brainstate's States as cells: what they can do, in transforms and outside."""

import brainstate
import jax
import jax.numpy as jnp
import pytest

from statemap import compat
from statemap.compat import _frames


def test_states_are_cells(layers):
    rng = layers.random.RandomState(0)
    assert _frames.is_cell(layers.ShortTermState(0.0)) and isinstance(rng, _frames.Stream)
    assert isinstance(layers._state.NonBatchState(0.0), _frames.Unbatched)
    assert layers.random.DEFAULT in _frames.streams


def test_what_was_made_before(layers):
    compat.uninstall()
    state = brainstate.ShortTermState(jnp.zeros(3))
    compat.install(layers="brainstate")

    @layers.transform.jit
    def step(x):
        state.value = state.value + x

    step(1.0)
    step(1.0)
    compat.uninstall()
    assert state.value.tolist() == [2.0] * 3


def test_an_error_changes_nothing(layers):
    state = layers.ShortTermState(jnp.array(1.0))

    @layers.transform.jit
    def fail():
        state.value = state.value + 1
        raise ArithmeticError("no")

    with pytest.raises(ArithmeticError, match="no"):
        fail()
    assert state.value == 1


@pytest.mark.parametrize("make", ["copy", "replace", "copy_from"])
def test_copies_in_a_transform(layers, make):
    state = layers.ShortTermState(jnp.array(1.0), name="v", tag="a")

    @layers.transform.jit
    def run():
        state.value = state.value + 1
        if make == "copy_from":
            new = layers.ShortTermState(jnp.array(0.0))
            new.copy_from(state)
        else:
            new = getattr(state, make)()
        new.value = new.value * 10
        assert new.tag == {"a"} and new.name == "v"
        return new.value, state.value

    assert run() == (20, 2) and state.value == 2
    assert run() == (30, 3) and state.value == 3


def test_a_copy_has_the_value_alone(layers):
    state = layers.ShortTermState(jnp.array(1.0))
    for new in state.copy(), state.replace():
        new.value = jnp.array(5.0)
        assert state.value == 1 and new.value == 5
    assert state.replace(jnp.array(2.0)).value == 2 and state.value == 1


def test_a_restored_value_is_not_written(layers):
    state = layers.ShortTermState(jnp.array(1.0))

    @layers.transform.jit
    def run():
        state.restore_value(jnp.array(7.0))
        return state.value

    assert run() == 7 and state.value == 1


def test_hooks(layers):
    seen = []
    state = layers.ShortTermState(jnp.array(1.0))
    state.register_hook("write_after", lambda ctx: seen.append(ctx.value))
    state.register_hook("write_before", lambda ctx: None)

    @layers.transform.jit
    def double():
        state.value = state.value * 2

    double()
    assert float(seen[-1]) == 2 and state.value == 2


def test_what_watches_states(layers):
    a, b = layers.ShortTermState(jnp.array(1.0)), layers.ShortTermState(jnp.array(2.0))
    with layers.StateTraceStack() as trace:
        b.value = a.value
        a.restore_value(jnp.array(3.0))
    assert trace.states == [a, b] and trace.been_writen == [False, True]
    assert trace.original_state_values == (1.0, 2.0)
    with layers.catch_new_states("new") as caught:
        layers.transform.vmap_new_states(
            lambda: layers.ShortTermState(jnp.zeros(2)), axis_size=3, state_tag="lanes"
        )
        new = layers.ShortTermState(0.0)
    assert list(caught) == [new] and new.tag == {"new"}
    with layers.check_state_value_tree(), pytest.raises(ValueError, match="tree structure"):
        a.value = (jnp.zeros(1),)


def test_a_tree_that_was_split_in_a_transform(layers):
    net = layers.nn.Linear(3, 2)

    @layers.transform.jit
    def made():
        ref = net.weight.to_state_ref()
        return ref.to_state().value

    assert jax.tree.structure(made()) == jax.tree.structure(net.weight.value)


def test_a_state_that_outlives_its_transform(layers):
    made = []
    layers.transform.jit(lambda: made.append(layers.ShortTermState(jnp.zeros(3) + 1)))()
    with pytest.raises(layers.TraceContextError, match="made under a transform"):
        made[0].value
    made[0].value = jnp.ones(3)
    assert made[0].value.sum() == 3


def test_under_transforms_of_jax(layers):
    """As in brainstate: reading is allowed and writing is not."""
    state = layers.ShortTermState(jnp.array(2.0))
    assert jax.jit(lambda x: x * state.value)(3.0) == 6

    @jax.jit
    def write(x):
        state.value = x

    with pytest.raises(layers.TraceContextError, match="raw JAX transformation"):
        write(1.0)
    assert state.value == 2


def test_seeds_that_are_not_looked_at_yet(layers):
    layers.random.DEFAULT.seed()
    draw = layers.transform.jit(lambda: layers.random.normal())
    assert draw() != draw() and not isinstance(layers.random.DEFAULT.value, jax.core.Tracer)
