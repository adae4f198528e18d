"""Filters: which cells something is about. Those of the functional core, for cells, which may have
several tags and are told apart by identity. (After `brainstate.util.filter`, whose arguments
[its page](https://brainstate.readthedocs.io) documents.)
"""

import dataclasses
from collections.abc import Callable
from typing import Any as AnyType

from ... import _filters as _core
from ..._filters import Everything as Everything, Filter, Nothing as Nothing
from ..._state import State as _CoreState
from .._frames import is_cell


Predicate = Callable[[AnyType, AnyType], AnyType]  # `(path, cell) -> bool`


class OfType(_core.OfType):
    """Matches the cells of a class, its subclasses included, and what has such a class as its
    `type`.
    """

    def __call__(self, path: AnyType, x: AnyType) -> bool:
        kind = getattr(x, "type", None)
        return isinstance(x, self.type) or isinstance(kind, type) and issubclass(kind, self.type)

    def __repr__(self) -> str:
        return f"OfType({self.type!r})"


class WithTag(_core.WithTag):
    """Matches the cells with this tag, one of several perhaps."""

    def __init__(self, tag: str):
        if not isinstance(tag, str):
            raise TypeError(f"A tag is a string, not {tag!r}.")
        super().__init__(tag)

    def __call__(self, path: AnyType, x: AnyType) -> bool:
        tag = getattr(x, "tag", None)
        return (
            self.tag in tag if isinstance(tag, (set, frozenset, list, tuple)) else tag == self.tag
        )


class PathContains(_core.PathContains):
    """Matches the cells with this key in their path. The keys of JAX's paths, such as
    `jax.tree_util.DictKey("a")`, count as what they hold.
    """

    def __call__(self, path: AnyType, x: AnyType) -> bool:
        return self.key in map(_plain, path)


def _plain(key: AnyType) -> AnyType:
    names = (name for name in ("key", "name", "idx") if hasattr(key, name))
    return getattr(key, next(names, ""), key)


@dataclasses.dataclass(frozen=True, repr=False)
class IsCell:
    """Matches these cells and no others. Cells given as a filter become one of these."""

    cells: frozenset[AnyType]

    def __call__(self, path: AnyType, x: AnyType) -> bool:
        return is_cell(x) and x in self.cells

    def __repr__(self) -> str:
        names = sorted(cell.label for cell in self.cells)
        return f"IsCell({', '.join(names) if len(names) < 4 else f'{len(names)} cells'})"


class _OfCells(_core._Several):
    def __init__(self, *filters: Filter):
        self.predicates: tuple[Predicate, ...] = tuple(map(to_predicate, filters))

    def __hash__(self) -> int:
        try:
            return super().__hash__()
        except TypeError:  # a predicate of the user's that has none
            return hash(type(self))


class Any(_OfCells, _core.Any):
    """Matches what at least one of the filters matches."""


class All(_OfCells, _core.All):
    """Matches what every one of the filters matches."""


class Not(_OfCells, _core.Not):
    """Matches what the filter does not match."""

    def __init__(self, filter: Filter, /):
        super().__init__(filter)

    @property
    def predicate(self) -> Predicate:
        return self.predicates[0]


def to_predicate(filter: Filter) -> Predicate:
    """The function `(path, cell) -> bool` that a filter stands for. Beside brainstate's filters, a
    cell is one, and a list or tuple of cells.
    """
    if isinstance(filter, type):
        return OfType(_cell_type(filter))
    if isinstance(filter, str):
        return WithTag(filter)
    if is_cell(filter):
        return IsCell(frozenset([filter]))
    if isinstance(filter, (list, tuple)):
        return IsCell(frozenset(filter)) if filter and all(map(is_cell, filter)) else Any(*filter)
    if isinstance(filter, _CoreState):
        _cell_type(type(filter))
    return _core.to_predicate(filter)


def _cell_type(kind: type) -> type:
    name = kind.__name__
    if issubclass(kind, (IsCell, *_core._FILTERS)):
        raise TypeError(f"`{name}` is a filter once called: `{name}(...)`.")
    if issubclass(kind, _CoreState):
        raise TypeError(
            f"`statemap.{name}` is a state of the functional core, and here cells are filtered: "
            f"`statemap.compat.{name}`."
        )
    return kind
