"""Members of a population taken, written and chosen between: `lane`, `put`, `where`, `reseed`."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from ._indices import check_mask, choose, last_copies
from ._jax import gather_lanes, lay_as, take_lanes
from ._keys import one_key
from ._population import applied, Population, settle
from ._state_axes import Axis, StateAxisSpec
from ._states import States
from ._streams import copied_streams, new_streams


def lane(states: States, axes: StateAxisSpec, index: Any, streams: str = "fresh") -> States:
    """A member of a population, or some of them.

    ```python
    import jax.numpy as jnp
    import statemap as sm

    states = sm.States(v=sm.ShortTermState(jnp.arange(4.0)), w=sm.ParamState(1.0))
    axes = {0: sm.ShortTermState}
    assert sm.lane(states, axes, 2)["v"] == 2.0
    assert sm.lane(states, axes, slice(1, None))["v"].tolist() == [1.0, 2.0, 3.0]
    assert sm.lane(states, axes, states["v"] > 1)["v"].tolist() == [2.0, 3.0]
    assert sm.lane(states, axes, [3, 3, 0])["v"].tolist() == [3.0, 3.0, 0.0]
    ```

    **Arguments:**

    - `states`: the population's context.
    - `axes`: from `vmap2_new_states`, or any mapping from axes to filters.
    - `index`: an integer for one member, whose states lose their axis; or a slice, an array of
        integers or a mask, for a population of these members. Integers may be traced, and are
        clamped where they are out of range, as JAX does. A mask may not.
    - `streams`: what a member draws that is taken again. With `"fresh"` its first copy keeps its
        random streams, and each other one gets some of its own, which depend on the member's and on
        which copy it is. With `"same"` all of them draw the same.

    **Returns:**

    A context. States that all members share are in it as they are. Arrays that lie over a mesh lie
    there again, the members on the axis they were on if their new number allows that.

    **Raises:**

    `IndexError` if there is no such member or a mask has another length; `TypeError` for what is no
    index; `ValueError` if `axes` gives no state members.
    """
    if streams not in ("fresh", "same"):
        raise ValueError(f'`streams` is "fresh" or "same", not {streams!r}.')
    if isinstance(index, jax.ShapeDtypeStruct):
        return jax.eval_shape(lambda s, i: lane(s, axes, i, streams), states, index)
    population = Population(states, axes, "states", "lane")
    n = population.count()
    chosen = choose(index, n)
    if isinstance(chosen.at, jax.core.Tracer):
        chosen = chosen._replace(at=jnp.clip(chosen.at, 0, n - 1))
    copies = chosen.copies() if streams == "fresh" else None

    def take(i: int, axis: Axis, x: Any) -> Any:
        if axis is None:
            return x

        def some(x: Any) -> jax.Array:
            y = take_lanes(gather_lanes(jnp.asarray(x), axis), axis, chosen.at, chosen.size)
            if copies is None or not population.is_random(i):
                return y
            return copied_streams(y, copies, axis, states._slots.specs[i])

        return lay_as(applied(some, x), x, axis, None if chosen.size is None else axis)

    return population.build(take)


def put(
    states: States, axes: StateAxisSpec, index: Any, part: States, shared: str | None = None
) -> States:
    """A population with some of its members replaced: the way back from [`statemap.lane`][].

    ```python
    import jax.numpy as jnp
    import statemap as sm

    states = sm.States(v=sm.ShortTermState(jnp.arange(4.0)), w=sm.ParamState(1.0))
    axes = {0: sm.ShortTermState}
    part = sm.lane(states, axes, [0, 2])
    part = part.set("v", -part["v"] - 1.0)
    assert sm.put(states, axes, [0, 2], part)["v"].tolist() == [-1.0, 1.0, -3.0, 3.0]
    ```

    **Arguments:**

    - `states`: the population's context.
    - `axes`: from `vmap2_new_states`, or any mapping from axes to filters.
    - `index`: which members: as for `lane`, and none twice. Of traced integers that repeat the last
        counts, and those that are out of range are left out.
    - `part`: what `lane` gives for this index: one member's context, or a population.
    - `shared`: where `part` holds another value of a state that all members share, which counts:
        `"new"` for that of `part`, `"old"` for that of `states`. `None` refuses it, but for random
        states: a stream that has moved on is taken from `part`.

    **Returns:**

    A context with the states of `states`, which its handles find. Random streams are written as
    they are in `part`. So a copy written over another member draws what the original draws;
    `lane` with a parent for each member gives copies streams of their own.

    **Raises:**

    `IndexError` if there is no such member; `TypeError` for what is no index; `ValueError` if
    members repeat, or `part` holds other states, other shapes, another number of members, or
    another value of a shared state.
    """
    pick = _pick(shared)
    if isinstance(index, jax.ShapeDtypeStruct):
        return jax.eval_shape(lambda s, i, p: put(s, axes, i, p, shared), states, index, part)
    population = Population(states, axes, "states", "put")
    n = population.count()
    chosen = choose(index, n)
    at, count = chosen
    if isinstance(at, jax.core.Tracer):
        at = jnp.where(at < 0, n, at)  # JAX would count it from the end once more
        at = at if count is None else last_copies(at, n)
    elif (copies := chosen.copies()) is not None:
        raise ValueError(
            f"Member {at[copies.argmax()]} is to be written twice. Each index in `put` is for "
            "another member; `sm.lane` alone takes one again."
        )
    met = population.meet(part, "part", is_whole=count is not None)
    if met.count != count:
        raise ValueError(f"`index` is for {count} members, and `part` holds {met.count}.")

    def write(i: int, axis: Axis, x: Any, y: Any) -> Any:
        if axis is None:
            return _settle(population, i, x, y, ("states", "part"), pick)

        def some(x: Any, y: Any) -> jax.Array:
            x = gather_lanes(jnp.asarray(x), axis)
            y = y if count is None else gather_lanes(jnp.asarray(y), axis)
            return x.at[_on(axis, at)].set(y, mode="drop")

        y = lay_as(y, x, axis, None if count is None else axis)
        return lay_as(applied(some, x, y), x, axis, axis)

    return population.build(write, met)


def where(
    mask: Any, new: States, old: States, axes: StateAxisSpec, shared: str | None = None
) -> States:
    """Members of one population where a mask says so, and of another elsewhere.

    An array that is the same in both, since nobody wrote it, is kept as it is and costs nothing.

    ```python
    import jax.numpy as jnp
    import statemap as sm

    old = sm.States(v=sm.ShortTermState(jnp.arange(3.0)), w=sm.ParamState(jnp.ones(3)))
    new = old.set("v", old["v"] + 10.0)
    states = sm.where(jnp.array([True, False, True]), new, old, {0: ...})
    assert states["v"].tolist() == [10.0, 1.0, 12.0]
    assert states["w"] is old["w"]
    ```

    **Arguments:**

    - `mask`: a bool for each member, perhaps traced.
    - `new`, `old`: the populations: member i is that of `new` where `mask[i]`, else that of `old`.
    - `axes`: from `vmap2_new_states`, or any mapping from axes to filters.
    - `shared`: where the two hold different values of a state that all members share, which
        counts, `"new"` or `"old"`. `None` refuses that, and two traced arrays, of which nothing is
        known; but for random states: a stream that has moved on is taken from `new`.

    **Returns:**

    A context with the states of `old`, which its handles find.

    **Raises:**

    `TypeError` if the mask holds no bools, `IndexError` if it has another length; `ValueError` if
    the two hold other states, other shapes, another number of members, or different values of a
    shared state.
    """
    pick = _pick(shared)
    if isinstance(mask, jax.ShapeDtypeStruct):
        return jax.eval_shape(lambda m, n, o: where(m, n, o, axes, shared), mask, new, old)
    population = Population(old, axes, "old", "where")
    n = population.count()
    met = population.meet(new, "new")
    if met.count != n:
        raise ValueError(f"`new` holds {met.count} members, and `old` {n}.")
    mask = check_mask(mask, n)

    def select(i: int, axis: Axis, x: Any, y: Any) -> Any:
        if axis is None:
            return _settle(population, i, x, y, ("old", "new"), pick)
        if x is y:
            return x
        shape = [1] * len(x.shape)
        shape[axis] = n
        y = lay_as(y, x, axis, axis)
        chosen = applied(lambda x, y: jnp.where(mask.reshape(shape), y, x), x, y)
        return lay_as(chosen, x, axis, axis)

    return population.build(select, met)


def reseed(states: States, key: Any, axes: StateAxisSpec = None) -> States:
    """New streams for all random states of a context.

    ```python
    import jax.numpy as jnp
    import statemap as sm

    states = sm.States(rng=sm.RandomState(0), v=sm.ShortTermState(jnp.ones(3)))
    again = sm.reseed(states, 1)
    assert again["rng"] != states["rng"] and again == sm.reseed(again, 1)
    ```

    **Arguments:**

    - `states`: any context.
    - `key`: a key or seed. The streams of a state depend on it and on the state's path, and not on
        what they were or on other states: they are those of a [`statemap.field`][] that is made
        from this key.
    - `axes`: of a population, from `vmap2_new_states`, or any mapping from axes to filters. Each
        member gets streams of its own, which do not depend on how many there are.

    **Returns:**

    A context in which nothing else is changed.

    **Raises:**

    `TypeError` if `key` is no key, `ValueError` if it is several.
    """
    population = Population(states, axes, "states", "reseed")
    key = one_key(key, "sm.reseed")

    def renew(i: int, axis: Axis, x: Any) -> Any:
        if not population.is_random(i) or isinstance(x, jax.ShapeDtypeStruct):
            return x
        slot, spec = population.slots[i], states._slots.specs[i]
        return lay_as(new_streams(key, slot.path, x.shape, axis, spec), x, axis, axis)

    return population.build(renew)


_SHARED = {None: None, "old": 0, "new": -1}


def _pick(shared: Any) -> int | None:
    if not isinstance(shared, (str, type(None))) or shared not in _SHARED:
        raise ValueError(f'`shared` is "new", "old" or None, not {shared!r}.')
    return _SHARED[shared]


def _settle(
    population: Population, i: int, old: Any, new: Any, labels: tuple[str, str], pick: int | None
) -> Any:
    pick = -1 if pick is None and population.is_random(i) else pick
    ways = '`shared="new"` or `shared="old"`'
    return settle(population.slots[i], (old, new), labels, pick, ways)


def _on(axis: int, at: Any) -> tuple[Any, ...]:
    return (slice(None),) * axis + (at,)
