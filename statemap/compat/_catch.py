"""What watches cells: `catch_new_states`, `StateTraceStack`, `check_state_value_tree`."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from ._cells import State
from ._frames import local, peek
from .util.filter import Predicate, to_predicate


class NewStateCatcher:
    """The cells that were made under [`statemap.compat.catch_new_states`][]."""

    def __init__(self, state_tag: str | None = None, state_to_exclude: Any = None):
        self.state_tag = state_tag
        self.state_to_exclude: Predicate = to_predicate(state_to_exclude)
        self.states: list[State] = []

    def append(self, state: State) -> None:
        """Takes note of a cell, and gives it the tag."""
        if state not in self.states and not self.state_to_exclude((), state):
            self.states.append(state)
            if self.state_tag is not None:
                state.add_tag(self.state_tag)

    def get_states(self) -> list[State]:
        """The cells, in the order in which they were made."""
        return self.states

    def get_state_values(self) -> list[Any]:
        """Their values."""
        return [state.value for state in self.states]

    values: property = property(get_state_values)

    def get_by_tag(self, tag: str) -> list[State]:
        """Those with a tag."""
        return [state for state in self.states if state.tag and tag in state.tag]

    def remove(self, state: State) -> None:
        """Forgets a cell."""
        if state in self.states:
            self.states.remove(state)

    def clear(self) -> None:
        """Forgets all."""
        self.states.clear()

    def __iter__(self) -> Iterator[State]:
        return iter(self.states)

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index: Any) -> Any:
        return self.states[index]

    def __contains__(self, state: object) -> bool:
        return state in self.states

    def __repr__(self) -> str:
        return f"NewStateCatcher({self.states})"


@contextlib.contextmanager
def catch_new_states(
    state_tag: str | None = None, state_to_exclude: Any = None
) -> Iterator[NewStateCatcher]:
    """Collects the cells that are made in its block.

    ```python
    from statemap.compat import catch_new_states, ShortTermState

    with catch_new_states("fresh") as caught:
        v = ShortTermState(0.0)
    assert caught.get_states() == [v] and v.tag == {"fresh"}
    ```

    **Arguments:**

    - `state_tag`: a tag that they are given.
    - `state_to_exclude`: a filter for those that are left alone.
    """
    catcher = NewStateCatcher(state_tag, state_to_exclude)
    local.catchers.append(catcher)
    try:
        yield catcher
    finally:
        local.catchers.remove(catcher)


@contextlib.contextmanager
def check_state_value_tree(val: bool = True) -> Iterator[None]:
    """In its block, a cell refuses a value whose pytree has another structure.

    **Arguments:**

    - `val`: False switches the check off again.
    """
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
    """Takes note of the cells that are read and written in its block.

    ```python
    from statemap.compat import StateTraceStack, ShortTermState

    a, b = ShortTermState(1.0), ShortTermState(2.0)
    with StateTraceStack() as trace:
        b.value = a.value
    assert trace.get_read_states() == (a,) and trace.get_write_states() == (b,)
    ```
    """

    def __init__(self, name: str | None = None):
        self.name = name
        self.states: list[State] = []
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

    def read_its_value(self, state: State) -> None:
        """Takes note of a cell."""
        if state not in self.states:
            self.states.append(state)
            self.been_writen.append(False)
            self.original_state_values.append(peek(state))

    def write_its_value(self, state: State) -> None:
        """Takes note of a cell that is written."""
        self.read_its_value(state)
        self.been_writen[self.states.index(state)] = True

    def get_state_values(self) -> tuple[Any, ...]:
        """The present values of all cells."""
        return tuple(state.value for state in self.states)

    def get_read_states(self, replace_writen: bool = False) -> tuple[State | None, ...]:
        """The cells that were only read.

        **Arguments:**

        - `replace_writen`: whether None stands for each of the others.
        """
        return self._choose(False, replace_writen)

    def get_write_states(self, replace_read: bool = False) -> tuple[State | None, ...]:
        """The cells that were written.

        **Arguments:**

        - `replace_read`: whether None stands for each of the others.
        """
        return self._choose(True, replace_read)

    def get_read_state_values(self, replace_writen: bool = False) -> tuple[Any, ...]:
        """The values of `get_read_states`."""
        return tuple(None if s is None else s.value for s in self._choose(False, replace_writen))

    def get_write_state_values(self, replace_read: bool = False) -> tuple[Any, ...]:
        """The values of `get_write_states`."""
        return tuple(None if s is None else s.value for s in self._choose(True, replace_read))

    def _choose(self, written: bool, replace: bool) -> tuple[State | None, ...]:
        pairs = list(zip(self.states, self.been_writen))
        if replace:
            return tuple(s if w == written else None for s, w in pairs)
        return tuple(s for s, w in pairs if w == written)

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

    def state_subset(self, state_type: type) -> list[State]:
        """The cells of a class."""
        return [state for state in self.states if isinstance(state, state_type)]

    def merge(self, *traces: "StateTraceStack") -> "StateTraceStack":
        """Adds what others have taken note of."""
        for trace in traces:
            for state, written, value in zip(
                trace.states, trace.been_writen, trace.original_state_values
            ):
                if state not in self.states:
                    self.states.append(state)
                    self.been_writen.append(False)
                    self.original_state_values.append(value)
                self.been_writen[self.states.index(state)] |= written
        return self

    def __add__(self, other: "StateTraceStack") -> "StateTraceStack":
        return StateTraceStack().merge(self, other)
