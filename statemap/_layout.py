"""Where the lanes lie: the axis of every array that goes into a mapped call, and their number."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ._axes import (
    argument_axes,
    argument_labels,
    argument_size,
    Axis,
    lane_count,
    Match,
    state_size,
)
from ._options import Options
from ._signature import Function, Inputs
from ._slots import Slots
from ._state import RandomState
from ._values import dotted


@dataclasses.dataclass(frozen=True)
class Layout:
    """The axes of one call. Arrays are counted flat: those of all states, then the arguments'."""

    lanes: int
    axes: list[Axis]  # of each array of each state, then of each leaf of the arguments
    matches_in: list[Match | None]  # of each state, what `state_in_axes` says
    matches_out: list[Match | None]
    split: frozenset[int]  # random states that give a key of its own to each lane
    treedefs: list[Any]  # of each state's value
    counts: list[int]  # of each state's value, how many arrays it has
    abstract: list[Any]  # the states' arrays as the lanes' program takes them

    def starts(self) -> list[int]:
        """Of each state, the position of its first array."""
        return [0, *itertools.accumulate(self.counts)]

    def values(self, leaves: list[Any]) -> tuple[Any, ...]:
        """The states' values from their arrays, given flat."""
        own = iter(leaves)
        return tuple(
            jax.tree.unflatten(treedef, [next(own) for _ in range(count)])
            for treedef, count in zip(self.treedefs, self.counts)
        )


def lay_out(
    options: Options,
    function: Function,
    inputs: Inputs,
    slots: Slots,
    values: Sequence[Any],
    arrays: list[Any],
) -> Layout:
    """The layout of a call, or the error that says why there is none.

    **Raises:**

    `ValueError` for an axis that an argument lacks, lane counts that differ or can't be told;
    `BatchAxisError` for an axis that a state lacks.
    """
    args, kwargs = inputs.arguments(arrays)
    leaf_axes = argument_axes(options.in_axes, args, kwargs)
    fn = function.rebuild(inputs.function_arrays(arrays))
    sizes: list[tuple[str, int]] = []
    leaves = jax.tree.leaves((args, kwargs))
    for j, (label, leaf) in enumerate(zip(argument_labels(fn, args, kwargs), leaves)):
        axis = leaf_axes[j] = None if inputs.is_number(j) else leaf_axes[j]
        if axis is not None:
            leaf_axes[j], size = argument_size(label, leaf.shape, axis)
            sizes.append((label, size))

    matches_in = options.state_in.assign(slots, values)
    matches_out = options.state_out.assign(slots, values)
    flat = [jax.tree.flatten(value) for value in values]
    axes: list[Axis] = []
    for i, ((leaves, _), match) in enumerate(zip(flat, matches_in)):
        if match is None or match.axis is None:
            axes += [None] * len(leaves)
            continue
        found = [state_size(slots, i, np.shape(x), match) for x in leaves]
        axes += [at for at, _ in found]
        label = f"state `{dotted(slots.entries[i].path)}` along axis {match.axis}"
        sizes += [(label, size) for _, size in found]
    given, devices = options.axis_size, options.devices
    if given is None and not sizes and devices is not None:
        given = devices.count
    lanes = lane_count(given, sizes)
    if devices is not None:
        devices.check(lanes)

    abstract, split, at = [], set(), 0
    for i, (leaves, _) in enumerate(flat):
        if issubclass(slots.entries[i].kind, RandomState) and matches_in[i] is None:
            split.add(i)
            axes[at] = 0
            leaves = [jax.ShapeDtypeStruct((lanes, *np.shape(leaves[0])), leaves[0].dtype)]
        abstract += leaves
        at += len(leaves)
    return Layout(
        lanes=lanes,
        axes=axes + leaf_axes,
        matches_in=matches_in,
        matches_out=matches_out,
        split=frozenset(split),
        treedefs=[treedef for _, treedef in flat],
        counts=[len(leaves) for leaves, _ in flat],
        abstract=abstract,
    )
