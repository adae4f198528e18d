"""Equality where Python's will not do: `1`, `1.0` and `True`, and objects that are told apart by
identity.
"""

import enum
import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np


def exact(value: Any) -> Hashable:
    """A static value as part of a key: `1`, `1.0` and `True` are different programs, and so are
    `0.0` and `-0.0`, while Python has them equal.
    """
    if isinstance(value, tuple):
        return type(value), tuple(map(exact, value))
    if isinstance(value, float):
        return type(value), value.hex()
    return type(value), value


class Identity:
    """A reference to an object as part of a key: weak, and equal to those to the same object."""

    __slots__ = ("hash", "ref")

    def __init__(
        self, value: Any, on_death: Callable[[Any], None] | None = None, weak: bool = True
    ):
        """**Raises:**

        `TypeError` if the object can't be referred to weakly.
        """
        self.ref = weakref.ref(value, on_death) if weak else lambda: value
        self.hash = id(value)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Identity) or self.hash != other.hash:
            return False
        mine = self.ref()
        return mine is not None and mine is other.ref()

    def __hash__(self) -> int:
        return self.hash


def by_identity(value: Any, on_death: Callable[[Any], None] | None) -> Hashable:
    """A callable or another object as part of a key that keeps it not alive; plain data as
    `exact`.

    **Arguments:**

    - `on_death`: called when the object goes, or that which it is a method of.
    """
    if isinstance(value, types.MethodType):  # made anew at each access
        return _reference(value.__self__, on_death), value.__func__
    if isinstance(value, tuple):
        return type(value), tuple(by_identity(x, on_death) for x in value)
    if value is None or isinstance(value, PLAIN):
        return exact(value)
    return _reference(value, on_death)


PLAIN = (str, bytes, bool, int, float, complex, enum.Enum, np.dtype, np.generic)


def _reference(value: Any, on_death: Callable[[Any], None] | None) -> Hashable:
    try:
        return Identity(value, on_death)
    except TypeError:  # a built-in function, say, which lives as long as Python
        return Identity(value, on_death, weak=False)
