"""New states, made in lanes: `vmap2_new_states`."""

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, overload, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ._axes import argument_size, lane_count, move_axis, normalise
from ._devices import Devices
from ._errors import BatchAxisError
from ._foreign import refuse_foreign
from ._jax import is_ref, lanes_sharding, lay_lanes, with_lanes, without_axis
from ._keys import one_key
from ._lane import Lane
from ._make import bind, call, is_made
from ._members import MemberAxes
from ._options import check_axis_size
from ._refs import refuse_closed_over
from ._slots import intern_slots, Slots
from ._state import is_state, RandomState, with_fields
from ._state_axes import Axis, StateAxes, StateAxisSpec
from ._states import make_states, States
from ._streams import split_lanes
from ._values import dotted, function_name, Path, short, to_path
from ._watch import make_inside, run_watched


M = TypeVar("M")


@overload
def vmap2_new_states(
    make: Callable[..., tuple[M, States, *tuple[Any, ...]]],
    init_kwargs: Mapping[str, Any] | None = None,
    *,
    key: Any = None,
    state_tag: str | None = None,
    axis_size: int | None = None,
    state_out_axes: StateAxisSpec = None,
    in_axes: Mapping[str, int | None] | None = None,
    axis_name: Hashable = None,
    spmd_axis_name: Hashable | tuple[Hashable, ...] | None = None,
) -> tuple[M, States, MemberAxes]: ...


@overload
def vmap2_new_states(
    make: Callable[..., M],
    init_kwargs: Mapping[str, Any] | None = None,
    *,
    key: Any = None,
    state_tag: str | None = None,
    axis_size: int | None = None,
    state_out_axes: StateAxisSpec = None,
    in_axes: Mapping[str, int | None] | None = None,
    axis_name: Hashable = None,
    spmd_axis_name: Hashable | tuple[Hashable, ...] | None = None,
) -> tuple[M, States, MemberAxes]: ...


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
        n: int
        weight: sm.ParamState = sm.field(lambda self, key: jr.normal(key, (self.n,)))
        rng: sm.RandomState = sm.field()

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
    - `key`: a key or seed, which is split, one for each lane: for `make`, if it takes a `key`,
        and for the fields that [`statemap.field`][] declares.
    - `state_tag`: a tag for every new state.
    - `axis_size`: the number of lanes; needed unless `in_axes` maps an argument.
    - `state_out_axes`: on which axis the new states have their lanes: a mapping from axes to
        filters, or one filter for axis 0. What no filter matches goes to axis 0. A
        `NonBatchState` never has lanes.
    - `in_axes`: the axes of arguments in `init_kwargs` that hold a value for each lane, by name.
    - `axis_name`, `spmd_axis_name`: as for [`statemap.vmap2`][].

    **Returns:**

    `(model, states, axes)`: the model, the context of the population, and a
    [`statemap.MemberAxes`][], which is what `state_in_axes` and `state_out_axes` take.

    A random state whose key does not depend on the lane is split, so that each lane has a stream
    of its own nevertheless.

    **Raises:**

    `ValueError` if the number of lanes can't be told, `key` is several or is in `init_kwargs`, too,
    filters give a state two axes or name a `NonBatchState`, or an array of the model that is no
    state differs between lanes; [`statemap.BatchAxisError`][] if a state that all lanes share does.
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
    refuse_foreign(make, "New states are made by", "sm.vmap2_new_states(module, axis_size=10)")
    if not callable(make) or is_made(make):
        raise TypeError(
            f"New states are made by a class or a function, not by {short(make)}: it runs in the "
            "lanes.\n"
            "Wrong:  sm.vmap2_new_states(LIF(3, 4), axis_size=10)\n"
            "Right:  sm.vmap2_new_states(LIF, dict(n_in=3, n_out=4), axis_size=10)"
        )
    if init_kwargs is not None and not isinstance(init_kwargs, Mapping):
        raise TypeError(
            f"`init_kwargs` is a dictionary of keyword arguments for `make`, not {init_kwargs!r}."
        )
    axis_size = check_axis_size(axis_size)
    kwargs = dict(init_kwargs or {})
    if key is not None:
        key = one_key(key, "sm.vmap2_new_states")
        if "key" in kwargs:
            raise ValueError(
                "`key` is given twice, by itself and in `init_kwargs`. By itself it is split, one "
                'for each lane; in `init_kwargs`, with `in_axes={"key": 0}`, it holds one for each.'
            )
    mapped, axes, sizes = _mapped(kwargs, in_axes)
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
    impl = None
    if key is not None:
        impl = str(jax.random.key_impl(key))
        mapped["key"] = jax.random.key_data(jax.random.split(key, lanes))
        axes["key"] = 0
    leaves, treedef = jax.tree.flatten(mapped)
    leaf_axes = jax.tree.leaves(axes)
    if devices is not None:
        leaves = [devices.place(x, a) for x, a in zip(leaves, leaf_axes)]
    sharding = lanes_sharding(leaves, leaf_axes)
    own = [name == "key" for name in sorted(mapped) for _ in jax.tree.leaves(mapped[name])]
    # What all lanes together are given; the keys, made here, are laid as what was given is.
    given = [
        with_lanes(jax.ShapeDtypeStruct(x.shape[1:], x.dtype), lanes, sharding) if mine else x
        for x, mine in zip(leaves, own)
    ]
    run = _Run(make, kwargs, treedef, impl, state_tag, StateAxes.parse(state_out_axes, _OUT))
    types = [without_axis(x, a) for x, a in zip(given, leaf_axes)]
    lane = Lane.trace(run.lane, types, function_name(make), axis_name, lanes)
    refuse_closed_over(make, lane, devices)
    mapping = _mapping(axis_name, spmd_axis_name, devices)
    every = list(range(len(lane.jaxpr.outvars)))
    differ = lane.differ(every, mapping, given, leaf_axes, lanes, sharding)
    run.refuse(differ)

    def program(leaves: list[jax.Array]) -> tuple[tuple[Any, ...], list[jax.Array]]:
        stacked = run.stacked(differ)
        leaves = [lay_lanes(x, sharding) if mine else x for x, mine in zip(leaves, own)]
        out = lane.over(mapping, leaves, leaf_axes, stacked, lanes, sharding)
        return run.assemble(out, differ, lanes, sharding, devices)

    # Over devices, each makes its own part; on one, operations that are known are not compiled.
    is_one = devices is None and sharding is None
    values, arrays = (program if is_one else jax.jit(program))(leaves)
    paths = [slot.path for slot in run.slots.entries]
    member_axes = MemberAxes(dict(zip(paths, run.axes)))
    return run.model(arrays), make_states(run.slots, tuple(values)), member_axes


