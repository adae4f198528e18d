"""The values of a context for another: that of a model which has changed since."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._errors import table
from ._html import html_table
from ._slots import collect, find_states, Slot, Slots
from ._state import is_state
from ._treescope import show_lines
from ._values import describe, dotted, own, Path, Struct, to_path


class LoadRow(NamedTuple):
    """What `load` did with one state."""

    path: str
    what: str  # "loaded", "added", "dropped" or "changed"
    here: str  # the State in the context that loads, with shapes and dtypes
    old: str  # and in the one that is loaded


class LoadReport:
    """What [`statemap.States.load`][] did with each state; printed, a table with a row for each.

    Iterated over, it gives the rows, which are named tuples.
    """

    def __init__(self, rows: Sequence[LoadRow]):
        self.rows: tuple[LoadRow, ...] = tuple(rows)

    @property
    def loaded(self) -> tuple[str, ...]:
        """The paths of the states that have the value of the old context."""
        return self._paths("loaded")

    @property
    def added(self) -> tuple[str, ...]:
        """The paths that the old context lacks. These states have the value they had."""
        return self._paths("added")

    @property
    def dropped(self) -> tuple[str, ...]:
        """The paths that only the old context has."""
        return self._paths("dropped")

    @property
    def changed(self) -> tuple[str, ...]:
        """The paths that both have, with another kind, structure, shape or dtype. These states
        have the value they had.
        """
        return self._paths("changed")

    def refuse_differences(self) -> None:
        differ = [row for row in self.rows if row.what != "loaded"]
        if differ:
            raise ValueError(
                f"The context can't be loaded whole; {len(differ)} of {len(self.rows)} states "
                f"differ:\n{LoadReport(differ)!r}\n"
                "To load what fits and keep the rest: "
                "`states, report = states.load(old, strict=False)`."
            )

    def _paths(self, what: str) -> tuple[str, ...]:
        return tuple(row.path for row in self.rows if row.what == what)

    def __iter__(self) -> Iterator[LoadRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return table(LoadRow._fields, self.rows)

    def _repr_html_(self) -> str:
        return html_table("", LoadRow._fields, self.rows, wraps=["here", "old"])

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        return show_lines(type(self), repr(self).splitlines(), path)


class Found(NamedTuple):
    """What the old context has at the path of a state."""

    value: Any  # None if it does not fit
    shown: str


class OldStates:
    """A context to load from: states are found by path, whichever of their paths it is."""

    def __init__(self, pairs: Sequence[tuple[Slot, Any]]):
        self._pairs = pairs
        self._taken: set[int] = set()
        self._at = {dotted(path): k for k, (slot, _) in enumerate(pairs) for path in _paths(slot)}

    def find(self, slots: Slots, i: int, value: Any) -> Found | None:
        slot = slots.entries[i]
        k = next((self._at[p] for p in map(dotted, _paths(slot)) if p in self._at), None)
        if k is None:
            return None
        self._taken.add(k)
        mine, data = self._pairs[k]
        fits = slot.difference(mine) is None and Struct(data) == Struct(value)
        return Found(data if fits else None, mine.show(data))

    def left(self) -> list[tuple[str, str]]:
        """The paths of what was not asked for, and what is there."""
        pairs = [pair for k, pair in enumerate(self._pairs) if k not in self._taken]
        return [(dotted(slot.path), slot.show(value)) for slot, value in pairs]


class OldArrays:
    """A pytree of arrays to load from, which are found by their dotted paths."""

    def __init__(self, leaves: Sequence[tuple[Path, Any]]):
        self._arrays: dict[str, Any] = {}
        self._owners: dict[str, str] = {}
        for path, leaf in leaves:
            if not _is_array(leaf):
                continue
            name = dotted(path)
            if name in self._arrays:
                raise ValueError(f"Two of the arrays to load have the path `{name}`.")
            self._arrays[name] = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)

    def find(self, slots: Slots, i: int, value: Any) -> Found | None:
        leaves, treedef = jax.tree_util.tree_flatten_with_path(value)
        if not leaves:  # a value without arrays is there as it is
            return Found(value, "")
        for path in _paths(slots.entries[i]):
            names = [dotted((*path, *to_path(keys))) for keys, _ in leaves]
            if any(name in self._arrays for name in names):
                break
            if (whole := dotted(path)) in self._arrays:  # it was one array, and is several
                self._owners[whole] = whole
                return Found(None, _show(self._arrays[whole]))
        else:
            return None
        for name in names:
            other = self._owners.setdefault(name, dotted(path))
            if other != dotted(path):
                raise ValueError(
                    f"The array `{name}` would go to the states `{other}` and `{dotted(path)}`, "
                    "whose values have it at the same path. Load a context instead."
                )
        found = {name: self._arrays[name] for name in names if name in self._arrays}
        if len(found) < len(leaves):
            return Found(None, _show(found))
        data = jax.tree.unflatten(treedef, [_stored(slots, i, found[name]) for name in names])
        fits = Struct(data) == Struct(value)
        return Found(jax.tree.map(_to_jax, data) if fits else None, _show(data))

    def left(self) -> list[tuple[str, str]]:
        return [(n, _show(x)) for n, x in self._arrays.items() if n not in self._owners]


def read_old(tree: Any) -> OldStates | OldArrays:
    """What to load from, from a pytree of States or of arrays.

    **Raises:**

    `TypeError` if it is none of both.
    """
    if isinstance(tree, Mapping):  # that of `numpy.load` is no pytree
        tree = dict(tree)
    leaves = find_states(tree)
    states = [leaf for _, leaf in leaves if is_state(leaf)]
    if any(state.is_handle for state in states):
        raise TypeError(
            "`load` was given a model, whose values are in its context.\n"
            "Wrong:  states.load(old_model)\n"
            "Right:  states.load(old_states)"
        )
    if states:
        return OldStates(collect([(p, leaf) for p, leaf in leaves if is_state(leaf)], None))
    if tree is None or jax.tree_util.all_leaves([tree]):
        raise TypeError(
            "`load` takes a context, or a pytree of arrays whose paths are those of the states, "
            f"not {describe(tree)}.\n"
            'Wrong:  states.load("weights.npz")\n'
            'Right:  states.load(np.load("weights.npz"))'
        )
    return OldArrays([(_unpacked(path), leaf) for path, leaf in leaves])


def match_old(
    slots: Slots, values: Sequence[Any], old: OldStates | OldArrays
) -> tuple[dict[int, Any], LoadReport]:
    """The values of `old` that slots take, by position, and what became of each state."""
    new, rows = {}, []
    for i, slot in enumerate(slots.entries):
        found = old.find(slots, i, values[i])
        path, here = dotted(slot.path), slot.show(values[i])
        if found is None:
            rows.append(LoadRow(path, "added", here, ""))
        elif found.value is None:
            rows.append(LoadRow(path, "changed", here, found.shown))
        else:
            new[i] = own(found.value)
            rows.append(LoadRow(path, "loaded", here, found.shown))
    rows += [LoadRow(path, "dropped", "", shown) for path, shown in old.left()]
    return new, LoadReport(rows)


def _paths(slot: Slot) -> tuple[Path, ...]:
    return (slot.path, *slot.aliases)


def _unpacked(path: Path) -> Path:
    """A path of which a key may be a path, as in `{("layers", 0, "w"): ...}`."""
    return tuple(k for key in path for k in (key if isinstance(key, tuple) else (key,)))


def _is_array(x: Any) -> bool:
    numbers = (np.ndarray, np.generic, bool, int, float, complex)
    return isinstance(x, (jax.Array, jax.ShapeDtypeStruct, *numbers))


def _stored(slots: Slots, i: int, x: Any) -> Any:
    """An array as the context stores it: a key as its data, if it is of the state's kind."""
    impl = dict(slots.entries[i].static).get("impl")
    if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key) or str(jax.random.key_impl(x)) != impl:
        return x
    return slots.encode(i, x)


def _to_jax(x: Any) -> Any:
    return jnp.asarray(x) if isinstance(x, (np.ndarray, np.generic)) else x


def _show(arrays: Any) -> str:
    return eqx.tree_pformat(Struct(arrays).tree, struct_as_array=True, width=1000)
