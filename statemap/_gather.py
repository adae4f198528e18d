"""Populations put together and taken apart: `concatenate`, `stack`, `unstack`, `broadcast`."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ._axes import move_axis, normalise
from ._groups import join_on, members_on
from ._jax import lay_as
from ._keys import one_key
from ._members import MemberAxes
from ._options import check_axis_size
from ._population import applied, check_states, Population, settle
from ._slots import Slot
from ._state_axes import Axis, Listed, StateAxes, StateAxisSpec
from ._states import States
from ._streams import new_streams, split_lanes
from ._values import dotted


def concatenate(
    populations: Iterable[States], axes: StateAxisSpec, shared: str | None = None
) -> States:
    """One population of the members of several, in order.

    ```python
    import jax.numpy as jnp
    import statemap as sm

    a = sm.States(v=sm.ShortTermState(jnp.zeros(2)), w=sm.ParamState(1.0))
    b = sm.States(v=sm.ShortTermState(jnp.ones(1)), w=sm.ParamState(1.0))
    states = sm.concatenate([a, b], {0: sm.ShortTermState})
    assert states["v"].tolist() == [0.0, 0.0, 1.0]
    ```

    **Arguments:**

    - `populations`: their contexts, at least one.
    - `axes`: from `vmap2_new_states`, or any mapping from axes to filters; the same for all.
    - `shared`: where they hold different values of a state that all members share, which counts:
        `"first"` or `"last"`. `None` refuses that; it also refuses two traced arrays, of which
        nothing is known.

    **Returns:**

    A context with the states of the first, which its handles find. Random streams are as they were:
    members that had the same still have, until [`statemap.reseed`][].

    **Raises:**

    `ValueError` if there is no population, or they hold other states, other shapes, or different
    values of a shared state.
    """
    populations = _several(populations, "populations", "concatenate")
    if shared not in (None, "first", "last"):
        raise ValueError(f'`shared` is "first", "last" or None, not {shared!r}.')
    pick = {None: None, "first": 0, "last": -1}[shared]
    if not populations:
        raise ValueError("`sm.concatenate` takes at least one population.")
    labels = [f"populations[{k}]" for k in range(len(populations))]
    first = Population(populations[0], axes, labels[0], "concatenate")
    first.count()
    rest = [first.meet(p, label) for p, label in zip(populations[1:], labels[1:])]

    def join(i: int, axis: Axis, *xs: Any) -> Any:
        if axis is None:
            ways = '`shared="first"` or `shared="last"`'
            return settle(first.slots[i], xs, labels, pick, ways)
        if len(xs) == 1:
            return xs[0]
        ys = [lay_as(x, xs[0], axis, axis) for x in xs]
        return lay_as(applied(join_on(axis), *ys), xs[0], axis, axis)

    return first.build(join, *rest)


def stack(members: Iterable[States], axes: StateAxisSpec) -> States:
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
        the axis of the members. A state without an axis is shared, and all members must hold the
        same value of it.

    **Returns:**

    The population's context, with the states of the first member, which its handles find.

    **Raises:**

    `ValueError` if there are no members, `axes` matches no state, their states or shapes differ, or
    a state that is shared has values that differ.
    """
    members = _several(members, "members", "stack")
    if not members:
        raise ValueError("A population is stacked from at least one member.")
    labels = [f"members[{k}]" for k in range(len(members))]
    first = Population(members[0], None, labels[0], "stack")
    found = _entries(members[0], axes, "stack")
    listed = [None if entry is None else entry.axis for entry in found]
    _refuse_populations(first, members, listed)
    rest = [first.meet(m, label) for m, label in zip(members[1:], labels[1:])]

    def join(i: int, _: Axis, *xs: Any) -> Any:
        slot, axis = first.slots[i], listed[i]
        if axis is None:
            return settle(slot, xs, labels, None, "by an axis in `axes`")
        at = _new_axis(slot, xs[0], axis)
        return lay_as(applied(join_on(at, is_new=True), *xs), xs[0], None, at)

    return first.build(join, *rest)


def unstack(states: States, axes: StateAxisSpec) -> list[States]:
    """The members of a population, each as a context of its own.

    **Arguments:**

    - `states`: the population's context.
    - `axes`: from `vmap2_new_states`, or any mapping from axes to filters.

    **Returns:**

    A list of contexts. [`statemap.stack`][] is the way back.

    **Raises:**

    `ValueError` if `axes` gives no state members, or an axis that a state does not have.
    """
    population = Population(states, axes, "states", "unstack")
    n = population.count()
    taken: list[list[Any]] = []

    def take(i: int, axis: Axis, x: Any) -> Any:
        if axis is None:
            taken.append([x] * n)
        else:
            taken.append([lay_as(y, x, axis, None) for y in applied(members_on(axis, n), x)])
        return len(taken) - 1

    places = population.build(take)
    return [jax.tree.map(lambda place, k=k: taken[place][k], places) for k in range(n)]


