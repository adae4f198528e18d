"""From a seed to a program."""

import random
from typing import Any

import statemap as sm

from .loop import Analysis
from .programs import Entries, Filter, Map, Op, Program, Slot
from .table import assign, Refused, Unclear


KINDS = (
    sm.ParamState,
    sm.ParamState,
    sm.ShortTermState,
    sm.LongTermState,
    sm.HiddenState,
    sm.BatchState,
    sm.NonBatchState,
)
PATHS = (("a",), ("b",), ("net", "w"), ("net", "v"), ("cell", "h"), ("cell", "sub", "c"))
STREAMS = (("r",), ("net", "s"))
WAYS = {
    "plain": 8,
    "jit": 3,
    "scan": 2,
    "grad": 0.7,
    "vmap": 2,
    "disable_jit": 0.4,
    "new": 1.2,
    "pmap": 0.3,
}


# A map in a lane that follows one that has moved a state forgets that it was moved, and the program
# is refused. Until that is mended, nothing follows: make it False to see it.
MOVES_LAST = False


def generate(seed: int, compiled: float, ways: dict[str, float] = WAYS) -> Program:
    """The program of a seed. Few are to be refused: most that are get another try.

    **Arguments:**

    - `compiled`: the share of programs that XLA compiles; the others are interpreted.
    """
    rng = random.Random(seed)
    while True:
        program = _Maker(rng, ways).program(seed, compiled)
        try:
            Analysis(program)
        except Unclear:
            continue
        except Refused:
            if rng.random() < 0.9:
                continue
        return program


