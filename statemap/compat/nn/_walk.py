"""What a module holds: its cells and the modules in it. (After `brainstate.graph`.)"""

from collections.abc import Hashable, Iterable, Iterator
from typing import Any, TypeGuard

import jax

from ..._filters import Filter
from ..._values import dotted, to_path
from .._frames import is_cell
from ..util._flat import in_order, Path, sort_out


MAX_LEVEL = 2**31 - 1


def is_node(x: Any) -> TypeGuard[Any]:
    """Whether the attributes of an object are looked through for cells and nodes: the mark of
    this is the shim's and brainstate's, whose modules may lie in the same lists.
    """
    return hasattr(type(x), "graph_invisible_attrs")


def is_module(x: Any) -> TypeGuard[Any]:
    """Whether it is a module of the shim, or of a library with the same methods."""
    return is_node(x) and hasattr(type(x), "init_state")


def states(node: Any, *filters: Filter, allowed_hierarchy: tuple[int, int] = (0, MAX_LEVEL)) -> Any:
    """The cells of a module, or of modules in lists, tuples and dictionaries, by path: all, those
    that a filter matches, or with several filters a tuple of the cells that each matches first.

    The level of the module's own cells is 0, that of the cells of its modules 1. A cell that is
    found at several places is listed once.
    """
    return _by_filter(((p, x) for p, x in _walk(node, allowed_hierarchy) if is_cell(x)), filters)


def nodes(node: Any, *filters: Filter, allowed_hierarchy: tuple[int, int] = (0, MAX_LEVEL)) -> Any:
    """The modules in a module, innermost first and itself last. As `states`."""
    return _by_filter(((p, x) for p, x in _walk(node, allowed_hierarchy) if is_node(x)), filters)


def _by_filter(found: Iterable[tuple[Path, Any]], filters: tuple[Filter, ...]) -> Any:
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
        elif is_node(x) or not jax.tree_util.all_leaves([x]):
            seen[id(x)] = x
            for key, child in _children(x):
                yield from visit(child, (*path, key), level + is_node(child))
            if is_node(x) and level >= lowest:
                yield path, x

    return visit(node, (), 0)


def _children(x: Any) -> list[tuple[Hashable, Any]]:
    """What an object holds, in the order of its keys."""
    if is_node(x):
        return in_order({k: v for k, v in vars(x).items() if k not in x.graph_invisible_attrs})
    if type(x) is dict:
        return in_order(x)
    found = jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda y: y is not x)[0]
    return [(to_path(keys[:1])[0], child) for keys, child in found]


def dotted_items(found: dict[Path, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The items of a flat dictionary with their paths as names."""
    for path, x in found.items():
        yield dotted((prefix, *path) if prefix else path), x


def shown(x: Any) -> str:
    """What messages call something that is no module."""
    if isinstance(x, type):
        return f"the class `{x.__name__}`; it takes an instance"
    return f"a value of type `{type(x).__name__}`"
