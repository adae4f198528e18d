"""Cells that are made in lanes, and `map`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from statemap import compat
from statemap.compat import (
    nn,
    NonBatchState,
    ParamState,
    random,
    ShortTermState,
    State,
    TraceContextError,
    transform,
)
from statemap.compat._frames import Cell as AnyCell, read, Unbatched, write


class Cell(nn.Module):
    def init_state(self, size=3):
        self.w = ParamState(jnp.arange(1.0, size + 1))
        self.v = ShortTermState({"a": jnp.zeros(2), "b": (jnp.zeros(()),)})
        self.t = NonBatchState(jnp.zeros(()))

    def update(self, x):
        return self.w.value * x


@pytest.mark.parametrize(
    "axes",
    [{0: ..., 1: ParamState}, {1: ParamState, 0: ...}, {1: ParamState, 0: True}, {1: ParamState}],
)
def test_what_matches_everything_takes_what_no_other_entry_names(axes):
    cell = Cell()
    made = transform.vmap2_new_states(cell, {}, axis_size=4, state_out_axes=axes)
    assert made == {1: [cell.w], 0: [cell.v], None: [cell.t]}
    assert cell.w.value.shape == (3, 4) and cell.v.value["a"].shape == (4, 2)


def test_the_rest_may_be_on_another_axis():
    cell = Cell()
    axes = {-1: ..., None: ShortTermState}
    made = transform.vmap2_new_states(cell, {}, axis_size=4, state_out_axes=axes)
    assert made == {-1: [cell.w], None: [cell.v, cell.t]}
    assert cell.w.value.shape == (3, 4) and cell.v.value["a"].shape == (2,)


def test_a_tag_of_brainstates_says_that_a_cell_has_no_lanes():
    class Delay(nn.Module):
        def init_state(self):
            self.pointer = ShortTermState(jnp.zeros((), int), tag="INIT_NO_BATCHING")

    delay = Delay()
    assert transform.vmap2_new_states(delay, {}, axis_size=4) == {None: [delay.pointer]}
    assert delay.pointer.value.shape == ()
    nn.vmap_init_all_states(delay, axis_size=4)
    assert delay.pointer.value.shape == ()


@jax.tree_util.register_pytree_node_class
class Quantity:
    """A value with a unit, which arrays are not made of."""

    def __init__(self, mantissa, unit):
        self.mantissa, self.unit = mantissa, unit

    def tree_flatten(self):
        return (self.mantissa,), self.unit

    @classmethod
    def tree_unflatten(cls, unit, leaves):
        return cls(*leaves, unit)

    def __array__(self, *args, **kwargs):
        raise TypeError("it has a unit")


def test_values_may_be_any_pytrees():
    class Membrane(nn.Module):
        def init_state(self):
            self.v = State(Quantity(jnp.ones(2), "mV"))
            self.n = State(3)

        def update(self):
            self.v.value = Quantity(2 * self.v.value.mantissa, "mV")
            return self.v.value

    one, many = Membrane(), nn.Map(Membrane(), 4, {1: State}, in_axes=None, out_axes=1)
    transform.vmap2_new_states(one, {}, axis_size=4)
    assert one.v.value.unit == "mV" and one.v.value.mantissa.shape == (4, 2)
    assert one.n.value.tolist() == [3] * 4
    with pytest.raises(compat.BatchAxisError, match="shape .. in a lane"):
        many.init_all_states()  # `n` has but one axis
    many.init_state_axes = {1: lambda path, cell: cell.numel() > 1}
    many.init_all_states()
    out = many()
    assert out.unit == "mV" and out.mantissa.tolist() == [[2.0] * 4] * 2


class Foreign(AnyCell):
    """A cell of another class than the shim's."""

    def __init__(self, value, name=None, tag=None):
        self._value, self._name, self.tag, self._been_writen = value, name, tag, False
        self._born()
        for catcher in compat._frames.local.catchers:
            catcher.append(self)

    value = property(read, lambda self, value: write(self, value))

    def add_tag(self, tag):
        self.tag = {tag}


class ForeignUnbatched(Unbatched, Foreign):
    pass


