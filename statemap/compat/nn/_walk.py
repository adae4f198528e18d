"""What a module holds: its cells and the modules in it. (After `brainstate.graph`.)"""

from collections.abc import Hashable, Iterator
from typing import Any, ClassVar

import jax

from ..._filters import Filter
from .._frames import is_cell
from ..util._flat import Path, sort_out


MAX_LEVEL = 2**31 - 1


class Node:
    """What modules are: an object whose attributes are looked through for cells and nodes."""

    graph_invisible_attrs: ClassVar[tuple[str, ...]] = ()


class Kept:
    """What a module keeps for itself, such as mappings: it has no attributes, where walks look
    for cells.
    """

    __slots__ = ("entries",)

    def __init__(self) -> None:
        self.entries: dict[Any, Any] = {}


def states(node: Any, *filters: Filter, allowed_hierarchy: tuple[int, int] = (0, MAX_LEVEL)) -> Any:
    """The cells of a module, or of modules in lists, tuples and dictionaries.

    **Arguments:**

    - `node`: the module.
    - `filters`: none for all cells, one, or several.
    - `allowed_hierarchy`: the lowest and highest level. That of the module's own cells is 0, that
        of the cells of its modules 1.

    **Returns:**

    A `FlattedDict`, or with several filters a tuple of these, where a cell that several filters
    match is in the first. A cell that is found at several places is listed once.
    """
    found = ((path, x) for path, x in _walk(node, allowed_hierarchy) if is_cell(x))
    return _sorted_out(found, filters)


def nodes(node: Any, *filters: Filter, allowed_hierarchy: tuple[int, int] = (0, MAX_LEVEL)) -> Any:
    """The modules in a module, innermost first and itself last. As `states`."""
    found = ((path, x) for path, x in _walk(node, allowed_hierarchy) if isinstance(x, Node))
    return _sorted_out(found, filters)


def _sorted_out(found: Iterator[tuple[Path, Any]], filters: tuple[Filter, ...]) -> Any:
    parts = sort_out(found, filters)
    return tuple(parts[:-1]) if len(filters) > 1 else parts[0]


def _walk(node: Any, levels: tuple[int, int]) -> Iterator[tuple[Path, Any]]:
    lowest, highest = levels
    seen: dict[int, Any] = {}  # the objects are kept, so that no id is used again

    def visit(x: Any, path: Path, level: int) -> Iterator[tuple[Path, Any]]:
        if level > highest or id(x) in seen:
            return
        if is_cell(x):
            if level >= lowest:
                seen[id(x)] = x
                yield path, x
            return
        if not isinstance(x, Node) and jax.tree_util.all_leaves([x]):
            return
        seen[id(x)] = x
        for key, child in _children(x):
            yield from visit(child, (*path, key), level + isinstance(child, Node))
        if isinstance(x, Node) and level >= lowest:
            yield path, x

    return visit(node, (), 0)


def _children(x: Any) -> list[tuple[Hashable, Any]]:
    """What an object holds, in the order of its keys."""
    if isinstance(x, Node):
        shown = (k for k in vars(x) if k not in x.graph_invisible_attrs)
        return [(k, vars(x)[k]) for k in sorted(shown)]
    if type(x) is dict:
        try:
            return sorted(x.items(), key=lambda item: item[0])
        except TypeError:  # keys of several types
            return list(x.items())
    found = jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda y: y is not x)[0]
    return [(_plain(keys[0]), child) for keys, child in found]


def _plain(key: Any) -> Hashable:
    for name in ("idx", "key", "name"):
        if hasattr(key, name):
            return getattr(key, name)
    return str(key)
