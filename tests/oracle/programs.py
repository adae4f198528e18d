"""Random programs over cells, as data, and what runs them with either library.

A program has a few cells and a list of statements, which read and write the cells, draw numbers
and change an accumulator, some of them in loops, branches and functions of their own. The whole
is wrapped in a stack of transforms.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st


KINDS = ("State", "ShortTermState", "LongTermState", "ParamState", "HiddenState", "BatchState")
DTYPES = ("float32", "int32", "uint8", "bool")
JITS = ("jit", "remat")
LANES = (2, 3)
STEPS = 2


@dataclasses.dataclass(frozen=True)
class Cell:
    kind: str
    shape: tuple[int, ...]  # in a lane
    dtype: str
    nested: bool  # whether it holds a dictionary

    def make(self, bst: Any, lanes: tuple[int, ...], rng: np.random.Generator) -> Any:
        def array() -> jax.Array:
            return jnp.asarray(rng.integers(-3, 4, (*lanes, *self.shape)) % 5, self.dtype)

        return getattr(bst, self.kind)({"x": array(), "y": [array()]} if self.nested else array())


@dataclasses.dataclass(frozen=True)
class Program:
    cells: tuple[Cell, ...]
    body: tuple[Any, ...]
    stack: tuple[str, ...]  # the outermost first
    seed: int

    def run(self, bst: Any) -> Any:
        """All outputs, and the final values of the cells."""
        rng = np.random.default_rng(self.seed)
        maps = self.stack.count("vmap")
        cells = [cell.make(bst, LANES[:maps], rng) for cell in self.cells]
        bst.random.seed(self.seed)
        streams = [bst.random, bst.random.RandomState(self.seed + 1)]
        machine = _Machine(bst, self.cells, cells, streams)
        fn = lambda x: machine.block(self.body, x)
        shape: tuple[int, ...] = ()
        for name in reversed(self.stack):
            if name == "for":
                shape = (STEPS, *shape)
            elif name == "vmap":
                maps -= 1
                shape = (LANES[maps], *shape)
            fn = machine.wrap(name, fn)
        x = jnp.asarray(rng.normal(size=shape), "float32")
        mapped_draws = "vmap" in self.stack and uses(self.body, "draw")
        outs = [fn(x) for _ in range(1 if mapped_draws else 2)]
        keys = [] if "vmap" in self.stack else [bst.random.DEFAULT.value, streams[1].value]
        return outs, [cell.value for cell in cells], keys


class _Machine:
    def __init__(self, bst: Any, specs: tuple[Cell, ...], cells: list[Any], streams: list[Any]):
        self.bst, self.t = bst, bst.transform
        self.specs, self.cells, self.streams = specs, cells, streams

    def wrap(self, name: str, fn: Any) -> Any:
        t = self.t
        if name == "for":
            return lambda x: t.for_loop(fn, x)
        if name == "cond":
            return lambda x: t.cond(x.sum() > 0, fn, lambda x: -fn(x), x)
        if name == "vmap":
            axes = {0: self.bst.util.filter.OfType(self.bst.State)}
            return t.vmap2(fn, state_in_axes=axes, state_out_axes=axes)
        return {"jit": t.jit, "remat": t.checkpoint}[name](fn)

    def block(self, body: tuple[Any, ...], acc: Any) -> Any:
        for op, *args in body:
            acc = getattr(self, op)(acc, *args)
        return acc

    def read(self, acc: Any, i: int) -> Any:
        leaves = jax.tree.leaves(self.cells[i % len(self.cells)].value)
        return 0.5 * acc + sum(jnp.sin(leaf.astype("float32")).mean() for leaf in leaves)

    def add(self, acc: Any, i: int) -> Any:
        cell = self.cells[i % len(self.cells)]

        def new(v: Any) -> Any:
            if v.dtype == bool:
                return v ^ (acc > 0.1)
            if v.dtype == jnp.float32:
                return 0.5 * v + acc
            return v * 3 + (acc > 0.1).astype(v.dtype)

        cell.value = jax.tree.map(new, cell.value)
        return acc

    def fill(self, acc: Any, i: int) -> Any:
        spec = self.specs[i % len(self.cells)]
        value = jnp.full(spec.shape, acc if spec.dtype == "float32" else acc > 0.1, spec.dtype)
        self.cells[i % len(self.cells)].value = {"x": value, "y": [value]} if spec.nested else value
        return acc

    def draw(self, acc: Any, i: int) -> Any:
        stream = self.streams[i % 2]
        if i % 3 == 0:
            return acc + 0.1 * stream.randint(0, 10, size=2).sum()
        if i % 3 == 1:
            return acc + stream.normal(acc, 0.5)
        return acc * stream.uniform(size=3).sum()

    def cond(self, acc: Any, yes: Any, no: Any) -> Any:
        run = lambda body: lambda a: self.block(body, a)
        return self.t.cond(acc > 0, run(yes), run(no), acc)

    def loop(self, acc: Any, body: Any) -> Any:
        outs = self.t.for_loop(lambda x: self.block(body, x - acc), jnp.arange(STEPS) * 0.3)
        return jnp.tanh(outs.sum())

    def scan(self, acc: Any, body: Any) -> Any:
        step = lambda carry, x: (self.block(body, carry) + x, carry)
        last, all = self.t.scan(step, acc, jnp.arange(STEPS) * 0.3)
        return jnp.tanh(last + all.mean())

    def call(self, acc: Any, how: str, body: Any) -> Any:
        fn = lambda a: self.block(body, a)
        if how in JITS:
            return self.wrap(how, fn)(acc)
        if how == "grad":
            slope, value = self.t.grad(fn, return_value=True)(acc)
            return jnp.tanh(slope + value)
        return fn(acc)

    def lanes(self, acc: Any, cells: tuple[int, ...]) -> Any:
        fn = lambda x: self.block(tuple(("read", i) for i in cells), x)
        return self.t.vmap2(fn)(acc + jnp.arange(2.0)).mean()


def uses(body: tuple[Any, ...], op: str) -> bool:
    """Whether a statement is somewhere in a block."""
    return any(
        s[0] == op or any(uses(part, op) for part in s[1:] if isinstance(part, tuple) and part
                          and isinstance(part[0], tuple))
        for s in body
    )  # fmt: skip


def blocks(draws: bool, depth: int, least: int = 1) -> st.SearchStrategy:
    index = st.integers(0, 5)
    simple = ["read", "add", "add", "fill", *(["draw"] if draws else [])]
    statements = [st.tuples(st.sampled_from(simple), index)]
    if depth:
        inner = blocks(draws, depth - 1)
        statements += [
            st.tuples(st.just("cond"), inner, inner),
            st.tuples(st.sampled_from(["loop", "scan"]), inner),
            st.tuples(st.just("call"), st.sampled_from(["plain", "jit", "remat", "grad"]), inner),
            st.tuples(st.just("lanes"), st.lists(index, min_size=1, max_size=2).map(tuple)),
        ]
    return st.lists(st.one_of(statements), min_size=least, max_size=3).map(tuple)


@st.composite
def programs(draw) -> Program:
    cell = st.builds(
        Cell,
        st.sampled_from(KINDS),
        st.sampled_from([(), (2,), (2, 3)]),
        st.sampled_from(DTYPES),
        st.booleans(),
    ).map(lambda c: dataclasses.replace(c, nested=c.nested and c.kind != "HiddenState"))
    stack = draw(st.lists(st.sampled_from(["for", "cond", "vmap", *JITS]), min_size=1, max_size=4))
    while stack.count("vmap") > len(LANES):
        stack.remove("vmap")
    draws = "vmap" not in stack
    if not draws and draw(st.booleans()):
        # After a mapped call brainstate's keys are others; and a `jit` or `checkpoint` that is
        # traced in a map keeps a split of the key that was for that one trace.
        first, last = stack.index("vmap"), len(stack) - 1 - stack[::-1].index("vmap")
        leave = lambda i, name: (i < last and name == "for") or (i > first and name in JITS)
        stack = [name for i, name in enumerate(stack) if not leave(i, name)]
        draws = True
    return Program(
        cells=tuple(draw(st.lists(cell, min_size=2, max_size=3))),
        body=draw(blocks(draws, 2, least=2)),
        stack=tuple(stack),
        seed=draw(st.integers(0, 2**16)),
    )
