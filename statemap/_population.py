"""Populations taken apart: their arrays, each with the axis of its members; and contexts that meet,
whose states are matched by path, kind and the shape of a member.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from ._axes import normalise
from ._exact import exact
from ._overlay import moved_of, with_moved
from ._slots import Slot
from ._state import is_state, RandomState
from ._state_axes import Axis, StateAxes, StateAxisSpec
from ._states import make_states, States
from ._values import dotted, refuse_labels


class Population:
    """A context taken apart: the arrays of each state, and on which axis each has the members."""

    def __init__(self, states: States, axes: StateAxisSpec, label: str, verb: str):
        """**Arguments:**

        - `label`: what messages call the context; `verb`, the function that it was given to.
        """
        check_states(states, label, verb)
        self.states, self.label, self.verb = states, label, verb
        self.slots = states._slots.entries
        self.listed = axes_of(states, axes)
        flat = [jax.tree.flatten(value) for value in states._values]
        self.treedefs = [treedef for _, treedef in flat]
        self.leaves = [leaves for leaves, _ in flat]
        self.axes = [
            [None if axis is None else _along(slot, x, axis) for x in leaves]
            for slot, axis, leaves in zip(self.slots, self.listed, self.leaves)
        ]

    def count(self) -> int:
        """The number of members.

        **Raises:**

        `ValueError` if there are none to count, or arrays disagree.
        """
        return _count(self.slots, self.leaves, self.axes)

    def meet(self, other: States, label: str, is_whole: bool = True) -> "Met":
        """Another context with the same states.

        **Arguments:**

        - `label`: what messages call it.
        - `is_whole`: whether it is a population, too, rather than one member.

        **Raises:**

        `ValueError` if it holds other states, or a member of it has other shapes.
        """
        check_states(other, label, self.verb)
        _match(self.states, other, self.label, label)
        leaves = []
        for slot, value, treedef, mine, axes in zip(
            self.slots, other._values, self.treedefs, self.leaves, self.axes
        ):
            theirs, theirs_def = jax.tree.flatten(value)
            if treedef != theirs_def:
                raise ValueError(
                    f"The state `{dotted(slot.path)}` has another structure in `{label}` than in "
                    f"`{self.label}`: {theirs_def} and {treedef}."
                )
            for x, y, axis in zip(mine, theirs, axes):
                self._check(slot, x, y, axis, label, is_whole)
            leaves.append(theirs)
        if not is_whole or all(axis is None for axes in self.axes for axis in axes):
            return Met(other, label, leaves, None)
        return Met(other, label, leaves, _count(self.slots, leaves, self.axes))

    def _check(self, slot: Slot, x: Any, y: Any, axis: Axis, label: str, is_whole: bool) -> None:
        ndim = len(x.shape) - (axis is not None and not is_whole)
        at = axis if is_whole else None
        if (
            len(y.shape) == ndim
            and _without(x.shape, axis) == _without(y.shape, at)
            and x.dtype == y.dtype
        ):
            return
        trailing = slot.kind.trailing_axes
        expected = list(x.shape)
        if axis is not None:
            expected[axis : axis + 1] = ["members"] if is_whole else []
        shown = ", ".join(map(str, expected[: len(expected) - trailing]))
        raise ValueError(
            f"The state `{dotted(slot.path)}` of `{label}` does not fit that of `{self.label}`: "
            f"expected an array of dtype {x.dtype} and shape "
            f"({shown}{',' if shown and ',' not in shown else ''}), got dtype {y.dtype} and shape "
            f"{y.shape[: len(y.shape) - trailing]}."
        )

    def build(self, make: Callable[..., Any], *others: "Met") -> States:
        """A context with these slots, each array made by `make(i, axis, x, *ys)`: `i` is the
        position of its state, `ys` are the arrays that the others have in its place.
        """
        values = []
        for i, treedef in enumerate(self.treedefs):
            ys = [other.leaves[i] for other in others]
            rows = zip(self.axes[i], self.leaves[i], *ys)
            values.append(jax.tree.unflatten(treedef, [make(i, *row) for row in rows]))
        moved = moved_of(self.states._values)
        for other in others:
            moved |= moved_of(other.states._values)
        return make_states(self.states._slots, with_moved(tuple(values), moved))

    def is_random(self, i: int) -> bool:
        return issubclass(self.slots[i].kind, RandomState)


class Met:
    """A context that meets a population: its arrays, in the order of the population's states."""

    def __init__(self, states: States, label: str, leaves: list[list[Any]], count: int | None):
        """**Arguments:**

        - `count`: the number of its members; None if it has no axis of them.
        """
        self.states, self.label, self.leaves, self.count = states, label, leaves, count


_CALLS = {
    "lane": "lane(states, axes, index)",
    "put": "put(states, axes, index, part)",
    "where": "where(mask, new, old, axes)",
    "reseed": "reseed(states, key, axes)",
    "stack": "stack([a, b], axes)",
    "unstack": "unstack(states, axes)",
    "concatenate": "concatenate([a, b], axes)",
    "broadcast": "broadcast(states, axes, axis_size=n)",
}


def check_states(states: Any, label: str, verb: str) -> None:
    if isinstance(states, States):
        refuse_labels(states._slots, states._values, f"`{label}`")
        return
    if any(map(is_state, jax.tree.leaves(states, is_leaf=is_state))):
        advice = (
            "A container of States becomes one:\n"
            f"Wrong:  {label} = {{'v': sm.ShortTermState(x)}}\n"
            f"Right:  {label} = sm.States({{'v': sm.ShortTermState(x)}})"
        )
    else:
        advice = f"It is called so: `sm.{_CALLS[verb]}`."
    raise TypeError(
        f"`sm.{verb}` takes contexts, and `{label}` is of type `{type(states).__name__}`. {advice}"
    )


