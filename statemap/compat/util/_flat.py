"""The flat dictionary of what a module holds, by path. (After `brainstate.util.FlattedDict`.)"""

import textwrap
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, TypeVar

import jax

from ..._filters import Filter
from ..._values import dotted
from .._frames import is_cell
from .filter import to_predicate


Path = tuple[Hashable, ...]
V = TypeVar("V")


class FlattedDict(dict[Path, V]):
    """What a module holds, by path, such as `("layers", 0, "weight")`. It is a pytree.

    ```python
    import jax.numpy as jnp
    from statemap.compat import nn, ParamState, ShortTermState

    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.v = ShortTermState(jnp.zeros(2))
            self.w = ParamState(jnp.ones(2))

    states = Cell().states()
    assert list(states) == [("v",), ("w",)]
    params, rest = states.split(ParamState, ...)
    assert list(params) == [("w",)] and list(rest) == [("v",)]
    ```
    """

    def filter(
        self, first: Filter, /, *filters: Filter
    ) -> "FlattedDict[V] | tuple[FlattedDict[V], ...]":
        """What matches a filter, or for several a dictionary for each. What matches several of
        them goes to the first of these.
        """
        *parts, _ = sort_out(self.items(), (first, *filters))
        return tuple(parts) if filters else parts[0]

    subset = filter

    def split(
        self, first: Filter, /, *filters: Filter
    ) -> "FlattedDict[V] | tuple[FlattedDict[V], ...]":
        """As `filter`, where everything has to match.

        **Raises:**

        `ValueError` if something matches no filter. `...` as the last one takes the rest.
        """
        *parts, rest = sort_out(self.items(), (first, *filters))
        if rest:
            raise ValueError(
                "These match no filter; give `...` as the last one for the rest: "
                + ", ".join(f"`{dotted(path)}`" for path in rest)
            )
        return tuple(parts) if filters else parts[0]

    @staticmethod
    def merge(*dicts: Mapping[Path, Any]) -> "FlattedDict[Any]":
        """One dictionary of several. Of equal paths the last wins."""
        return FlattedDict(item for d in dicts for item in d.items())

    def __or__(self, other: Mapping[Path, Any]) -> "FlattedDict[Any]":  # pyright: ignore
        return FlattedDict.merge(self, other)

    def __sub__(self, other: Iterable[Path]) -> "FlattedDict[V]":
        """What is not at the paths of `other`."""
        paths = set(other)
        return FlattedDict((k, v) for k, v in self.items() if k not in paths)

    def to_dict(self) -> dict[Path, V]:
        return dict(self)

    def to_nest(self) -> dict[Hashable, Any]:
        """Dictionaries within dictionaries, a level for each key of a path."""
        nest: dict[Hashable, Any] = {}
        for path, value in self.items():
            at = nest
            for key in path[:-1]:
                at = at.setdefault(key, {})
            at[path[-1]] = value
        return nest

    def to_dict_values(self) -> dict[Path, Any]:
        """The values of the cells, by path."""
        return {k: v.value if is_cell(v) else v for k, v in self.items()}

    def assign_dict_values(self, data: Mapping[Path, Any]) -> None:
        """Gives each cell the value at its path.

        **Raises:**

        `KeyError` if `data` lacks one; then no cell is changed.
        """
        missing = [dotted(path) for path in self if path not in data]
        if missing:
            raise KeyError(f"There is no value for {', '.join(missing)}.")
        for path, held in self.items():
            if is_cell(held):
                held.value = data[path]
            else:
                self[path] = data[path]

    def __repr__(self) -> str:
        if not self:
            return "{}"
        rows = (f"{path!r}: {value!r},\n" for path, value in self.items())
        return "{\n" + textwrap.indent("".join(rows), "  ") + "}"


def sort_out(
    items: Iterable[tuple[Path, V]], filters: tuple[Filter, ...]
) -> "list[FlattedDict[V]]":
    """A dictionary for each filter, of what matches it first, and one of what matches none."""
    for i, filter in enumerate(filters):
        if (filter is ... or filter is True) and any(
            f is not ... and f is not True for f in filters[i + 1 :]
        ):
            raise ValueError(
                f"`{'...' if filter is ... else filter}` takes all that is left, so that no other "
                f"filter can come after it: {filters!r}."
            )
    predicates = [to_predicate(f) for f in filters]
    parts = [FlattedDict[V]() for _ in range(len(filters) + 1)]
    for path, value in items:
        at = (i for i, matches in enumerate(predicates) if matches(path, value))
        parts[next(at, len(filters))][path] = value
    return parts


def _in_order(flat: FlattedDict[V]) -> list[tuple[Path, V]]:
    try:
        return sorted(flat.items(), key=lambda item: item[0])  # pyright: ignore
    except TypeError:  # keys of several types
        return list(flat.items())


def _flatten_with_keys(flat: FlattedDict) -> tuple[list[tuple[Any, Any]], tuple[Path, ...]]:
    items = _in_order(flat)
    children = [(jax.tree_util.DictKey(path), value) for path, value in items]
    return children, tuple(path for path, _ in items)


def _flatten(flat: FlattedDict) -> tuple[list[Any], tuple[Path, ...]]:
    items = _in_order(flat)
    return [value for _, value in items], tuple(path for path, _ in items)


def _unflatten(paths: tuple[Path, ...], values: Iterable[Any]) -> FlattedDict:
    return FlattedDict(zip(paths, values))


jax.tree_util.register_pytree_with_keys(FlattedDict, _flatten_with_keys, _unflatten, _flatten)
