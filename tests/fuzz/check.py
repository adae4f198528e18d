"""One program: its inputs, its mapping, what it should give, and the comparison."""

from typing import Any

import jax
import numpy as np

import statemap as sm

from .loop import Analysis, Loop, split_keys
from .programs import axes, Program
from .table import assign, Refused


class Mismatch(AssertionError):
    pass


class Case:
    """A program, what it should do, and its mapping."""

    def __init__(self, program: Program):
        self.program, self.slots, self.m = program, program.slots, program.map
        self.rng = np.random.default_rng(program.seed)
        self.refused: Refused | None = None
        try:
            self.fates = Analysis(program).fates
        except Refused as error:
            self.refused = error
        try:
            self.came = [a and a[0] for a in assign(self.m.ins, self.slots)]
            self.spelling = program.spelling
        except Refused:  # of an entry, which has to be given as it is
            self.came, self.spelling = [None] * len(self.slots), "dict"

    def values(self) -> list[list[Any]]:
        """The arrays of each slot."""
        found = []
        for slot, axis in zip(self.slots, self.came):
            if slot.is_random:
                key = self.rng.integers(0, 2**32, (2,), np.uint32)
                found.append([key if axis is None else np.asarray(split_keys(key, self.m.lanes))])
                continue
            shapes = [(_insert(s, axis, self.m.lanes), d) for s, d in slot.leaves]
            found.append([self.array(shape, dtype) for shape, dtype in shapes])
        return found

    def array(self, shape: tuple[int, ...], dtype: str) -> Any:
        if dtype == "float32":
            return self.rng.normal(size=shape).astype(np.float32)
        return self.rng.integers(0, 2 if dtype == "bool" else 9, shape).astype(dtype)

    def inputs(self) -> tuple[list[Any], dict[str, Any]]:
        def make(kind: str, value: Any) -> Any:
            if kind not in ("array", "tree"):
                return value
            array = lambda: self.array(_insert((2,), value, self.m.lanes), "float32")
            return array() if kind == "array" else {"x": array(), "y": (array(),)}

        p = self.program
        return [make(*a) for a in p.args], {name: make(*rest) for name, *rest in p.kwargs}

    def states(self, values: list[list[Any]]) -> sm.States:
        tree: dict[str, Any] = {}
        for slot, leaves in zip(self.slots, values):
            at = tree
            for key in slot.path[:-1]:
                at = at.setdefault(key, {})
            at[slot.path[-1]] = slot.state(leaves)
        return sm.States(tree)

    def mapping(self, ins: Any = None) -> sm.StatefulMapping:
        p, m = self.program, self.m
        options = dict(p.options)
        transform: Any = sm.vmap2
        static = tuple(i for i, (kind, _) in enumerate(p.args) if kind == "static")
        if p.way == "pmap":
            transform = sm.pmap2
            options["devices"] = jax.devices()[: options["devices"]]
            options["static_broadcasted_argnums"] = static
        else:
            options["static_argnums"] = static
            options["static_argnames"] = [name for name, kind, _ in p.kwargs if kind == "static"]
        members = {s.path: a for s, a in zip(self.slots, self.came) if a is not None}
        has_alone = any(s.is_random for s in self.slots) and p.way != "new"
        spelling = "dict" if self.spelling == "members" and has_alone else self.spelling
        out_axes = {"acc": 0, "vec": p.vec_axis, "const": None, "text": None}
        return transform(
            p.fn,
            in_axes=tuple(v if k in ("array", "tree") else None for k, v in p.args),
            out_axes=out_axes | ({"shared": None} if p.asks_shared else {}),
            axis_size=m.lanes,
            state_in_axes=axes(m.ins, spelling, members) if ins is None else ins,
            state_out_axes=axes(m.outs, p.spelling),
            unexpected_out_state_mapping=m.policy,
            **options,
        )

    def expected(self, values: Any, call: Any, xp: Any = np) -> Any:
        acc, new = Loop(self.program, self.fates, xp)(values, *call)
        vec = xp.stack([acc, 2 * acc], -1)
        out = {"acc": acc, "vec": vec.T if self.program.vec_axis in (1, -1) else vec}
        return out | ({"shared": acc[0]} if self.program.asks_shared else {}), new

    def compare(self, actual: Any, expected: Any, where: str) -> None:
        (out, states), (out2, values) = actual, expected
        text, const = out.pop("text", "x"), out.pop("const")
        if text != "x" or not (const == 1).all() or set(out) != set(out2):
            raise Mismatch(f"{where}: outputs {out}")
        for name in out:
            same(f"{where}: output {name}", out[name], out2[name], exact=False)
        for slot, leaves in zip(self.slots, values):
            state = dict(states.items())[slot.path]
            if type(state) is not slot.kind or state.tag != slot.tag:
                raise Mismatch(f"{where}: {slot.path} is {state}")
            found = jax.tree.leaves(state.data)
            if jax.tree.structure(state.data) != jax.tree.structure(slot.pack([0, 0, 0])):
                raise Mismatch(f"{where}: {slot.path} is {state}")
            for x, y in zip(found, leaves):
                same(f"{where}: {slot.path}", x, y, exact=y.dtype != np.float32)

    @property
    def may_go_on(self) -> bool:
        """Whether the result can be given to the mapping again."""
        return all(
            f.result in ("kept", "moved on")
            or (f.came, f.result) == ("shared", "shared")
            or (f.result == "stacked" and f.came == f.axis)
            for f in self.fates[0]
        ) and not self.moves(self.m.body)

    def moves(self, ops: Any) -> bool:
        """Whether a map in a lane changes the shape of a state."""
        for _, *rest in ops:
            for x in rest:
                if isinstance(x, tuple) and self.moves(x):
                    return True
                if hasattr(x, "level"):
                    fates = self.fates[x.level]
                    if any(f.result in ("stacked", "shared") and f.came != (
                        "shared" if f.result == "shared" else f.axis
                    ) for f in fates) or self.moves(x.body):  # fmt: skip
                        return True
        return False


def _insert(shape: tuple[int, ...], axis: int | None, n: int) -> tuple[int, ...]:
    if axis is None:
        return shape
    axis %= len(shape) + 1
    return (*shape[:axis], n, *shape[axis:])


def same(where: str, actual: Any, expected: Any, exact: bool) -> None:
    a, b = np.asarray(actual), np.asarray(expected)
    if a.shape != b.shape or a.dtype != b.dtype:
        raise Mismatch(f"{where}: {a.dtype}{a.shape}, expected {b.dtype}{b.shape}")
    if not (np.array_equal(a, b) if exact else np.allclose(a, b, rtol=1e-5, atol=2e-5)):
        raise Mismatch(f"{where}: {a.tolist()}, expected {b.tolist()}")
