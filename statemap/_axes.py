"""Axes: which one each argument, state and output is mapped on, and what follows from it."""

import dataclasses
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from ._errors import BatchAxisError
from ._filters import Filter, Predicate, to_predicate
from ._slots import Slots
from ._state import RandomState
from ._values import dotted


Axis = int | None
AxisSpec = Any  # an int, None, a callable `leaf -> int | None`, or a prefix pytree of these
StateAxisSpec = Mapping[Axis, Filter] | Filter
POLICIES = ("raise", "warn", "ignore")


@dataclasses.dataclass(frozen=True)
class StateAxes:
    """`state_in_axes` or `state_out_axes`, normalised: axes with their predicates, in order."""

    entries: tuple[tuple[Axis, Predicate], ...]

    @staticmethod
    def parse(spec: Any, parameter: str) -> "StateAxes":
        """**Arguments:**

        - `spec`: a mapping from axes to filters, a bare filter (for axis 0), or `None`.
        - `parameter`: the name of the parameter, for messages.
        """
        if isinstance(spec, StateAxes):
            return spec
        if spec is None:
            return StateAxes(())
        if not isinstance(spec, Mapping):
            spec = {0: spec}
        entries = []
        for axis, filter in spec.items():
            if axis is not None:
                if isinstance(axis, (bool, np.bool_)) or not hasattr(axis, "__index__"):
                    raise TypeError(
                        f"`{parameter}` goes from axes to filters, and {axis!r} is no axis (an "
                        "int or None).\n"
                        "Wrong:  {sm.ParamState: 0}\n"
                        "Right:  {0: sm.ParamState}"
                    )
                axis = operator.index(axis)
            entries.append((axis, to_predicate(filter)))
        return StateAxes(tuple(entries))

    def over(self, other: "StateAxes") -> "StateAxes":
        """These axes, and those of `other` for what these do not match."""
        return StateAxes(self.entries + other.entries)

    @property
    def as_dict(self) -> dict[Axis, Filter]:
        return dict(self.entries)

    def assign(self, slots: Slots, values: Sequence[Any]) -> "list[Match | None]":
        """For each slot the first entry that matches it."""
        found: list[Match | None] = [None] * len(slots.entries)
        states = slots.states(values) if self.entries else []
        for axis, predicate in self.entries:
            for i, match in enumerate(slots.matching(predicate, states)):
                if match and found[i] is None:
                    found[i] = Match(axis, predicate)
        return found


class Match(NamedTuple):
    axis: Axis
    predicate: Predicate


class Placement(NamedTuple):
    """What becomes of a state after the call."""

    # "keep" what went in, "share" one new value, "stack" the lanes on `axis`, or "carry": a split
    # random state, whose lanes' keys are replaced
    action: str
    axis: Axis
    why: str
    unexpected: bool = False


def place(
    path: str,
    axis_in: Match | None,
    axis_out: Match | None,
    written: bool,
    differs: bool,
    policy: str,
) -> Placement:
    """The table of the concepts page: where a state's new value goes.

    **Arguments:**

    - `axis_in`, `axis_out`: the entries of `state_in_axes` and `state_out_axes` that match.
    - `written`: whether the function replaced the value.
    - `differs`: whether the value depends on the lane, as seen from this map.

    **Raises:**

    `BatchAxisError` where lanes differ and one shared value is asked for.
    """
    a = None if axis_in is None else axis_in.axis
    if a is None and not written:
        return Placement("keep", None, "shared, not written")
    if axis_out is not None and axis_out.axis is None:
        if differs:
            raise BatchAxisError(
                f"The state `{path}` is listed under None in `state_out_axes` "
                f"({axis_out.predicate!r}), so that all lanes share one value, but "
                + ("it is written" if written else "it is mapped and its values come back")
                + " with a value that depends on the lane. Reduce it over the lanes first "
                "(`jax.lax.pmean(value, axis_name)`), or give it an axis: "
                "`state_out_axes={0: ...}`."
            )
        return Placement("share", None, "the same in every lane, out axis None")
    if axis_out is not None:
        if a is not None and not written and a == axis_out.axis:
            return Placement("keep", a, "mapped, not written")
        return Placement("stack", axis_out.axis, f"`state_out_axes`: {axis_out.predicate!r}")
    if a is not None:
        if not written:
            return Placement("keep", a, "mapped, not written")
        return Placement("stack", a, "written, stays on the axis it came in")
    if not differs:
        return Placement("share", None, "written alike in every lane")
    if policy == "raise":
        raise BatchAxisError(
            f"The state `{path}` is shared by all lanes, and the function writes a value to it "
            "that depends on the lane. Choose one:\n"
            f"  - keep a value for each lane: `state_out_axes={{0: ...}}` with a filter for it "
            "(and `state_in_axes`, if it has one already);\n"
            "  - write one value for all: reduce it first, `jax.lax.pmean(value, axis_name)`;\n"
            "  - if the value only matters within a call, set it back before returning;\n"
            "  - let such writes go to axis 0: `unexpected_out_state_mapping='ignore'`, or "
            "'warn'."
        )
    return Placement("stack", 0, f"lanes differ, policy {policy!r}", unexpected=True)


def normalise(axis: int, ndim: int) -> int | None:
    """A non-negative axis of an array with `ndim` axes, or None if there is no such axis."""
    if not -ndim <= axis < ndim:
        return None
    return axis % ndim if ndim else None


def along(axis: Axis, x: Any, trailing: int) -> Axis:
    """A non-negative axis of an array, where it has that axis; errors are found elsewhere."""
    return None if axis is None else normalise(axis, len(np.shape(x)) - trailing)


