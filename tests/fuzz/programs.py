"""Random programs as data, and the function that a lane runs for one.

A program is a tree of operations on states and on an accumulator, `acc`. Here it is run by JAX
and statemap; `loop.py` runs the same tree in plain Python.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import statemap as sm


Filter = tuple  # ("type", kind), ("tag", tag), ("path", key), ("not", filter), ...
Entries = tuple[tuple[int | None, Filter], ...]
Op = tuple


@dataclasses.dataclass(frozen=True)
class Slot:
    path: tuple[str, ...]
    kind: type
    tag: str | None
    tree: str  # how the arrays are held: "one", "dict" or "tuple"
    leaves: tuple[tuple[tuple[int, ...], str], ...]  # shape in a lane, and dtype
    by: str = "path"  # how it is looked up: by "path" or by "text"
    fresh: bool = True  # as a new state, whether its value depends on the key

    @property
    def is_random(self) -> bool:
        return self.kind is sm.RandomState

    @property
    def key(self) -> Any:
        return self.path if self.by == "path" else ".".join(self.path)

    def pack(self, leaves: Any) -> Any:
        a, *rest = leaves
        if self.tree == "dict":
            return {"a": a, "b": rest[0]}
        return (a, (rest[0], [rest[1]])) if self.tree == "tuple" else a

    def state(self, leaves: Any) -> sm.State:
        if self.is_random:
            return sm.RandomState(jax.random.wrap_key_data(jnp.asarray(leaves[0])), tag=self.tag)
        return self.kind(self.pack([jnp.asarray(x) for x in leaves]), tag=self.tag)


@dataclasses.dataclass(frozen=True)
class Map:
    """What a mapping does: the outer one's, or that of a map in a lane."""

    level: int  # tells apart the maps of a program
    lanes: int
    ins: Entries
    outs: Entries
    policy: str
    body: tuple[Op, ...]
    closes_over: bool = False  # an inner map: whether `acc` is an argument or closed over


@dataclasses.dataclass(frozen=True)
class Program:
    seed: int
    slots: tuple[Slot, ...]
    map: Map
    args: tuple[tuple[str, Any], ...]  # ("array" or "tree", axis), ("number" or "static", value)
    kwargs: tuple[tuple[str, str, Any], ...]  # name, then as for `args`
    vec_axis: int  # of an output with shape (2,) in a lane
    asks_shared: bool  # an output of `acc`, with `out_axes` None
    way: str  # what is around the mapping: "plain", "jit", "grad", ...
    options: tuple[tuple[str, Any], ...]  # chunk_size, donate, ...
    spelling: str  # of the axes of states: "dict", "bare" or "members"
    compiled: bool

    def slot(self, i: int) -> Slot:
        return self.slots[i]

    def fn(self, states: sm.States, *args: Any, **kwargs: Any) -> tuple[Any, sm.States]:
        given = [*args, *(kwargs[name] for name, _, _ in self.kwargs)]
        states, acc = self.run(self.map.body, states, jnp.zeros(()), given)
        out = {"acc": acc, "vec": jnp.stack([acc, 2 * acc]), "const": jnp.ones(2), "text": "x"}
        return (out | {"shared": acc} if self.asks_shared else out), states

    def run(self, ops: tuple[Op, ...], states: Any, acc: Any, given: list[Any]) -> Any:
        for op in ops:
            states, acc = self.step(op, states, acc, given)
        return states, acc

    def step(self, op: Op, states: Any, acc: Any, given: list[Any]) -> Any:
        name, *rest = op
        if name in SIMPLE:
            slot = self.slots[rest[0]]
            old = jax.tree.leaves(states[slot.key])
            new = slot.pack([change(jnp, name, x, acc) for x in old])
            return states.set(slot.key, states[slot.key] if name == "same" else new), acc
        if name == "read":
            leaves = jax.tree.leaves(states[self.slots[rest[0]].key])
            return states, 0.5 * acc + sum(look(jnp, x) for x in leaves)
        if name == "arg":
            return states, 0.5 * acc + argument(jnp, given[rest[0]])
        if name == "reset":
            return states, jnp.zeros(())
        if name == "swap":
            a, b = (self.slots[i].key for i in rest)
            return states.update({a: states[b], b: states[a]}), acc
        if name == "draw":
            return draw(states, self.slots[rest[0]].key, rest[1], acc)
        if name == "inner":
            return self.inner(rest[0], states, acc, given)
        if name == "custom_jvp":  # JAX lets a rule close over nothing that is traced
            arrays, static = eqx.partition(given, eqx.is_array)
            go = lambda c: (self.run(rest[0], *c[0], eqx.combine(c[1], static)), None)
            return _custom_jvp(go, ((states, acc), arrays))[0]
        go = lambda carry, body=rest[-1]: self.run(body, *carry, given)
        return _BLOCKS[name](go, (states, acc), *rest)

    def inner(self, m: Map, states: Any, acc: Any, given: list[Any]) -> Any:
        def one(states, x, *closed):
            mine = closed[0] if closed else acc
            states, out = self.run(m.body, states, mine + 0.0 * x, given)
            return out, states

        mapping = sm.vmap2(
            one,
            in_axes=(0,) if m.closes_over else (0, None),
            state_in_axes=axes(m.ins),
            state_out_axes=axes(m.outs),
            unexpected_out_state_mapping=m.policy,
        )
        out, states = mapping(states, jnp.arange(m.lanes) * 0.1, *(() if m.closes_over else [acc]))
        return states, 0.5 * acc + 0.25 * jnp.sum(out)


