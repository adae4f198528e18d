"""What watches cells: `catch_new_states`, `StateTraceStack`, `check_state_value_tree`. (Their
arguments are those of [brainstate](https://brainstate.readthedocs.io).)
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from ._frames import local, peek
from .util.filter import Predicate, to_predicate


class NewStateCatcher(list[Any]):
    """The cells that were made under [`statemap.compat.catch_new_states`][], in their order."""

    def __init__(self, state_tag: str | None = None, state_to_exclude: Any = None):
        super().__init__()
        self.state_tag = state_tag
        self.state_to_exclude: Predicate = to_predicate(state_to_exclude)

    def append(self, state: Any) -> None:
        """Takes note of a cell, and gives it the tag."""
        if state not in self and not self.state_to_exclude((), state):
            super().append(state)
            if self.state_tag is not None:
                state.add_tag(self.state_tag)

    def get_states(self) -> list[Any]:
        """The cells."""
        return list(self)

    def get_state_values(self) -> list[Any]:
        """Their values."""
        return [state.value for state in self]

    values: property = property(get_state_values)

    def get_by_tag(self, tag: str) -> list[Any]:
        """Those with a tag."""
        return [state for state in self if state.tag and tag in state.tag]

    def remove(self, state: Any) -> None:
        """Forgets a cell, if it is one of these."""
        if state in self:
            super().remove(state)

    def __repr__(self) -> str:
        return f"NewStateCatcher({list(self)})"


@contextlib.contextmanager
def catch_new_states(
    state_tag: str | None = None, state_to_exclude: Any = None
) -> Iterator[NewStateCatcher]:
    """Collects the cells that are made in its block, but for those that a filter matches, and
    gives them a tag.
    """
    catcher = NewStateCatcher(state_tag, state_to_exclude)
    local.catchers.append(catcher)
    try:
        yield catcher
    finally:
        local.catchers[:] = [c for c in local.catchers if c is not catcher]


@contextlib.contextmanager
def check_state_value_tree(val: bool = True) -> Iterator[None]:
    """In its block, a cell refuses a value whose pytree has another structure."""
    local.tree_checks.append(val)
    try:
        yield
    finally:
        local.tree_checks.pop()


@contextlib.contextmanager
def check_state_jax_tracer(val: bool = True) -> Iterator[None]:
    """Does nothing: a write that would leave a tracer in a cell is always refused."""
    del val
    yield


class StateTraceStack:
    """Takes note of the cells that are read and written in its block. Those that were written
    are no longer among the read ones.
    """

    def __init__(self, name: str | None = None):
        self.name = name
        self.states: list[Any] = []
        self.been_writen: list[bool] = []  # brainstate's spelling
        self.original_state_values: list[Any] = []

    def __enter__(self) -> "StateTraceStack":
        local.recorders.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        if not local.recorders or local.recorders[-1] is not self:
            raise RuntimeError(
                "A StateTraceStack is left before another that was entered after it."
            )
        local.recorders.pop()

    def _note(self, state: Any, written: bool, value: Any) -> None:
        if state not in self.states:
            self.states.append(state)
            self.been_writen.append(False)
            self.original_state_values.append(value)
        self.been_writen[self.states.index(state)] |= written

    def read_its_value(self, state: Any) -> None:
        """Takes note of a cell."""
        self._note(state, False, peek(state))

    def write_its_value(self, state: Any) -> None:
        """Takes note of a cell that is written."""
        self._note(state, True, peek(state))

    def _choose(self, written: bool, replace: bool) -> tuple[Any, ...]:
        found = [s if w == written else None for s, w in zip(self.states, self.been_writen)]
        return tuple(s for s in found if replace or s is not None)

    def get_read_states(self, replace_writen: bool = False) -> tuple[Any, ...]:
        """The cells that were only read; if the others are replaced, with None for each of them."""
        return self._choose(False, replace_writen)

    def get_write_states(self, replace_read: bool = False) -> tuple[Any, ...]:
        """The cells that were written; if the others are replaced, with None for each of them."""
        return self._choose(True, replace_read)

    def get_state_values(self) -> tuple[Any, ...]:
        """The present values of all cells."""
        return _values(self.states)

    def get_read_state_values(self, replace_writen: bool = False) -> tuple[Any, ...]:
        """The values of `get_read_states`."""
        return _values(self.get_read_states(replace_writen))

    def get_write_state_values(self, replace_read: bool = False) -> tuple[Any, ...]:
        """The values of `get_write_states`."""
        return _values(self.get_write_states(replace_read))

    def recovery_original_values(self) -> None:
        """Gives the cells the values that they had before."""
        for state, value in zip(self.states, self.original_state_values):
            state.restore_value(value)

    def assign_state_vals(self, state_vals: Sequence[Any]) -> None:
        """Gives the cells new values."""
        if len(state_vals) != len(self.states):
            raise ValueError(f"There are {len(self.states)} cells and {len(state_vals)} values.")
        for state, written, value in zip(self.states, self.been_writen, state_vals):
            if written:
                state.value = value
            else:
                state.restore_value(value)

    def state_subset(self, state_type: type) -> list[Any]:
        """The cells of a class."""
        return [state for state in self.states if isinstance(state, state_type)]

    def merge(self, *traces: "StateTraceStack") -> "StateTraceStack":
        """Adds what others have taken note of."""
        for trace in traces:
            for note in zip(trace.states, trace.been_writen, trace.original_state_values):
                self._note(*note)
        return self

    def __add__(self, other: "StateTraceStack") -> "StateTraceStack":
        return StateTraceStack().merge(self, other)


def _values(states: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(None if state is None else state.value for state in states)
