"""What only the lane's program shows to be wrong."""

from collections.abc import Sequence
from typing import Any

from ._axes import normalise
from ._errors import BatchAxisError
from ._jax import axis_names, is_variable, ordered_effects
from ._lane import Lane
from ._rows import Row
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
