"""Axes: which one each argument, state and output is mapped on, and what follows from it."""

import inspect
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._errors import BatchAxisError
from ._slots import Slots
from ._state import RandomState
from ._state_axes import Axis, Listed
from ._values import describe, dotted


AxisSpec = Any  # an int, None, a callable `leaf -> int | None`, or a prefix pytree of these


def normalise(axis: int, ndim: int) -> int | None:
    """A non-negative axis of an array with `ndim` axes, or None if there is no such axis."""
    if not -ndim <= axis < ndim:
        return None
    return axis % ndim if ndim else None


def move_axis(x: jax.Array, axis: int, trailing: int) -> jax.Array:
    """Axis 0 of `x` moved to `axis`, counted without the trailing axes."""
    to = normalise(axis, x.ndim - trailing)
    assert to is not None
    return x if to == 0 else jnp.moveaxis(x, 0, to)


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
            chosen = _call(axis, leaf, parameter) if callable(axis) else axis
            if chosen is None or not is_array(leaf):
                return _NoAxis
            return _as_axis(chosen, parameter)

        return jax.tree.map(one, subtree)

    try:
        jax.tree.map(lambda *_: None, spec, tree, is_leaf=is_axis_leaf)
    except ValueError as error:
        raise ValueError(
            f"`{parameter}` = {spec!r} is no prefix of the structure it applies to, "
            f"{jax.tree.structure(tree)}."
        ) from error
    resolved = jax.tree.map(below, spec, tree, is_leaf=is_axis_leaf)
    return [None if x is _NoAxis else x for x in jax.tree.leaves(resolved)]


def _call(axis: Callable[[Any], Any], leaf: Any, parameter: str) -> Any:
    """The axis that a callable gives a leaf: a JAX array, where that is of NumPy or abstract."""
    found: list[Any] = []
    try:
        if isinstance(leaf, (np.ndarray, jax.ShapeDtypeStruct)):
            jax.eval_shape(lambda x: found.append(axis(x)), leaf)
        else:
            found.append(axis(leaf))
    except Exception as error:
        error.add_note(f"(Raised by the callable in `{parameter}`, given {describe(leaf)}.)")
        raise
    return found[0]


class _NoAxis:
    """A leaf's axis where it has none: `None` would vanish from the pytree."""


def _as_axis(axis: Any, parameter: str) -> int:
    is_array_ = isinstance(axis, (jax.Array, np.ndarray))
    if isinstance(axis, (bool, np.bool_)) or is_array_ or not hasattr(axis, "__index__"):
        shown = describe(axis) if is_array_ else repr(axis)
        raise TypeError(
            f"`{parameter}` holds {shown}; an axis is an int, None, or a callable from a leaf "
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
    return positional + broadcast_axes(0, kwargs, "in_axes")


def argument_labels(fn: Callable, args: tuple, kwargs: dict[str, Any]) -> list[str]:
    """What messages call each leaf of `(args, kwargs)`."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        parameters = ()
    # those behind `*args` have no name, and no positional argument comes after
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in parameters if p.kind in positional][1:]
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


def state_size(slots: Slots, i: int, shape: tuple[int, ...], entry: Listed) -> tuple[int, int]:
    """The non-negative axis of one array of a state, and its size."""
    slot, axis = slots.entries[i], entry.axis
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
            f"`state_in_axes` maps it: it would hold {hint}.\n"
            "A state that all lanes share is not listed, or listed under None. A running total "
            "over the lanes is not a map but a scan: `jax.lax.scan(f, states, xs)`."
        )
    return at, shape[at]
