"""Where the lanes lie: the axis of every array that goes into a mapped call, and their number."""

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
    state_size,
)
from ._devices import Devices
from ._jax import without_axis
from ._options import Options
from ._signature import Function, Inputs
from ._slots import Slots
from ._state import RandomState
from ._values import dotted


class Layout:
    """The axes of one call. Arrays are counted flat: those of all states, then all others."""

    lanes: int
    axes: list[Axis]  # of each array
    axes_in: list[int | str]  # of each state, as its row has it

    def __init__(
        self,
        options: Options,
        devices: Devices | None,
        function: Function,
        inputs: Inputs,
        slots: Slots,
        values: Sequence[Any],
        arrays: list[Any],
    ):
        """**Raises:**

        `ValueError` for an axis that an argument lacks, lane counts that differ or can't be told;
        `BatchAxisError` for an axis that a state lacks.
        """
        sizes: list[tuple[str, int]] = []
        array_axes = self._of_arrays(options, function, inputs, arrays, sizes)
        self.came = options.state_in.assign(slots, values)
        self.goes = options.state_out.assign(slots, values)
        flat = [jax.tree.flatten(value) for value in values]
        self.leaves = [leaves for leaves, _ in flat]
        self.treedefs = [treedef for _, treedef in flat]
        self.counts = [len(leaves) for leaves in self.leaves]
        self.starts = [0, *itertools.accumulate(self.counts)]
        self.axes, self.axes_in = [], []
        for i, (slot, leaves, entry) in enumerate(zip(slots.entries, self.leaves, self.came)):
            if entry is not None and entry.axis is not None:
                found = [state_size(slots, i, np.shape(x), entry) for x in leaves]
                self.axes += [at for at, _ in found]
                label = f"state `{dotted(slot.path)}` along axis {entry.axis}"
                sizes += [(label, size) for _, size in found]
                self.axes_in.append(entry.axis)
            elif entry is None and issubclass(slot.kind, RandomState):
                self.axes.append(0)  # of the lanes' keys
                self.axes_in.append("split")
            else:
                self.axes += [None] * len(leaves)
                self.axes_in.append("shared")
        self.axes += array_axes
        given = options.axis_size
        if given is None and not sizes and devices is not None:
            given = devices.count
        self.lanes = lane_count(given, sizes)
        if devices is not None:
            devices.check(self.lanes)

    def _of_arrays(
        self,
        options: Options,
        function: Function,
        inputs: Inputs,
        arrays: list[Any],
        sizes: list[tuple[str, int]],
    ) -> list[Axis]:
        args, kwargs = inputs.arguments(arrays)
        axes = argument_axes(options.in_axes, args, kwargs)
        fn = function.rebuild(inputs.function_arrays(arrays))
        leaves = jax.tree.leaves((args, kwargs))
        for j, (label, leaf) in enumerate(zip(argument_labels(fn, args, kwargs), leaves)):
            axis = axes[j] = None if inputs.is_number(j) else axes[j]
            if axis is not None:
                axes[j], size = argument_size(label, np.shape(leaf), axis)
                sizes.append((label, size))
        own = [axis for j, axis in enumerate(axes) if inputs.is_traced(j)]
        return own + [None] * (len(arrays) - len(own))

    def values(self, leaves: list[Any]) -> tuple[Any, ...]:
        """The states' values from their arrays, given flat."""
        own = iter(leaves)
        return tuple(
            jax.tree.unflatten(treedef, [next(own) for _ in range(count)])
            for treedef, count in zip(self.treedefs, self.counts)
        )

    def lane_types(self, everything: list[Any]) -> list[Any]:
        """What a lane sees of each array."""
        split = self._split()
        return [
            without_axis(x, None if k in split else axis)
            for k, (x, axis) in enumerate(zip(everything, self.axes))
        ]

    def all_lanes(self, everything: list[Any]) -> list[Any]:
        """What all lanes together are given of each array."""
        found = list(everything)
        for k in self._split():
            data = found[k]
            found[k] = jax.ShapeDtypeStruct((self.lanes, *np.shape(data)), data.dtype)
        return found

    def _split(self) -> set[int]:
        return {at for at, axis in zip(self.starts, self.axes_in) if axis == "split"}
