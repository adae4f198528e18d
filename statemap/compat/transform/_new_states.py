"""New cells, made in lanes; and `map`, one row after the other. (Their arguments are those of
[brainstate](https://brainstate.readthedocs.io), but for what is told here.)
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp

from ..._axes import move_axis, normalise
from ..._filters import Everything
from .._catch import catch_new_states
from .._errors import BatchAxisError
from .._frames import DEAD, peek, Unbatched
from ._arguments import left_out
from ._loops import scan
from ._maps import pmap2, vmap2
from ._prepared import parse_axes


NO_LANES = "INIT_NO_BATCHING"  # the tag that brainstate gives such cells of other classes


def vmap2_new_states(
    module: Any, init_kwargs: dict[str, Any], state_tag: str | None = None,
    axis_size: int | None = None, state_out_axes: Any = None, spmd_axis_name: Any = None,
    axis_name: Hashable = None,
) -> dict[Any, list[Any]]:  # fmt: skip
    """Makes the cells of a module once for each lane: calls `module.init_all_states` under
    [`statemap.compat.transform.vmap2`][]. Returns the cells by axis.

    `state_out_axes` says on which axis they have their lanes: a dictionary from axes to filters,
    of which `...` takes what no other names, or one filter for axis 0. What no filter matches
    goes to axis 0, too, and a `NonBatchState` has no lanes: it is under None. Filters that give a
    cell two axes are a `ValueError`; a cell without lanes that differs between them is a
    `BatchAxisError`. On any error the module is as it was.
    """
    if axis_size is None:
        raise ValueError(
            "The number of lanes can't be told, since no argument is mapped: give `axis_size`."
        )
    mapping = functools.partial(vmap2, axis_name=axis_name, spmd_axis_name=spmd_axis_name)
    return _of_module(module, init_kwargs, state_tag, axis_size, state_out_axes, mapping)


def pmap2_new_states(
    module: Any, init_kwargs: dict[str, Any], state_tag: str | None = None,
    axis_size: int | None = None, state_out_axes: Any = None, axis_name: Hashable = None,
) -> dict[Any, list[Any]]:  # fmt: skip
    """[`statemap.compat.transform.vmap2_new_states`][] with the lanes laid over devices; by
    default there are as many lanes as devices.
    """
    mapping = functools.partial(pmap2, axis_name=axis_name)
    return _of_module(module, init_kwargs, state_tag, axis_size, state_out_axes, mapping)


def _of_module(
    module: Any, kwargs: Any, tag: Any, axis_size: Any, axes: Any, mapping: Any
) -> dict[Any, list[Any]]:
    nodes = module.nodes().values() if hasattr(module, "nodes") else [module]
    attributes = [(node, dict(vars(node))) for node in nodes]
    make = functools.partial(mapping, in_axes=None, axis_size=axis_size)

    def init() -> None:
        module.init_all_states(**kwargs)

    try:
        return _in_lanes(init, (), make, 0, tag, None, axes)[1]
    except BaseException:
        for node, before in attributes:  # which hold new cells without a value
            vars(node).clear()
            vars(node).update(before)
        raise


def vmap_new_states(
    fun: Any = None, *, in_axes: Any = 0, out_axes: Any = 0, axis_name: Hashable = None,
    axis_size: int | None = None, spmd_axis_name: Any = None, state_tag: str | None = None,
    state_to_exclude: Any = None, in_states: Any = None, out_states: Any = None,
) -> Any:  # fmt: skip
    """Maps a function that makes cells: they come to hold a value for each lane, on axis 0.
    Those that `state_to_exclude` matches have no lanes; one to which lanes give values of their own
    is gone with the call.
    """
    given = {k: v for k, v in locals().items() if k != "fun"}
    if in_states is not None or out_states is not None:
        raise ValueError(
            "`in_states` and `out_states` are for cells that exist; `vmap` takes them. "
            "`vmap_new_states` maps over cells that the function makes."
        )
    if axis_size is not None and axis_size <= 0:
        raise ValueError(f"`axis_size` is a positive number of lanes, not {axis_size}.")
    if left_out(fun):
        return functools.partial(vmap_new_states, **given)
    names = {"axis_name": axis_name, "axis_size": axis_size, "spmd_axis_name": spmd_axis_name}
    make = functools.partial(vmap2, in_axes=in_axes, **names)

    @functools.wraps(fun, updated=())
    def mapped(*args: Any, **kwargs: Any) -> Any:
        call = functools.partial(fun, **kwargs)
        return _in_lanes(call, args, make, out_axes, state_tag, state_to_exclude, None)[0]

    return mapped


def _in_lanes(
    fun: Callable, args: tuple, mapping: Any, out_axes: Any, tag: Any, exclude: Any, axes: Any,
    keep: bool = True,
) -> tuple[Any, dict[Any, list[Any]]]:  # fmt: skip
    """Runs a function in lanes, and gives the cells that it makes the values of all lanes. With
    `keep` those that are excluded have no lanes; else they are gone.
    """
    predicates = parse_axes(axes, "state_out_axes")
    made: list[tuple[Any, Any]] = []  # each cell with its axis

    def lane(*args: Any) -> Any:
        with catch_new_states() as every, catch_new_states(tag, exclude) as catcher:
            out = fun(*args)
        excluded = [c for c in every if keep and c not in catcher and peek(c) is not DEAD]
        made[:] = [(cell, _axis(cell, predicates)) for cell in catcher]
        made.extend((cell, None) for cell in excluded)
        values = [(axis, jax.tree.map(jnp.asarray, cell.value)) for cell, axis in made]
        lanes = [value for axis, value in values if axis is not None]
        return out, lanes, [value for axis, value in values if axis is None]

    try:
        out, *values = mapping(lane, out_axes=(out_axes, 0, None))(*args)
    except ValueError as error:
        if isinstance(error, BatchAxisError) or "differs between lanes" not in str(error):
            raise
        if keep and exclude is not None:
            return _in_lanes(fun, args, mapping, out_axes, tag, exclude, axes, keep=False)
        raise BatchAxisError(
            "A new cell that has no lanes (a NonBatchState, or one listed under None) gets a value "
            "that differs between them."
        ) from error
    by_axis: dict[Any, list[Any]] = {}
    lanes, shared = iter(values[0]), iter(values[1])
    for cell, axis in made:
        value = next(shared if axis is None else lanes)
        if axis:
            value = jax.tree.map(functools.partial(_move, cell, axis), value)
        cell._held = value
        cell._born()  # now: not in the lanes
        by_axis.setdefault(axis, []).append(cell)
    return out, by_axis


def _axis(cell: Any, predicates: dict[Any, Any]) -> Any:
    """On which axis a new cell has its lanes."""
    if isinstance(cell, Unbatched) or NO_LANES in (cell.tag or ()):
        return None
    found = [axis for axis, matches in predicates.items() if matches((), cell)]
    named = [axis for axis in found if not isinstance(predicates[axis], Everything)]
    if len(named) > 1:
        raise ValueError(
            f"`state_out_axes` gives the {cell.label} the axes {named[0]} and {named[1]}: it "
            "matches the filters of both. A cell has one axis."
        )
    return (named or found or [0])[0]


def _move(cell: Any, axis: int, x: Any) -> Any:
    if normalise(axis, x.ndim) is None:
        raise BatchAxisError(
            f"The new {cell.label} has shape {x.shape[1:]} in a lane, and can't have its lanes on "
            f"axis {axis}."
        )
    return move_axis(x, axis, 0)


def map(f: Callable, *xs: Any, batch_size: int | None = None) -> Any:
    """Calls `f` with each of the rows of `xs` in turn, and stacks what it returns.

    With a `batch_size` it is [`statemap.compat.transform.vmap2`][] instead, so many rows at a
    time, with the policy `"auto"`: no row sees what another has written; a value that is written
    to a cell in each row has the rows where `jax.vmap` has them, on axis 0 mostly, and a cell that
    has a value for each row, and is read and written, is taken row by row. What is the same in all
    rows is written once.
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
    return vmap2(f, unexpected_out_state_mapping="auto", chunk_size=batch_size)(*xs)
