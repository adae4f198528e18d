"""`vmap2`: the engine with `equinox.filter_vmap`."""

import functools
from collections.abc import Callable, Hashable, Iterable
from typing import Any, overload, ParamSpec, TypeVar

import equinox as eqx

from ._axes import AxisSpec
from ._mapping import StatefulMapping
from ._options import Policy
from ._state_axes import StateAxisSpec


P = ParamSpec("P")
R = TypeVar("R")


@overload
def vmap2(
    fn: Callable[P, R],
    *,
    in_axes: AxisSpec = 0,
    out_axes: AxisSpec = 0,
    axis_name: Hashable = None,
    axis_size: int | None = None,
    spmd_axis_name: Hashable | tuple[Hashable, ...] | None = None,
    state_in_axes: StateAxisSpec = None,
    state_out_axes: StateAxisSpec = None,
    unexpected_out_state_mapping: Policy = "raise",
    static_argnums: int | Iterable[int] | None = (),
    static_argnames: str | Iterable[str] | None = (),
    donate: bool = False,
    chunk_size: int | None = None,
) -> StatefulMapping[P, R]: ...


@overload
def vmap2(
    *,
    in_axes: AxisSpec = 0,
    out_axes: AxisSpec = 0,
    axis_name: Hashable = None,
    axis_size: int | None = None,
    spmd_axis_name: Hashable | tuple[Hashable, ...] | None = None,
    state_in_axes: StateAxisSpec = None,
    state_out_axes: StateAxisSpec = None,
    unexpected_out_state_mapping: Policy = "raise",
    static_argnums: int | Iterable[int] | None = (),
    static_argnames: str | Iterable[str] | None = (),
    donate: bool = False,
    chunk_size: int | None = None,
) -> Callable[[Callable[P, R]], StatefulMapping[P, R]]: ...


def vmap2(
    fn: Any = None,
    *,
    in_axes: AxisSpec = 0,
    out_axes: AxisSpec = 0,
    axis_name: Hashable = None,
    axis_size: int | None = None,
    spmd_axis_name: Hashable | tuple[Hashable, ...] | None = None,
    state_in_axes: StateAxisSpec = None,
    state_out_axes: StateAxisSpec = None,
    unexpected_out_state_mapping: Policy = "raise",
    static_argnums: int | Iterable[int] | None = (),
    static_argnames: str | Iterable[str] | None = (),
    donate: bool = False,
    chunk_size: int | None = None,
) -> Any:
    """Maps a function with states over lanes, as `jax.vmap` maps one without.

    ```python
    import jax.numpy as jnp
    import statemap as sm

    @sm.vmap2(state_in_axes={0: sm.ShortTermState}, state_out_axes={0: sm.ShortTermState})
    def accumulate(states, x):
        total = states["total"] + x
        return total, states.set("total", total)

    states = sm.States(total=sm.ShortTermState(jnp.zeros(3)))
    out, states = accumulate(states, jnp.arange(3.0))
    assert states["total"].tolist() == [0.0, 1.0, 2.0]
    ```

    The function takes the states first and returns `(out, states)`; so does the mapping. Inside,
    a lane sees its own part of each state that `state_in_axes` maps, and the whole of each other
    state. What becomes of a state is told by the table on the page "Concepts", and for a given
    call by `mapping.plan(states, *args)`.

    **Arguments:**

    - `fn`: `fn(states, *args, **kwargs) -> (out, states)`, or a module that is called so. Its
        arrays are inputs of the compiled program. If left out, a decorator is returned.
    - `in_axes`: the axis of each argument that holds the lanes: an int, `None` for an argument
        that all lanes share, a callable such as `eqx.if_array(1)`, or a tuple with an entry for
        each positional argument after the states. Keyword arguments are mapped over axis 0. What
        is no array is shared whatever its entry says.
    - `out_axes`: where the lanes go in the output; a prefix of its structure. `None` is for what
        is the same in every lane.
    - `axis_name`: a name for the lanes, for collectives such as `jax.lax.pmean`.
    - `axis_size`: the number of lanes; needed where nothing is mapped.
    - `spmd_axis_name`: as for `jax.vmap`: the mesh axis that the lanes are sharded over.
    - `state_in_axes`: which states hold a value for each lane, and on which axis: a dictionary
        from axes to filters, whose first match counts, or one filter for axis 0. States that are
        not listed, or listed under `None`, are shared. A `RandomState` that is not listed gives
        each lane a stream of its own.
    - `state_out_axes`: on which axis the states that the function wrote come out. What is not
        listed stays where it was. In the place of an axis may stand [`statemap.Reduce`][], for one
        value of those of all lanes, or [`statemap.Restore`][], for the value that came in.
    - `unexpected_out_state_mapping`: what to do if a shared state that is not listed is written
        with a value that depends on the lane: `"raise"` a `BatchAxisError`, `"warn"` and put the
        lanes on axis 0, or do so silently, `"ignore"`.
    - `static_argnums`, `static_argnames`: arguments whose values are compiled in. The positions
        count the arguments after the states, as `in_axes` does.
    - `donate`: lets the compiled call reuse the memory of the states that it writes. The context
        that was given can't be used afterwards.
    - `chunk_size`: maps that many lanes at a time, one chunk after the other, so that memory for
        intermediate values follows it and not the number of lanes. The results are the same.
        Under an outer `grad` it takes `jax.checkpoint` around the function to save much.
        Collectives over the lanes are refused, `axis_index` included. Where chunks do not come
        out even, some lanes run twice and their effects, such as `jax.debug.print`, are seen
        twice.

    **Returns:**

    A [`statemap.StatefulMapping`][], or a decorator that makes one.

    **Raises:**

    When called: `ValueError` if lane counts differ or can't be told, or an axis is out of range;
    [`statemap.BatchAxisError`][] if a state lacks its axis, or lanes differ where one value is
    needed, or a population is looked up without its axes; `ValueError` if a lane gives a state
    back in another shape; `TypeError` if the function returns anything but a pair. A filter that
    names something and matches no state is a warning.
    """
    if fn is None:
        options = dict(locals())
        del options["fn"]
        return functools.partial(vmap2, **options)
    mapping_fn: Callable[..., Any] = eqx.filter_vmap
    if spmd_axis_name is not None:
        mapping_fn = functools.partial(mapping_fn, spmd_axis_name=spmd_axis_name)
    return StatefulMapping(
        fn,
        in_axes=in_axes,
        out_axes=out_axes,
        state_in_axes=state_in_axes,
        state_out_axes=state_out_axes,
        unexpected_out_state_mapping=unexpected_out_state_mapping,
        axis_name=axis_name,
        axis_size=axis_size,
        mapping_fn=mapping_fn,
        static_argnums=static_argnums,
        static_argnames=static_argnames,
        donate=donate,
        chunk_size=chunk_size,
    )
