"""The one run of a mapped function: what goes into it, as a lane, and what comes out."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._axes import (
    argument_axes,
    argument_labels,
    argument_size,
    broadcast_axes,
    lane_count,
    normalise,
    state_size,
)
from ._container import AnyFrame
from ._devices import Devices
from ._jax import is_ref, with_lanes, without_axis
from ._options import Options
from ._overlay import Watched
from ._signature import Function, Inputs, Static, unwrap
from ._slots import Slots
from ._state import RandomState
from ._state_axes import Axis
from ._values import dotted, fit, function_name
from ._watch import run_watched


class Run:
    """The one run of a function, as a lane: from flat arrays to flat arrays. Those of all states
    come first, then all others.
    """

    lanes: int
    axes: list[Axis]  # of each array that goes in
    axes_in: list[int | str]  # of each state, as its row has it
    # Of each leaf of the output, noted by the run: its path and the axis of its lanes, or `Static`.
    outputs: list[tuple[tuple, Axis] | Static]
    out_treedef: Any
    n_finals: int  # how many outputs at the end are what is in Refs
    moved: list[bool]  # of each state, whether a mapping in the lane has moved it

    def __init__(
        self,
        options: Options,
        devices: Devices | None,
        function: Function,
        inputs: Inputs,
        slots: Slots,
        frame: AnyFrame,
        values: Sequence[Any],
        arrays: list[Any],
    ):
        """Finds the axis of all that goes in, and the number of lanes.

        **Raises:**

        `ValueError` for an axis that an argument lacks, lane counts that differ or can't be told;
        `BatchAxisError` for an axis that a state lacks.
        """
        self.options, self.devices = options, devices
        self.function, self.inputs = function, inputs
        self.slots, self.frame = slots, frame
        self.seen: set[int] = set()  # the states that the function looks at
        sizes: list[tuple[str, int]] = []
        array_axes = self._of_arrays(arrays, sizes)
        self.came = options.state_in.assign(slots, values)
        self.goes = options.state_out.assign(slots, values)
        options.state_in.warn_idle(slots, values)
        options.state_out.warn_idle(slots, values)
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

        self.everything = [*(x for leaves in self.leaves for x in leaves), *arrays]

    def _of_arrays(self, arrays: list[Any], sizes: list[tuple[str, int]]) -> list[Axis]:
        inputs = self.inputs
        args, kwargs = inputs.arguments(arrays)
        axes = argument_axes(self.options.in_axes, args, kwargs)
        fn = self.function.rebuild(inputs.function_arrays(arrays))
        leaves = jax.tree.leaves((args, kwargs))
        for j, (label, leaf) in enumerate(zip(argument_labels(fn, args, kwargs), leaves)):
            axis = axes[j] = None if inputs.is_number(j) else axes[j]
            if axis is not None:
                axes[j], size = argument_size(label, np.shape(leaf), axis)
                sizes.append((label, size))
        own = [axis for j, axis in enumerate(axes) if inputs.is_traced(j)]
        return own + [None] * (len(arrays) - len(own))

    def lane_types(self, lanes_sharding: Any) -> list[Any]:
        """What a lane sees of each array."""
        every = self.all_lanes(lanes_sharding)
        return [without_axis(x, axis) for x, axis in zip(every, self.axes)]

    def all_lanes(self, lanes_sharding: Any) -> list[Any]:
        """What all lanes together are given of each array."""
        found = list(self.everything)
        for at, axis in zip(self.starts, self.axes_in):
            if axis == "split":
                found[at] = with_lanes(found[at], self.lanes, lanes_sharding)
        return found

    def lane(self, flat: list[Any]) -> list[Any]:
        """What is traced."""
        own, n = iter(flat), self.starts[-1]
        before = tuple(
            jax.tree.unflatten(treedef, [next(own) for _ in range(count)])
            for treedef, count in zip(self.treedefs, self.counts)
        )
        arrays, refs = self.inputs.make_refs(flat[n:], self.axes[n:])
        extra = tuple(self.inputs.container_arrays(arrays))
        fn = self.function.rebuild(self.inputs.function_arrays(arrays))
        args, kwargs = unwrap(*self.inputs.arguments(arrays))
        unlisted = frozenset(i for i, entry in enumerate(self.came) if entry is None)
        values = Watched(before, self.seen, unlisted)
        container = self.frame.fill(self.slots, values, extra)
        result = run_watched(fn, (container, *args), kwargs)
        out, returned = pair(result, fn, "A mapped function")
        after, moved = self.frame.read(self.slots, returned, extra)
        new = self._sort_states(before, after, moved)
        return self._sort_output(out, refs) + new

    def _sort_output(self, out: Any, refs: list[Any]) -> list[Any]:
        with_path, self.out_treedef = jax.tree_util.tree_flatten_with_path(out)
        leaves = [_as_output(x) for _, x in with_path]
        axes = broadcast_axes(
            self.options.out_axes, jax.tree.unflatten(self.out_treedef, leaves), "out_axes"
        )
        self.outputs = []
        for (path, _), leaf, axis in zip(with_path, leaves, axes):
            if is_ref(leaf):
                raise TypeError(
                    f"The output{located(path)} is a Ref, which can't leave a lane. Return what is "
                    "in it: `ref[...]`."
                )
            if not eqx.is_array(leaf):
                self.outputs.append(Static(leaf))
                continue
            if axis is not None and normalise(axis, leaf.ndim + 1) is None:
                raise ValueError(
                    f"The output{located(path)} has shape {leaf.shape} in a lane, and can't have "
                    f"the lanes on axis {axis}, as `out_axes` says."
                )
            self.outputs.append((path, axis))
        # Then what is in the Refs that the lane was given a part of.
        axes = [self.axes[self.starts[-1] + j] for j in self.inputs.refs]
        finals = [(ref[...], axis) for ref, axis in zip(refs, axes) if axis is not None]
        self.outputs += [((), axis) for _, axis in finals]
        self.n_finals = len(finals)
        return [x for x in leaves if eqx.is_array(x)] + [x for x, _ in finals]

    def _sort_states(self, before: Sequence[Any], after: Sequence[Any], moved: Any) -> list[Any]:
        flat: list[Any] = []
        self.moved = []
        if isinstance(after, Watched):
            after = after.every
        for slot, old, new in zip(self.slots.entries, before, after):
            # A context rebuilt by `jax.tree.map`, say, has not been checked by `set`.
            free = moved is None or slot.path in moved or not slot.kind.fixed_shape
            try:
                shapes = None if slot.kind.fixed_shape is None else not free
                new = fit(old, new, dotted(slot.path), shapes=shapes, dtypes=slot.kind.fixed_dtype)
            except ValueError as error:
                if not free:
                    error.add_note(
                        "(A lane gives each state back in the shape in which it came. The usual "
                        "cause of another is a context from outside the function, returned by "
                        "mistake; the one to return is made of the one that came in.)"
                    )
                raise
            flat += (leaves := jax.tree.leaves(new))
            shapes = [np.shape(x) for x in jax.tree.leaves(old)]
            self.moved.append([x.shape for x in leaves] != shapes)
        return flat


def _as_output(leaf: Any) -> Any:
    if isinstance(leaf, (bool, int, float, complex, np.ndarray, np.generic)):
        return jnp.asarray(leaf)
    return leaf


def located(path: tuple) -> str:
    return f" `{jax.tree_util.keystr(path)}`" if path else ""


def pair(result: Any, fn: Callable, role: str) -> tuple[Any, Any]:
    """What a function returned, which has to be `(out, states)`."""
    if not isinstance(result, tuple) or len(result) != 2:
        name = function_name(fn)
        what = (
            f"a tuple of {len(result)}"
            if isinstance(result, tuple)
            else (f"`{type(result).__name__}`")
        )
        raise TypeError(
            f"{role} returns `(out, states)`, and `{name}` returned {what}.\n"
            "Wrong:  return out\n"
            "Right:  return out, states"
        )
    return result
