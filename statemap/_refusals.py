"""What only the lane's program shows to be wrong."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ._axes import normalise
from ._errors import BatchAxisError
from ._jaxpr import axis_names, is_variable, ordered_effects
from ._lane import Lane
from ._rows import Row
from ._rules import HOWS, Reduce
from ._run import Run
from ._signature import Static
from ._slots import Slot
from ._values import dotted


def refuse_constants(run: Run, lane: Lane) -> None:
    """Refuses a container from outside the lane, given back in the place of that which came
    in. Of a context, the run itself refuses other shapes.
    """
    n_out = sum(not isinstance(o, Static) for o in run.outputs)
    outside = set(lane.jaxpr.constvars)
    for slot, at, n, moved in zip(run.slots.entries, run.starts, run.counts, run.moved):
        outs = lane.jaxpr.outvars[n_out + at : n_out + at + n]
        if moved and all(is_variable(var) and var in outside for var in outs):
            raise ValueError(
                f"The function gave the state `{dotted(slot.path)}` back in another shape "
                "than it came in, and as it is outside the function: the container to return "
                "is made of the one that came in, not of one from outside."
            )


def refuse_axis(slot: Slot, row: Row, after: Sequence[Any]) -> None:
    """Refuses an axis that a state does not have when it comes out.

    **Arguments:**

    - `after`: the types of its arrays, as a lane gives them.
    """
    if row.result != "stacked":
        return
    for x in after:
        ndim = len(x.shape) - slot.kind.trailing_axes
        if normalise(row.axis_out, ndim + 1) is None:  # pyright: ignore
            raise BatchAxisError(
                f"The state `{dotted(slot.path)}` has shape {x.shape[:ndim]} in a lane, and "
                f"can't have the lanes on axis {row.axis_out}, as `state_out_axes` says."
            )


def refuse_effects(run: Run, lane: Lane) -> None:
    """Refuses a collective over lanes that come in chunks, and effects in an order that there is
    not.
    """
    name, chunk = run.options.axis_name, run.options.chunk_size
    if chunk is not None and chunk < run.lanes and name in axis_names(lane.jaxpr):
        raise ValueError(
            f"The function uses a collective over {name!r}, the axis of its lanes, and "
            f"is mapped in chunks: {chunk} of {run.lanes} lanes are there at a time. "
            "Leave `chunk_size` out, or take the collective out of the function."
        )
    if run.devices is not None and run.devices.count > 1 and ordered_effects(lane.jaxpr):
        raise ValueError(
            "The function has an effect that comes in an order, such as "
            "`jax.debug.print(..., ordered=True)`, and its lanes lie on several devices, "
            "which run at the same time. Leave `ordered=True` out."
        )


def refuse_rule(
    rule: Reduce,
    row: Row,
    is_random: bool,
    before: Sequence[Any],
    after: Sequence[Any],
    lanes: int,
    in_chunks: bool,
) -> None:
    """Refuses a reduction that a state does not take.

    **Arguments:**

    - `row`: of the state.
    - `before`, `after`: the shapes and dtypes of the state's arrays, as they go into a lane and
        as they come out of it.

    **Raises:**

    `ValueError` that names the state and says why.
    """
    how, why = rule.how, None
    if is_random:
        why = (
            "keys have no mean: leave it out, so that the stream moves on, or let it come out as "
            "it came in (`sm.Restore`)"
        )
    elif how == "changes" and row.axis_in != "shared":
        why = (
            f"it comes in on axis {row.axis_in}, with an old value for each lane, and no one value "
            'that the changes add to; take `sm.Reduce("sum")`, say'
        )
    elif how == "changes" and [x.shape for x in before] != [x.shape for x in after]:
        why = "a mapping inside gave it lanes, so that its value and the old one have two shapes"
    elif isinstance(how, str):
        why = next((w for x in after if (w := _unfit(how, x.dtype))), None)
    elif in_chunks:
        why = (
            "a function sees all lanes, and here they come in chunks: leave `chunk_size` out, or "
            f"take one of {', '.join(map(repr, HOWS))}"
        )
    if why is None and lanes == 0 and how not in ("sum", "any", "all", "changes"):
        why = "there are no lanes, of which it is nothing"
    if why is not None:
        raise ValueError(
            f"The {row.kind} `{row.path}` is listed under {rule!r} in `state_out_axes`: {why}."
        )


def _unfit(how: str, dtype: Any) -> str | None:
    """Why numbers of a dtype are not reduced so, if they are not."""
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return "keys are no numbers: a function may choose one of them"
    if how in ("any", "all") and dtype != jnp.bool_:
        return f"`{how}` is of bools: `min` and `max` are of numbers"
    if how == "mean" and not jnp.issubdtype(dtype, jnp.inexact):
        return "a mean is no integer: let the state hold floating numbers, or take the sum"
    if how in ("sum", "changes") and dtype == jnp.bool_:
        return f"`{how}` is of numbers: of bools there are `any` and `all`"
    if how in ("min", "max") and jnp.issubdtype(dtype, jnp.complexfloating):
        return "complex numbers have no order, and devices none to agree on"
    return None
