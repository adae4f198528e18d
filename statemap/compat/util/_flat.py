"""Dictionaries of what a module holds, by path: flat and nested. (After `brainstate.util`.)"""

import textwrap
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import jax

from ..._filters import Everything, Filter
from ..._values import dotted
from .._frames import is_cell
from .filter import to_predicate


Path = tuple[Hashable, ...]


class _Tree(dict[Any, Any]):
    """What both forms have: they are pytrees, and are taken apart by filters."""

    def to_flat(self) -> Any:
        return self

    @classmethod
    def from_flat(cls, flat: Mapping[Path, Any] | Iterable[tuple[Path, Any]]) -> Any:
        return cls(flat)

    def filter(self, *filters: Filter) -> Any:
        """What matches a filter, or for several each. What matches several is in the first."""
        *parts, _ = sort_out(self.to_flat().items(), filters)
        return self._parts(parts)

    subset = filter

    def split(self, *filters: Filter) -> Any:
        """As `filter`, where everything has to match. `...` as the last filter takes the rest."""
        *parts, rest = sort_out(self.to_flat().items(), filters)
        if rest:
            raise ValueError(
                "These match no filter; give `...` as the last one for the rest: "
                + ", ".join(f"`{dotted(path)}`" for path in rest)
            )
        return self._parts(parts)

    def _parts(self, parts: "list[FlattedDict]") -> Any:
        own = tuple(self.from_flat(part) for part in parts)
        return own if len(own) != 1 else own[0]

    @classmethod
    def merge(cls, *trees: Mapping[Any, Any]) -> Any:
        """One of several. Of equal paths the last wins."""
        flat = [tree.to_flat() if isinstance(tree, _Tree) else tree for tree in trees]
        return cls.from_flat(item for tree in flat for item in tree.items())

    def __or__(self, other: Mapping[Any, Any]) -> Any:  # pyright: ignore
        return self.merge(self, other)

    def __sub__(self, other: Iterable[Any]) -> Any:
        """What is not at the paths of `other`."""
        paths = set(other.to_flat() if isinstance(other, _Tree) else other)
        return self.from_flat((k, v) for k, v in self.to_flat().items() if k not in paths)

    def to_dict(self) -> dict[Any, Any]:
        return dict(self)

    def __repr__(self) -> str:
        rows = (f"{key!r}: {value!r},\n" for key, value in self.items())
        return "{\n" + textwrap.indent("".join(rows), "  ") + "}" if self else "{}"


class FlattedDict(_Tree):
    """What a module holds, by path, such as `("layers", 0, "weight")`."""

    def to_nest(self) -> "NestedDict":
        """Dictionaries within dictionaries, a level for each key of a path."""
        return nest_mapping(self)

    @classmethod
    def from_nest(cls, nest: Mapping[Hashable, Any]) -> "FlattedDict":
        return flat_mapping(nest)

    def to_dict_values(self) -> dict[Path, Any]:
        """The values of the cells, by path."""
        return {k: v.value if is_cell(v) else v for k, v in self.items()}

    def assign_dict_values(self, data: Mapping[Path, Any]) -> None:
        """Gives each cell the value at its path; all of them, or if one lacks a value none."""
        missing = [dotted(path) for path in self if path not in data]
        if missing:
            raise KeyError(f"There is no value for {', '.join(missing)}.")
        for path, held in self.items():
            if is_cell(held):
                held.value = data[path]
            else:
                self[path] = data[path]


class NestedDict(_Tree):
    """The same as dictionaries within dictionaries, whose keys are attributes, too."""

    def __getattr__(self, key: str) -> Any:
        if key not in self:
            raise AttributeError(f"This NestedDict has no `{key}`; its keys are {list(self)}.")
        return self[key]

    def to_flat(self) -> FlattedDict:
        return flat_mapping(self)

    @classmethod
    def from_flat(cls, flat: Mapping[Path, Any] | Iterable[tuple[Path, Any]]) -> "NestedDict":
        return nest_mapping(dict(flat))

    def to_pure_dict(self) -> dict[Hashable, Any]:
        return dict(self)


def flat_mapping(nest: Mapping[Hashable, Any]) -> FlattedDict:
    """A nested mapping by paths. Empty mappings are left out."""
    flat = FlattedDict()
    for key, value in nest.items():
        below = flat_mapping(value) if isinstance(value, Mapping) else {(): value}
        flat.update({(key, *path): x for path, x in below.items()})
    return flat


def nest_mapping(flat: Mapping[Path, Any]) -> NestedDict:
    """A mapping from paths as a nested one."""
    nest = NestedDict()
    for path, value in flat.items():
        at: Any = nest
        for i, key in enumerate(path[:-1], 1):
            at = at.setdefault(key, {})
            if not isinstance(at, dict):
                raise ValueError(
                    f"`{dotted(path[:i])}` is a value, so that there can be no `{dotted(path)}`."
                )
        at[path[-1]] = value
    return nest


def sort_out(items: Iterable[tuple[Path, Any]], filters: tuple[Filter, ...]) -> list[FlattedDict]:
    """A dictionary for each filter, of what matches it first, and one of what matches none."""
    predicates = [to_predicate(f) for f in filters]
    takes_all = [isinstance(p, Everything) for p in predicates]
    if True in takes_all and not all(takes_all[takes_all.index(True) :]):
        first = filters[takes_all.index(True)]
        raise ValueError(
            f"`{'...' if first is ... else first}` takes all that is left, so that no other "
            f"filter can come after it: {filters!r}."
        )
    parts = [FlattedDict() for _ in range(len(filters) + 1)]
    for path, value in items:
        at = (i for i, matches in enumerate(predicates) if matches(path, value))
        parts[next(at, len(filters))][path] = value
    return parts


def in_order(tree: dict[Any, Any]) -> list[tuple[Any, Any]]:
    """The items in the order of their keys, or as they are where these have none."""
    try:
        return sorted(tree.items(), key=lambda item: item[0])
    except TypeError:  # keys of several types
        return list(tree.items())


def _flatten(tree: _Tree) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
    items = in_order(tree)
    return [(jax.tree_util.DictKey(k), v) for k, v in items], tuple(k for k, _ in items)


for _kind in (FlattedDict, NestedDict):
    _unflatten = lambda keys, values, kind=_kind: kind(zip(keys, values))
    jax.tree_util.register_pytree_with_keys(_kind, _flatten, _unflatten)
