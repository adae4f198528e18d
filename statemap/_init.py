"""New states, made in lanes: `vmap2_new_states`."""

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ._axes import argument_size, Axis, lane_count, normalise, StateAxes, StateAxisSpec
from ._devices import Devices
from ._errors import BatchAxisError
from ._filters import Everything
from ._make import bind
from ._members import MemberAxes
from ._outcome import lanes_differ, move_axis
from ._slots import intern_slots, Slots, to_path
from ._state import as_key, is_state, NonBatchState, RandomState, with_fields
from ._states import make_states, States
from ._trace import split_lanes
from ._values import dotted


def vmap2_new_states(
    make: Callable[..., Any],
    init_kwargs: Mapping[str, Any] | None = None,
    *,
    key: Any = None,
    state_tag: str | None = None,
    axis_size: int | None = None,
    state_out_axes: StateAxisSpec = None,
    in_axes: Mapping[str, int | None] | None = None,
    axis_name: Hashable = None,
    spmd_axis_name: Hashable | tuple[Hashable, ...] | None = None,
) -> tuple[Any, States, MemberAxes]:
    """Makes a population: a model once, and its states for each lane.

    ```python
    import equinox as eqx, jax.numpy as jnp, jax.random as jr
    import statemap as sm

    class Noisy(eqx.Module):
        weight: sm.ParamState
        rng: sm.RandomState

        def __init__(self, n, *, key):
            wkey, rkey = jr.split(key)
            self.weight = sm.ParamState(jr.normal(wkey, (n,)))
            self.rng = sm.RandomState(rkey)

        def __call__(self, states, x):
            noise, states = sm.random.normal(states, self.rng, x.shape)
            return states[self.weight] * x + noise, states

    model, states, axes = sm.vmap2_new_states(Noisy, dict(n=3), key=jr.key(0), axis_size=10)
    assert states[model.weight].shape == (10, 3)

    step = sm.vmap2(model, in_axes=None, state_in_axes=axes, state_out_axes=axes)
    out, states = step(states, jnp.ones(3))
    assert out.shape == (10, 3)
    ```

    **Arguments:**

    - `make`: a class or a function that returns a pytree with States, or `(model, states)`. It
        runs once, for all lanes.
    - `init_kwargs`: its keyword arguments.
    - `key`: a key or seed, which is split: `make` is given `key=`, one for each lane. Left out,
        `make` is given none.
    - `state_tag`: a tag for every new state.
    - `axis_size`: the number of lanes; needed unless `in_axes` maps an argument.
    - `state_out_axes`: on which axis the new states have their lanes: a mapping from axes to
        filters, or one filter for axis 0. What no filter matches goes to axis 0. A
        `NonBatchState` never has lanes, whatever else is said.
    - `in_axes`: the axes of arguments in `init_kwargs` that hold a value for each lane, by name.
    - `axis_name`, `spmd_axis_name`: as for [`statemap.vmap2`][].

    **Returns:**

    `(model, states, axes)`: the model, the context of the population, and a
    [`statemap.MemberAxes`][], which is what `state_in_axes` and `state_out_axes` take.

    A random state whose key does not depend on the lane is split, so that each lane has a stream
    of its own nevertheless.

    **Raises:**

    `ValueError` if the number of lanes can't be told, filters give a state two axes, or an array
    of the model that is no state differs between lanes; [`statemap.BatchAxisError`][] if a state
    that all lanes share does.
    """
    return new_states(
        make,
        init_kwargs,
        key=key,
        state_tag=state_tag,
        axis_size=axis_size,
        state_out_axes=state_out_axes,
        in_axes=in_axes,
        axis_name=axis_name,
        spmd_axis_name=spmd_axis_name,
        devices=None,
    )


