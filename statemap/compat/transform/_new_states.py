"""New cells, made in lanes; and `map`, one row after the other."""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp

from ..._filters import Everything
from .._catch import catch_new_states
from .._cells import State
from .._errors import BatchAxisError
from .._frames import local, trace_state, Unbatched
from ._jit import is_missing, MISSING
from ._loops import scan
from ._mapping import StatefulMapping
from ._maps import pmap2, vmap2
from ._prepared import parse_axes


def vmap2_new_states(
    module: Any,
    init_kwargs: dict[str, Any],
    state_tag: str | None = None,
    axis_size: int | None = None,
    state_out_axes: Any = None,
    spmd_axis_name: Any = None,
    axis_name: Hashable = None,
) -> dict[Any, list[State]]:
    """Makes the cells of a module once for each lane: calls `module.init_all_states` under
    [`statemap.compat.transform.vmap2`][]. (After `brainstate.transform.vmap2_new_states`.)

    **Arguments:**

    - `module`: what has `init_all_states`.
    - `init_kwargs`: its keyword arguments.
    - `state_tag`: a tag for the new cells.
    - `axis_size`: the number of lanes.
    - `state_out_axes`: on which axis the new cells have their lanes: a dictionary from axes to
        filters, or one filter for axis 0. What no filter matches goes to axis 0. A
        `NonBatchState` has no lanes.

    **Returns:**

    The new cells by axis, those without lanes under None.

    **Raises:**

    `ValueError` without an `axis_size`, or if filters give a cell two axes; `BatchAxisError` if
    a cell without lanes differs between them.
    """
    if axis_size is None:
        raise ValueError(
            "The number of lanes can't be told, since no argument is mapped: give `axis_size`."
        )
    mapping = functools.partial(vmap2, axis_name=axis_name, spmd_axis_name=spmd_axis_name)
    return _of_module(module, init_kwargs, state_tag, axis_size, state_out_axes, mapping)


def pmap2_new_states(
    module: Any,
    init_kwargs: dict[str, Any],
    state_tag: str | None = None,
    axis_size: int | None = None,
    state_out_axes: Any = None,
    axis_name: Hashable = None,
) -> dict[Any, list[State]]:
    """[`statemap.compat.transform.vmap2_new_states`][] with the lanes laid over devices.

    **Arguments:**

    Those of `vmap2_new_states`. By default there are as many lanes as devices.
    """
    mapping = functools.partial(pmap2, axis_name=axis_name)
    return _of_module(module, init_kwargs, state_tag, axis_size, state_out_axes, mapping)


def _of_module(
    module: Any, kwargs: Any, tag: Any, axis_size: Any, axes: Any, mapping: Any
) -> dict[Any, list[State]]:
    attributes = [(node, dict(vars(node))) for node in module.nodes().values()]

    def init() -> None:
        module.init_all_states(**kwargs)

    try:
        make = functools.partial(mapping, in_axes=None, axis_size=axis_size)
        _, cells = _in_lanes(init, (), make, 0, tag, None, axes)
    except BaseException:
        for node, before in attributes:  # which hold new cells without a value
            vars(node).clear()
            vars(node).update(before)
        raise
    return cells


def vmap_new_states(
    fun: Callable = MISSING,
    *,
    in_axes: Any = 0,
    out_axes: Any = 0,
    axis_name: Hashable = None,
    axis_size: int | None = None,
    spmd_axis_name: Any = None,
    state_tag: str | None = None,
    state_to_exclude: Any = None,
    in_states: Any = None,
    out_states: Any = None,
) -> Any:
    """Maps a function that makes cells: they come to hold a value for each lane, on axis 0.

    **Arguments:**

    - `fun`: the function. Left out, a decorator is returned.
    - `state_tag`: a tag for the new cells.
    - `state_to_exclude`: a filter for new cells that are left out, and are gone with the call.
    - `in_states`, `out_states`: not for new cells; use [`statemap.compat.transform.vmap`][].
    - The others are those of [`statemap.compat.transform.vmap2`][].
    """
    given = {k: v for k, v in locals().items() if k != "fun"}
    if in_states is not None or out_states is not None:
        raise ValueError(
            "`in_states` and `out_states` are for cells that exist; `vmap` takes them. "
            "`vmap_new_states` maps over cells that the function makes."
        )
    if axis_size is not None and axis_size <= 0:
        raise ValueError(f"`axis_size` is a positive number of lanes, not {axis_size}.")
    if is_missing(fun):
        return functools.partial(vmap_new_states, **given)
    names = {"axis_name": axis_name, "axis_size": axis_size, "spmd_axis_name": spmd_axis_name}
    make = functools.partial(vmap2, in_axes=in_axes, **names)

    def mapped(*args: Any, **kwargs: Any) -> Any:
        call = functools.partial(fun, **kwargs)
        return _in_lanes(call, args, make, out_axes, state_tag, state_to_exclude, None)[0]

    mapped.__wrapped__ = fun  # pyright: ignore
    return mapped