def broadcast(
    states: States, axes: StateAxisSpec, *, axis_size: int, key: Any = None
) -> tuple[States, MemberAxes]:
    """A population of members that are alike, from the context of one.

    ```python
    import jax.numpy as jnp
    import statemap as sm

    states = sm.States(v=sm.ShortTermState(jnp.ones(3)), rng=sm.RandomState(0))
    states, axes = sm.broadcast(states, {0: ...}, axis_size=5)
    assert states["v"].shape == (5, 3) and states["rng"].shape == (5,)
    ```

    **Arguments:**

    - `states`: a context, such as that of a model from [`statemap.make_with_states`][].
    - `axes`: which states get an axis of members, and where: a mapping from axes to filters, or one
        filter for axis 0. The others are as they were, as a `NonBatchState` always is.
    - `axis_size`: the number of members.
    - `key`: a key or seed, from which the members' random streams derive as in
        [`statemap.reseed`][]. Left out, each random state is split, as a mapping would.

    **Returns:**

    `(states, axes)`: the population's context, and a [`statemap.MemberAxes`][], which is what
    `state_in_axes` and `state_out_axes` take, and which lists what `axes` lists: a random state
    that it does not is dealt out by each mapping. A member's streams do not depend on how many
    there are.

    **Raises:**

    `ValueError` if `axes` matches no state, or an axis can't be there.
    """
    n = check_axis_size(axis_size)
    if n is None:
        raise TypeError("`axis_size` is the number of members, an integer, not None.")
    key = None if key is None else one_key(key, "sm.broadcast")
    one = Population(states, None, "states", "broadcast")
    found = _entries(states, axes, "broadcast")

    def repeat(i: int, _: Axis, x: Any) -> Any:
        slot, spec, entry = one.slots[i], states._slots.specs[i], found[i]
        axis = None if entry is None else entry.axis
        if axis is None:
            return x
        at = _new_axis(slot, x, axis)

        def lanes(x: Any) -> jax.Array:
            if not one.is_random(i):
                y = jnp.broadcast_to(x, (n, *x.shape))
            elif key is None:
                _, y = split_lanes(jnp.asarray(x), n, spec)
            else:
                y = new_streams(key, slot.path, (n, *x.shape), 0, spec)
            return move_axis(y, at, slot.kind.trailing_axes)

        return lay_as(applied(lanes, x), x, None, at)

    # What `axes` does not list stays unlisted: under None, a random state would be one stream that
    # all members draw the same numbers from, where a mapping deals out what it is not told of.
    return one.build(repeat), MemberAxes(
        {slot.path: entry.axis for slot, entry in zip(one.slots, found) if entry is not None}
    )


def _several(contexts: Any, label: str, verb: str) -> list[States]:
    if isinstance(contexts, States) or not isinstance(contexts, Iterable):
        raise TypeError(
            f"`sm.{verb}` takes a list of contexts, not one `{type(contexts).__name__}`.\n"
            f"Wrong:  sm.{verb}(a, axes)\n"
            f"Right:  sm.{verb}([a, b], axes)"
        )
    contexts = list(contexts)
    for k, states in enumerate(contexts):
        check_states(states, f"{label}[{k}]", verb)
    return contexts


def _entries(states: States, axes: StateAxisSpec, verb: str) -> list[Listed | None]:
    """The entry of `axes` that gives each state of a member an axis for the members."""
    found = StateAxes.parse(axes, "axes").assign(states._slots, states._values)
    if all(entry is None or entry.axis is None for entry in found):
        raise ValueError(
            "`axes` matches no state of the context that can have members: there is nothing to "
            f"{verb}. `{{0: ...}}` is for all states."
        )
    return found


def _new_axis(slot: Slot, x: Any, axis: int) -> int:
    """The non-negative axis that an array of a state gets for its members."""
    ndim = len(x.shape) - slot.kind.trailing_axes
    at = normalise(axis, ndim + 1)
    if at is None:
        raise ValueError(
            f"The state `{dotted(slot.path)}` has shape {x.shape[:ndim]}, and can't have its "
            f"members on axis {axis}, as `axes` says."
        )
    return at


def _refuse_populations(
    first: Population, members: Sequence[States], listed: Sequence[Axis]
) -> None:
    """Refuses whole populations of different sizes, which are no members."""
    for k, member in enumerate(members):
        if [s.path for s in member._slots.entries] != [s.path for s in first.slots]:
            return  # which is refused otherwise
        for slot, axis, xs, value in zip(first.slots, listed, first.leaves, member._values):
            for x, y in zip(xs, jax.tree.leaves(value)):
                ndim = len(x.shape) - slot.kind.trailing_axes
                at = None if axis is None else normalise(axis, ndim)
                if at is None or len(x.shape) != len(y.shape):
                    continue
                other = {a for a, (p, q) in enumerate(zip(x.shape, y.shape)) if p != q}
                if other == {at}:
                    raise ValueError(
                        f"The state `{dotted(slot.path)}` differs in shape: {x.shape[:ndim]} in "
                        f"`members[0]` and {y.shape[:ndim]} in `members[{k}]`, on the axis that "
                        "`axes` gives the members. These look like populations, which are put "
                        "together as they are:\n"
                        "Wrong:  sm.stack(populations, axes)\n"
                        "Right:  sm.concatenate(populations, axes)"
                    )