def is_array(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray, jax.ShapeDtypeStruct))


def is_axis_leaf(x: Any) -> bool:
    return x is None


def broadcast_axes(spec: AxisSpec, tree: PyTree, parameter: str) -> list[Axis]:
    """The axis of each leaf of `tree`, from a prefix of it. What is no array has none.

    As in Equinox, a callable is given each leaf below it and returns the leaf's axis.
    """

    def below(axis: Any, subtree: PyTree) -> PyTree:
        def one(leaf: Any) -> Any:
            chosen = axis(leaf) if callable(axis) else axis
            if chosen is None or not is_array(leaf):
                return _NoAxis
            return _as_axis(chosen, parameter)

        return jax.tree.map(one, subtree)

    try:
        resolved = jax.tree.map(below, spec, tree, is_leaf=is_axis_leaf)
    except ValueError as error:
        raise ValueError(
            f"`{parameter}` = {spec!r} is no prefix of the structure it applies to, "
            f"{jax.tree.structure(tree)}."
        ) from error
    return [None if x is _NoAxis else x for x in jax.tree.leaves(resolved)]


class _NoAxis:
    """A leaf's axis where it has none: `None` would vanish from the pytree."""


def _as_axis(axis: Any, parameter: str) -> int:
    if isinstance(axis, (bool, np.bool_)) or not hasattr(axis, "__index__"):
        raise TypeError(
            f"`{parameter}` holds {axis!r}; an axis is an int, None, or a callable from a leaf "
            "to one of these, such as `eqx.if_array(0)`."
        )
    return operator.index(axis)


def argument_axes(in_axes: AxisSpec, args: tuple, kwargs: dict[str, Any]) -> list[Axis]:
    """The axis of each leaf of `(args, kwargs)`; keyword arguments are mapped over axis 0."""
    if isinstance(in_axes, list):
        in_axes = tuple(in_axes)
    if isinstance(in_axes, tuple):
        if len(in_axes) != len(args):
            raise ValueError(
                f"`in_axes` = {in_axes!r} has {len(in_axes)} entries for {len(args)} positional "
                "arguments. It counts the arguments after the states; the states' axes are "
                "`state_in_axes`."
            )
        positional = broadcast_axes(in_axes, args, "in_axes")
    elif in_axes is None or callable(in_axes) or hasattr(in_axes, "__index__"):
        positional = broadcast_axes(in_axes, args, "in_axes")
    else:
        raise TypeError(
            f"`in_axes` is an int, None, a callable, or a tuple with an entry for each argument, "
            f"not {in_axes!r}."
        )
    return positional + broadcast_axes(eqx.if_array(0), kwargs, "in_axes")


def argument_labels(fn: Callable, args: tuple, kwargs: dict[str, Any]) -> list[str]:
    """What messages call each leaf of `(args, kwargs)`."""
    try:
        names = [p.name for p in inspect.signature(fn).parameters.values()][1:]
    except (TypeError, ValueError):
        names = []
    labels = []
    for keys, _ in jax.tree_util.tree_flatten_with_path((args, kwargs))[0]:
        top, rest = keys[1], jax.tree_util.keystr(keys[2:])
        if keys[0].idx == 1:
            labels.append(f"argument `{top.key}{rest}`")
        else:
            name = f" (`{names[top.idx]}{rest}`)" if top.idx < len(names) else rest
            labels.append(f"argument {top.idx}{name}")
    return labels


def lane_count(
    given: int | None,
    sizes: list[tuple[str, int]],
) -> int:
    """The number of lanes, from `axis_size` and the sizes of all that is mapped."""
    if given is not None:
        sizes = [("`axis_size`", given), *sizes]
    if not sizes:
        raise ValueError(
            "The number of lanes can't be told: no argument and no state is mapped. Map one "
            "(`in_axes`, `state_in_axes`), or give `axis_size`."
        )
    if len({size for _, size in sizes}) > 1:
        listed = "\n".join(f"  {size:>6}  {label}" for label, size in sizes)
        raise ValueError(f"The number of lanes differs:\n{listed}")
    return sizes[0][1]


def argument_size(label: str, shape: tuple[int, ...], axis: int) -> tuple[int, int]:
    """The non-negative axis of an argument, and its size."""
    at = normalise(axis, len(shape))
    if at is None:
        raise ValueError(
            f"{label[0].upper()}{label[1:]} has shape {shape} and no axis {axis}, on which "
            + (
                "`in_axes` maps it. Give it None in `in_axes` if all lanes share it."
                if "(" in label or label[-1].isdigit()
                else "keyword arguments are mapped. If all lanes share it, give it by position, "
                "with None in `in_axes`."
            )
        )
    return at, shape[at]


def state_size(slots: Slots, i: int, shape: tuple[int, ...], match: Match) -> tuple[int, int]:
    """The non-negative axis of one array of a state, and its size."""
    slot, axis = slots.entries[i], match.axis
    assert axis is not None
    ndim = len(shape) - slot.kind.trailing_axes
    at = normalise(axis, ndim)
    if at is None:
        path, kind = dotted(slot.path), slot.kind.__name__
        hint = (
            "one key a lane: `sm.RandomState(jax.random.split(key, n))`"
            if issubclass(slot.kind, RandomState)
            else "one value a lane"
        )
        raise BatchAxisError(
            f"The state `{path}` ({kind}) has shape {shape[:ndim]} and no axis {axis}, on which "
            f"`state_in_axes` maps it ({match.predicate!r}): it would hold {hint}.\n"
            "A state that all lanes share is not listed, or listed under None. A running total "
            "over the lanes is not a map but a scan: `jax.lax.scan(f, states, xs)`."
        )
    return at, shape[at]