def new_states(
    make: Callable[..., Any],
    init_kwargs: Mapping[str, Any] | None,
    *,
    key: Any,
    state_tag: str | None,
    axis_size: int | None,
    state_out_axes: StateAxisSpec,
    in_axes: Mapping[str, int | None] | None,
    axis_name: Hashable,
    spmd_axis_name: Any,
    devices: Devices | None,
) -> tuple[Any, States, MemberAxes]:
    """`vmap2_new_states`, and with `devices` `pmap2_new_states`."""
    kwargs = dict(init_kwargs or {})
    axes = {k: a for k, a in (in_axes or {}).items() if a is not None}
    if missing := [k for k in axes if k not in kwargs]:
        raise ValueError(f"`in_axes` names `{missing[0]}`, which `init_kwargs` does not hold.")
    mapped, mapped_axes, sizes = {}, {}, []
    for name, axis in axes.items():
        leaves, treedef = jax.tree.flatten(kwargs.pop(name))
        at = [argument_size(f"argument `{name}`", jnp.shape(x), axis) for x in leaves]
        sizes += [(f"argument `{name}`", size) for _, size in at]
        mapped[name] = jax.tree.unflatten(treedef, [jnp.asarray(x) for x in leaves])
        mapped_axes[name] = jax.tree.unflatten(treedef, [a for a, _ in at])
    if axis_size is None and not sizes and devices is not None:
        axis_size = devices.count
    if axis_size is None and not sizes:
        raise ValueError(
            "The number of lanes can't be told: give `axis_size`, or map an argument, "
            "`in_axes={'gain': 0}`."
        )
    lanes = lane_count(axis_size, sizes)
    if devices is not None:
        devices.check(lanes)
    if key is not None:
        mapped["key"] = jax.random.key_data(jax.random.split(as_key(key), lanes))
        mapped_axes["key"] = 0
    if devices is not None:
        place = devices.place
        mapped = {k: jax.tree.map(place, x, mapped_axes[k]) for k, x in mapped.items()}
    impl = None if key is None else str(jax.random.key_impl(as_key(key)))
    made = _Made(make, kwargs, impl, state_tag, StateAxes.parse(state_out_axes, "state_out_axes"))
    extra = {} if spmd_axis_name is None else {"spmd_axis_name": spmd_axis_name}

    def program(mapped: dict[str, Any]) -> tuple[Any, list[jax.Array]]:
        mapping = eqx.filter_vmap(
            made.lane,
            in_axes=(0, mapped_axes),
            out_axes=(0, None),
            axis_name=axis_name,
            axis_size=lanes,
            **extra,
        )
        stacked, alike = mapping(jnp.arange(lanes), mapped)
        return made.assemble(stacked, alike, lanes, devices)

    # Over devices, each makes its own part; on one, operations that are known are not compiled.
    values, arrays = (program if devices is None else jax.jit(program))(mapped)
    model = jax.tree.unflatten(made.model_treedef, made.fill(arrays))
    slots = made.slots
    assert slots is not None
    member_axes = {slot.path: axis for slot, axis in zip(slots.entries, made.axes)}
    return model, make_states(slots, tuple(values)), MemberAxes(member_axes)


