"""One program, checked: its inputs, what is around its mapping, and the comparison."""

import copy
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import statemap as sm

from .interpret import interpreted
from .loop import _at, _split, ACC, Analysis, assign, Loop, Refused
from .programs import axes, build, Program, Slot


@jax.jit
def _first(key: Any, i: Any) -> Any:
    """The data of a key of its own for a slot, and small numbers."""
    key = jax.random.fold_in(key, i)
    return jax.random.key_data(key), jax.random.bits(key, (9,), np.uint8) % 9


class Mismatch(AssertionError):
    pass


class Check:
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
        except Refused:
            self.came = [None] * len(self.slots)

    def run(self) -> str:
        """Raises `Mismatch`, or says what was found: "same" or "refused"."""
        values, call = self.values(), self.inputs()
        try:
            if self.refused is not None:
                raise self.refused
            expected = self.expected(values, call)
        except Refused as refused:
            return self.is_refused(refused, values, call)
        with interpreted(not self.program.compiled) as jit, warnings.catch_warnings(record=True) as w:
            warnings.simplefilter("always")
            getattr(self, "_" + self.program.way)(values, call, expected, jit)
        warned = any("lane" in str(x.message) for x in w)
        unexpected = self.m.policy == "warn" and any(f.unexpected for f in self.fates[0])
        if warned != unexpected:
            raise Mismatch(f"warned: {warned}, expected: {unexpected}")
        return "same"

    def is_refused(self, refused: Refused, values: Any, call: Any) -> str:
        states = self.states(values)
        lax = self.program.asks_shared  # two things may be wrong
        with interpreted(True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self.mapping()(states, *call[0], **call[1])
            except (sm.BatchAxisError, ValueError) as error:
                if type(error) is refused.kind or lax:
                    return "refused"
                raise Mismatch(f"refused with {error!r}, expected {refused}") from error
        raise Mismatch(f"not refused, expected {refused}")

    # Inputs.

    def values(self) -> list[list[Any]]:
        """The arrays of each slot."""
        found = []
        for slot, axis in zip(self.slots, self.came):
            if slot.is_random:
                key = self.rng.integers(0, 2**32, (2,), np.uint32)
                found.append([key if axis is None else np.asarray(_split(key, self.m.lanes))])
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

    # The mapping, and what it should give.

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
        spelling = "dict" if p.spelling == "members" and has_alone else p.spelling
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

    # What is around the mapping.

    def _plain(self, values: Any, call: Any, expected: Any, jit: Any) -> None:
        mapping = self.mapping()
        self.several(mapping, values, call, expected)

    def several(self, mapping: Any, values: Any, call: Any, expected: Any) -> None:
        """Calls cold, then warm with other numbers, then with what came out."""
        new = self.once(mapping, values, call, expected, "cold")
        if self.may_go_on:
            then = self.expected(expected[1], call)
            self.compare(mapping(new, *call[0], **call[1]), then, "once more")
        values, call = self.values(), self.inputs()
        self.once(mapping, values, call, self.expected(values, call), "warm")

    def once(self, mapping: Any, values: Any, call: Any, expected: Any, where: str) -> Any:
        states = self.states(values)
        keep = None if dict(self.program.options).get("donate") else copy.deepcopy(states)
        out, new = mapping(states, *call[0], **call[1])
        self.compare((out, new), expected, where)
        if keep is not None and states != keep:
            raise Mismatch(f"{where}: the context that was given has changed")
        return new

    _pmap = _plain

    def _disable_jit(self, values: Any, call: Any, expected: Any, jit: Any) -> None:
        with jax.disable_jit():
            self.once(self.mapping(), values, call, expected, "without jit")

    def bound(self, mapping: Any, call: Any) -> Any:
        """The mapping as a function of the context and of the arrays among the arguments."""
        p, given = self.program, [*call[0], *call[1].values()]
        kinds = [k for k, _ in p.args] + [k for _, k, _ in p.kwargs]
        traced = [k in ("array", "tree") for k in kinds]

        def fn(states: Any, arrays: Any) -> Any:
            own = iter(arrays)
            every = [next(own) if t else x for t, x in zip(traced, given)]
            args, rest = every[: len(p.args)], every[len(p.args) :]
            out, new = mapping(states, *args, **dict(zip(call[1], rest)))
            if out.pop("text") != "x":
                raise Mismatch("the output that is no array")
            return out, new

        return fn, [x for x, t in zip(given, traced) if t]

    def _jit(self, values: Any, call: Any, expected: Any, jit: Any) -> None:
        fn, arrays = self.bound(self.mapping(), call)
        self.compare(jit(fn)(self.states(values), arrays), expected, "jit")

    def _scan(self, values: Any, call: Any, expected: Any, jit: Any) -> None:
        fn, arrays = self.bound(self.mapping(), call)
        goes_on = self.may_go_on

        def both(states: Any, arrays: Any) -> Any:
            def body(carry: Any, _: Any) -> Any:
                out, new = fn(carry, arrays)
                return (new, out) if goes_on else (carry, (out, new))

            return jax.lax.scan(body, states, None, length=2)

        last, found = jit(both)(self.states(values), arrays)
        take = lambda k: jax.tree.map(lambda x: np.asarray(x)[k], found)
        if not goes_on:
            self.compare(take(1), expected, "scan")
            return
        self.compare((take(0), last), (expected[0], self.expected(expected[1], call)[1]), "scan")

    def _vmap(self, values: Any, call: Any, expected: Any, jit: Any) -> None:
        fn, arrays = self.bound(self.mapping(), call)
        other = self.values()
        states = jax.tree.map(lambda *xs: jnp.asarray(np.stack(xs)), self.states(values), self.states(other))
        found = jit(jax.vmap(fn, in_axes=(0, None)))(states, arrays)
        for k, want in enumerate([expected, self.expected(other, call)]):
            self.compare(jax.tree.map(lambda x: np.asarray(x)[k], found), want, f"vmap, {k}")

    def _grad(self, values: Any, call: Any, expected: Any, jit: Any) -> None:
        fn, arrays = self.bound(self.mapping(), call)
        states = self.states(values)
        wrt = [all(d == "float32" for _, d in s.leaves) for s in self.slots]
        paths = [s.path for s, w in zip(self.slots, wrt) if w]
        params, rest = states.partition(lambda path, _: path in paths, ...)
        is_float = lambda x: x.dtype == np.float32

        def total(out: Any, leaves: Any) -> Any:
            return jnp.sum(out["acc"]) + sum(jnp.sum(jnp.sin(x)) for x in leaves if is_float(x))

        def loss(params: Any, rest: Any, arrays: Any) -> Any:
            out, new = fn(rest.merge(params), arrays)
            return total(out, jax.tree.leaves(new)), (out, new)

        def plain(floats: Any) -> Any:
            own = iter(floats)
            mine = [next(own) if w else v for w, v in zip(wrt, values)]
            out, new = self.expected(mine, call, jnp)
            return total(out, jax.tree.leaves(new))

        found, aux = jit(jax.grad(loss, has_aux=True))(params, rest, arrays)
        self.compare(aux, expected, "grad: value")
        floats = [[jnp.asarray(x) for x in v] for v, w in zip(values, wrt) if w]
        want = jax.grad(plain)(floats)
        for path, leaves in zip(paths, want):
            for x, y in zip(jax.tree.leaves(dict(found.items())[path].data), leaves):
                same(f"grad: {path}", x, y, exact=False)

    def _new(self, values: Any, call: Any, expected: Any, jit: Any) -> None:
        made, values = self.made(), self.made_values()
        spec = {}
        for slot, axis in zip(self.slots, self.came):
            if axis is not None or slot.kind is not sm.NonBatchState:
                spec.setdefault(axis, []).append(build(("path", slot.path[-1])))
        _, states, ins = sm.vmap2_new_states(
            made, key=self.program.seed, axis_size=self.m.lanes, state_out_axes=spec
        )
        for slot, leaves in zip(self.slots, values):
            for x, y in zip(jax.tree.leaves(dict(states.items())[slot.path].data), leaves):
                same(f"new state {slot.path}", x, y, exact=True)
        mapping, want = self.mapping(ins), self.expected(values, call)
        self.compare(mapping(states, *call[0], **call[1]), want, "new")
        values = self.values()
        self.compare(
            mapping(self.states(values), *call[0], **call[1]), self.expected(values, call), "warm"
        )

    def made(self) -> Any:
        def make(*, key: Any) -> Any:
            tree: dict[str, Any] = {}
            for i, slot in enumerate(self.slots):
                at = tree
                for name in slot.path[:-1]:
                    at = at.setdefault(name, {})
                at[slot.path[-1]] = slot.state(self.first(i, slot, key))
            return tree

        return make

    def first(self, i: int, slot: Slot, key: Any) -> list[Any]:
        """The arrays of a new state in a lane."""
        mine, bits = _first(key if slot.fresh else jax.random.key(7), i)
        if slot.is_random:
            return [mine]
        fill = lambda shape, dtype: bits[: int(np.prod(shape))].reshape(shape).astype(dtype)
        return [fill(shape, dtype) for shape, dtype in slot.leaves]

    def made_values(self) -> list[list[Any]]:
        keys = jax.random.split(jax.random.key(self.program.seed), self.m.lanes)
        found = []
        for i, (slot, axis) in enumerate(zip(self.slots, self.came)):
            lanes = [self.first(i, slot, key) for key in keys]
            lanes = [[np.asarray(x) for x in lane] for lane in lanes]
            if axis is None:
                found.append(lanes[0])
            elif slot.is_random and not slot.fresh:
                found.append([np.asarray(_split(lanes[0][0], self.m.lanes + 1))[1:]])
            else:
                put = lambda *xs: np.stack(xs, _at(axis, slot, xs[0].ndim))
                found.append([put(*xs) for xs in zip(*lanes)])
        return found


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