def _scan(go, carry, n, body):
    return jax.lax.scan(lambda c, _: (go(c), None), carry, None, length=n)[0]


def _while(go, carry, body):
    trip = trips(jnp, carry[1])
    step = lambda c: (c[0] + 1, go(c[1]))
    return jax.lax.while_loop(lambda c: c[0] < trip, step, (jnp.int32(0), carry))[1]


def _cond(go, carry, left, right):
    ways = [lambda c, body=body: go(c, body) for body in (left, right)]
    return jax.lax.cond(chooses(carry[1]), *ways, carry)


def _custom_jvp(go, carry):
    fn = jax.custom_jvp(go)
    fn.defjvp(lambda primals, tangents: jax.jvp(go, primals, tangents))
    return fn(carry)


_BLOCKS = {
    "jit": lambda go, carry, body: jax.jit(go)(carry),
    "checkpoint": lambda go, carry, body: jax.checkpoint(go)(carry),
    "scan": _scan,
    "fori": lambda go, carry, n, body: jax.lax.fori_loop(0, n, lambda _, c: go(c), carry),
    "while": _while,
    "cond": _cond,
}


def draw(states: Any, key: Any, how: str, acc: Any) -> Any:
    if how == "bits":
        x, states = sm.random.bits(states, key, (2,))
        return states, 0.5 * acc + jnp.sum(x % 16).astype(jnp.float32) / 16
    if how == "key":
        mine, states = sm.random.next_key(states, key)
        return states, 0.5 * acc + jax.random.uniform(mine)
    x, states = sm.random.uniform(states, key)
    return states, 0.5 * acc + x


# What follows is arithmetic alone, and both worlds use it: `xp` is NumPy or JAX. The odd numbers
# keep rounding from deciding anything.

SIMPLE = ("add", "write", "const", "zero", "same")


def whole(xp: Any, acc: Any) -> Any:
    return xp.floor(4 * acc + 0.1237).astype(np.int32)


def change(xp: Any, name: str, leaf: Any, acc: Any) -> Any:
    """A new value for an array of a state."""
    shape, dtype = np.shape(leaf), leaf.dtype
    if name == "same":
        return leaf
    if name == "zero":  # written, with the value that is there
        return xp.logical_or(leaf, False) if dtype.kind == "b" else leaf + np.zeros((), dtype)
    if name == "const":
        return xp.ones(shape, dtype)
    if dtype.kind == "b":
        new = acc > 0.3137
        return xp.logical_xor(leaf, new) if name == "add" else xp.broadcast_to(new, shape)
    if dtype == np.float32:
        return 0.5 * leaf + acc if name == "add" else xp.broadcast_to(xp.tanh(acc), shape)
    n = whole(xp, acc) % 17
    n = n.astype(dtype)
    return (leaf + n) % 13 if name == "add" else xp.broadcast_to(n, shape)


def look(xp: Any, leaf: Any) -> Any:
    return xp.sum(xp.sin(leaf.astype(np.float32)))


def argument(xp: Any, given: Any) -> Any:
    if isinstance(given, str):
        return np.float32(len(given))
    if isinstance(given, dict):
        return xp.sum(given["x"]) - 0.5 * xp.sum(given["y"][0])
    return given * 0.5 if isinstance(given, float) else xp.sum(given) * 0.5


def trips(xp: Any, acc: Any) -> Any:
    return whole(xp, xp.abs(acc)) % 3


def chooses(acc: Any) -> Any:
    return acc > 0.2719


def build(f: Filter) -> Any:
    """The filter that a tuple stands for."""
    name, *rest = f
    if name in ("not", "any", "all"):
        return {"not": sm.Not, "any": sm.Any, "all": sm.All}[name](*map(build, rest))
    if name == "list":
        return list(map(build, rest))
    if name == "lambda":
        return lambda path, state: any(c in path[-1] for c in rest[0])
    if name in ("of", "tagged", "path"):
        return {"of": sm.OfType, "tagged": sm.WithTag, "path": sm.PathContains}[name](rest[0])
    return {"type": rest and rest[0], "tag": rest and rest[0], "every": ..., "none": None}[name]


def axes(entries: Entries, spelling: str = "dict", members: dict | None = None) -> Any:
    if spelling == "members" and members is not None:
        return sm.MemberAxes(members)
    if spelling == "bare" and len(entries) == 1 and entries[0][0] == 0:
        return build(entries[0][1])
    return {axis: build(f) for axis, f in entries}
