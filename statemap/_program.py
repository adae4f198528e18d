"""`Program`: what a mapping does for one signature, found out from the lane and compiled."""

import dataclasses
import weakref
from collections.abc import Sequence
from typing import Any

import jax

from ._axes import move_axis, normalise
from ._checks import Checked, fails_everywhere, holds_check
from ._errors import BatchAxisError
from ._jax import INLINE, jit, lanes_sharding, lay_lanes, trace_context, type_of, with_lanes
from ._lane import Lane
from ._overlay import Chosen
from ._reduce import Combination, Reduction
from ._refs import refuse_refs
from ._refusals import refuse_axis, refuse_constants, refuse_effects, refuse_rule
from ._rows import asks, place, Row, show_shapes
from ._run import located, Run
from ._settings import now, reads
from ._signature import Static
from ._state import NonBatchState, RandomState
from ._streams import split_lanes
from ._values import dotted


_NEW = ("shared", "stacked", "reduced")  # what the lane's program gives


class Retrace(Exception):
    """`jax.jit` asks a program for the trace of another signature than its own."""

    def __str__(self) -> str:  # the general way finds the right program, so that nobody sees this
        return "A program was asked for a signature that is not its own: a bug in statemap."


class Program:
    """What a mapping does for one signature: one function, set of options, set of slots, and
    shapes and dtypes of all that goes in, in one trace context of JAX's.

    `rows` tells what becomes of each state, and is what the call obeys. `jitted` takes the states
    in `kept`, then all other arrays, then what is donated; it returns the output, and the new
    values of the states in `changed`. It refers to no array of the call and to no function of the
    user's: what was traced of these is in the lane's program.
    """

    def __init__(self, run: Run):
        """Runs the function once, abstractly.

        **Arguments:**

        - `run`: what goes into it.

        **Raises:**

        Whatever can be wrong with axes, sizes, and what the function returns.
        """
        options, devices, function = run.options, run.devices, run.function
        inputs, slots = run.inputs, run.slots
        self.lanes, self.inputs, self.devices = run.lanes, inputs, devices
        self.mapping = options.mapping(devices)
        self.chunk_size = options.chunk_size
        self.context = trace_context()
        self._specs, self._axes = slots.specs, run.axes
        self._sharding = lanes_sharding(run.everything, run.axes)
        types = run.lane_types(self._sharding)
        with reads() as self.settings:  # of other libraries, that the function looked at
            lane = Lane.trace(run.lane, types, function.name, options.axis_name, self.lanes)
        self.may_be_kept = not lane.holds_tracer
        self.outputs, self._out_treedef = run.outputs, run.out_treedef
        self._combinations: dict[int, Combination] = {}  # by the states' positions
        refuse_constants(run, lane)
        self._n_finals, self.ref_is_written = run.n_finals, refuse_refs(run, lane)
        self.ref_is_mapped = [run.axes[run.starts[-1] + j] is not None for j in inputs.refs]
        self._find_rows(run, lane)
        refuse_effects(run, self._lane)

        starts = run.starts
        going_in = [
            i
            for i, n in enumerate(run.counts)
            if any(self._used[starts[i] : starts[i] + n]) or self.rows[i].needs_old
        ]
        moved = {i for i, row in enumerate(self.rows) if row.result != "kept"}
        self.changed = tuple(sorted(moved))
        self.donated = tuple(i for i in going_in if options.donate and i in moved)
        self.kept = tuple(i for i in going_in if i not in self.donated)
        # Whose shapes it depends on besides: those that the function looks at, or that have lanes.
        sized = {i for i, axis in enumerate(run.axes_in) if isinstance(axis, int)}
        self.seen = tuple(sorted((run.seen | sized) - set(going_in)))
        self._seen = [_types(run.leaves[i]) for i in self.seen]
        ordered = self.kept + self.donated
        self._types = [
            *(s for i in ordered for s in _types(run.leaves[i])),
            *map(type_of, run.everything[starts[-1] :]),
        ]
        self._treedefs, self._counts, self._starts = run.treedefs, run.counts, starts
        self.moved_paths = frozenset(
            slot.path
            for slot, row, back in zip(slots.entries, self.rows, run.moved)
            if row.result in _NEW
            and (back or row.axis_in != (row.axis_out if row.result == "stacked" else "shared"))
        )
        self.has_static = any(isinstance(o, Static) for o in self.outputs)
        self.special = self.has_static or bool(self.unexpected)  # more is to be done

        this = weakref.ref(self)  # Python does not find cycles that go through `jax.jit`

        def call(kept: tuple, rest: tuple, donated: tuple = (), own: tuple = ()) -> Any:
            return this()._call(kept, rest, donated, own)  # pyright: ignore

        call.__name__ = call.__qualname__ = function.name
        self.donates = bool(self.donated or inputs.donated)
        self.chosen: Chosen | None = None  # for the fast way
        self.is_alone = True  # whether no call of the same structure has other types
        # On an explicit mesh, an argument that is only counted tells where the lanes lie.
        how = {"inline": INLINE, "keep_unused": self._sharding is not None}
        self.jitted: Any = jit(call, **how)
        # Not for use under `grad` and the like, which would donate what they need again.
        self.donating: Any = jit(call, **how, donate_argnums=(2, 3))
        parts = [self._lane, *self._combinations.values()]
        if any(holds_check(part.jaxpr) for part in parts):
            self.jitted = Checked(call, trace=self.jitted.trace, **how)
            self.donating = Checked(call, n_kept=2, trace=self.donating.trace, **how)

    def _find_rows(self, run: Run, lane: Lane) -> None:
        """What becomes of each state; and the lane's program of what comes out alone."""
        options, slots = run.options, run.slots
        arrays_out = [o for o in self.outputs if not isinstance(o, Static)]
        n_out, starts = len(arrays_out), run.starts
        flow = lane.flow()
        origins = flow.passed_on()
        written, states_out = [], []
        for i, n in enumerate(run.counts):
            at = n_out + starts[i]
            own = list(range(starts[i], starts[i] + n))
            written.append(origins[at : at + n] != own)
            states_out.append(list(range(at, at + n)))
        # What is read: by what the function returns, by what it writes, and by effects.
        matters = [True] * n_out + [w for w, n in zip(written, run.counts) for _ in range(n)]
        reads = flow.matter(matters)
        read = [any(reads[starts[i] : starts[i] + n]) for i, n in enumerate(run.counts)]

        alone = [issubclass(slot.kind, NonBatchState) for slot in slots.entries]
        asked = {
            i: states_out[i]
            for i in range(len(slots.entries))
            if asks(run.axes_in[i], run.goes[i], written[i], alone[i])
        }
        shared_out = [k for k, (_, axis) in enumerate(arrays_out) if axis is None]
        differ = lane.differ(
            sorted([*shared_out, *(k for ks in asked.values() for k in ks)]),
            self.mapping,
            run.all_lanes(self._sharding),
            run.axes,
            self.lanes,
            self._sharding,
        )
        for k in shared_out:
            if k in differ:
                where = located(arrays_out[k][0])
                raise ValueError(
                    f"The output{where} differs between lanes, and `out_axes` gives it None, "
                    "which is for a value that all lanes share. Give it an axis, or reduce it "
                    "over the lanes (`jax.lax.pmean(value, axis_name)`)."
                )
        rows: list[Row] = []
        for i, slot in enumerate(slots.entries):
            is_random, used = issubclass(slot.kind, RandomState), written[i] or read[i]
            row = Row(
                path=dotted(slot.path),
                kind=slot.kind.__name__,
                shape=show_shapes(run.leaves[i]),
                read=read[i],
                written=used if run.axes_in[i] == "split" else written[i],
                axis_in=run.axes_in[i],
                axis_out=run.axes_in[i],
                why="",
                drawn=is_random and used,
            )
            differs = any(k in differ for k in asked.get(i, ()))
            try:
                row = place(row, run.goes[i], differs, options.policy, alone[i], self.lanes)
            except BatchAxisError as error:
                error.add_note(
                    f"(In the mapping of `{run.function.name}` over {self.lanes} lanes.)"
                )
                raise
            after = [lane.jaxpr.outvars[k].aval for k in states_out[i]]
            refuse_axis(slot, row, after)
            if row.how is not None:
                self._combine(run, lane, i, row, after)
            rows.append(row)
        self.rows = tuple(rows)
        self.unexpected = tuple(row.path for row in rows if row.unexpected)
        wanted = [True] * n_out
        for row, n in zip(self.rows, run.counts):
            wanted += [row.result in _NEW] * n
        lane, self._used = lane.pruned(wanted)
        self._lane = dataclasses.replace(lane, jaxpr=fails_everywhere(lane.jaxpr, self.devices))

    def _combine(self, run: Run, lane: Lane, i: int, row: Row, after: list[Any]) -> None:
        """Refuses a reduction that a state does not take; traces that by a function."""
        slot, at, n = run.slots.entries[i], run.starts[i], run.counts[i]
        before = lane.avals[at : at + n]
        rule: Any = run.goes[i].rule  # pyright: ignore
        in_chunks = self.chunk_size is not None and self.chunk_size < self.lanes
        refuse_rule(
            rule, row, issubclass(slot.kind, RandomState), before, after, self.lanes, in_chunks
        )
        if row.how == "function":
            stacked = [with_lanes(x, self.lanes, self._sharding) for x in after]
            old = run.everything[at : at + n]
            made = Combination(rule, row.path, self._specs[i], run.treedefs[i], stacked, old, after)
            made.jaxpr = fails_everywhere(made.jaxpr, self.devices)
            self._combinations[i] = made
            self.may_be_kept &= not made.holds_tracer

    @property
    def constants(self) -> list[Any]:
        """What the lane's program closes over."""
        return self._lane.consts

    def holds(self) -> bool:
        """Whether the settings that the function looked at are what they were."""
        return now(self.settings) == tuple(self.settings.values())

    def fits(self, values: Sequence[Any]) -> bool:
        """Whether the states that the function looks at, and that do not go in, are as they were
        when it was traced. For what goes in, `jax.jit` finds that out.
        """
        return all(_types(values[i]) == own for i, own in zip(self.seen, self._seen))

    def takes(self, values: Sequence[Any], arrays: Sequence[Any]) -> bool:
        """Whether what goes in is of the types that it was when the function was traced."""
        flat = [*jax.tree.leaves(values), *arrays]
        return len(flat) == len(self._types) and all(
            type_of(x) == own for x, own in zip(flat, self._types)
        )

    def place_states(self, values: Sequence[Any]) -> dict[int, Any]:
        """The values that go in, by position, on the devices where the lanes are."""
        going_in = self.kept + self.donated
        if self.devices is None:
            return {i: values[i] for i in going_in}
        placed = {}
        for i in going_in:
            leaves, treedef = jax.tree.flatten(values[i])
            axes = self._axes[self._starts[i] : self._starts[i + 1]]
            axes = [None] * len(leaves) if self.rows[i].axis_in == "split" else axes
            leaves = [self.devices.place(x, a) for x, a in zip(leaves, axes)]
            placed[i] = jax.tree.unflatten(treedef, leaves)
        return placed

    def place_arrays(self, arrays: list[Any]) -> list[Any]:
        """The same for the arrays that are no states."""
        if self.devices is None:
            return arrays
        axes = self._axes[self._starts[-1] :]
        return [self.devices.place(x, a) for x, a in zip(arrays, axes)]

    def given(self, values: dict[int, Any], arrays: list[Any], donate: bool) -> tuple[Any, ...]:
        """What `jitted` takes, or `donating`."""
        kept = tuple(values[i] for i in self.kept)
        donated = tuple(values[i] for i in self.donated)
        if not donate:
            return (kept, tuple(arrays), donated) if donated else (kept, tuple(arrays))
        own, rest = self.inputs.split_donated(arrays)
        return kept, tuple(rest), donated, tuple(own)

    def refuse_aliases(self, kept: tuple, rest: tuple, donated: tuple, own: tuple) -> None:
        """Refuses a call that donates an array and uses it a second time, before XLA does."""
        label = lambda i: f"state `{self.rows[i].path}`"
        given = [*zip(map(label, self.donated), donated), *(("an argument", x) for x in own)]
        others = [*zip(map(label, self.kept), kept), *(("an argument", x) for x in rest)]
        taken: dict[int, str] = {}
        for k, (name, value) in enumerate(given + others):
            for x in jax.tree.leaves(value):
                if id(x) in taken:
                    raise ValueError(
                        f"The memory of {taken[id(x)]} is donated, and {name} is the very same "
                        "array. Copy one of them (`jnp.copy`), or leave `donate` off."
                    )
                if k < len(given) and isinstance(x, jax.Array):
                    taken[id(x)] = name

    def _call(self, kept: tuple, rest: tuple, donated: tuple, own: tuple) -> Any:
        """What is compiled."""
        arrays = self.inputs.join_donated(own, rest)
        given = dict(zip(self.kept + self.donated, kept + donated))
        leaves = {i: jax.tree.leaves(value) for i, value in given.items()}
        flat = [x for own in leaves.values() for x in own]
        if [*map(type_of, flat), *map(type_of, arrays)] != self._types or (
            trace_context() != self.context
        ):
            raise Retrace
        moved_on: dict[int, jax.Array] = {}
        every: list[Any] = []
        for i, row in enumerate(self.rows):
            if row.axis_in == "split" and row.drawn:
                moved_on[i], keys = split_lanes(leaves[i][0], self.lanes, self._specs[i])
                every.append(lay_lanes(keys, self._sharding))
            else:
                every += leaves.get(i, [None] * self._counts[i])
        every += arrays
        stacked, reductions = self._stacked(leaves)
        out = self._lane.over(
            self.mapping,
            [x for x, used in zip(every, self._used) if used],
            [a for a, used in zip(self._lane_axes(), self._used) if used],
            stacked,
            self.lanes,
            self._sharding,
            self.chunk_size,
            reductions,
        )
        results = iter(out)
        return self._output(results), self._new_values(results, moved_on, leaves)

    def _lane_axes(self) -> list[int | None]:
        axes = list(self._axes)
        for start, row in zip(self._starts, self.rows):
            if row.axis_in == "split" and not row.drawn:
                axes[start] = None  # carried as it is
        return axes

    def _stacked(self, leaves: dict[int, list[Any]]) -> tuple[list[int], dict[int, Reduction]]:
        """The outputs of the lane's program that differ between lanes, and which of them are
        reduced over the lanes, by a word.
        """
        differs = [o[1] is not None for o in self.outputs if not isinstance(o, Static)]
        reductions: dict[int, Reduction] = {}
        for i, (row, n) in enumerate(zip(self.rows, self._counts)):
            if row.result not in _NEW:
                continue
            if row.how is not None and row.how != "function":
                olds = leaves[i] if row.how == "changes" else [None] * n
                for k, old in enumerate(olds, len(differs)):
                    dtype = self._lane.jaxpr.outvars[k].aval.dtype
                    reductions[k] = Reduction(row.how, old, self.lanes, dtype)
            differs += [row.result != "shared"] * n
        return [k for k, d in enumerate(differs) if d], reductions

    def _output(self, results: Any) -> Any:
        leaves = []
        for output in self.outputs:
            if isinstance(output, Static):
                leaves.append(output)
            else:
                leaves.append(self._put(next(results), output[1], 0))
        n = len(leaves) - self._n_finals
        out = jax.tree.unflatten(self._out_treedef, leaves[:n])
        return (out, leaves[n:]) if self.inputs.refs else out

    def _new_values(
        self, results: Any, moved_on: dict[int, jax.Array], before: dict[int, list[Any]]
    ) -> tuple[Any, ...]:
        new = []
        for i in self.changed:
            row = self.rows[i]
            if row.result == "moved on":
                new.append(self._put(moved_on[i], None, 0))
                continue
            axis = row.axis_out if row.result == "stacked" else None
            trailing = self._specs[i].trailing_axes
            leaves = [next(results) for _ in range(self._counts[i])]
            if i in self._combinations:
                leaves = self._combinations[i](leaves, before[i])
            leaves = [self._put(x, axis, trailing) for x in leaves]
            new.append(jax.tree.unflatten(self._treedefs[i], leaves))
        return tuple(new)

    def _put(self, x: jax.Array, axis: Any, trailing: int) -> jax.Array:
        """`x` with its lanes moved from axis 0 to `axis`, and over the devices if there are."""
        at = None if axis is None else normalise(axis, x.ndim - trailing)
        x = x if axis is None else move_axis(x, axis, trailing)
        return x if self.devices is None else self.devices.constrain(x, at)


def _types(value: Any) -> list[tuple[Any, ...]]:
    return [type_of(x) for x in jax.tree.leaves(value)]