def test_cells_of_other_classes_are_made_in_lanes():
    class Made(nn.Module):
        def init_state(self):
            self.v = Foreign(jnp.zeros(2))
            self.t = ForeignUnbatched(jnp.zeros(2))

    made = Made()
    axes = {1: Foreign}
    with pytest.raises(ValueError, match="give `axis_size`"):
        transform.vmap2_new_states(made, {}, state_out_axes=axes)
    by_axis = transform.vmap2_new_states(made, {}, "tag", 4, axes)
    assert by_axis == {1: [made.v], None: [made.t]} and made.v.tag == {"tag"}
    assert made.v.value.shape == (2, 4) and made.t.value.shape == (2,)


def test_the_function_may_be_left_out_as_brainstate_does():
    class Missing:
        pass

    for left_out in ({}, {"fun": None}, {"fun": Missing()}):
        decorate = transform.vmap_new_states(axis_size=3, state_tag="t", **left_out)
        made = []
        decorate(lambda x: made.append(State(x)))(jnp.arange(3.0))
        assert made[0].value.tolist() == [0, 1, 2] and made[0].tag == {"t"}


def test_new_cells_of_what_is_no_module():
    class Plain:
        def init_all_states(self, fails=False):
            self.w = ParamState(random.normal(size=2))
            assert not fails, "on purpose"

    plain = Plain()
    transform.vmap2_new_states(plain, {}, axis_size=3)
    before = plain.w
    assert before.value.shape == (3, 2)
    with pytest.raises(AssertionError, match="on purpose"):
        transform.vmap2_new_states(plain, {"fails": True}, axis_size=3)
    assert plain.w is before


def test_new_cells_that_are_excluded_have_no_lanes():
    made = []

    def make(x):
        made[:] = ShortTermState(jnp.arange(2.0)), ParamState(x + jnp.arange(2.0))
        return made[1].value

    kept = lambda path, cell: isinstance(cell, ShortTermState)
    out = transform.vmap_new_states(make, state_to_exclude=kept)(jnp.arange(3.0))
    shared, lanes = made
    assert shared.value.tolist() == [0, 1] and (lanes.value == out).all() and out.shape == (3, 2)
    # Where lanes give one values of their own, there is none that it could have.
    transform.vmap_new_states(make, state_to_exclude=ParamState)(jnp.arange(3.0))
    assert made[0].value.shape == (3, 2)
    with pytest.raises(TraceContextError, match="its value is gone"):
        made[1].value


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 10])
def test_map_in_batches_is_vmap2_a_few_rows_at_a_time(batch_size):
    rows = jnp.arange(7.0)
    own, last, total = (ShortTermState(x) for x in (jnp.ones(7), jnp.zeros(2), jnp.zeros(())))
    calls = State(jnp.zeros((), int))

    def f(x):
        own.value = own.value + x  # has a value for each row
        last.value = jnp.array([1.0, -1.0]) * x  # is given one
        calls.value = calls.value + 1  # the same in each row
        return random.normal() + x * total.value

    random.seed(1)
    out = transform.map(f, rows, batch_size=batch_size)
    assert own.value.tolist() == (1 + rows).tolist()
    assert last.value.tolist() == [[i, -i] for i in range(7)]
    assert calls.value == 1 and total.value == 0
    random.seed(1)
    noise = transform.vmap2(lambda x: random.normal(), axis_size=7)(rows)
    np.testing.assert_allclose(out, noise, rtol=1e-6)
    total.value = jnp.asarray(2.0)
    jitted = transform.jit(lambda: transform.map(f, rows, batch_size=batch_size))
    own.value, last.value = jnp.ones(7), jnp.zeros(2)
    random.seed(1)
    np.testing.assert_allclose(jitted(), noise + 2 * rows, rtol=1e-6)
    assert own.value.tolist() == (1 + rows).tolist() and last.value.shape == (7, 2)


def test_map_without_batches_is_a_loop():
    total = ShortTermState(jnp.zeros(()))

    def f(x):
        total.value = total.value + x
        return total.value

    assert transform.map(f, jnp.arange(4.0)).tolist() == [0, 1, 3, 6] and total.value == 6


def test_mistakes_in_map():
    with pytest.raises(ValueError, match=r"the same length; their\s+shapes are \[\(3,\), \(2,\)\]"):
        transform.map(jnp.add, jnp.ones(3), jnp.ones(2))
    for wrong in (0, -1, True):
        with pytest.raises(
            ValueError, match=f"`batch_size` is a positive number of rows, .*{wrong}"
        ):
            transform.map(jnp.sin, jnp.ones(3), batch_size=wrong)
