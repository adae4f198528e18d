"""`jax.Ref`: an array that JAX writes to in place.

A lane that is given one writes to one of its own, which starts as its part of what was given. What
all lanes leave is written back once, after the call. So there is nothing but arrays in the engine,
and each write happens once: in chunks, over devices and under transforms, too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.core import Tracer

from ._axes import argument_labels
from ._devices import Devices
from ._foreign import held_by
from ._jax import is_ref, REF
from ._jaxpr import written_refs
from ._lane import Lane
from ._run import Run


_MAKE = ("reshape", "squeeze", "new_ref", "ref", "mutable_array")  # of `new_ref`, in all versions


def refuse_refs(run: Run, lane: Lane) -> list[bool]:
    """Refuses a write to a Ref that lanes share.

    **Returns:**

    Of each Ref among the arguments that is mapped, whether the function writes to it.

    **Raises:**

    `TypeError` that names the Ref.
    """
    arrays = run.everything[run.starts[-1] :]
    fn = run.function.rebuild(run.inputs.function_arrays(arrays))
    refuse_closed_over(fn, lane, run.devices)
    written = written_refs(lane.jaxpr)
    is_written = []
    for j in run.inputs.refs:
        mine = [lane.jaxpr.invars[run.starts[-1] + j]]
        for eqn in lane.jaxpr.eqns:  # on the way to the Ref that is made of it
            if eqn.primitive.name in _MAKE and any(eqn.invars[0] is var for var in mine):
                mine.append(eqn.outvars[0])
        writes = any(var in written for var in mine)
        if run.axes[run.starts[-1] + j] is not None:
            is_written.append(writes)
        elif writes:
            args, kwargs = run.inputs.arguments(arrays)
            label = argument_labels(fn, args, kwargs)[run.inputs.leaf_of(j)]
            raise TypeError(
                f"The function writes to {label}, a Ref of shape {arrays[j].shape} that all lanes "
                "share, as `in_axes` says: which write would be the last? A lane writes to its own "
                "part of a Ref that has an axis of lanes, or to a state, which may be reduced over "
                "the lanes: `state_out_axes={sm.Reduce(...): ...}`."
            )
    return is_written


def refuse_closed_over(fn: Callable, lane: Lane, devices: Devices | None) -> None:
    """Refuses a write to a Ref that a function closes over, and one that is on other devices than
    the lanes.

    **Raises:**

    `TypeError` that names the Ref.
    """
    written = written_refs(lane.jaxpr)
    for var, x in zip(lane.jaxpr.constvars, lane.consts):
        if not is_ref(x):
            continue
        name = next((root.name for root in held_by(fn, REF) if root.value is x), None)
        named = "a Ref" if name is None else f"the Ref `{name}`"
        ref = "ref" if name is None else name
        right = f"Right:  sm.vmap2(lambda states, {ref}, x: ...)(states, {ref}, x)"
        if var in written:
            raise TypeError(
                f"The function writes to {named} of shape {x.shape}, which it closes over, so that "
                "all lanes share it: which write would be the last? A lane writes to its own part "
                "of a Ref that it is given on an axis, or to a state.\n"
                f"Wrong:  sm.vmap2(lambda states, x: ...)(states, x)  # writes to {ref}\n{right}"
            )
        if devices is not None and not isinstance(x, Tracer):
            mesh: Any = devices.mesh
            if x.sharding.device_set != set(mesh.devices.flat):
                raise TypeError(
                    f"The function reads {named} of shape {x.shape}, which it closes over, and "
                    "which is not on all the devices that the lanes lie on. Give it as an "
                    f"argument, with None in `in_axes`.\n{right}"
                )


class GivenRefs:
    """The Refs among the arguments of a call."""

    def __init__(self, leaves: Sequence[Any], labels: Sequence[str]):
        """**Arguments:**

        - `leaves`, `labels`: of all arguments.

        **Raises:**

        `ValueError` if one is given twice.
        """
        self.refs = [leaf for leaf in leaves if is_ref(leaf)]
        self.before = [ref[...] for ref in self.refs]
        self.labels = [label for leaf, label in zip(leaves, labels) if is_ref(leaf)]
        for i, (ref, label) in enumerate(zip(self.refs, self.labels)):
            for other, known in zip(self.refs[:i], self.labels):
                if ref is other:
                    self._refuse_twice(label, known)

    def refuse_closed_over(self, constants: Sequence[Any]) -> None:
        """Refuses a Ref that the function closes over as well.

        **Arguments:**

        - `constants`: what the lane's program closes over.
        """
        for ref, label in zip(self.refs, self.labels):
            if any(x is ref for x in constants):
                self._refuse_twice(label, "what the function closes over")

    def write_back(
        self, mapped: Sequence[bool], finals: Sequence[Any], written: list[bool]
    ) -> None:
        """**Arguments:**

        - `mapped`: whether each Ref has an axis of lanes.
        - `finals`, `written`: of those that have, what is in it now, and whether that is new.
        """
        own = [ref for ref, is_mapped in zip(self.refs, mapped) if is_mapped]
        try:
            for ref, x, is_new in zip(own, finals, written):
                if not is_new:
                    continue
                if not isinstance(x, Tracer) and not isinstance(ref, Tracer):
                    x = jax.device_put(x, ref.sharding)
                ref[...] = x
        except Exception as error:
            for ref, x in zip(self.refs, self.before):  # JAX may write before it raises
                ref[...] = x
            if "differentiated" in str(error):
                error.add_note(
                    "(Under `jax.grad`, what a mapping leaves in a Ref counts as differentiated, "
                    "and this Ref was made outside. Make it inside the function that is "
                    "differentiated, or let it be a state.)"
                )
            raise

    def _refuse_twice(self, one: str, other: str) -> None:
        raise ValueError(
            f"One Ref is {one} and {other}, and a call takes it once. Give the other one as an "
            "array: `ref[...]`."
        )
