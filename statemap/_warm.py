"""The fast way for the call that is made most: a context and arrays, as in the call before.

It goes past flattening and look-ups, and only checks that the slots are the same and that the
arguments are as many arrays, each given by itself. Their shapes and dtypes `jax.jit` looks up; if
they are others, the program refuses to be traced again, and the general way finds the one for
them. What it does, the general way (`StatefulMapping.__call__`) does, too, and besides marks what
a mapping inside a lane has moved; such calls are left to it.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.core import Tracer

from ._donation import claim, disclaim
from ._jax import is_base_trace
from ._overlay import Chosen, Overlay, overlay
from ._program import Program, Retrace
from ._slots import Slots
from ._states import make_states, States


# Given all arguments, returns the output and the new context; or None for another kind of call.
WarmCall = Callable[[tuple], tuple[Any, States] | None]


def is_plain(args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether a call is of the kind that the fast way is for."""
    types = set(map(type, args[1:]))
    arrays = all(issubclass(t, jax.Array) and not issubclass(t, Tracer) for t in types)
    return not kwargs and type(args[0]) is States and len(types) < 2 and arrays


def warm_call(
    program: Program,
    chosen: Chosen,
    slots: Slots,
    args: tuple,
    function_arrays: tuple[Any, ...],
    shardings: tuple[Any, ...] | None,
    finish: Callable[[Any, Program], Any],
) -> WarmCall:
    """**Arguments:**

    - `args`: of a call that the general way has made.
    - `function_arrays`: the function's own arrays.
    - `chosen`: the states that the program touches: those that go in, in its order, and then
        those that only come out.
    - `shardings`: where the arguments must lie, if the lanes lie on devices. Of the values of
        states that is known only if they came out of the mapping.
    - `finish`: for an output that is not done yet.
    """
    # A function with these as its locals is what Python calls fastest.
    count = len(args)
    array_type = type(args[1]) if count > 1 else None
    indices = chosen.indices
    n_inputs = len(program.kept) + len(program.donated)
    n_kept = len(program.kept)
    is_whole = shardings is None and indices == tuple(range(len(slots.entries)))
    more = n_inputs < len(indices)  # states that are only written
    donates = bool(program.donated)
    jitted, donating = program.jitted, program.donating
    special, seen = program.special, bool(program.seen)
    holds = program.holds if program.settings else None
    marks = bool(program.moved_paths)  # which only the general way does, for a mapping around
    update = _update(chosen, program.changed)

    def call(args: tuple) -> tuple[Any, States] | None:
        if len(args) != count:
            return None
        if holds is not None and not holds():
            return None
        states, rest = args[0], args[1:]
        if type(states) is not States or states._slots is not slots:
            return None
        for x in rest:
            if type(x) is not array_type:
                return None
        before, base = states._values, None
        if (
            type(before) is not tuple
            and type(before) is not Overlay
            or (marks and not is_base_trace())
        ):
            return None
        if type(before) is Overlay and before.chosen is chosen:
            values, base = before.values, before.base
            if shardings is not None:
                for x, sharding in zip(rest, shardings):
                    if x.sharding is not sharding and x.sharding != sharding:
                        return None
        elif shardings is not None or seen and not program.fits(before):
            return None
        elif is_whole and type(before) is tuple:
            values = before
        else:
            values = tuple(map(before.__getitem__, indices))
        given = values[:n_inputs] if more else values
        if function_arrays:
            rest += function_arrays
        if not program.is_alone and not program.takes(given, rest):
            return None
        try:
            if donates:
                if not is_base_trace():
                    return None
                result = _donating(donating, states, given, n_kept, rest)
                if result is None:
                    return None
                out, new = result
            else:
                out, new = jitted(given, rest)
        except Retrace:
            return None
        if special:
            out = finish(out, program)
        if update is None:
            values = new
        elif update is _NOTHING:
            return out, states
        else:
            values = update(values + new)
        if is_whole:
            return out, make_states(slots, values)
        return out, make_states(slots, overlay(base or without(before, chosen), chosen, values))

    return call


def _donating(
    donating: Callable[..., Any], states: States, given: tuple, n_kept: int, rest: tuple
) -> Any:
    """The call of a program that takes memory; None if an array is given twice."""
    leaves = jax.tree.leaves((given, rest))
    if len(set(map(id, leaves))) < len(leaves):
        return None  # the general way says which
    before = claim(states)
    try:
        return donating(given[:n_kept], rest, given[n_kept:], ())
    except BaseException:
        disclaim(states, before)
        raise


_NOTHING: Any = object()


def _update(chosen: Chosen, changed: Sequence[int]) -> Any:
    """What makes, of the chosen values and the new ones after them, the chosen values after the
    call. None if the new ones are these; `_NOTHING` if nothing is written.
    """
    count = len(chosen.indices)
    if not changed:
        return _NOTHING
    source = list(range(count))
    for k, i in enumerate(changed):
        source[chosen.places[i]] = count + k
    is_all = source == list(range(count, 2 * count))
    return None if is_all else operator.itemgetter(*source)


def without(values: Any, chosen: Chosen) -> tuple[Any, ...]:
    """Values with None in the place of the chosen ones: the base of an overlay."""
    base = list(values)
    for i in chosen.indices:
        base[i] = None
    return tuple(base)


def as_overlay(values: Sequence[Any], chosen: Chosen) -> Overlay:
    """Values that the general way has placed on devices, known as such to the next call."""
    return overlay(without(values, chosen), chosen, tuple(values[i] for i in chosen.indices))
