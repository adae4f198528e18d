"""Compiled calls, and the caches that keep them.

What is compiled is kept by `jax.jit`, which looks up the arrays' shapes and dtypes in C++. Only
the states that the function touches are given to it, so that a call costs what it touches and
not what the context holds. Which ones these are is known after the first trace.
"""

import collections
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import jax
import jax.core

from ._info import Info
from ._signature import Inputs
from ._trace import Call, Trace, trace_call
from ._tracing import trace_state


V = TypeVar("V")
with jax.ensure_compile_time_eval():
    _BASE_TRACE = trace_state()
# Inside an outer trace, a mapping is its equations. In jax 0.12 `inline=True` comes to mean less.
INLINE: Any = jax.Inline.JAX_EARLY if hasattr(jax, "Inline") else True  # pyright: ignore


class Aux:
    """What is known of a trace besides its arrays: which states it wrote, in the order of the new
    values, and more. It comes out of `jax.jit` as the key of a dictionary, since these cost
    nothing there.
    """

    __slots__ = ("indices", "info", "special")

    def __init__(self, indices: tuple[int, ...], info: Info):
        self.indices = indices
        self.info = info
        self.special = info.has_static or bool(info.unexpected)  # more is to be done


# Moves the values of some states, given by position, to the devices where a call needs them.
Spread = Callable[[Any, tuple[int, ...]], None]


class _NeedsStates(Exception):
    """A trace touches states whose values `jax.jit` was not given."""

    def __init__(self, trace: Trace):
        self.trace = trace


class NotPending(Exception):
    """`jax.jit` asks for a trace, and nothing is known of the call."""


class _Pending(threading.local):
    """The call that this thread is making, for when `jax.jit` asks for its trace."""

    call: tuple[Any, ...] = ()  # the fields of a `Call`


class Compiled:
    """What is compiled for one function, one set of options, one set of slots and one structure
    of arguments, for any shapes. It refers to no array and to no function of the user's.
    """

    def __init__(self, name: str, inputs: Inputs, donate: bool, spread: Spread | None = None):
        self.inputs = inputs
        self.spread = spread
        # The states that are given to `jax.jit`: those that are donated, and the others.
        self.touched: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        self.donate = donate
        self.lock = threading.Lock()
        self.pending = pending = _Pending()

        def run(kept: tuple, rest: tuple, donated: tuple = (), own: tuple = ()) -> Any:
            if not pending.call:
                raise NotPending
            call, pending.call = Call._make(pending.call), ()
            arrays = inputs.join_donated(own, rest)
            trace = call.trace or trace_call(call, arrays)
            given = dict(zip(call.donated + call.kept, donated + kept))
            if not trace.touched <= given.keys():
                raise _NeedsStates(trace)
            out, new = trace.run(call.slots, given, arrays)
            for i in call.donated:  # memory that was given away must come back
                new.setdefault(i, given[i])
            return out, {Aux(tuple(new), trace.info): tuple(new.values())}

        run.__name__ = run.__qualname__ = name
        self.donates = donate or bool(inputs.donated)
        self.jitted = jax.jit(run, inline=INLINE)
        # Not for use under `grad` and the like, which would donate what they need again.
        self.donating = jax.jit(run, inline=INLINE, donate_argnums=(2, 3))

    def __call__(
        self,
        call: tuple[Any, ...],
        values: Sequence[Any],
        arrays: list[Any],
        *,
        trace: bool = False,
    ) -> Any:
        """**Arguments:**

        - `call`: the first fields of a `Call`, up to its values.
        - `values`: of all states; a list, in which those that are moved to other devices are
            replaced.
        - `arrays`: all other inputs.
        - `trace`: to trace the call instead of running it.
        """
        own, rest = self.inputs.split_donated(arrays)
        pending, value_of = self.pending, values.__getitem__
        previous, found = pending.call, None
        if self.touched is None:  # never called: which states are touched comes first
            found = trace_call(Call._make((*call, values, (), (), None)), arrays)
            self._touch(found)
        donates = self.donates and is_base_trace()
        try:
            while True:
                donated, kept = self.touched or ((), ())
                if self.spread is not None:
                    self.spread(values, donated + kept)
                if not donates:
                    donated, kept = (), donated + kept
                pending.call = (*call, values, donated, kept, found)
                jitted, inputs = self.jitted, (tuple(map(value_of, kept)), rest)
                if donates:
                    given_up = tuple(map(value_of, donated)), tuple(own)
                    jitted, inputs = self.donating, (inputs[0], tuple(rest), *given_up)
                    leaves = jax.tree.leaves(inputs)
                    if len(set(map(id, leaves))) < len(leaves):
                        _refuse_aliases(Call._make(pending.call), own, rest)
                else:
                    inputs = inputs[0], tuple(self.inputs.join_donated(own, rest))
                try:
                    return (jitted.trace if trace else jitted)(*inputs)
                except _NeedsStates as needs:
                    found = needs.trace
                self._touch(found)
        finally:
            pending.call = previous

    def _touch(self, trace: Trace) -> None:
        with self.lock:
            donated, kept = (set(indices) for indices in self.touched or ((), ()))
            if self.donate:
                donated |= trace.touched & trace.written
            kept = (kept | trace.touched) - donated
            self.touched = tuple(sorted(donated)), tuple(sorted(kept))


def is_base_trace() -> bool:
    """Whether no transform is going on, so that all values are arrays."""
    return trace_state() == _BASE_TRACE


def _refuse_aliases(call: Call, own: list[Any], rest: list[Any]) -> None:
    """Refuses a call that donates an array and uses it a second time, before XLA does."""

    def label(i: int | None) -> str:
        return "an argument" if i is None else f"state `{call.slots.names()[i]}`"

    given = [(i, call.values[i]) for i in call.donated] + [(None, x) for x in own]
    kept = [(i, call.values[i]) for i in call.kept] + [(None, x) for x in rest]
    donated: dict[int, int | None] = {}
    for j, (i, value) in enumerate(given + kept):
        for x in jax.tree.leaves(value):
            if id(x) in donated:
                raise ValueError(
                    f"The memory of {label(donated[id(x)])} is donated, and {label(i)} is the "
                    "very same array. Copy one of them (`jnp.copy`), or leave `donate` off."
                )
            if j < len(given) and isinstance(x, jax.Array):
                donated[id(x)] = i


class Cache(Generic[V]):
    """A bounded dictionary: what was used longest ago goes first. Safe under threads."""

    def __init__(self, size: int):
        self.size = size
        self.items: collections.OrderedDict[Hashable, V] = collections.OrderedDict()
        self.lock = threading.RLock()

    def get(self, key: Hashable) -> V | None:
        found = self.items.get(key)
        if found is not None and len(self.items) > self.size // 2:
            with self.lock:  # the order only matters once something may have to go
                if key in self.items:
                    self.items.move_to_end(key)
        return found

    def add(self, key: Hashable, value: V) -> V:
        """Keeps a value, or returns the one that another thread was faster to keep."""
        with self.lock:
            value = self.items.setdefault(key, value)
            while len(self.items) > self.size:
                self.items.popitem(last=False)
        return value

    def discard(self, key: Hashable) -> None:
        with self.lock:
            self.items.pop(key, None)

    def __len__(self) -> int:
        return len(self.items)
