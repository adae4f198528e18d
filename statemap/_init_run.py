"""The one run of what makes a population, as a lane: `make` of `vmap2_new_states`."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from ._axes import move_axis, normalise
from ._devices import Devices
from ._errors import BatchAxisError
from ._jax import lay_lanes
from ._make import bind, call
from ._slots import intern_slots, Slots
from ._state import is_state, RandomState, with_fields
from ._state_axes import Axis, StateAxes
from ._states import make_states, States
from ._streams import split_lanes
from ._values import dotted, Path, to_path
from ._watch import make_inside, run_watched


class InitRun:
    """The one run of `make`, as a lane: from flat arrays to the arrays of the states and of the
    model. What it returns besides is noted here.
    """

    slots: Slots
    axes: list[Axis]  # of each state
    counts: list[int]  # of each state, how many arrays it has
    treedefs: list[Any]
    model_treedef: Any
    statics: list[Any]  # the leaves of the model; None for its arrays
    array_paths: list[Path]

    def __init__(
        self,
        make: Callable[..., Any],
        kwargs: dict[str, Any],
        treedef: Any,
        impl: str | None,
        tag: str | None,
        state_axes: StateAxes,
    ):
        """**Arguments:**

        - `kwargs`: the arguments that all lanes share.
        - `treedef`: of those that are mapped.
        - `impl`: of the key, if there is one.
        """
        self.make, self.kwargs, self.treedef = make, kwargs, treedef
        self.impl, self.tag, self.state_axes = impl, tag, state_axes

    def lane(self, leaves: list[Any]) -> list[Any]:
        mapped = jax.tree.unflatten(self.treedef, leaves)
        if self.impl is not None:
            mapped["key"] = jax.random.wrap_key_data(mapped["key"], impl=self.impl)
        made, keys = run_watched(self.make, (), {**self.kwargs, **mapped}, make_inside, call)
        if isinstance(made, tuple) and len(made) >= 2 and isinstance(made[1], States):
            model, states = made[0], made[1]
            keys.refuse_unused()
        else:
            model, states = bind(made, keys)
        if self.tag is not None:
            model, states = _retag(model, states, self.tag)
        self.slots = states._slots
        self.axes = self.state_axes.assign_new(states._slots, states._values)
        flat = [jax.tree.flatten(value) for value in states._values]
        self.treedefs = [treedef for _, treedef in flat]
        self.counts = [len(leaves) for leaves, _ in flat]
        self._refuse_axes(flat)
        with_path, self.model_treedef = jax.tree_util.tree_flatten_with_path(model)
        arrays = {to_path(keys): x for keys, x in with_path if eqx.is_array(x)}
        self.array_paths = list(arrays)
        self.statics = [None if eqx.is_array(x) else x for _, x in with_path]
        self.is_array = [eqx.is_array(x) for _, x in with_path]
        return [x for leaves, _ in flat for x in leaves] + list(arrays.values())

    def refuse(self, differ: set[int]) -> None:
        """Refuses what depends on the lane and has no place for a value for each."""
        at = 0
        for slot, axis, n in zip(self.slots.entries, self.axes, self.counts):
            if axis is None and differ & set(range(at, at + n)):
                raise BatchAxisError(
                    f"The {slot.kind.__name__} `{dotted(slot.path)}` has no lanes, and its "
                    "initial value differs between them. Make it of what does not depend on "
                    "`key` or a mapped argument, or let it be a state that has lanes."
                )
            at += n
        for k, path in enumerate(self.array_paths, at):
            if k in differ:
                raise ValueError(
                    f"The array `{dotted(path)}` of the model differs between lanes "
                    "and is no State, so that there is no place for a value for each lane. Make "
                    "it one:\n"
                    "Wrong:  self.weight = jr.normal(key, (3,))\n"
                    "Right:  self.weight = sm.ParamState(jr.normal(key, (3,)))"
                )

    def stacked(self, differ: set[int]) -> list[int]:
        """The outputs that come with the lanes on axis 0. A random state that is alike in all
        lanes is split afterwards.
        """
        found, at = [], 0
        for slot, axis, n in zip(self.slots.entries, self.axes, self.counts):
            own = range(at, at + n)
            if axis is not None and not (issubclass(slot.kind, RandomState) and at not in differ):
                found += own
            at += n
        return found

    def assemble(
        self,
        out: list[Any],
        differ: set[int],
        lanes: int,
        sharding: Any,
        devices: Devices | None,
    ) -> tuple[tuple[Any, ...], list[jax.Array]]:
        """The states' values and the model's arrays, from the outputs of all lanes."""
        put = lambda x, axis: x if devices is None else devices.constrain(x, axis)
        values, at = [], 0
        specs = zip(self.slots.entries, self.slots.specs, self.axes, self.counts, self.treedefs)
        for slot, spec, axis, n, treedef in specs:
            leaves = out[at : at + n]
            if axis is not None:
                if issubclass(slot.kind, RandomState) and at not in differ:
                    _, keys = split_lanes(leaves[0], lanes, spec)  # each a stream of its own
                    leaves = [lay_lanes(keys, sharding)]
                leaves = [move_axis(x, axis, spec.trailing_axes) for x in leaves]
                where = [normalise(axis, x.ndim - spec.trailing_axes) for x in leaves]
                leaves = [put(x, a) for x, a in zip(leaves, where)]
            else:
                leaves = [put(x, None) for x in leaves]
            values.append(jax.tree.unflatten(treedef, leaves))
            at += n
        return tuple(values), [put(x, None) for x in out[at:]]

    def model(self, arrays: list[jax.Array]) -> Any:
        own = iter(arrays)
        leaves = [next(own) if a else s for s, a in zip(self.statics, self.is_array)]
        return jax.tree.unflatten(self.model_treedef, leaves)

    def _refuse_axes(self, flat: list[tuple[list[Any], Any]]) -> None:
        for slot, axis, (leaves, _) in zip(self.slots.entries, self.axes, flat):
            for x in leaves:
                ndim = x.ndim - slot.kind.trailing_axes
                if axis is not None and normalise(axis, ndim + 1) is None:
                    raise BatchAxisError(
                        f"The state `{dotted(slot.path)}` has shape {x.shape[:ndim]} in a lane, "
                        f"and can't have the lanes on axis {axis}, as `state_out_axes` says."
                    )


def _retag(model: Any, states: States, tag: str) -> tuple[Any, States]:
    entries = tuple(
        slot._replace(static=tuple((k, tag if k == "tag" else v) for k, v in slot.static))
        for slot in states._slots.entries
    )
    model = jax.tree.map(
        lambda x: with_fields(x, tag=tag) if is_state(x) else x, model, is_leaf=is_state
    )
    return model, make_states(intern_slots(entries), states._values)
