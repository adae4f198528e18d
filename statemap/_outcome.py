"""What comes out of a lane: which states it wrote, whether lanes differ, and where each goes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._axes import Axis, broadcast_axes, normalise, place, Placement
from ._errors import BatchAxisError
from ._layout import Layout
from ._options import Options
from ._slots import Slots
from ._values import dotted, fit


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Fixed:
    """An output that is no array, on its way through `jax.jit`."""

    value: Any


def unfix(out: Any) -> Any:
    """An output with the leaves that are no arrays in it."""
    return jax.tree.map(
        lambda x: x.value if isinstance(x, Fixed) else x,
        out,
        is_leaf=lambda x: isinstance(x, Fixed),
    )


class Outcome:
    """The results of a mapped function, sorted inside a lane into those that are stacked and
    those that all lanes share, and put together again outside the map.

    `jax.vmap` wants to know the axes of its outputs before the function runs, while where a
    state goes depends on what the function did. So everything leaves the map in one of two
    groups, on axis 0 or on none, and is moved to its axis afterwards.
    """

    def __init__(self, options: Options, slots: Slots, layout: Layout):
        self.options = options
        self.slots = slots
        self.layout = layout
        self.placements: list[Placement] = []
        self.out_treedef: Any = None
        self.out_plan: list[tuple[str, Any]] = []  # for each leaf of the output

    @property
    def has_static(self) -> bool:
        return any(action == "fixed" for action, _ in self.out_plan)

    def sort(
        self, marker: jax.Array, out: Any, before: Sequence[Any], after: Sequence[Any]
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """Inside a lane: the arrays to stack, and the arrays to share.

        **Arguments:**

        - `marker`: an array known to differ between lanes.
        - `out`: what the function returned first.
        - `before`, `after`: the states' values that went in and came out.
        """
        self.placements, self.out_plan = [], []
        out_leaves, self.out_treedef = jax.tree.flatten(out)
        out_leaves = [_as_output(x) for x in out_leaves]
        paths = [keys for keys, _ in jax.tree_util.tree_flatten_with_path(out)[0]]
        out = jax.tree.unflatten(self.out_treedef, out_leaves)
        out_axes = broadcast_axes(self.options.out_axes, out, "out_axes")
        new, written = self._written(before, after)

        # Only where the answer matters is it asked whether lanes differ.
        asked = {i: new[i] for i in range(len(new)) if self._matters(i, written[i])}
        alone = {j: x for j, x in enumerate(out_leaves) if out_axes[j] is None and _is_array(x)}
        state_differs, out_differs = lanes_differ((asked, alone), marker)

        stacked: list[jax.Array] = []
        shared: list[jax.Array] = []
        for j, leaf in enumerate(out_leaves):
            if not _is_array(leaf):
                self.out_plan.append(("fixed", leaf))
                continue
            if out_differs.get(j, False):
                raise ValueError(
                    f"The output{_at(paths[j])} differs between lanes, and `out_axes` gives it "
                    "None, which is for a value that all lanes share. Give it an axis, or reduce "
                    "it over the lanes (`jax.lax.pmean(value, axis_name)`)."
                )
            axis = out_axes[j]
            if axis is not None and normalise(axis, leaf.ndim + 1) is None:
                raise ValueError(
                    f"The output{_at(paths[j])} has shape {leaf.shape} in a lane, and can't have "
                    f"the lanes on axis {axis}, as `out_axes` says."
                )
            self.out_plan.append(("share", None) if axis is None else ("stack", axis))
            (shared if axis is None else stacked).append(leaf)
        for i, slot in enumerate(self.slots.entries):
            placement = self._place(i, dotted(slot.path), written[i], state_differs.get(i, False))
            self.placements.append(placement)
            if placement.action in ("stack", "carry"):
                stacked += jax.tree.leaves(new[i])
            elif placement.action == "share":
                shared += jax.tree.leaves(new[i])
        return stacked, shared

    def assemble(
        self, stacked: list[jax.Array], shared: list[jax.Array]
    ) -> tuple[Any, dict[int, Any]]:
        """Outside the map: the output, and the new values by the position of their state. Of a
        split random state it is the lanes' keys, which tell whether it was drawn from.
        """
        stacked_, shared_ = iter(stacked), iter(shared)
        leaves = []
        for action, what in self.out_plan:
            if action == "stack":
                leaves.append(self._put(next(stacked_), what, 0))
            elif action == "share":
                leaves.append(self._put(next(shared_), None, 0))
            else:
                leaves.append(Fixed(what))
        values: dict[int, Any] = {}
        for i, placement in enumerate(self.placements):
            if placement.action == "keep":
                continue
            source = shared_ if placement.action == "share" else stacked_
            new = [next(source) for _ in range(self.layout.counts[i])]
            new = [self._on_axis(i, x, placement.axis) for x in new]
            values[i] = jax.tree.unflatten(self.layout.treedefs[i], new)
        return jax.tree.unflatten(self.out_treedef, leaves), values

    def _written(self, before: Sequence[Any], after: Sequence[Any]) -> tuple[list[Any], list[bool]]:
        new, written = [], []
        for i, slot in enumerate(self.slots.entries):
            pairs = zip(jax.tree.leaves(before[i]), jax.tree.leaves(after[i]))
            changed = any(a is not b for a, b in pairs)
            # A context rebuilt by `jax.tree.map`, say, has not been checked by `set`. Shapes may
            # have changed: a mapping inside the function gives lane axes to states, too.
            path, dtypes = dotted(slot.path), slot.kind.fixed_dtype
            new.append(fit(before[i], after[i], path, shapes=False, dtypes=dtypes))
            written.append(changed)
        return new, written

    def _matters(self, i: int, written: bool) -> bool:
        """Whether it matters for a state if its value differs between lanes."""
        came, goes = self.layout.matches_in[i], self.layout.matches_out[i]
        on_axis = came is not None and came.axis is not None
        if goes is None:
            return written and not on_axis and i not in self.layout.split
        return goes.axis is None and (written or on_axis)

    def _place(self, i: int, path: str, written: bool, differs: bool) -> Placement:
        match_out = self.layout.matches_out[i]
        if i in self.layout.split and (match_out is None or match_out.axis is None or not written):
            return Placement("carry" if written else "keep", 0, "shared, not used")
        return place(
            path, self.layout.matches_in[i], match_out, written, differs, self.options.policy
        )

    def _on_axis(self, i: int, x: jax.Array, axis: Axis) -> jax.Array:
        slot = self.slots.entries[i]
        trailing = slot.kind.trailing_axes
        if axis is not None and normalise(axis, x.ndim - trailing) is None:
            raise BatchAxisError(
                f"The state `{dotted(slot.path)}` has shape {x.shape[1 : x.ndim - trailing]} in "
                f"a lane, and can't have the lanes on axis {axis}, as `state_out_axes` says."
            )
        return self._put(x, axis, trailing)

    def _put(self, x: jax.Array, axis: Axis, trailing: int) -> jax.Array:
        """`x` with its lanes moved from axis 0 to `axis`, and over the devices if there are."""
        at = None if axis is None else normalise(axis, x.ndim - trailing)
        x = x if axis is None else move_axis(x, axis, trailing)
        devices = self.options.devices
        return x if devices is None else devices.constrain(x, at)


def lanes_differ(
    tree: tuple[dict[int, Any], ...], marker: jax.Array
) -> tuple[dict[int, bool], ...]:
    """For each entry, whether it depends on the lane of this very map.

    `custom_vmap` calls a rule of ours when the map is applied to it, and says of each input
    whether the map batches it. The marker makes sure that the map meant is the innermost one: a
    value that only varies over an outer map is shared here. A mapping function that does not
    batch, such as `jax.pmap`, calls no rule; then everything may differ.
    """
    if not any(tree):
        return tuple({} for _ in tree)
    seen: list[Any] = []

    @jax.custom_batching.custom_vmap
    def mark(tree: Any, marker: jax.Array) -> jax.Array:
        return marker

    @mark.def_vmap
    def rule(axis_size: int, batched: Any, tree: Any, marker: jax.Array) -> Any:
        seen.append(batched[0])
        return marker, True

    del rule
    mark(jax.lax.stop_gradient(tree), marker)
    groups = seen[0] if seen else jax.tree.map(lambda _: True, tree)
    return tuple({k: any(jax.tree.leaves(v)) for k, v in group.items()} for group in groups)


def move_axis(x: jax.Array, axis: int, trailing: int) -> jax.Array:
    """Axis 0 of `x` moved to `axis`, counted without the trailing axes."""
    to = normalise(axis, x.ndim - trailing)
    assert to is not None
    return x if to == 0 else jnp.moveaxis(x, 0, to)


def _as_output(leaf: Any) -> Any:
    if isinstance(leaf, (bool, int, float, complex, np.ndarray, np.generic)):
        return jnp.asarray(leaf)
    return leaf


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf)


def _at(keys: tuple) -> str:
    return f" `{jax.tree_util.keystr(keys)}`" if keys else ""