_OUT = "state_out_axes"


def _mapping(axis_name: Hashable, spmd_axis_name: Any, devices: Devices | None) -> Any:
    given: dict[str, Any] = {"axis_name": axis_name}
    if spmd_axis_name is not None:
        given["spmd_axis_name"] = spmd_axis_name
    if devices is not None and not devices.is_explicit:
        given["spmd_axis_name"] = devices.axis
    filter_vmap: Callable[..., Any] = eqx.filter_vmap
    return functools.partial(filter_vmap, **given)


def _mapped(
    kwargs: dict[str, Any], in_axes: Mapping[str, int | None] | None
) -> tuple[dict[str, Any], dict[str, Any], list[tuple[str, int]]]:
    """The arguments that are mapped, taken out of `kwargs`; their axes and their sizes."""
    mapped, mapped_axes, sizes = {}, {}, []
    for name, axis in (in_axes or {}).items():
        if name not in kwargs and axis is not None:
            raise ValueError(f"`in_axes` names `{name}`, which `init_kwargs` does not hold.")
        if axis is None:
            continue
        leaves, treedef = jax.tree.flatten(kwargs.pop(name))
        if any(map(is_ref, leaves)):
            raise TypeError(f"The argument `{name}` is a Ref: give what is in it, `ref[...]`.")
        at = [argument_size(f"argument `{name}`", jnp.shape(x), axis) for x in leaves]
        sizes += [(f"argument `{name}`", size) for _, size in at]
        mapped[name] = jax.tree.unflatten(treedef, [jnp.asarray(x) for x in leaves])
        mapped_axes[name] = jax.tree.unflatten(treedef, [a for a, _ in at])
    return mapped, mapped_axes, sizes


class _Run:
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
