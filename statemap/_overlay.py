"""The sequences, besides tuples, that the values of a context are held in: values of which a few
are replaced, at a cost that grows with these few; and values that a lane is given or gives back.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ._errors import BatchAxisError
from ._state import State
from ._values import dotted


class Chosen:
    """The positions of some values among all."""

    __slots__ = ("indices", "places")

    def __init__(self, indices: tuple[int, ...]):
        self.indices = indices
        self.places = {i: place for place, i in enumerate(indices)}


class Overlay(Sequence[Any]):
    """The values of a context of which a mapping touches some, call after call: these, and all
    others as they were. They are put together once that is asked for.
    """

    __slots__ = ("_all", "base", "chosen", "values")

    base: tuple[Any, ...]  # all values, with None for those in the overlay: no old array lives on
    # Belongs to what is compiled, which knows by its identity that these values are its inputs.
    chosen: Chosen
    values: tuple[Any, ...]  # those in the overlay

    def __getitem__(self, i: Any) -> Any:
        place = self.chosen.places.get(i) if isinstance(i, int) else None
        if place is not None:
            return self.values[place]
        return self.base[i] if isinstance(i, int) and i >= 0 else self._whole()[i]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._whole())

    def __len__(self) -> int:
        return len(self.base)

    def _whole(self) -> tuple[Any, ...]:
        if not hasattr(self, "_all"):
            every = list(self.base)
            for i, value in zip(self.chosen.indices, self.values):
                every[i] = value
            self._all = tuple(every)
        return self._all


_new = object.__new__


def overlay(base: tuple[Any, ...], chosen: Chosen, values: tuple[Any, ...]) -> Overlay:
    """An overlay of its parts. (At every call of a mapping: an `__init__` takes twice as long.)"""
    self = _new(Overlay)
    self.base = base
    self.chosen = chosen
    self.values = values
    return self


class Watched(Sequence[Any]):
    """The values that a lane is given. Which of them it looks at is noted, since only on those
    can its program depend.
    """

    __slots__ = ("every", "seen", "unlisted")

    def __init__(
        self,
        every: Sequence[Any],
        seen: set[int],
        unlisted: frozenset[int],
    ):
        """**Arguments:**

        - `seen`: where it is noted.
        - `unlisted`: the positions of the states that no filter of the mapping lists.
        """
        self.every = every
        self.seen = seen
        self.unlisted = unlisted

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, int) and i >= 0:
            self.seen.add(i)
        else:
            self.seen.update(range(len(self.every)))
        return self.every[i]

    def __iter__(self) -> Iterator[Any]:
        self.seen.update(range(len(self.every)))
        return iter(self.every)

    def __len__(self) -> int:
        return len(self.every)

    def refuse_population(self, i: int, handle: State) -> None:
        """Refuses to look up by handle the value of a whole population, in one of its lanes."""
        declared = handle.handle
        if declared is None or i not in self.unlisted:
            return
        expected = [x.shape for x in declared.struct.arrays]
        trailing = handle.trailing_axes
        shapes = [np.shape(x)[: np.ndim(x) - trailing] for x in jax.tree.leaves(self.every[i])]
        if shapes != expected:
            raise BatchAxisError(
                f"The state `{dotted(declared.path)}` has shape {_show(shapes)} here, and its "
                f"handle declares {_show(expected)}: this looks like a population, of which every "
                "lane would see the whole.\n"
                "Wrong:  sm.vmap2(model)(states, x)\n"
                "Right:  sm.vmap2(model, state_in_axes=axes, state_out_axes=axes)(states, x), "
                "with the axes that `vmap2_new_states` returned\n"
                "If every lane is to see the whole of it, list it under None: "
                "`state_in_axes={None: ...}`."
            )


def _show(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes))


class Moved(tuple[Any, ...]):
    """Values of which a mapping inside a lane has moved some to another axis, so that they go
    back in another shape than they came in.
    """

    moved: frozenset[Any]  # the paths of these states


def moved_of(values: Sequence[Any]) -> frozenset[Any]:
    """The paths of the states that a mapping inside the lane has moved."""
    return values.moved if isinstance(values, Moved) else frozenset()


def with_moved(values: Sequence[Any], moved: frozenset[Any]) -> Sequence[Any]:
    """Values with a note of which were moved."""
    if not moved:
        return values
    new = Moved(values)
    new.moved = moved
    return new


class MovedSlots:
    """The structure of a context in which a mapping inside a lane has moved states: equal to that
    of any other with these slots. It carries the note through `jit`, which knows of structure
    and of arrays alone.
    """

    __slots__ = ("moved", "slots")

    def __init__(self, slots: Any, moved: frozenset[Any]):
        self.slots = slots
        self.moved = moved

    def __eq__(self, other: object) -> bool:
        return other is self.slots or isinstance(other, MovedSlots) and other.slots is self.slots

    def __hash__(self) -> int:
        return hash(self.slots)


def replaced(values: Sequence[Any], new: dict[int, Any]) -> Sequence[Any]:
    """Values with some of them replaced, by position."""
    every = list(values.every if isinstance(values, Watched) else values)
    for i, value in new.items():
        every[i] = value
    if isinstance(values, Watched):
        return Watched(tuple(every), values.seen, values.unlisted)
    return with_moved(tuple(every), moved_of(values))
