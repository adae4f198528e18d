"""`vmap2`, `pmap2` and `vmap`: how mappings are made."""

import functools
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import jax

from ... import _pmap, _vmap
from .._cells import State
from .._frames import is_cell
from ._jit import is_missing, MISSING
from ._mapping import StatefulMapping
from ._policy import check_policy
from ._prepared import parse_axes


def _mapped(fn: Any, factory: Callable[..., Any], again: Callable, given: dict[str, Any], **o: Any):
    """A mapping made by a function of the core, or a decorator that makes one."""
    if is_missing(fn):
        return functools.partial(again, **given)
    mapping = object.__new__(StatefulMapping)
    policy = check_policy(o.pop("unexpected_out_state_mapping"))
    for name in ("state_in_axes", "state_out_axes"):
        o[name] = parse_axes(o[name], name)
    mapping._set(fn, factory, policy=policy, **o)
    return mapping


def vmap2(
    fn: Callable = MISSING,
    *,
    in_axes: Any = 0,
    out_axes: Any = 0,
    axis_name: Hashable = None,
    axis_size: int | None = None,
    spmd_axis_name: Any = None,
    state_in_axes: Any = None,
    state_out_axes: Any = None,
    unexpected_out_state_mapping: str | None = None,
    chunk_size: int | None = None,
) -> Any:
    """Maps a function that uses cells over lanes. (After `brainstate.transform.vmap2`.)

    ```python
    import jax.numpy as jnp
    from statemap.compat import ShortTermState, transform
    from statemap.compat.util.filter import OfType

    counter = ShortTermState(jnp.zeros(3))

    @transform.vmap2(
        state_in_axes={0: OfType(ShortTermState)}, state_out_axes={0: OfType(ShortTermState)}
    )
    def accumulate(x):
        counter.value = counter.value + x
        return counter.value

    assert accumulate(jnp.arange(3.0)).tolist() == [0.0, 1.0, 2.0]
    assert counter.value.tolist() == [0.0, 1.0, 2.0]
    ```

    It compiles by itself, and runs the function once for each combination of shapes and dtypes.

    **Arguments:**

    - `fn`: the function. Left out, a decorator is returned.
    - `state_in_axes`, `state_out_axes`: the axes of cells: a dictionary from axes to filters, or
        one filter for axis 0.
    - `unexpected_out_state_mapping`: what to do with a lane-dependent write to a cell that no
        filter matches: `"raise"` a `BatchAxisError`, `"warn"` or `"ignore"` and put the lanes on
        axis 0; or `"auto"`: the same, but a cell that is read and written and whose first axis
        has the size of the map is taken lane by lane. By default `"raise"`, see
        [`statemap.compat.transform.set_default_policy`][].
    - The others are those of [`statemap.vmap2`][], `chunk_size` among them.

    **Raises:**

    Those of [`statemap.vmap2`][].
    """
    given = {k: v for k, v in locals().items() if k != "fn"}
    options = {k: v for k, v in given.items() if k != "spmd_axis_name"}
    factory = functools.partial(_vmap.vmap2, spmd_axis_name=spmd_axis_name)
    return _mapped(fn, factory, vmap2, given, **options)


def pmap2(
    fn: Callable = MISSING,
    axis_name: Hashable = None,
    *,
    in_axes: Any = 0,
    out_axes: Any = 0,
    static_broadcasted_argnums: int | Iterable[int] = (),
    devices: Any = None,
    backend: str | None = None,
    axis_size: int | None = None,
    donate_argnums: int | Iterable[int] = (),
    global_arg_shapes: None = None,
    state_in_axes: Any = None,
    state_out_axes: Any = None,
    unexpected_out_state_mapping: str | None = None,
) -> Any:
    """[`statemap.compat.transform.vmap2`][] with the lanes laid over devices.

    **Arguments:**

    Those of `vmap2`, and those of [`statemap.pmap2`][]. With an `axis_size` that is smaller than
    the number of devices, and no `devices`, there is a lane on each of the first ones.
    """
    if devices is None and axis_size is not None and axis_size < jax.device_count(backend):
        devices = jax.devices(backend)[:axis_size]
    given = {k: v for k, v in locals().items() if k != "fn"}
    own = (
        "static_broadcasted_argnums",
        "devices",
        "backend",
        "donate_argnums",
        "global_arg_shapes",
    )
    factory = functools.partial(_pmap.pmap2, **{k: given[k] for k in own})
    options = {k: v for k, v in given.items() if k not in own}
    return _mapped(fn, factory, pmap2, given, **options)


def vmap(
    fn: Callable = MISSING,
    *,
    in_axes: Any = 0,
    out_axes: Any = 0,
    axis_name: Hashable = None,
    axis_size: int | None = None,
    spmd_axis_name: Any = None,
    in_states: Any = None,
    out_states: Any = None,
) -> Any:
    """The older form of [`statemap.compat.transform.vmap2`][], which takes cells rather than
    filters.

    **Arguments:**

    - `in_states`, `out_states`: dictionaries from axes to pytrees of cells; or a pytree of
        cells, for axis 0. What is in `in_states` only comes out on the same axis.
    - The others are those of `vmap2`.
    """
    given = {k: v for k, v in locals().items() if k != "fn"}
    if is_missing(fn):
        return functools.partial(vmap, **given)
    options: Any = {k: v for k, v in given.items() if k not in ("in_states", "out_states")}
    axes = {"state_in_axes": _by_axis(in_states), "state_out_axes": _by_axis(out_states)}
    options |= {**axes, "unexpected_out_state_mapping": "raise"}
    return vmap2(fn, **options)


def _by_axis(states: Any) -> dict[Any, Any] | None:
    def cells(tree: Any) -> list[State]:
        return [x for x in jax.tree.leaves(tree) if is_cell(x)]

    if states is None:
        return None
    is_axes = isinstance(states, dict) and all(isinstance(k, int) or k is None for k in states)
    named = states if is_axes else {0: states}
    return {axis: cells(tree) for axis, tree in named.items() if cells(tree)}
