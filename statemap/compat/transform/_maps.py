"""`vmap2`, `pmap2` and `vmap`: how mappings are made."""

import functools
from collections.abc import Hashable, Iterable
from typing import Any

import jax

from ... import _pmap, _vmap
from .._frames import is_cell
from ._arguments import from_start, left_out
from ._mapping import mapping_of


def vmap2(
    fn: Any = None, *, in_axes: Any = 0, out_axes: Any = 0, axis_name: Hashable = None,
    axis_size: int | None = None, chunk_size: int | None = None, spmd_axis_name: Any = None,
    state_in_axes: Any = None, state_out_axes: Any = None,
    unexpected_out_state_mapping: str | None = None,
) -> Any:  # fmt: skip
    """Maps a function that uses cells over lanes, as
    [`brainstate.transform.vmap2`](https://brainstate.readthedocs.io) does.

    It compiles by itself, and runs the function once for each combination of shapes and dtypes.
    By default `unexpected_out_state_mapping` is `"raise"`, see
    [`statemap.compat.transform.set_default_policy`][]; with `"auto"` the lanes that are written
    to a cell which no filter matches stay where `jax.vmap` has them, on axis 0 mostly, and a cell
    that is read and written and has that axis with the size of the map is taken lane by lane.
    The errors are those of [`statemap.vmap2`][], whose `chunk_size` it has.
    """
    given = {k: v for k, v in locals().items() if k != "fn"}
    return _mapped(fn, vmap2, _vmap.vmap2, given, ("spmd_axis_name", "chunk_size"))


def pmap2(
    fn: Any = None, axis_name: Hashable = None, *, in_axes: Any = 0, out_axes: Any = 0,
    static_broadcasted_argnums: int | Iterable[int] = (), devices: Any = None,
    backend: str | None = None, axis_size: int | None = None,
    donate_argnums: int | Iterable[int] = (), global_arg_shapes: None = None,
    state_in_axes: Any = None, state_out_axes: Any = None,
    unexpected_out_state_mapping: str | None = None,
) -> Any:  # fmt: skip
    """[`statemap.compat.transform.vmap2`][] with the lanes laid over devices: as
    [`brainstate.transform.pmap2`](https://brainstate.readthedocs.io), and with the arguments of
    [`statemap.pmap2`][]. With an `axis_size` that is smaller than the number of devices, and no
    `devices`, there is a lane on each of the first ones.
    """
    if devices is None and axis_size is not None and axis_size < jax.device_count(backend):
        devices = jax.devices(backend)[:axis_size]
    static_broadcasted_argnums = from_start(static_broadcasted_argnums, fn)
    donate_argnums = from_start(donate_argnums, fn)
    given = {k: v for k, v in locals().items() if k != "fn"}
    own = ("static_broadcasted_argnums", "devices", "backend", "donate_argnums")
    return _mapped(fn, pmap2, _pmap.pmap2, given, (*own, "global_arg_shapes"))


def _mapped(fn: Any, again: Any, core: Any, given: dict[str, Any], own: tuple[str, ...]) -> Any:
    """A mapping made by a function of the core, or a decorator that makes one. `own` are the names
    of what that function alone takes.
    """
    if left_out(fn):
        return functools.partial(again, **given)
    options = {k: v for k, v in given.items() if k not in own}
    return mapping_of(fn, functools.partial(core, **{k: given[k] for k in own}), options)


def vmap(
    fn: Any = None, *, in_axes: Any = 0, out_axes: Any = 0, axis_name: Hashable = None,
    axis_size: int | None = None, spmd_axis_name: Any = None, in_states: Any = None,
    out_states: Any = None,
) -> Any:  # fmt: skip
    """The older form of [`statemap.compat.transform.vmap2`][], which takes cells rather than
    filters: [`brainstate.transform.vmap`](https://brainstate.readthedocs.io).
    """
    given = {k: v for k, v in locals().items() if k not in ("fn", "in_states", "out_states")}
    axes: Any = {"state_in_axes": _listed(in_states), "state_out_axes": _listed(out_states)}
    return vmap2(fn, **given, **axes, unexpected_out_state_mapping="raise")


def _listed(states: Any) -> dict[Any, Any] | None:
    def cells(tree: Any) -> list[Any]:
        return [x for x in jax.tree.leaves(tree) if is_cell(x)]

    if states is None:
        return None
    is_axes = isinstance(states, dict) and all(isinstance(k, int) or k is None for k in states)
    named = states if is_axes else {0: states}
    return {axis: cells(tree) for axis, tree in named.items() if cells(tree)}
