"""One trace of a mapped function: what it reads and writes, and the program it comes to.

The function runs once, under the mapping, on the abstract values of all states. What it reads is
what the resulting jaxpr uses; what it writes is what it returns another array for.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax.interpreters import partial_eval

from ._axes import Placement
from ._container import AnyFrame
from ._errors import BatchAxisError
from ._forward import Origins
from ._info import Info, inform
from ._layout import lay_out, Layout
from ._options import Options
from ._outcome import Outcome
from ._signature import Function, Inputs, unwrap
from ._slots import Slots
from ._state import State


class Call(NamedTuple):
    """What is known of one call besides the arrays that `jax.jit` is given."""

    options: Options
    function: Function
    inputs: Inputs
    slots: Slots
    frame: AnyFrame
    values: Sequence[Any]  # of all states, of which a trace sees the shapes and dtypes
    donated: tuple[int, ...]  # the states whose values `jax.jit` is given, and may reuse
    kept: tuple[int, ...]  # the states whose values `jax.jit` is given besides
    trace: "Trace | None" = None  # of these very inputs, where there is one already


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """The program of one signature."""

    jaxpr: Any
    consts: list[Any]
    used: list[bool]  # of all inputs, which the jaxpr takes
    out_treedef: Any  # of the output and the new values
    layout: Layout
    split: frozenset[int]  # the random states that are used, and give each lane its own key
    touched: frozenset[int]
    written: frozenset[int]
    info: Info

    def run(
        self, slots: Slots, given: dict[int, Any], arrays: list[Any]
    ) -> tuple[Any, dict[int, Any]]:
        """The output, and the new values by the position of their state.

        **Arguments:**

        - `given`: the values of the touched states, by position.
        - `arrays`: all other inputs.
        """
        leaves: list[Any] = []
        moved_on: dict[int, Any] = {}
        for i, count in enumerate(self.layout.counts):
            if i in self.split:
                moved_on[i], keys = split_lanes(given[i], self.layout.lanes, slots.specs[i])
                leaves.append(keys)
            elif i in self.touched:
                leaves += jax.tree.leaves(given[i])
            else:
                leaves += [None] * count
        inputs = [x for x, used in zip(leaves + arrays, self.used) if used]
        flat = jax.core.eval_jaxpr(self.jaxpr, self.consts, *inputs)
        out, new = jax.tree.unflatten(self.out_treedef, flat)
        return out, moved_on | new


def split_lanes(data: jax.Array, n: int, spec: State) -> tuple[jax.Array, jax.Array]:
    """The law of random streams, `new, *lanes = split(key, n + 1)`, on the data of keys.

    **Returns:**

    The new value of the state, and the keys of the lanes along axis 0. With partitionable
    Threefry, JAX's default, a lane's key does not depend on `n`.
    """

    def split(key: jax.Array) -> jax.Array:
        return jax.random.key_data(jax.random.split(spec.decode(key), n + 1))

    for _ in range(data.ndim - 1):  # an array of keys is shared by the lanes, key by key
        split = jax.vmap(split, out_axes=1)
    keys = split(data)
    return keys[0], keys[1:]


def trace_call(call: Call, arrays: list[Any]) -> Trace:
    """Runs the function once, abstractly.

    **Arguments:**

    - `arrays`: the arrays of the arguments, of the container and of the function.

    **Raises:**

    Whatever can be wrong with axes, sizes, and what the function returns.
    """
    options, slots, inputs = call.options, call.slots, call.inputs
    values = tuple(call.values)
    layout = lay_out(options, call.function, inputs, slots, values, arrays)
    outcome = Outcome(options, slots, layout)
    n_state_arrays = sum(layout.counts)

    def program(state_arrays: list[Any], arrays: list[Any]) -> Any:
        leaves, treedef = jax.tree.flatten(inputs.arguments(arrays))
        every = state_arrays + leaves
        extra = tuple(inputs.container_arrays(arrays))

        def lane(marker: jax.Array, mapped: list[Any]) -> Any:
            own = iter(mapped)
            mine = [x if axis is None else next(own) for x, axis in zip(every, layout.axes)]
            before = layout.values(mine[:n_state_arrays])
            args, kwargs = unwrap(*jax.tree.unflatten(treedef, mine[n_state_arrays:]))
            fn = call.function.rebuild(inputs.function_arrays(arrays))
            container = call.frame.fill(slots, before, extra)
            out, returned = _pair(fn(container, *args, **kwargs), fn)
            after = call.frame.read(slots, returned, extra)
            return outcome.sort(marker, out, before, after)

        mapping = options.mapping_fn(
            lane,
            in_axes=(0, [axis for axis in layout.axes if axis is not None]),
            out_axes=(0, None),
            axis_name=options.axis_name,
            axis_size=layout.lanes,
        )
        mapped = [x for x, axis in zip(every, layout.axes) if axis is not None]
        return outcome.assemble(*mapping(jnp.arange(layout.lanes), mapped))

    try:
        closed, shape = jax.make_jaxpr(program, return_shape=True)(layout.abstract, arrays)
    except (BatchAxisError, NameError) as error:
        _explain(error, call, layout)
        raise
    out, new = shape
    wanted, written, drawn = _changes(closed.jaxpr, layout, outcome, out, new)
    jaxpr, used = partial_eval.dce_jaxpr(closed.jaxpr, wanted)
    starts = layout.starts()
    read = {i for i, n in enumerate(layout.counts) if any(used[starts[i] : starts[i] + n])}
    split = layout.split & (read | drawn)
    return Trace(
        jaxpr=jaxpr,
        consts=closed.consts,
        used=list(used),
        out_treedef=jax.tree.structure((out, {i: new[i] for i in sorted(written)})),
        layout=layout,
        split=split,
        touched=frozenset(read | split),
        written=frozenset(written | split),
        info=inform(slots, layout, outcome, values, frozenset(read), split),
    )


def _changes(
    jaxpr: Any, layout: Layout, outcome: Outcome, out: Any, values: dict[int, Any]
) -> tuple[list[bool], set[int], set[int]]:
    """Which outputs of the program are wanted, which states they change, and which random states
    are drawn from. A value that only passes through `jit` or a loop is another array to Python,
    and is no change.
    """
    wanted = [True] * len(jax.tree.leaves(out))
    written, drawn, origins = set(), set(), Origins()
    starts = layout.starts()
    for i in sorted(values):
        n, at = layout.counts[i], len(wanted)
        placement = outcome.placements[i]
        own = jaxpr.invars[starts[i] : starts[i] + n]
        passed = all(
            origins.of(jaxpr, var) is invar for var, invar in zip(jaxpr.outvars[at : at + n], own)
        )
        if passed:
            axis = None if placement.action == "share" else placement.axis
            outcome.placements[i] = Placement("keep", axis, "passed through, not changed")
        elif placement.action == "carry":
            drawn.add(i)
            outcome.placements[i] = Placement("keep", None, "")
        else:
            written.add(i)
        wanted += [i in written] * n
    return wanted, written, drawn


def _explain(error: Exception, call: Call, layout: Layout) -> None:
    """Says which of several nested mappings an error is about."""
    if getattr(error, "__notes__", None):
        return
    name, axis_name = call.function.name, call.options.axis_name
    if isinstance(error, BatchAxisError):
        error.add_note(f"(In the mapping of `{name}` over {layout.lanes} lanes.)")
    elif "unbound axis name" in str(error):
        given = "no `axis_name`" if axis_name is None else f"`axis_name={axis_name!r}`"
        error.add_note(
            f"The mapping of `{name}` was given {given}. A collective needs the name of its axis: "
            'vmap2(..., axis_name="batch").'
        )


def _pair(result: Any, fn: Any) -> tuple[Any, Any]:
    if not isinstance(result, tuple) or len(result) != 2:
        name = getattr(fn, "__name__", type(fn).__name__)
        what = (
            f"a tuple of {len(result)}"
            if isinstance(result, tuple)
            else (f"`{type(result).__name__}`")
        )
        raise TypeError(
            f"A mapped function returns `(out, states)`, and `{name}` returned {what}.\n"
            "Wrong:  return out\n"
            "Right:  return out, states"
        )
    return result
