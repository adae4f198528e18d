"""Cells: mutable states, with the classes and the behaviour of `brainstate.State`, whose methods
[its page](https://brainstate.readthedocs.io) documents.
"""

from collections.abc import Callable, Iterable
from typing import Any, Generic, TYPE_CHECKING

import equinox as eqx
import jax
import numpy as np

from . import _frames
from ._errors import TraceContextError
from ._frames import Cell, DEAD, has_tracer, is_cell, peek, read, Unbatched, write


if TYPE_CHECKING:
    from typing_extensions import TypeVar  # with defaults, which Python has from 3.13 on

    A = TypeVar("A", default=Any)
else:
    from typing import TypeVar

    A = TypeVar("A")

S = TypeVar("S", bound="State[Any]")


class State(Cell, Generic[A]):
    """A mutable cell that holds a pytree. (After `brainstate.State`.)

    Under the transforms of [`statemap.compat.transform`][] reading and writing `.value` does
    what it seems to do. Under those of JAX it is refused where it could not.
    """

    tag: set[str] | None

    def __init__(
        self, value: A, name: str | None = None, *, tag: str | Iterable[str] | None = None,
        **metadata: Any,
    ):  # fmt: skip
        """Of a pytree, or of another cell, whose value is taken; `metadata` become attributes."""
        vars(self).update(metadata)
        self._value = maybe_state(value)
        self._name = name
        self.tag = {tag} if isinstance(tag, str) else None if tag is None else set(tag)
        self._been_writen = False
        self._born()
        for catcher in _frames.local.catchers:
            catcher.append(self)

    @property
    def value(self) -> A:
        """The value. In a map it is that of the lane."""
        return read(self)

    @value.setter
    def value(self, value: Any) -> None:
        if is_cell(value):
            raise ValueError(
                f"The value of a {self.label} can't be a State.\n"
                "Wrong:  a.value = b\n"
                "Right:  a.value = b.value"
            )
        if _frames.local.tree_checks[-1]:
            self._check_tree(value)
        self._receive(value)

    def restore_value(self, value: Any) -> None:
        """Sets the value, without counting as a write, so that transforms do not carry it out."""
        if is_cell(value):
            raise ValueError(f"The value of a {self.label} can't be a State; give its `.value`.")
        self._check_tree(value)
        write(self, value, restore=True)

    def _check_tree(self, value: Any) -> None:
        old = peek(self)
        expected, got = jax.tree.structure(old), jax.tree.structure(value)
        if old is not DEAD and expected != got:
            raise ValueError(
                f"The value of this {self.label} has the structure {expected}, and was given one "
                f"of the structure {got}."
            )

    @property
    def name(self) -> str | None:
        """The name, if it has one."""
        return self._name

    @name.setter
    def name(self, name: str | None) -> None:
        self._name = name

    @property
    def stack_level(self) -> int:
        """How many transforms were going on when it was made."""
        return self._level

    @stack_level.setter
    def stack_level(self, level: int) -> None:
        self._level = level

    def decrease_stack_level(self) -> None:
        """Has it count as made one transform further out."""
        self._level = max(self._level - 1, 0)

    def increase_stack_level(self) -> None:
        """Has it count as made one transform further in."""
        self._level += 1

    def add_tag(self, tag: str) -> None:
        """Adds a label."""
        self.tag = (self.tag or set()) | {tag}

    def value_call(self, func: Callable[[Any], Any]) -> Any:
        """`func` of each array of the value."""
        return jax.tree.map(func, self.value)

    def numel(self) -> int:
        """The number of elements of the value."""
        return sum(np.size(x) for x in jax.tree.leaves(self.value))

    def copy(self: S) -> S:
        """A cell of the same kind, name and tag, with the same value."""
        new = object.__new__(type(self))
        vars(new).update(vars(self))
        new._value = self.value
        new.tag = None if self.tag is None else set(self.tag)
        new._been_writen = False
        new._born()
        return new

    def replace(self: S, value: Any = ..., **metadata: Any) -> S:
        """A copy with another value, or other attributes. A cell of the same class as the value is
        what is returned.
        """
        if is_cell(value):
            if type(value) is not type(self):
                raise ValueError(
                    f"A {type(self).__name__} can't be replaced by a {type(value).__name__}."
                )
            return value.replace(**metadata) if metadata else value  # pyright: ignore
        new = self.copy()
        vars(new).update({"_name" if k == "name" else k: v for k, v in metadata.items()})
        if value is not ...:
            new._value = value
        return new

    def copy_from(self, other: "State") -> None:
        """Takes value, name, tag and attributes of another cell of the same class."""
        if type(self) is not type(other):
            raise ValueError(
                f"A {type(self).__name__} can't be copied from a {type(other).__name__}."
            )
        if self is not other:
            own = {k: vars(self)[k] for k in ("_level", "_trace", "_value")}
            value = other.value
            vars(self).clear()
            vars(self).update(vars(other), **own)
            self._receive(value)

    def to_state_ref(self) -> Any:
        """Of brainstate's `graph`, which is not here."""
        raise NotImplementedError(
            "A TreefyState is of brainstate's `graph`. For brainstate's own graph, layers and "
            'States on this engine: `statemap.compat.install(layers="brainstate")`.'
        )

    def check_valid_trace(self, error_msg: Callable[[], str]) -> None:
        """Refuses to go on under another trace than the one that the cell was made in."""
        if self._trace != _frames.trace_state():
            raise TraceContextError(error_msg())

    def __getstate__(self) -> dict[str, Any]:
        if has_tracer(self._value):
            raise TypeError(f"This {self.label} holds a tracer, which can't be pickled or copied.")
        return {k: v for k, v in vars(self).items() if k not in ("_level", "_trace")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._born()

    def __repr__(self) -> str:
        value = eqx.tree_pformat(peek(self), struct_as_array=True)
        name = f", name={self._name!r}" if self._name else ""
        tag = f", tag={self.tag!r}" if self.tag else ""
        return f"{type(self).__name__}(value={value}{name}{tag})"


class ShortTermState(State[A]):
    """A value that lasts a step or a sequence."""


class LongTermState(State[A]):
    """A value that lasts beyond a sequence."""


class ParamState(LongTermState[A]):
    """A parameter."""


class BatchState(LongTermState[A]):
    """A value that always has a batch axis."""


class HiddenState(ShortTermState[A]):
    """The hidden state of a recurrent layer: a single array."""

    def __init__(self, value: A, name: str | None = None, **kwargs: Any):
        arrays = jax.tree.leaves(value)  # one, though it may have a unit around it
        if not hasattr(value, "shape") or not isinstance(arrays[0], (jax.Array, np.ndarray)):
            raise TypeError(
                f"The value of a HiddenState is a single array, not {value!r} of type "
                f"`{type(value).__name__}`. For a number: `jnp.asarray(...)`."
            )
        super().__init__(value, name=name, **kwargs)

    @property
    def varshape(self) -> tuple[int, ...]:
        """The shape of the value."""
        return self.value.shape  # pyright: ignore

    @property
    def num_state(self) -> int:
        """How many states it holds: one."""
        return 1


class DelayState(ShortTermState[A]):
    """The memory of a delay."""


class NonBatchState(Unbatched, ShortTermState[A]):
    """A value that never has a lane axis when cells are made in lanes."""


class FakeState:
    """What has a value like a cell, and is none: transforms do not look at it."""

    def __init__(self, value: Any, name: str | None = None, **kwargs: Any):
        del kwargs
        self.value = value
        self.name = name

    def __repr__(self) -> str:
        return f"FakeState(value={self.value!r})"


def maybe_state(value: Any) -> Any:
    """The value of a cell, and anything else as it is."""
    return value.value if is_cell(value) else value