class _Made:
    """What `make` returned in a lane, sorted into what has lanes and what has none."""

    def __init__(
        self,
        make: Callable[..., Any],
        kwargs: dict[str, Any],
        impl: str | None,
        tag: str | None,
        state_axes: StateAxes,
    ):
        self.make = make
        self.kwargs = kwargs
        self.impl = impl
        self.tag = tag
        self.state_axes = state_axes
        self.slots: Slots | None = None
        self.axes: list[Axis] = []
        self.alike: set[int] = set()  # states that are to have lanes, and do not depend on them
        self.model_treedef: Any = None
        self.statics: list[Any] = []

    def lane(self, marker: jax.Array, mapped: dict[str, Any]) -> tuple[list, list]:
        if self.impl is not None:
            mapped = {**mapped, "key": jax.random.wrap_key_data(mapped["key"], impl=self.impl)}
        made = self.make(**self.kwargs, **mapped)
        if isinstance(made, tuple) and len(made) >= 2 and isinstance(made[1], States):
            model, states = made[0], made[1]
        else:
            model, states = bind(made)
        if self.tag is not None:
            model, states = _retag(model, states, self.tag)
        self.slots, values = states._slots, states._values
        self.axes = _assign(self.slots, values, self.state_axes)
        leaves, self.model_treedef = jax.tree.flatten(model)
        arrays = {i: x for i, x in enumerate(leaves) if eqx.is_array(x)}
        self.statics = [None if i in arrays else x for i, x in enumerate(leaves)]
        self.is_array = [i in arrays for i in range(len(leaves))]
        differ, differ_arrays = lanes_differ((dict(enumerate(values)), arrays), marker)
        paths = [keys for keys, _ in jax.tree_util.tree_flatten_with_path(model)[0]]
        for i, yes in differ_arrays.items():
            if yes:
                raise ValueError(
                    f"The array `{dotted(to_path(paths[i]))}` of the model differs between lanes "
                    "and is no State, so that there is no place for a value for each lane. Make "
                    "it one:\n"
                    "Wrong:  self.weight = jr.normal(key, (3,))\n"
                    "Right:  self.weight = sm.ParamState(jr.normal(key, (3,)))"
                )
        for i, (slot, axis) in enumerate(zip(self.slots.entries, self.axes)):
            if axis is None and differ[i]:
                raise BatchAxisError(
                    f"The {slot.kind.__name__} `{dotted(slot.path)}` has no lanes, and its "
                    "initial value differs between them. Make it of what does not depend on "
                    "`key` or a mapped argument, or let it be a state that has lanes."
                )
        self.alike = {i for i, a in enumerate(self.axes) if a is not None and not differ[i]}
        stacked = [v for v, a in zip(values, self.axes) if a is not None]
        shared = [v for v, a in zip(values, self.axes) if a is None]
        return stacked, [shared, list(arrays.values())]

    def assemble(
        self, stacked: list[Any], alike: list[Any], lanes: int, devices: Devices | None
    ) -> tuple[list[Any], list[jax.Array]]:
        """The states' values and the model's arrays."""
        assert self.slots is not None
        stacked_, shared_ = iter(stacked), iter(alike[0])
        values = []
        for i, (slot, axis) in enumerate(zip(self.slots.entries, self.axes)):
            if axis is None:
                values.append(_constrain(devices, next(shared_), None))
                continue
            value = next(stacked_)
            if issubclass(slot.kind, RandomState) and i in self.alike:
                if lanes:
                    value = split_lanes(value[0], lanes, self.slots.specs[i])[1]
            move = functools.partial(
                self._on_axis, path=dotted(slot.path), axis=axis, trailing=slot.kind.trailing_axes
            )
            values.append(jax.tree.map(lambda x, m=move: m(devices, x), value))
        return values, [_constrain(devices, x, None) for x in alike[1]]

    def _on_axis(
        self, devices: Devices | None, x: jax.Array, *, path: str, axis: int, trailing: int
    ) -> jax.Array:
        at = normalise(axis, x.ndim - trailing)
        if at is None:
            raise BatchAxisError(
                f"The state `{path}` has shape {x.shape[1 : x.ndim - trailing]} in a lane, and "
                f"can't have the lanes on axis {axis}, as `state_out_axes` says."
            )
        return _constrain(devices, move_axis(x, axis, trailing), at)

    def fill(self, arrays: list[jax.Array]) -> list[Any]:
        own = iter(arrays)
        return [next(own) if a else s for s, a in zip(self.statics, self.is_array)]


def _constrain(devices: Devices | None, x: Any, axis: Axis) -> Any:
    if devices is None:
        return x
    return jax.tree.map(lambda leaf: devices.constrain(leaf, axis), x)


def _assign(slots: Slots, values: Sequence[Any], axes: StateAxes) -> list[Axis]:
    """The axis of each new state."""
    states = slots.states(values)
    matches = [(axis, p, slots.matching(p, states)) for axis, p in axes.entries]
    out: list[Axis] = []
    for i, slot in enumerate(slots.entries):
        if issubclass(slot.kind, NonBatchState):
            out.append(None)
            continue
        found = [(axis, p) for axis, p, match in matches if match[i]]
        explicit = [axis for axis, p in found if not isinstance(p, Everything)]
        if len(set(explicit)) > 1:
            raise ValueError(
                f"`state_out_axes` gives the state `{dotted(slot.path)}` the axes "
                f"{' and '.join(map(str, dict.fromkeys(explicit)))}: it matches the filters of "
                "each. A state has one axis."
            )
        out.append(found[0][0] if found else 0)
    return out


def _retag(model: Any, states: States, tag: str) -> tuple[Any, States]:
    entries = tuple(
        slot._replace(static=tuple((k, tag if k == "tag" else v) for k, v in slot.static))
        for slot in states._slots.entries
    )
    model = jax.tree.map(
        lambda x: with_fields(x, tag=tag) if is_state(x) else x, model, is_leaf=is_state
    )
    return model, make_states(intern_slots(entries), states._values)
