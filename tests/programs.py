"""Random small programs over states, and a loop over lanes that says what they should do.

A program is a list of operations on an accumulator, a few states and a few arguments. The same
function runs it in both worlds: mapped by `vmap2`, and lane by lane in a Python loop. The loop
slices the mapped states, gives each lane its key by the law of random streams, and puts the
results together by the table of axes. Which values depend on the lane it knows by following the
program, not by looking at tracers.
"""

import copy
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import strategies as st

import statemap as sm


KINDS = (sm.ParamState, sm.ShortTermState, sm.LongTermState, sm.HiddenState)


@dataclasses.dataclass(frozen=True)
class Slot:
    name: str
    kind: type
    shape: tuple[int, ...]  # in a lane
    axis_in: int | None
    listed_out: bool
    axis_out: int | None


@dataclasses.dataclass(frozen=True)
class Program:
    lanes: int
    slots: tuple[Slot, ...]
    streams: tuple[int | None, ...]  # random states: on axis 0, or split (None)
    arg_axes: tuple[int | None, ...]
    ops: tuple[tuple[str, int], ...]
    policy: str
    seed: int

    def fn(self, states, *args):
        acc = jnp.zeros(())
        for op, i in self.ops:
            slot = self.slots[i % len(self.slots)]
            name = slot.name
            if op == "reset":
                acc = jnp.zeros(())
            elif op == "arg":
                acc = acc + jnp.sum(args[i % len(args)])
            elif op == "draw":
                x, states = sm.random.uniform(states, f"r{i % len(self.streams)}")
                acc = acc + x
            elif op == "read":
                acc = acc + jnp.sum(jnp.sin(states[name]))
            elif op == "add":
                states = states.set(name, 0.5 * states[name] + acc)
            elif op == "write":
                states = states.set(name, jnp.broadcast_to(jnp.tanh(acc), slot.shape))
            elif op == "const":
                states = states.set(name, jnp.full(slot.shape, 2.0))
        return {"acc": acc, "const": jnp.ones(2)}, states

    def differs(self) -> tuple[dict[str, bool], set[str]]:
        """Which states differ between lanes in the end, and which are written."""
        acc = False
        value = {s.name: s.axis_in is not None for s in self.slots}
        written = set()
        for op, i in self.ops:
            name = self.slots[i % len(self.slots)].name
            if op == "reset":
                acc = False
            elif op == "arg":
                acc |= self.arg_axes[i % len(self.arg_axes)] is not None
            elif op == "draw":
                acc = True
                written.add(f"r{i % len(self.streams)}")
            elif op == "read":
                acc |= value[name]
            elif op == "add":
                value[name] |= acc
                written.add(name)
            elif op in ("write", "const"):
                value[name] = acc if op == "write" else False
                written.add(name)
        return value, written

    def axes(self) -> tuple[dict, dict]:
        """`state_in_axes` and `state_out_axes`."""
        ins = {s.name: s.axis_in for s in self.slots if s.axis_in is not None}
        ins |= {f"r{i}": 0 for i, on_axis in enumerate(self.streams) if on_axis is not None}
        outs = {s.name: s.axis_out for s in self.slots if s.listed_out}
        return by_axis(ins), by_axis(outs)

    def mapping(self, **kwargs: Any) -> sm.StatefulMapping:
        ins, outs = self.axes()
        transform = sm.pmap2 if "devices" in kwargs else sm.vmap2
        return transform(
            self.fn,
            in_axes=self.arg_axes,
            out_axes={"acc": 0, "const": None},
            axis_size=self.lanes,
            state_in_axes=ins,
            state_out_axes=outs,
            unexpected_out_state_mapping=self.policy,
            **kwargs,
        )

    def inputs(self) -> tuple[sm.States, list[jax.Array]]:
        keys = iter(jr.split(jr.key(self.seed), 32))
        numbers = np.random.default_rng(self.seed)  # JAX would compile a program for each shape
        normal = lambda shape: jnp.asarray(numbers.normal(size=shape), jnp.float32)
        states = {}
        for s in self.slots:
            shape = s.shape
            if s.axis_in is not None:
                shape = insert(shape, s.axis_in, self.lanes)
            states[s.name] = s.kind(normal(shape))
        for i, on_axis in enumerate(self.streams):
            key = next(keys)
            states[f"r{i}"] = sm.RandomState(key if on_axis is None else jr.split(key, self.lanes))
        args = [normal((2,) if a is None else insert((2,), a, self.lanes)) for a in self.arg_axes]
        return sm.States(states), args

    def loop(self, states: sm.States, args: list[jax.Array]) -> tuple[Any, sm.States] | str:
        """The result of a Python loop over lanes, or the name of a state that is refused."""
        differs, written = self.differs()
        new_keys, lane_keys = {}, {}
        for i, on_axis in enumerate(self.streams):
            if on_axis is None:
                split = jr.split(states[f"r{i}"], self.lanes + 1)
                new_keys[f"r{i}"], lane_keys[f"r{i}"] = split[0], split[1:]
            else:
                lane_keys[f"r{i}"] = states[f"r{i}"]
        outs, lanes = [], []
        for lane in range(self.lanes):
            mine = {}
            for s in self.slots:
                value = states[s.name]
                mine[s.name] = s.kind(value if s.axis_in is None else take(value, s.axis_in, lane))
            for name, keys in lane_keys.items():
                mine[name] = sm.RandomState(keys[lane])
            xs = [a if ax is None else take(a, ax, lane) for a, ax in zip(args, self.arg_axes)]
            out, after = self.fn(sm.States(mine), *xs)
            outs.append(out["acc"])
            lanes.append(after)
        result = {}
        for s in self.slots:
            if s.name not in written and s.axis_in is None:
                continue
            axis = s.axis_out if s.listed_out else s.axis_in
            if s.listed_out and axis is None and differs[s.name]:
                return s.name
            if not s.listed_out and s.axis_in is None and differs[s.name]:
                if self.policy == "raise":
                    return s.name
                axis = 0
            values = [lane[s.name] for lane in lanes]
            result[s.name] = values[0] if axis is None else jnp.stack(values, axis)
        for i, on_axis in enumerate(self.streams):
            name = f"r{i}"
            if on_axis is not None:
                result[name] = jnp.stack([lane[name] for lane in lanes])
            elif name in written:
                result[name] = new_keys[name]
        out = {"acc": jnp.stack(outs), "const": jnp.ones(2)}
        values = {p[0]: s.value for p, s in states} | result
        made = {p[0]: type(s)(values[p[0]]) for p, s in states}
        return out, sm.States(made)


