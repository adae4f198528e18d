"""Cells: what a State does outside of transforms."""

import copy
import pickle

import jax.numpy as jnp
import numpy as np
import pytest

from statemap import compat


def test_value_name_and_tags():
    cell = compat.ShortTermState(jnp.zeros(3), name="v", tag="a", unit="mV")
    cell.add_tag("b")
    assert (cell.name, cell.tag, cell.unit, cell.stack_level) == ("v", {"a", "b"}, "mV", 0)
    cell.name = "w"
    assert cell.name == "w"
    cell.value += 1
    assert cell.value.tolist() == [1, 1, 1]
    assert cell.numel() == 3
    assert repr(cell).startswith("ShortTermState(value=f32[3], name='w', tag=")
    assert compat.State(cell).value is cell.value
    assert compat.maybe_state(cell) is cell.value and compat.maybe_state(3) == 3


def test_kinds():
    assert issubclass(compat.ParamState, compat.LongTermState)
    assert issubclass(compat.BatchState, compat.LongTermState)
    for kind in (compat.HiddenState, compat.DelayState, compat.NonBatchState):
        assert issubclass(kind, compat.ShortTermState)
    hidden = compat.HiddenState(jnp.zeros((2, 3)))
    assert hidden.varshape == (2, 3) and hidden.num_state == 1
    with pytest.raises(TypeError, match="HiddenState is a single array, not 1.0"):
        compat.HiddenState(1.0)
    unit = pytest.importorskip("brainunit")
    assert compat.HiddenState(jnp.zeros((2, 3)) * unit.mV).varshape == (2, 3)
    fake = compat.FakeState(1, name="x")
    fake.value = 2
    assert fake.value == 2 and fake.name == "x" and not isinstance(fake, compat.State)
    assert repr(fake) == "FakeState(value=2)"


def test_a_state_as_value_is_refused():
    a, b = compat.State(1.0), compat.State(2.0)
    with pytest.raises(ValueError, match="can't be a State.\nWrong:  a.value = b"):
        a.value = b
    with pytest.raises(ValueError, match="can't be a State; give its `.value`"):
        a.restore_value(b)
    assert a.value == 1.0


def test_structure_is_checked_where_brainstate_checks_it():
    cell = compat.State({"a": 1.0})
    cell.value = {"a": 1.0, "b": 2.0}
    with compat.check_state_value_tree():
        with compat.check_state_value_tree(False):
            cell.value = {"a": 1.0}
        with pytest.raises(ValueError, match="of this State has the structure"):
            cell.value = [1.0]
    with pytest.raises(ValueError, match="was given one of the structure"):
        cell.restore_value([1.0])
    assert cell.value == {"a": 1.0}
    cell.restore_value({"a": 3.0})
    assert cell.value == {"a": 3.0}
    with compat.check_state_jax_tracer():
        cell.value = {"a": 4.0}


def test_copies():
    cell = compat.ParamState(jnp.ones(2), name="w", tag="t")
    twin = cell.copy()
    twin.value = jnp.zeros(2)
    twin.add_tag("u")
    assert cell.value.sum() == 2 and cell.tag == {"t"}
    other = cell.replace(jnp.full(2, 3.0), name="x")
    assert (type(other), other.name, other.value.sum()) == (compat.ParamState, "x", 6)
    assert cell.replace(twin) is twin
    with pytest.raises(ValueError, match="A ParamState can't be replaced by a State"):
        cell.replace(compat.State(0))
    cell.copy_from(twin)
    assert cell.value.sum() == 0 and cell.tag == {"t", "u"}
    with pytest.raises(ValueError, match="can't be copied from a State"):
        cell.copy_from(compat.State(0))
    assert cell.value_call(jnp.exp).tolist() == [1, 1]
    cell.increase_stack_level()
    cell.decrease_stack_level()
    cell.decrease_stack_level()
    assert cell.stack_level == 0


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_pickle_and_deepcopy(clone):
    cell = compat.ShortTermState({"a": jnp.ones(2), "b": np.zeros(1)}, name="v", tag="t")
    again = clone(cell)
    assert (again.name, again.tag, type(again)) == ("v", {"t"}, compat.ShortTermState)
    again.value = {"a": 2 * again.value["a"], "b": again.value["b"]}
    assert again.value["a"].sum() == 4 and cell.value["a"].sum() == 2


def test_catching_new_cells():
    with compat.catch_new_states("outer") as outer:
        a = compat.State(0)
        with compat.catch_new_states("inner", compat.ParamState) as inner:
            b, c = compat.ShortTermState(0), compat.ParamState(0)
    assert outer.get_states() == [a, b, c] and inner.get_states() == [b]
    assert b.tag == {"outer", "inner"} and c.tag == {"outer"}
    assert outer.get_by_tag("inner") == [b] and len(outer) == 3 and outer[0] is a and a in outer
    assert outer.get_state_values() == [0, 0, 0]
    outer.remove(a)
    assert a not in outer and list(outer) == [b, c]
    outer.clear()
    assert not len(outer) and "NewStateCatcher" in repr(outer)


def test_traces():
    a, b = compat.State(1.0), compat.ParamState(2.0)
    with compat.StateTraceStack("outer") as trace:
        b.value = a.value + b.value
        with compat.StateTraceStack() as inner:
            a.value = 5.0
    assert trace.states == [a, b] and trace.been_writen == [True, True]
    assert inner.get_write_states() == (a,) and inner.get_read_states() == ()
    with compat.StateTraceStack() as more:
        assert b.value == 3
    assert more.get_read_states(True) == (b,) and more.get_write_states(True) == (None,)
    assert more.get_read_state_values() == (3.0,) and inner.get_write_state_values() == (5.0,)
    both = inner + more
    assert both.states == [a, b] and both.been_writen == [True, False]
    assert both.state_subset(compat.ParamState) == [b] and both.get_state_values() == (5.0, 3.0)
    trace.recovery_original_values()
    assert (a.value, b.value) == (1.0, 2.0)
    both.assign_state_vals([7.0, 8.0])
    assert (a.value, b.value) == (7.0, 8.0)
    with pytest.raises(ValueError, match="2 cells and 1 values"):
        both.assign_state_vals([7.0])
    first, second = compat.StateTraceStack(), compat.StateTraceStack()
    first.__enter__()
    second.__enter__()
    with pytest.raises(RuntimeError, match="left before another"):
        first.__exit__(None, None, None)
    second.__exit__()
    first.__exit__()


def test_errors_are_brainstates():
    assert issubclass(compat.BatchAxisError, (compat.BrainStateError))
    assert issubclass(compat.BatchAxisError, ValueError)
    assert issubclass(compat.TraceContextError, compat.BrainStateError)


def test_unknown_names_say_so():
    for module in (compat, compat.transform, compat.nn):
        with pytest.raises(AttributeError, match="has no `no_such_name`"):
            module.no_such_name
