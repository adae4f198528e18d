"""`pmap2` and `pmap2_new_states`: the engine with its lanes laid over a mesh of devices."""

import functools
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, overload, ParamSpec, TypeVar

from ._axes import AxisSpec
from ._devices import DeviceSpec, make_devices
from ._init import new_states
from ._mapping import StatefulMapping
from ._members import MemberAxes
from ._options import Policy
from ._state_axes import StateAxisSpec
from ._states import States


P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M")


@overload
def pmap2(
    fn: Callable[P, R],
    axis_name: Hashable = None,
    *,
    in_axes: AxisSpec = 0,
    out_axes: AxisSpec = 0,
    static_broadcasted_argnums: int | Iterable[int] | None = (),
    devices: DeviceSpec = None,
    backend: str | None = None,
    axis_size: int | None = None,
    donate_argnums: int | Iterable[int] | None = (),
    global_arg_shapes: None = None,
    state_in_axes: StateAxisSpec = None,
    state_out_axes: StateAxisSpec = None,
    unexpected_out_state_mapping: Policy = "raise",
    donate: bool = False,
) -> StatefulMapping[P, R]: ...


@overload
def pmap2(
    *,
    axis_name: Hashable = None,
    in_axes: AxisSpec = 0,
    out_axes: AxisSpec = 0,
    static_broadcasted_argnums: int | Iterable[int] | None = (),
    devices: DeviceSpec = None,
    backend: str | None = None,
    axis_size: int | None = None,
    donate_argnums: int | Iterable[int] | None = (),
    global_arg_shapes: None = None,
    state_in_axes: StateAxisSpec = None,
    state_out_axes: StateAxisSpec = None,
    unexpected_out_state_mapping: Policy = "raise",
    donate: bool = False,
) -> Callable[[Callable[P, R]], StatefulMapping[P, R]]: ...


def pmap2(
    fn: Any = None,
    axis_name: Hashable = None,
    *,
    in_axes: AxisSpec = 0,
    out_axes: AxisSpec = 0,
    static_broadcasted_argnums: int | Iterable[int] | None = (),
    devices: DeviceSpec = None,
    backend: str | None = None,
    axis_size: int | None = None,
    donate_argnums: int | Iterable[int] | None = (),
    global_arg_shapes: Any = None,
    state_in_axes: StateAxisSpec = None,
    state_out_axes: StateAxisSpec = None,
    unexpected_out_state_mapping: Policy = "raise",
    donate: bool = False,
) -> Any:
    """Maps a function with states over lanes that lie on several devices.

    It is [`statemap.vmap2`][] with its lanes laid over a mesh, and gives the same results: any
    number of lanes that the devices divide, each device with as many as the others. Outputs and
    mapped states stay where they are computed, spread over the devices on their axis; states that
    all lanes share are copied to each. A second call with what the first returned moves nothing.

    ```python
    import jax, jax.numpy as jnp
    import statemap as sm

    @sm.pmap2(axis_name="devices", state_in_axes={0: sm.ParamState})
    def update(states, delta):
        weight = states["weight"] + delta
        return jax.lax.pmean(weight, "devices"), states.set("weight", weight)

    n = 2 * jax.device_count()
    states = sm.States(weight=sm.ParamState(jnp.ones(n)))
    out, states = update(states, jnp.arange(float(n)))
    assert out.shape == states["weight"].shape == (n,)
    ```

    **Arguments:**

    - `fn`, `in_axes`, `out_axes`, `axis_size`, `state_in_axes`, `state_out_axes`,
        `unexpected_out_state_mapping`, `donate`: as for [`statemap.vmap2`][]. Where nothing is
        mapped, there is one lane for each device.
    - `axis_name`: a name for the lanes, for collectives; with an existing mesh, the name of its
        axis that the lanes lie on, which may be left out if there is one only.
    - `static_broadcasted_argnums`: arguments whose values are compiled in, counted after the
        states.
    - `devices`: the devices, or an existing `jax.sharding.Mesh`. By default the mesh on which the
        arrays of a call lie, if they lie on one and it is clear which of its axes is that of the
        lanes; otherwise all devices, those of other processes included.
    - `backend`: `"cpu"`, `"gpu"` or `"tpu"`, for the default devices.
    - `donate_argnums`: arguments whose memory the call may reuse, counted after the states.
    - `global_arg_shapes`: has left JAX; `None` only.

    **Returns:**

    A [`statemap.StatefulMapping`][], or a decorator that makes one.

    **Raises:**

    What `vmap2` raises, and `ValueError` for a number of lanes that the devices do not divide, or
    for effects that come in an order (`jax.debug.print(ordered=True)`) over several devices.
    """
    if fn is None:
        options = dict(locals())
        del options["fn"]
        return functools.partial(pmap2, **options)
    if global_arg_shapes is not None:
        raise ValueError(
            "`global_arg_shapes` has left JAX, and only None is taken. Arrays that span processes "
            "are made with `jax.make_array_from_process_local_data`, and given as they are."
        )
    over = make_devices(devices, backend, axis_name)
    return StatefulMapping(
        fn,
        in_axes=in_axes,
        out_axes=out_axes,
        state_in_axes=state_in_axes,
        state_out_axes=state_out_axes,
        unexpected_out_state_mapping=unexpected_out_state_mapping,
        axis_name=axis_name,
        axis_size=axis_size,
        static_argnums=static_broadcasted_argnums,
        donate=donate,
        donate_argnums=donate_argnums,
        devices=over,
    )


