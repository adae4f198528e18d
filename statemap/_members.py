"""The members of a population: which axis each state has its lanes on, and how to take a
population apart and put it together by that.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from ._axes import normalise
from ._filters import InPaths
from ._slots import Slots
from ._state import State
from ._state_axes import Axis, StateAxes
from ._states import make_states, States
from ._values import dotted, Path


class MemberAxes(Mapping[Axis, InPaths]):
    """Which states of a population hold a value for each member, and on which axis: what
    [`statemap.vmap2_new_states`][] returns last.

    It is a mapping from axes to filters, so that it is given as it is to `state_in_axes` and
    `state_out_axes`; each filter holds the paths of its states. `axes.tree(states)` is the same
    as a pytree of axes, for `jax.vmap` and `equinox.filter_vmap`.

    ```python
    import jax, jax.numpy as jnp
    import statemap as sm

    def make():
        return {"v": sm.ShortTermState(jnp.zeros(3)), "t": sm.NonBatchState(0.0)}

    model, states, axes = sm.vmap2_new_states(make, {}, axis_size=5)
    assert list(axes[0]) == [("v",)] and list(axes[None]) == [("t",)]

    totals = jax.vmap(lambda states: states["v"].sum(), in_axes=(axes.tree(states),))(states)
    assert totals.shape == (5,)
    ```
    """

    def __init__(self, axes: Mapping[Path, Axis]):
        """**Arguments:**

        - `axes`: the axis of each state, by path; `None` for a state that all members share.
        """
        self._by_path = dict(axes)
        order = sorted(set(self._by_path.values()), key=lambda a: (a is None, a or 0))
        self._by_axis = {
            axis: InPaths(tuple(p for p, a in self._by_path.items() if a == axis)) for axis in order
        }

    def __getitem__(self, axis: Axis) -> InPaths:
        return self._by_axis[axis]

    def __iter__(self) -> Iterator[Axis]:
        return iter(self._by_axis)

    def __len__(self) -> int:
        return len(self._by_axis)

    def __hash__(self) -> int:
        return hash(frozenset(self._by_path.items()))

    def __repr__(self) -> str:
        shown = (
            f"{axis}: [{', '.join(map(dotted, paths))}]" for axis, paths in self._by_axis.items()
        )
        return f"{type(self).__name__}({{{', '.join(shown)}}})"

    def tree(self, states: States) -> States:
        """The axis of each state of a context, in the place of its value.

        **Arguments:**

        - `states`: the context, or a part of it. States that these axes do not list get `None`.
        """
        found = (self._by_path.get(slot.path) for slot in states._slots.entries)
        return make_states(states._slots, tuple(found))


# One for each type of key that a dictionary may be inferred to have: keys are invariant.
AxesOf = Mapping[int, Any] | Mapping[None, Any] | Mapping[Axis, Any]


def _axes_of(states: States, axes: AxesOf) -> list[Axis]:
    """The axis of each state of a context."""
    found = StateAxes.parse(axes, "axes").assign(states._slots, states._values)
    return [None if match is None else match.axis for match in found]


def _along(slots: Slots, i: int, x: jax.Array, axis: int) -> int:
    """The non-negative axis of one array of a state."""
    ndim = x.ndim - slots.entries[i].kind.trailing_axes
    at = normalise(axis, ndim)
    if at is None:
        raise ValueError(
            f"The state `{dotted(slots.entries[i].path)}` has shape {x.shape[:ndim]} and no axis "
            f"{axis}, on which `axes` has its members."
        )
    return at


def member_count(states: States, axes: AxesOf) -> int:
    """The number of members of a population."""
    sizes: dict[int, str] = {}
    for i, axis in enumerate(_axes_of(states, axes)):
        if axis is not None:
            for x in jax.tree.leaves(states._values[i]):
                name = dotted(states._slots.entries[i].path)
                sizes.setdefault(x.shape[_along(states._slots, i, x, axis)], name)
    if not sizes:
        raise ValueError("`axes` gives no state of the context an axis: it has no members.")
    if len(sizes) > 1:
        listed = ", ".join(f"{size} in `{name}`" for size, name in sizes.items())
        raise ValueError(f"The number of members differs: {listed}.")
    return next(iter(sizes))


def lane(states: States, axes: AxesOf, index: Any) -> States:
    """A member of a population, or some of them.

    ```python
    import jax.numpy as jnp
    import statemap as sm

    states = sm.States(v=sm.ShortTermState(jnp.arange(4.0)), w=sm.ParamState(1.0))
    axes = {0: sm.ShortTermState}
    assert sm.lane(states, axes, 2)["v"] == 2.0
    assert sm.lane(states, axes, slice(1, None))["v"].tolist() == [1.0, 2.0, 3.0]
    assert sm.lane(states, axes, states["v"] > 1)["v"].tolist() == [2.0, 3.0]
    ```

    **Arguments:**

    - `states`: the population's context.
    - `axes`: from `vmap2_new_states`, or any mapping from axes to filters.
    - `index`: an integer for one member, whose states lose their axis; or a slice, an array of
        integers or a mask, for a population of these members.

    **Returns:**

    A context. States that all members share are in it as they are.

    **Raises:**

    `IndexError` if there is no such member.
    """
    n = member_count(states, axes)
    if isinstance(index, (int, np.integer)) and not isinstance(index, bool):
        if not -n <= index < n:
            raise IndexError(f"There is no member {index}: the population has {n} members.")
    elif not isinstance(index, slice) and not isinstance(index, jax.core.Tracer):
        index = np.asarray(index)
        if index.dtype.kind not in "biu" and index.size:
            raise TypeError(
                "Members are taken by an integer, a slice, integers or a mask, not by "
                f"{index.tolist()!r} of dtype {index.dtype}."
            )
        if index.dtype == bool:
            if index.shape != (n,):
                raise IndexError(f"A mask of shape {index.shape} is given for {n} members.")
            (index,) = np.nonzero(index)
        elif index.size == 0:
            index = index.astype(int)
        elif ((index < -n) | (index >= n)).any():
            raise IndexError(f"There is no member {index.max()}: the population has {n} members.")
    values = []
    for i, axis in enumerate(_axes_of(states, axes)):

        def take(x: jax.Array, i: int = i, axis: Axis = axis) -> jax.Array:
            if axis is None:
                return x
            return x[(slice(None),) * _along(states._slots, i, x, axis) + (index,)]

        values.append(jax.tree.map(take, states._values[i]))
    return make_states(states._slots, tuple(values))


def unstack(states: States, axes: AxesOf) -> list[States]:
    """The members of a population, each as a context of its own.

    **Arguments:**

    - `states`: the population's context.
    - `axes`: from `vmap2_new_states`, or any mapping from axes to filters.

    **Returns:**

    A list of contexts. [`statemap.stack`][] is the way back.
    """
    return [lane(states, axes, i) for i in range(member_count(states, axes))]


def stack(members: Sequence[States], axes: AxesOf) -> States:
    """A population from its members.

    ```python
    import statemap as sm

    members = [sm.States(v=sm.ShortTermState(float(i))) for i in range(3)]
    states = sm.stack(members, {0: sm.ShortTermState})
    assert states["v"].tolist() == [0.0, 1.0, 2.0]
    ```

    **Arguments:**

    - `members`: contexts with the same states.
    - `axes`: from `vmap2_new_states`, or any mapping from axes to filters: where each state gets
        the axis of the members. A state without an axis is shared, and taken from the first.

    **Returns:**

    The population's context.

    **Raises:**

    `ValueError` if there are no members, their states or shapes differ, or a state that is shared
    has values that differ.
    """
    if not members:
        raise ValueError("A population is stacked from at least one member.")
    first = members[0]
    for k, member in enumerate(members):
        if member._slots is not first._slots:
            raise ValueError(
                f"Member {k} has other states than member 0: {', '.join(member._slots.names())} "
                f"instead of {', '.join(first._slots.names())}."
            )
    values = []
    for i, axis in enumerate(_axes_of(first, axes)):
        path = dotted(first._slots.entries[i].path)
        kind: type[State] = first._slots.entries[i].kind

        def join(
            *xs: jax.Array, axis: Axis = axis, path: str = path, kind: type[State] = kind
        ) -> jax.Array:
            if len({(x.shape, x.dtype) for x in xs}) > 1:
                shapes = ", ".join(str(x.shape) for x in xs)
                raise ValueError(f"The state `{path}` differs in shape or dtype: {shapes}.")
            if axis is None:
                if any(x is not xs[0] and not np.array_equal(x, xs[0]) for x in xs[1:]):
                    raise ValueError(
                        f"`axes` gives the state `{path}` no axis, so that all members share "
                        "one value, and theirs differ. Give it an axis."
                    )
                return xs[0]
            at = normalise(axis, xs[0].ndim - kind.trailing_axes + 1)
            if at is None:
                raise ValueError(f"The state `{path}` has shape {xs[0].shape}: no axis {axis}.")
            return jnp.stack(xs, at)

        values.append(jax.tree.map(join, *(member._values[i] for member in members)))
    return make_states(first._slots, tuple(values))
