"""Values with a few of them replaced, at a cost that grows with these few."""

from collections.abc import Iterator, Sequence
from typing import Any


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