class _Maker:
    def __init__(self, rng: random.Random, ways: dict[str, float]):
        self.rng = rng
        self.way = rng.choices(list(ways), list(ways.values()))[0]
        self.levels = 0
        self.is_inner = False
        self.moved = False  # whether a map in the present lane may have moved a state

    def may(self, p: float) -> bool:
        return self.rng.random() < p

    def program(self, seed: int, compiled: float) -> Program:
        rng, way = self.rng, self.way
        lanes = rng.choice([1, 2, 2, 3, 3, 4])
        options: dict[str, Any] = {}
        if way == "pmap":
            options["devices"] = rng.choice([2, 4, 8])
            lanes = options["devices"] * rng.choice([1, 2] if options["devices"] < 8 else [1])
        elif self.may(0.2):
            options["chunk_size"] = rng.randint(1, 4)
        if self.may(0.12):
            options["donate"] = True
        paths = rng.sample(PATHS, rng.randint(1, 4)) + rng.sample(STREAMS, rng.randint(0, 2))
        bare = tuple(
            Slot(
                path=path,
                kind=sm.RandomState if path in STREAMS else rng.choice(KINDS),
                tag=rng.choice([None, None, "slow", "fast"]),
                tree="one",
                leaves=(),
                by=rng.choice(["path", "text"]),
                fresh=self.may(0.7),
            )
            for path in paths
        )
        ins, outs = self.entries(), self.entries()
        if way == "new":
            bare, ins = self.as_made(bare, ins)
        try:
            came, goes = assign(ins, bare), assign(outs, bare)
        except Refused:
            came = goes = [None] * len(bare)
        self.slots = tuple(self.fill(s, a, b) for s, a, b in zip(bare, came, goes))
        self.shapes: list[Any] = [[shape for shape, _ in s.leaves] for s in self.slots]
        args, kwargs = self.arguments()
        self.given = len(args) + len(kwargs)
        body = self.body(rng.randint(2, 7), 0, fixed=False)
        return Program(
            seed=seed,
            slots=self.slots,
            map=Map(0, lanes, ins, outs, rng.choice(["raise", "ignore", "ignore", "warn"]), body),
            args=args,
            kwargs=kwargs,
            vec_axis=rng.choice([0, 1, -1, -2]),
            asks_shared=self.may(0.08),
            way=way,
            options=tuple(options.items()),
            spelling="members" if way == "new" else rng.choice(["dict", "bare", "members"]),
            compiled=way == "pmap" or way != "disable_jit" and self.may(compiled),
        )

    def filter(self, depth: int = 0) -> Filter:
        rng = self.rng
        simple = [
            ("type", rng.choice([*KINDS, sm.RandomState])),
            ("of", rng.choice([*KINDS, sm.RandomState, sm.State])),
            ("tag", rng.choice(["slow", "fast"])),
            ("tagged", rng.choice(["slow", "fast"])),
            ("path", rng.choice(rng.choice(PATHS + STREAMS))),
            ("lambda", rng.choice(["ab", "wv", "hcr", "s"])),
            ("every",),
            ("none",),
        ]
        if depth > 1 or self.may(0.6):
            return rng.choices(simple, [3, 2, 1, 1, 3, 2, 2, 0.3])[0]
        name = rng.choice(["not", "any", "all", "list"])
        return (name, *(self.filter(depth + 1) for _ in range(1 if name == "not" else 2)))

    def entries(self) -> Entries:
        axes = self.rng.sample([0, -1, None, 1, -2], self.rng.choice([0, 1, 1, 2, 2, 3]))
        guard = ("not", ("of", sm.RandomState))  # keys of lanes have one axis
        made = ((a, self.filter()) for a in axes)
        return tuple((a, ("all", guard, f) if a in (1, -2) else f) for a, f in made)

    def as_made(self, slots: tuple[Slot, ...], entries: Entries) -> tuple[Any, Entries]:
        """Slots that can be made in lanes, and the axes that they then have."""
        try:
            found = assign(entries[:1], slots)
        except Refused:
            found = [None] * len(slots)
        axes: dict[int | None, list[Filter]] = {}
        for slot, entry in zip(slots, found):
            axis = None if slot.kind is sm.NonBatchState else entry[0] if entry else 0
            axes.setdefault(axis, []).append(("path", slot.path[-1]))
        alike = [f[1] for f in axes.get(None, ())]
        made = (
            Slot(s.path, s.kind, s.tag, s.tree, (), s.by, s.fresh and s.path[-1] not in alike)
            for s in slots
        )
        return tuple(made), tuple((a, ("any", *fs)) for a, fs in axes.items())

    def fill(self, slot: Slot, came: Any, goes: Any) -> Slot:
        """A slot with arrays that have the axes that it is given."""
        if slot.is_random:
            leaves, tree = (((2,), "uint32"),), "one"
        else:
            asked = [e[0] for e in (came, goes) if e is not None]
            deep = bool(set(asked) & {1, -2})
            tree = self.rng.choice(["one", "one", "one", "dict", "tuple"])
            leaves = tuple(self.leaf(deep) for _ in range({"one": 1, "dict": 2, "tuple": 3}[tree]))
        return Slot(slot.path, slot.kind, slot.tag, tree, leaves, slot.by, slot.fresh)

    def leaf(self, deep: bool) -> tuple[tuple[int, ...], str]:
        ndim = max(int(deep), self.rng.choice([0, 1, 1, 2]))
        dtype = self.rng.choices(["float32", "int32", "bool", "uint8"], [6, 2, 1, 1])[0]
        return tuple(self.rng.choice([2, 3]) for _ in range(ndim)), dtype

    def arguments(self) -> tuple[Any, Any]:
        rng = self.rng
        some = lambda: rng.choices(
            [
                ("array", rng.choice([None, 0, 1, -1, -2])),
                ("tree", rng.choice([None, 0, -1])),
                ("number", rng.choice([0.5, -1.25])),
                ("static", rng.choice(["x", "two"])),
            ],
            [6, 2, 1, 1],
        )[0]
        args = tuple(some() for _ in range(rng.randint(0, 3)))
        named = [("k", "array", 0), ("n", "number", 0.75), ("t", "static", "abc")]
        if self.way == "pmap":
            named.pop()
        return args, tuple(rng.sample(named, rng.choice([0, 0, 0, 1, 2])))

    def body(self, count: int, depth: int, fixed: bool, only: Any = None) -> tuple[Op, ...]:
        """**Arguments:**

        - `fixed`: whether states must keep their shapes, as what a loop carries does.
        - `only`: the slots that may be written, if not all.
        """
        return tuple(op for _ in range(count) if (op := self.op(depth, fixed, only)))

    def op(self, depth: int, fixed: bool, only: Any) -> Op | None:
        rng = self.rng
        plain = [i for i, s in enumerate(self.slots) if not s.is_random]
        streams = [i for i, s in enumerate(self.slots) if s.is_random]
        writable = plain if only is None else only
        names = ["read", "add", "write", "const", "zero", "same", "reset", "arg", "draw", "swap"]
        weights = [4, 4, 2, 1.5, 0.7, 0.7, 0.5, 4, 3, 0.7]
        if depth < 2:
            names += ["jit", "checkpoint", "scan", "fori", "cond", "custom_jvp", "while", "inner"]
            weights += [0.8, 0.6, 0.9, 0.6, 1.2, 0.7, 0 if self.way == "grad" else 1.2, 2]
        name = rng.choices(names, weights)[0]
        if name == "read":
            return (name, rng.choice(plain))
        if name in ("add", "write", "const", "zero", "same"):
            return (name, rng.choice(writable)) if writable else None
        if name == "arg":
            return (name, rng.randrange(self.given)) if self.given else None
        if name == "draw":
            how = rng.choice(["uniform", "bits", "key"])
            return (name, rng.choice(streams), how) if streams else None
        if name == "swap":
            return self.swap(writable)
        if name == "reset":
            return (name,)
        if name == "inner":
            return self.inner(depth, fixed, only)
        inside = lambda fixed: self.body(rng.randint(1, 3), depth + 1, fixed, only)
        if name == "jit":
            return (name, inside(fixed))
        if name in ("scan", "fori"):
            return (name, rng.randint(1, 3), inside(True))
        if name == "cond":
            return (name, inside(True), inside(True))
        return (name, inside(True))

    def swap(self, writable: list[int]) -> Op | None:
        like = lambda i: (self.slots[i].tree, self.slots[i].leaves, self.shapes[i])
        if self.is_inner:  # whether a swap there and one outside amount to no write is JAX's secret
            return None
        known = [i for i in writable if self.shapes[i] is not None]
        pairs = [(i, j) for i in known for j in known if i < j and like(i) == like(j)]
        return ("swap", *self.rng.choice(pairs)) if pairs else None

    def inner(self, depth: int, fixed: bool, only: Any) -> Op | None:
        """A map in a lane, over an axis of some states."""
        rng = self.rng
        if self.moved and MOVES_LAST:
            return None
        fixed = fixed or self.may(0.5)
        fits = lambda i, n: self.shapes[i] and all(s and s[0] == n for s in self.shapes[i])
        plain = [i for i, s in enumerate(self.slots) if not s.is_random]
        plain = [i for i in plain if self.slots[i].kind is not sm.NonBatchState]
        lanes = rng.choice([2, 3])
        mapped = [i for i in plain if fits(i, lanes) and (only is None or i in only)]
        mapped = [i for i in mapped if self.may(0.8)]
        self.levels += 1
        level, before, slots = self.levels, list(self.shapes), self.slots
        for i in mapped:
            self.shapes[i] = [s[1:] for s in self.shapes[i]]
        self.moved, was_inner, self.is_inner = False, self.is_inner, True  # in its lane
        body = self.body(rng.randint(1, 4), depth + 1, fixed, mapped if fixed else None)
        within, self.shapes, self.moved = self.shapes, before, not fixed
        self.is_inner = was_inner
        outs: dict[int | None, list[Filter]] = {}
        for i in mapped:
            name = ("path", slots[i].path[-1])
            if within[i] is None:
                self.shapes[i] = None
            elif not fixed and self.may(0.4):
                deep = all(within[i])
                axis = rng.choice([0, 1, -1] if deep else [0]) if self.may(0.9) else None
                outs.setdefault(axis, []).append(name)
                self.shapes[i] = None if axis != 0 else self.shapes[i]
            elif self.may(0.5):
                outs.setdefault(0, []).append(name)
        if not fixed:
            for i in set(plain) - set(mapped):
                self.shapes[i] = None
                if self.may(0.2):
                    outs.setdefault(0, []).append(("path", slots[i].path[-1]))
        listed = [("path", slots[i].path[-1]) for i in mapped]
        made = Map(
            level=level,
            lanes=lanes,
            ins=((0, ("any", *listed)),) if listed else (),
            outs=tuple((a, ("list", *fs)) for a, fs in outs.items()),
            policy=rng.choice(["raise", "ignore", "ignore"]),
            body=body,
            closes_over=self.may(0.5),
        )
        return ("inner", made)