def _in_lanes(
    fun: Callable, args: tuple, mapping: Any, out_axes: Any, tag: Any, exclude: Any, axes: Any
) -> tuple[Any, dict[Any, list[State]]]:
    """Runs a function in lanes, and gives the cells that it makes the values of all lanes."""
    predicates = parse_axes(axes, "state_out_axes")
    made: list[tuple[State, Any]] = []

    def lane(*args: Any) -> Any:
        with catch_new_states(tag, exclude) as catcher:
            out = fun(*args)
        made[:] = [(cell, _axis(cell, predicates)) for cell in catcher]
        values = [(axis, jax.tree.map(jnp.asarray, cell.value)) for cell, axis in made]
        lanes = [value for axis, value in values if axis is not None]
        return out, lanes, [value for axis, value in values if axis is None]

    mapped: StatefulMapping = mapping(lane, out_axes=(out_axes, 0, None))
    try:
        out, lanes, shared = mapped(*args)
    except ValueError as error:
        if isinstance(error, BatchAxisError) or "differs between lanes" not in str(error):
            raise
        raise BatchAxisError(
            "A new cell that has no lanes (a NonBatchState, or one listed under None) gets a value "
            "that differs between them."
        ) from error
    by_axis: dict[Any, list[State]] = {}
    lanes_, shared_ = iter(lanes), iter(shared)
    for cell, axis in made:
        value = next(shared_ if axis is None else lanes_)
        if axis:
            value = jax.tree.map(lambda x, a=axis, c=cell: _move(x, a, c), value)
        cell._held, cell._level = value, len(local.frames)
        cell._trace = trace_state()
        by_axis.setdefault(axis, []).append(cell)
    return out, by_axis


def _move(x: Any, axis: int, cell: State) -> Any:
    if not -x.ndim <= axis < x.ndim:
        raise BatchAxisError(
            f"The new {cell.label} has shape {x.shape[1:]} in a lane, and can't have its lanes on "
            f"axis {axis}."
        )
    return jnp.moveaxis(x, 0, axis)


def _axis(cell: State, predicates: dict[Any, Any]) -> Any:
    """On which axis a new cell has its lanes."""
    if isinstance(cell, Unbatched):
        return None
    found = [(axis, p) for axis, p in predicates.items() if p((), cell)]
    explicit = [axis for axis, p in found if not isinstance(p, Everything)]
    if len(set(explicit)) > 1:
        raise ValueError(
            f"`state_out_axes` gives the {cell.label} the axes {explicit[0]} and {explicit[1]}: it "
            "matches the filters of both. A cell has one axis."
        )
    return explicit[0] if explicit else found[0][0] if found else 0


def map(f: Callable, *xs: Any, batch_size: int | None = None) -> Any:
    """Calls `f` with each of the rows of `xs` in turn, and stacks what it returns.

    **Arguments:**

    - `f`: `f(*rows) -> y`.
    - `xs`: arrays, or pytrees of arrays, of the same length.
    - `batch_size`: how many rows go through [`statemap.compat.transform.vmap2`][] together. What
        the function writes to a cell is then written once a batch, and must not depend on the
        row.

    **Raises:**

    `ValueError` if there is no one length; `BatchAxisError` if rows of a batch write different
    values.
    """
    shapes = [jnp.shape(x) for x in jax.tree.leaves(xs)]
    if not shapes or len({shape[:1] for shape in shapes}) != 1 or shapes[0] == ():
        raise ValueError(
            "`map` goes over the first axis of its arrays, which must have the same length; their "
            f"shapes are {shapes}."
        )
    if batch_size is None:
        return scan(lambda _, x: ((), f(*x)), (), xs)[1]
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"`batch_size` is a positive number of rows, not {batch_size!r}.")
    mapped = vmap2(f, unexpected_out_state_mapping="raise")
    length = shapes[0][0]
    n = length // batch_size
    parts = []
    if n:
        whole = jax.tree.map(lambda x: jnp.asarray(x)[: n * batch_size], xs)
        whole = jax.tree.map(lambda x: x.reshape(n, batch_size, *x.shape[1:]), whole)
        ys = scan(lambda _, x: ((), mapped(*x)), (), whole)[1]
        parts.append(jax.tree.map(lambda y: y.reshape(n * batch_size, *y.shape[2:]), ys))
    if length % batch_size:
        parts.append(mapped(*jax.tree.map(lambda x: jnp.asarray(x)[n * batch_size :], xs)))
    return jax.tree.map(lambda *ys: jnp.concatenate(ys), *parts)
