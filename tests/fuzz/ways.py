"""What is around a mapping: nothing, `jit`, `scan`, `grad`, `vmap`, devices, new states."""

import copy
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import statemap as sm

from .check import Case, Mismatch, same
from .interpret import interpreted
from .loop import split_keys
from .programs import build, Slot
from .table import place, Refused


@jax.jit
def _first(key: Any, i: Any) -> Any:
    """The data of a key of its own for a slot, and small numbers."""
    key = jax.random.fold_in(key, i)
    return jax.random.key_data(key), jax.random.bits(key, (9,), np.uint8) % 9


class Check(Case):
    """A program, run in its way and compared."""

    def run(self) -> str:
        """Raises `Mismatch`, or says what was found: "same" or "refused"."""
        values, call = self.values(), self.inputs()
        try:
            if self.refused is not None:
                raise self.refused
            expected = self.expected(values, call)
        except Refused as refused:
            return self.is_refused(refused, values, call)
        by_numpy, noted = not self.program.compiled, warnings.catch_warnings(record=True)
        with interpreted(by_numpy) as jit, noted as w:
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
        both = self.states(values), self.states(other)
        states = jax.tree.map(lambda *xs: jnp.asarray(np.stack(xs)), *both)
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
                found.append([np.asarray(split_keys(lanes[0][0], self.m.lanes + 1))[1:]])
            else:
                put = lambda *xs: np.stack(xs, place(axis, slot, xs[0].ndim))
                found.append([put(*xs) for xs in zip(*lanes)])
        return found
