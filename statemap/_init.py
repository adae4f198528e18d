"""New states, made in lanes: `vmap2_new_states`."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, overload, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ._axes import argument_size, lane_count
from ._checks import Checked, fails_everywhere, holds_check
from ._devices import Devices
from ._foreign import refuse_foreign
from ._init_run import InitRun
from ._jax import is_ref, lanes_sharding, lay_lanes, with_lanes, without_axis
from ._keys import one_key
from ._lane import Lane
from ._make import is_made
from ._members import MemberAxes
from ._options import check_axis_size
from ._refs import refuse_closed_over
from ._state_axes import StateAxes, StateAxisSpec
from ._states import make_states, States
from ._values import function_name, short


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
    run = InitRun(make, kwargs, treedef, impl, state_tag, StateAxes.parse(state_out_axes, _OUT))
    types = [without_axis(x, a) for x, a in zip(given, leaf_axes)]
    lane = Lane.trace(run.lane, types, function_name(make), axis_name, lanes)
    refuse_closed_over(make, lane, devices)
    mapping = _mapping(axis_name, spmd_axis_name, devices)
    every = list(range(len(lane.jaxpr.outvars)))
    differ = lane.differ(every, mapping, given, leaf_axes, lanes, sharding)
    run.refuse(differ)
    lane = dataclasses.replace(lane, jaxpr=fails_everywhere(lane.jaxpr, devices))

    def program(leaves: list[jax.Array]) -> tuple[tuple[Any, ...], list[jax.Array]]:
        stacked = run.stacked(differ)
        leaves = [lay_lanes(x, sharding) if mine else x for x, mine in zip(leaves, own)]
        out = lane.over(mapping, leaves, leaf_axes, stacked, lanes, sharding)
        return run.assemble(out, differ, lanes, sharding, devices)

    # Over devices, each makes its own part; on one, operations that are known are not compiled.
    compiled: Any = Checked if holds_check(lane.jaxpr) else jax.jit
    is_one = devices is None and sharding is None and compiled is jax.jit
    values, arrays = (program if is_one else compiled(program))(leaves)
    axes_made = {slot.path: axis for slot, axis in zip(run.slots.entries, run.axes)}
    states = make_states(run.slots, tuple(values))
    return run.model(arrays), states, MemberAxes(axes_made)


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