def by_axis(axes: dict[str, int | None]) -> dict[int | None, Any]:
    out: dict[int | None, list] = {}
    for name, axis in axes.items():
        out.setdefault(axis, []).append(sm.PathContains(name))
    return out


def insert(shape: tuple[int, ...], axis: int, n: int) -> tuple[int, ...]:
    axis = axis % (len(shape) + 1)
    return (*shape[:axis], n, *shape[axis:])


def take(x: jax.Array, axis: int, i: int) -> jax.Array:
    return jnp.take(x, i, axis % x.ndim)


def assert_states_close(a: sm.States, b: sm.States) -> None:
    assert [p for p, _ in a] == [p for p, _ in b]
    for (path, x), (_, y) in zip(a, b):
        assert type(x) is type(y) and x.shape == y.shape, path
        if isinstance(x, sm.RandomState):
            np.testing.assert_array_equal(x.data, y.data, err_msg=str(path))
        else:
            np.testing.assert_allclose(x.value, y.value, rtol=2e-5, atol=2e-5, err_msg=str(path))


@st.composite
def slots(draw, index: int) -> Slot:
    shape = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    axes = st.integers(-len(shape) - 1, len(shape))
    return Slot(
        name=f"s{index}",
        kind=draw(st.sampled_from(KINDS)),
        shape=shape,
        axis_in=draw(st.none() | axes),
        listed_out=draw(st.booleans()),
        axis_out=draw(st.none() | axes),
    )


OPS = ("arg", "draw", "read", "add", "write", "const", "reset")


@st.composite
def programs(draw, policy=st.sampled_from(("raise", "ignore")), lanes=st.integers(1, 3)) -> Program:
    n = draw(st.integers(1, 3))
    return Program(
        lanes=draw(lanes),
        slots=tuple(draw(slots(i)) for i in range(n)),
        streams=tuple(draw(st.lists(st.none() | st.just(0), min_size=1, max_size=2))),
        arg_axes=tuple(draw(st.lists(st.sampled_from([None, 0, 1, -1]), min_size=1, max_size=2))),
        ops=tuple(draw(st.lists(st.tuples(st.sampled_from(OPS), st.integers(0, 5)), max_size=8))),
        policy=draw(policy),
        seed=draw(st.integers(0, 2**16)),
    )


def check(program: Program, call=lambda f, *a: f(*a), **options):
    """Checks a call of a program's mapping against the loop; whether it was refused."""
    states, args = program.inputs()
    snapshot = copy.deepcopy(states)
    expected = program.loop(states, args)
    mapping = program.mapping(**options)
    if isinstance(expected, str):
        with pytest.raises(sm.BatchAxisError, match=r"The state `s\d`"):
            call(mapping, states, *args)
        assert states == snapshot
        return
    for _ in range(2):  # cold and warm
        out, new = call(mapping, states, *args)
        np.testing.assert_allclose(out["acc"], expected[0]["acc"], rtol=2e-5, atol=2e-5)
        assert_states_close(new, expected[1])
    assert states == snapshot  # the old context is still valid, and as it was
