"""What a program should do: a plain loop over lanes.

`Analysis` follows the program once, to find which states are written and which values depend on
which map's lanes, and decides by the table of axes what becomes of each state. `Loop` computes
the values, lane by lane, in NumPy (or in eager `jax.numpy`, for a gradient).
"""

import itertools
from typing import Any

import jax
import numpy as np

from .programs import argument, change, chooses, look, Map, Program, SIMPLE, trips
from .table import assign, Fate, fate, place, Refused, Unclear


ACC = ("acc",)


class Analysis:
    """`fates` of each state in each map of a program, by the level of the map."""

    def __init__(self, program: Program):
        self.program, self.slots = program, program.slots
        self.fates: dict[int, list[Fate]] = {}
        self.tokens = itertools.count()  # a new one for each value that is written
        levels = frozenset([program.map.level])
        mapped = [kind in ("array", "tree") and a is not None for kind, a in program.args]
        mapped += [kind == "array" for _, kind, _ in program.kwargs]
        self.given = [levels if m else frozenset() for m in mapped]
        start = {s.path: (frozenset(), next(self.tokens)) for s in self.slots}
        start[ACC] = (frozenset(), next(self.tokens))
        end = self.map(program.map, start, frozenset())
        if program.asks_shared and program.map.level in end[ACC][0]:
            raise Refused(ValueError, "an output without an axis differs")
        if program.asks_shared and -1 - program.map.level in end[ACC][0]:
            raise Unclear("`acc` is passed on where lanes go different ways")

    def map(self, m: Map, outer: dict, acc: frozenset) -> dict:
        """What is known of the values after a map; `acc` as its lanes leave it."""
        came = assign(m.ins, self.slots)
        goes = assign(m.outs, self.slots)
        start, ins = dict(outer), []
        for slot, entry in zip(self.slots, came):
            at = "shared" if entry is None or entry[0] is None else entry[0]
            at = "split" if entry is None and slot.is_random else at
            ins.append(at)
            own = frozenset() if at == "shared" else {m.level}
            start[slot.path] = (outer[slot.path][0] | own, next(self.tokens))
        start[ACC] = (outer[ACC][0] | acc, next(self.tokens))
        end = self.follow(m.body, start)
        after, fates = {ACC: end[ACC]}, []
        for slot, at, to in zip(self.slots, ins, goes):
            levels, token = end[slot.path]
            written = token != start[slot.path][1]
            fates.append(fate(slot, at, to, written, m.level in levels, m.policy))
            if -1 - m.level in levels and m.level not in levels:
                try:
                    unclear = fate(slot, at, to, written, True, "ignore") != fates[-1]
                except Refused:
                    unclear = True
                if unclear:
                    raise Unclear(f"{slot.path} is passed on where lanes go different ways")
            if fates[-1].result == "kept":
                after[slot.path] = outer[slot.path]
            else:
                moved_on = fates[-1].result == "moved on"
                levels = outer[slot.path][0] if moved_on else levels - {m.level, -1 - m.level}
                after[slot.path] = (levels, next(self.tokens))
        self.fates[m.level] = fates
        return after

    def follow(self, ops: tuple, known: dict) -> dict:
        for op in ops:
            known = self.step(op, dict(known))
        return known

    def step(self, op: tuple, known: dict) -> dict:
        name, *rest = op
        new = lambda levels: (frozenset(levels), next(self.tokens))
        acc = known[ACC][0]
        of_slots = (*SIMPLE, "read", "swap", "draw")
        paths = [self.slots[i].path for i in rest if name in of_slots and isinstance(i, int)]
        if name in ("add", "zero"):
            known[paths[0]] = new(known[paths[0]][0] | (acc if name == "add" else frozenset()))
        elif name in ("write", "const"):
            known[paths[0]] = new(acc if name == "write" else ())
        elif name == "read":
            known[ACC] = new(acc | known[paths[0]][0])
        elif name == "arg":
            known[ACC] = new(acc | self.given[rest[0]])
        elif name == "reset":
            known[ACC] = new(())
        elif name == "swap":
            known[paths[0]], known[paths[1]] = known[paths[1]], known[paths[0]]
        elif name == "draw":
            known[ACC] = new(acc | known[paths[0]][0])
            known[paths[0]] = new(known[paths[0]][0])
        elif name in ("jit", "checkpoint", "custom_jvp"):
            return self.follow(rest[0], known)
        elif name in ("scan", "fori"):
            return self.loop(rest[1], known, frozenset())
        elif name == "while":
            return self.passed(self.loop(rest[0], known, acc), known, acc, rest)
        elif name == "cond":
            left, right = (self.follow(body, known) for body in rest)
            for key in known:
                a, b = left[key], right[key]
                ends = a if a[1] == b[1] else new(a[0] | b[0] | acc)
                left[key] = ends
            return self.passed(left, known, acc, rest)
        elif name == "inner":
            m = rest[0]
            after = self.map(m, known, frozenset([m.level]))
            after[ACC] = new(acc | after[ACC][0] - {m.level, -1 - m.level})
            return after
        return known

    def passed(self, end: dict, start: dict, control: frozenset, bodies: list) -> dict:
        """Notes, as the level `-1 - level`, what is passed on where lanes go different ways."""
        if not any(isinstance(x, (tuple, Map)) for body in bodies for op in body for x in op):
            return end  # JAX itself sees that it is
        maybe = {-1 - level for level in control if level >= 0}
        return {k: (v[0] | maybe if v[1] == start[k][1] else v[0], v[1]) for k, v in end.items()}

    def loop(self, body: tuple, start: dict, control: frozenset) -> dict:
        """What is carried round depends on whatever it depends on at any time."""
        known = start
        while True:
            end = self.follow(body, known)
            more = {}
            for key, (levels, token) in known.items():
                written = end[key][1] != token
                more[key] = (levels | end[key][0] | control if written else levels, token)
            if more == known:
                break
            known = more
        written = {key for key in known if end[key][1] != known[key][1]}
        fresh = lambda key: (known[key][0], next(self.tokens))
        return {key: fresh(key) if key in written else start[key] for key in known}


