"""Random populations, for the laws of the functions on their members."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from hypothesis import strategies as st

import statemap as sm


class Kind(sm.State):
    """A kind of a user's."""


KINDS = (sm.ParamState, sm.ShortTermState, sm.LongTermState, sm.BatchState, Kind)


@dataclasses.dataclass(frozen=True)
class Slot:
    kind: type
    shapes: tuple[tuple[int, ...], ...]  # of a member; several are a dictionary
    axis: int | None
    dtype: str
    impl: str = "threefry2x32"


@dataclasses.dataclass(frozen=True)
class Sample:
    """A population: its slots, and how many members it has."""

    slots: tuple[Slot, ...]
    size: int

    @property
    def axes(self) -> dict[int, Any]:
        found: dict[int, list[Any]] = {}
        for i, slot in enumerate(self.slots):
            if slot.axis is not None:
                found.setdefault(slot.axis, []).append(sm.PathContains(f"s{i}"))
        return found

    def states(self, seed: int = 0, size: int | None = None, shared: int = 0) -> sm.States:
        """**Arguments:**

        - `seed`: of what the members hold; `shared`, of what they share.
        """
        n = self.size if size is None else size
        made = {}
        for i, slot in enumerate(self.slots):
            numbers = np.random.default_rng((shared if slot.axis is None else seed, i))
            shapes = [with_axis(shape, slot.axis, n) for shape in slot.shapes]
            if slot.kind is sm.RandomState:
                count = int(np.prod(shapes[0]))
                keys = jr.split(jr.key(int(numbers.integers(1000)), impl=slot.impl), count)
                value: Any = keys.reshape(shapes[0])
            else:
                arrays = [jnp.asarray(numbers.integers(-9, 9, s), slot.dtype) for s in shapes]
                value = arrays[0] if len(arrays) == 1 else dict(zip("abc", arrays))
            made[f"s{i}"] = slot.kind(value)
        return sm.States(made)

    def members(self, states: sm.States) -> list[sm.States]:
        """What `sm.unstack` gives, by a loop over members."""
        return [self.taken(states, k) for k in range(self.size)]

    def taken(self, states: sm.States, index: Any) -> sm.States:
        """What `sm.lane` gives for numbers that do not repeat."""

        def take(x, axis, trailing):
            if axis is None:
                return x
            at = axis % (x.ndim - trailing)
            return jnp.asarray(np.take(np.asarray(x), index, at))

        values = []
        for slot, value in zip(self.slots, states._values):
            trailing = slot.kind.trailing_axes
            values.append(jax.tree.map(lambda x, s=slot, t=trailing: take(x, s.axis, t), value))
        treedef = jax.tree.structure(states)
        return jax.tree.unflatten(treedef, jax.tree.leaves(values))


def with_axis(shape: tuple[int, ...], axis: int | None, n: int) -> tuple[int, ...]:
    if axis is None:
        return shape
    at = axis % (len(shape) + 1)
    return (*shape[:at], n, *shape[at:])


@st.composite
def slots(draw, has_lanes=False):
    kind = draw(st.sampled_from((*KINDS, sm.RandomState, sm.NonBatchState)))
    if has_lanes and kind is sm.NonBatchState:
        kind = sm.ParamState
    if kind is sm.RandomState:
        shapes = (draw(st.sampled_from([(), (2,)])),)
    else:
        shapes = tuple(draw(st.lists(st.sampled_from([(), (2,)]), min_size=1, max_size=2)))
    reach = min(map(len, shapes)) + 1  # the axes that all of its arrays can have
    axes = st.integers(-reach, reach - 1)
    if kind is sm.NonBatchState:
        axis = None
    else:
        axis = draw(axes if has_lanes else st.none() | axes)
    dtype = draw(st.sampled_from(["float32", "bool"]))
    return Slot(kind, shapes, axis, dtype, draw(st.sampled_from(["threefry2x32", "rbg"])))


@st.composite
def populations(draw, sizes=st.sampled_from([0, 1, 3])):
    first = draw(slots(has_lanes=True))
    return Sample((first, *draw(st.lists(slots(), max_size=2))), draw(sizes))


def indices(n: int, unique: bool = True):
    """Every form of an index for `n` members."""
    several = st.lists(st.integers(-n, n - 1), max_size=3) if n else st.just([])
    if unique:
        several = several.map(lambda xs: list({x % n: x for x in xs}.values()) if n else [])
    forms = [
        st.slices(n) if n else st.just(slice(None)),
        several,
        several.map(lambda xs: jnp.asarray(xs, jnp.int32)),
        st.lists(st.booleans(), min_size=n, max_size=n).map(lambda m: np.asarray(m, bool)),
    ]
    if n:
        forms.append(st.integers(-n, n - 1))
    return st.one_of(forms)


def bits(tree: Any) -> list[Any]:
    return [(x.shape, x.dtype, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


def same(a: sm.States, b: sm.States) -> None:
    assert a._slots is b._slots
    assert bits(a) == bits(b)
