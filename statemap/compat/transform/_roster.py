"""The cells of a compiled function, looked up again at each call."""

from collections.abc import Callable, Iterable
from typing import Any

from .._cells import State
from .._discover import Discovery, Edge, unchanged
from .._frames import Stream


Identity = tuple[Any, ...]  # what a cell is equal by when another takes its place


class Roster:
    """The cells that a compiled function uses, in the order of its inputs.

    A cell may be made anew between two calls (`init_state` does so). What is compiled stands for
    the cell at a place rather than for one object, so that a call first looks whether the same
    cells are still at their places.
    """

    def __init__(self, fn: Callable, discovery: Discovery, cells: Iterable[State]):
        self.fn = fn
        self.cells = tuple(cells)
        self.identities = tuple(_identity(discovery, cell) for cell in self.cells)
        self.draws = any(isinstance(cell, Stream) for cell in self.cells)
        self.edges: list[Edge] = discovery.edges(self.cells)

    @property
    def is_current(self) -> bool:
        return unchanged(self.edges)

    def renewed(self) -> "Roster | None":
        """The cells that are at the same places now, or None if they can't be told."""
        discovery = Discovery(self.fn)
        by_identity = {_identity(discovery, cell): cell for cell in discovery.paths}
        own = zip(self.cells, self.identities)
        cells = [c if i[0] is None else by_identity.get(i) for c, i in own]
        if any(cell is None for cell in cells):
            return None
        return Roster(self.fn, discovery, cells)  # pyright: ignore


def _identity(discovery: Discovery, cell: State) -> Identity:
    paths = discovery.paths.get(cell)
    return (None, id(cell)) if paths is None else (type(cell), tuple(paths))