split_keys = jax.jit(
    lambda data, n: jax.random.key_data(jax.random.split(jax.random.wrap_key_data(data), n)),
    static_argnums=1,
)
_uniform = jax.jit(lambda data: jax.random.uniform(jax.random.wrap_key_data(data)))
_bits = jax.jit(lambda data: jax.random.bits(jax.random.wrap_key_data(data), (2,)))


class Loop:
    """The values. `env` has the arrays of each slot by its path, and `acc`."""

    def __init__(self, program: Program, fates: dict[int, list[Fate]], xp: Any = np):
        self.program, self.slots, self.fates, self.xp = program, program.slots, fates, xp

    def __call__(self, values: list[list[Any]], args: list[Any], kwargs: dict[str, Any]) -> Any:
        """The outputs of a call, and the arrays of each slot."""
        p = self.program
        spec = [*p.args, *((kind, axis) for _, kind, axis in p.kwargs)]
        whole = [*args, *(kwargs[name] for name, _, _ in p.kwargs)]

        def own(lane: int) -> list[Any]:
            slice_ = lambda x, axis: x if axis is None else self.xp.take(x, lane, axis)
            mapped = lambda kind, axis, x: jax.tree.map(lambda y: slice_(y, axis), x)
            arrays = ("array", "tree")
            return [mapped(k, a, x) if k in arrays else x for (k, a), x in zip(spec, whole)]

        env = {s.path: x for s, x in zip(self.slots, values)} | {ACC: np.float32(0)}
        out, env = self.map(p.map, env, own, lambda lane: np.float32(0))
        return self.xp.stack(out), [env[s.path] for s in self.slots]

    def map(self, m: Map, env: dict, given: Any, acc: Any) -> tuple[list[Any], dict]:
        xp, fates = self.xp, self.fates[m.level]
        keys, after = {}, dict(env)
        for slot, f in zip(self.slots, fates):
            if f.came == "split" and f.result != "kept":
                keys[slot.path] = np.asarray(split_keys(env[slot.path][0], m.lanes + 1))
        outs, ends = [], []
        for lane in range(m.lanes):
            mine = {ACC: acc(lane)}
            for slot, f in zip(self.slots, fates):
                leaves = env[slot.path]
                if slot.path in keys:
                    leaves = [keys[slot.path][1 + lane]]
                elif isinstance(f.came, int):
                    leaves = [xp.take(x, lane, place(f.came, slot, x.ndim - 1)) for x in leaves]
                mine[slot.path] = leaves
            end = self.run(m.body, mine, given(lane))
            outs.append(end[ACC])
            ends.append(end)
        for slot, f in zip(self.slots, fates):
            lanes = [end[slot.path] for end in ends]
            if f.result == "moved on":
                after[slot.path] = [keys[slot.path][0]]
            elif f.result == "shared":
                after[slot.path] = lanes[0]
            elif f.result == "stacked":
                for x in lanes[0]:
                    place(f.axis, slot, xp.ndim(x))  # all of them, before any
                put = lambda *xs: xp.stack(xs, place(f.axis, slot, xp.ndim(xs[0])))
                after[slot.path] = [put(*xs) for xs in zip(*lanes)]
        return outs, after

    def run(self, ops: tuple, env: dict, given: list[Any]) -> dict:
        xp = self.xp
        for name, *rest in ops:
            acc = env[ACC]
            slot = self.slots[rest[0]] if name in (*SIMPLE, "read", "draw") else None
            if name in SIMPLE:
                env = env | {slot.path: [change(xp, name, x, acc) for x in env[slot.path]]}
            elif name == "read":
                env = env | {ACC: 0.5 * acc + sum(look(xp, x) for x in env[slot.path])}
            elif name == "arg":
                env = env | {ACC: xp.float32(0.5 * acc + argument(xp, given[rest[0]]))}
            elif name == "reset":
                env = env | {ACC: np.float32(0)}
            elif name == "swap":
                a, b = (self.slots[i].path for i in rest)
                env = env | {a: env[b], b: env[a]}
            elif name == "draw":
                carry, mine = np.asarray(split_keys(env[slot.path][0], 2))
                x = np.asarray(_bits(mine) if rest[1] == "bits" else _uniform(mine))
                x = np.float32(np.sum(x % 16)) / np.float32(16) if rest[1] == "bits" else x
                env = env | {slot.path: [carry], ACC: 0.5 * acc + x}
            elif name == "inner":
                m = rest[0]
                out, after = self.map(m, env, lambda _: given, lambda _: acc)
                env = after | {ACC: 0.5 * acc + 0.25 * xp.sum(xp.stack(out))}
            elif name == "cond":
                env = self.run(rest[0] if bool(chooses(acc)) else rest[1], env, given)
            else:
                count = {"scan": lambda: rest[0], "fori": lambda: rest[0]}
                count["while"] = lambda: int(trips(xp, acc))
                for _ in range(count.get(name, lambda: 1)()):
                    env = self.run(rest[-1], env, given)
        return env