@overload
def pmap2_new_states(
    make: Callable[..., tuple[M, States, *tuple[Any, ...]]],
    init_kwargs: Mapping[str, Any] | None = None,
    *,
    key: Any = None,
    state_tag: str | None = None,
    axis_size: int | None = None,
    state_out_axes: StateAxisSpec = None,
    in_axes: Mapping[str, int | None] | None = None,
    axis_name: Hashable = None,
    devices: DeviceSpec = None,
    backend: str | None = None,
) -> tuple[M, States, MemberAxes]: ...


@overload
def pmap2_new_states(
    make: Callable[..., M],
    init_kwargs: Mapping[str, Any] | None = None,
    *,
    key: Any = None,
    state_tag: str | None = None,
    axis_size: int | None = None,
    state_out_axes: StateAxisSpec = None,
    in_axes: Mapping[str, int | None] | None = None,
    axis_name: Hashable = None,
    devices: DeviceSpec = None,
    backend: str | None = None,
) -> tuple[M, States, MemberAxes]: ...


def pmap2_new_states(
    make: Callable[..., Any],
    init_kwargs: Mapping[str, Any] | None = None,
    *,
    key: Any = None,
    state_tag: str | None = None,
    axis_size: int | None = None,
    state_out_axes: StateAxisSpec = None,
    in_axes: Mapping[str, int | None] | None = None,
    axis_name: Hashable = None,
    devices: DeviceSpec = None,
    backend: str | None = None,
) -> tuple[Any, States, MemberAxes]:
    """Makes a population whose states lie on several devices: each makes its own lanes.

    **Arguments:**

    - `make`, `init_kwargs`, `key`, `state_tag`, `state_out_axes`, `in_axes`: as for
        [`statemap.vmap2_new_states`][].
    - `axis_size`: the number of lanes; that of the devices by default.
    - `axis_name`, `devices`, `backend`: as for [`statemap.pmap2`][].

    **Returns:**

    `(model, states, axes)`, as `vmap2_new_states` returns them, with the same numbers.

    **Raises:**

    What `vmap2_new_states` raises, and `ValueError` for a number of lanes that the devices do
    not divide.
    """
    over = make_devices(devices, backend, axis_name)
    return new_states(
        make,
        init_kwargs,
        key=key,
        state_tag=state_tag,
        axis_size=axis_size,
        state_out_axes=state_out_axes,
        in_axes=in_axes,
        axis_name=axis_name,
        spmd_axis_name=None,
        devices=over,
    )
