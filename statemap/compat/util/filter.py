"""Filters: which cells something is about. (After `brainstate.util.filter`.)"""

import builtins
import dataclasses
from collections.abc import Callable, Hashable, Iterable
from typing import Any as AnyType

from ... import _filters as _core
from ..._filters import Filter
from ..._state import State as _CoreState
from .._cells import State
from .._frames import is_cell


Predicate = Callable[[AnyType, AnyType], AnyType]  # `(path, cell) -> bool`


@dataclasses.dataclass(frozen=True)
class OfType:
    """Matches the cells of a class, its subclasses included, and what has such a class as its
    `type`.
    """

    type: type

    def __call__(self, path: AnyType, x: AnyType) -> bool:
        kind = getattr(x, "type", None)
        return isinstance(x, self.type) or isinstance(kind, type) and issubclass(kind, self.type)

    def __repr__(self) -> str:
        return f"OfType({self.type!r})"


@dataclasses.dataclass(frozen=True)
class WithTag:
    """Matches the cells with this tag, one of several perhaps."""

    tag: str

    def __post_init__(self) -> None:
        if not isinstance(self.tag, str):
            raise TypeError(f"A tag is a string, not {self.tag!r}.")

    def __call__(self, path: AnyType, x: AnyType) -> bool:
        tag = getattr(x, "tag", None)
        if isinstance(tag, (set, frozenset, list, tuple)):
            return self.tag in tag
        return isinstance(tag, str) and tag == self.tag

    def __repr__(self) -> str:
        return f"WithTag({self.tag!r})"


@dataclasses.dataclass(frozen=True)
class PathContains:
    """Matches the cells with this key in their path. The keys of JAX's paths, such as
    `jax.tree_util.DictKey("a")`, count as what they hold.
    """

    key: Hashable

    def __call__(self, path: AnyType, x: AnyType) -> bool:
        return builtins.any(_plain(key) == self.key for key in path)

    def __repr__(self) -> str:
        return f"PathContains({self.key!r})"


def _plain(key: AnyType) -> AnyType:
    for name in ("key", "name", "idx"):
        if hasattr(key, name):
            return getattr(key, name)
    return key


class IsCell:
    """Matches these cells and no others. Cells given as a filter become one of these."""

    def __init__(self, cells: Iterable[State]):
        self.cells: frozenset[State] = frozenset(cells)

    def __call__(self, path: AnyType, x: AnyType) -> bool:
        return is_cell(x) and x in self.cells

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IsCell) and self.cells == other.cells

    def __hash__(self) -> int:
        return hash(self.cells)

    def __repr__(self) -> str:
        names = sorted(cell.label for cell in self.cells)
        return f"IsCell({', '.join(names) if len(names) < 4 else f'{len(names)} cells'})"


class _Several(_core._Several):
    def __init__(self, *filters: Filter):
        self.predicates: tuple[Predicate, ...] = tuple(map(to_predicate, filters))

    def __hash__(self) -> int:
        try:
            return super().__hash__()
        except TypeError:  # a predicate of the user's that has none
            return hash(type(self))


class Any(_Several):
    """Matches what at least one of the filters matches."""

    def __call__(self, path: AnyType, x: AnyType) -> bool:
        return builtins.any(matches(path, x) for matches in self.predicates)


class All(_Several):
    """Matches what every one of the filters matches."""

    def __call__(self, path: AnyType, x: AnyType) -> bool:
        return builtins.all(matches(path, x) for matches in self.predicates)


class Not(_Several):
    """Matches what the filter does not match."""

    def __init__(self, filter: Filter, /):
        super().__init__(filter)

    @property
    def predicate(self) -> Predicate:
        return self.predicates[0]

    def __call__(self, path: AnyType, x: AnyType) -> bool:
        return not self.predicate(path, x)


@dataclasses.dataclass(frozen=True)
class Everything:
    """Matches everything."""

    def __call__(self, path: AnyType, x: AnyType) -> bool:
        return True


@dataclasses.dataclass(frozen=True)
class Nothing:
    """Matches nothing."""

    def __call__(self, path: AnyType, x: AnyType) -> bool:
        return False


def to_predicate(filter: Filter) -> Predicate:
    """The function `(path, cell) -> bool` that a filter stands for.

    **Arguments:**

    - `filter`: a class of cells, a tag, a bool, `...`, `None`, a cell, a list or tuple of filters
        or cells (any of them), or a callable `(path, cell) -> bool`.

    **Raises:**

    `TypeError` if it is none of these.

    ```python
    import jax.numpy as jnp
    from statemap.compat import ParamState
    from statemap.compat.util.filter import to_predicate, WithTag

    w = ParamState(jnp.ones(2), tag={"slow", "trained"})
    assert to_predicate("slow") == WithTag("slow") and to_predicate("slow")((), w)
    assert to_predicate([ParamState, "fast"])((), w)
    assert to_predicate(w)((), w) and not to_predicate(w)((), ParamState(jnp.ones(2)))
    ```
    """
    if filter is ... or filter is True:
        return Everything()
    if filter is None or filter is False:
        return Nothing()
    if isinstance(filter, type):
        return OfType(_cell_type(filter))
    if isinstance(filter, str):
        return WithTag(filter)
    if is_cell(filter):
        return IsCell([filter])
    if isinstance(filter, (list, tuple)):
        if filter and builtins.all(is_cell(f) for f in filter):
            return IsCell(filter)
        return Any(*filter)
    if isinstance(filter, _CoreState):
        _cell_type(type(filter))
    return _core.to_predicate(filter)


def _cell_type(kind: type) -> type:
    name = kind.__name__
    if issubclass(kind, (IsCell, _core._Several)) or kind in _CALLED:
        raise TypeError(f"`{name}` is a filter once called: `{name}(...)`.")
    if issubclass(kind, _CoreState):
        raise TypeError(
            f"`statemap.{name}` is a state of the functional core, and here cells are filtered: "
            f"`statemap.compat.{name}`."
        )
    return kind


_CALLED = (OfType, WithTag, PathContains, Everything, Nothing)