def axes_of(states: States, axes: StateAxisSpec) -> list[Axis]:
    """The axis that each state of a context has its members on."""
    found = StateAxes.parse(axes, "axes").assign(states._slots, states._values)
    return [None if match is None else match.axis for match in found]


def _along(slot: Slot, x: Any, axis: int) -> int:
    """The non-negative axis of one array of a state."""
    ndim = len(x.shape) - slot.kind.trailing_axes
    at = normalise(axis, ndim)
    if at is None:
        raise ValueError(
            f"The state `{dotted(slot.path)}` has shape {x.shape[:ndim]} and no axis "
            f"{axis}, on which `axes` has its members."
        )
    return at


def _without(shape: tuple[int, ...], axis: Axis) -> tuple[int, ...]:
    return shape if axis is None else shape[:axis] + shape[axis + 1 :]


def _count(
    slots: Sequence[Slot], leaves: Sequence[Sequence[Any]], axes: Sequence[Sequence[Axis]]
) -> int:
    sizes: dict[int, str] = {}
    for slot, xs, ats in zip(slots, leaves, axes):
        for x, axis in zip(xs, ats):
            if axis is not None:
                sizes.setdefault(x.shape[axis], dotted(slot.path))
    if not sizes:
        raise ValueError("`axes` gives no state of the context an axis: it has no members.")
    if len(sizes) > 1:
        listed = ", ".join(f"{size} in `{name}`" for size, name in sizes.items())
        raise ValueError(f"The number of members differs: {listed}.")
    return next(iter(sizes))


def _match(first: States, other: States, first_label: str, label: str) -> None:
    """Refuses a context that holds other states. Which model they were made with does not count,
    but for its class.
    """
    if other._slots is first._slots:
        return
    mine = {exact(slot.path): slot for slot in first._slots.entries}
    theirs = {exact(slot.path): slot for slot in other._slots.entries}
    lacking = _listed([mine[path] for path in mine if path not in theirs])
    besides = _listed([theirs[path] for path in theirs if path not in mine])
    if lacking or besides:
        said = ([f"it lacks {lacking}"] if lacking else []) + (
            [f"it has {besides} besides"] if besides else []
        )
        raise ValueError(
            f"`{label}` has other states than `{first_label}`: {', and '.join(said)}. Both must "
            "hold the same; `states.select(filter)` leaves some out, and `states.merge(other)` "
            "adds some."
        )
    for path, slot in mine.items():
        if difference := _difference(slot, theirs[path]):
            what, a, b = difference
            raise ValueError(
                f"The state `{dotted(slot.path)}` has another {what} in `{label}` than in "
                f"`{first_label}`: {b} instead of {a}."
            )


def _listed(slots: list[Slot]) -> str:
    names = [f"`{dotted(slot.path)}`" for slot in slots]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _difference(a: Slot, b: Slot) -> tuple[str, str, str] | None:
    """As `Slot.difference`; and the classes of two models differ."""
    classes = [None if s.model is None else s.model.rpartition(":")[0] for s in (a, b)]
    if a.kind is b.kind and None not in classes and classes[0] != classes[1]:
        return "model", f"`{classes[0]}`", f"`{classes[1]}`"
    return a.difference(b)


def settle(
    slot: Slot, values: Sequence[Any], labels: Sequence[str], pick: int | None, ways: str
) -> Any:
    """One array of a state that all members share, from those of several contexts.

    **Arguments:**

    - `pick`: which counts; None if they must be the same.
    - `ways`: for the message, how to say which counts.
    """
    if pick is not None:
        return values[pick]
    first = values[0]
    different = next((k for k, x in enumerate(values) if not _is_same(first, x)), None)
    if different is None:
        return first
    path, a, b = dotted(slot.path), f"`{labels[0]}`", f"`{labels[different]}`"
    traced = any(isinstance(x, jax.core.Tracer) for x in (first, values[different]))
    raise ValueError(
        f"The state `{path}` ({slot.kind.__name__}) is shared by all members, and "
        + (
            f"while a program is traced it can't be told whether {a} and {b} hold the same value "
            "of it."
            if traced
            else f"{a} and {b} hold different values of it."
        )
        + f" Say which counts, {ways}; or make them one before: "
        f'`{labels[different]}.set("{path}", ...)`.'
    )


def _is_same(x: Any, y: Any) -> bool:
    """Whether two arrays are known to be one: to the bit, so that NaN is itself and 0.0 is not
    -0.0. Of types, nothing else is known.
    """
    if x is y or any(isinstance(z, jax.ShapeDtypeStruct) for z in (x, y)):
        return True
    if any(isinstance(z, jax.core.Tracer) for z in (x, y)):
        return False
    mine, theirs = _whole(x), _whole(y)
    return mine is not None and theirs is not None and mine.tobytes() == theirs.tobytes()


def _whole(x: Any) -> np.ndarray | None:
    """The numbers of an array, where this process has all of them."""
    if isinstance(x, jax.Array):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        if not x.is_fully_addressable:
            if not x.is_fully_replicated:
                return None
            x = x.addressable_data(0)
    return np.asarray(x)


def applied(fn: Callable[..., Any], *xs: Any) -> Any:
    """`fn(*xs)`; its type, where one of them is a type."""
    is_type = any(isinstance(x, jax.ShapeDtypeStruct) for x in xs)
    return jax.eval_shape(fn, *xs) if is_type else fn(*xs)
