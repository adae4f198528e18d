"""What a trace found out that is needed after a call has run, or to print its plan."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import numpy as np

from ._axes import Match, Placement
from ._layout import Layout
from ._outcome import Outcome
from ._plan import Row
from ._slots import Slots
from ._values import dotted


@dataclasses.dataclass(frozen=True, eq=False)
class Info:
    """The findings of a trace, without an array in them."""

    slots: Slots
    lanes: int
    matches_in: list[Match | None]
    placements: list[Placement]
    read: frozenset[int]
    split: frozenset[int]
    shapes: list[list[jax.ShapeDtypeStruct]]
    has_static: bool  # whether the output holds leaves that are no arrays
    unexpected: tuple[str, ...]  # the states that the policy placed

    def rows(self) -> tuple[Row, ...]:
        """A row of the plan for each state."""
        return tuple(self._row(i) for i in range(len(self.placements)))

    def _row(self, i: int) -> Row:
        slot, match, placement = self.slots.entries[i], self.matches_in[i], self.placements[i]
        axis_in: int | str = "shared" if match is None or match.axis is None else match.axis
        kept = placement.action == "keep"
        axis_out = axis_in if kept else "shared" if placement.axis is None else placement.axis
        why = placement.why
        if i in self.split:
            axis_in = "split"
            if kept:
                axis_out, why = "shared", "a key for each lane; the state itself moves on once"
        arrays = [eqx.tree_pformat(x, struct_as_array=True) for x in self.shapes[i]]
        more = f", ... ({len(arrays)} arrays)" if len(arrays) > 3 else ""
        return Row(
            path=dotted(slot.path),
            kind=slot.kind.__name__,
            shape=", ".join(arrays[:3]) + more,
            read=i in self.read,
            written=not kept or i in self.split,
            axis_in=axis_in,
            axis_out=axis_out,
            why=why,
        )


def inform(
    slots: Slots,
    layout: Layout,
    outcome: Outcome,
    values: tuple[Any, ...],
    read: frozenset[int],
    split: frozenset[int],
) -> Info:
    """What is kept of a trace."""
    return Info(
        slots=slots,
        lanes=layout.lanes,
        matches_in=layout.matches_in,
        placements=outcome.placements,
        read=read,
        split=split,
        shapes=[[_struct(x) for x in jax.tree.leaves(value)] for value in values],
        has_static=outcome.has_static,
        unexpected=tuple(
            dotted(slot.path)
            for slot, placement in zip(slots.entries, outcome.placements)
            if placement.unexpected
        ),
    )


def _struct(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(x), x.dtype if hasattr(x, "dtype") else np.result_type(x))
