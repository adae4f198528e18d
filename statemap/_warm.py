"""The fast way for the call that is made most: a context and arrays, as in the call before.

It goes past flattening and look-ups, and only checks that the slots are the same and that the
arguments are as many arrays, each given by itself. Whether there is a program for their shapes
and dtypes, `jax.jit` looks up. What it does, the slow way (`StatefulMapping.__call__`) does, too.
"""

import operator
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

from ._compiled import Aux, Compiled, is_base_trace, NotPending
from ._overlay import Chosen, Overlay, overlay
from ._slots import Slots
from ._states import make_states, mark_donated, States


# Given all arguments, returns the output and the new context; or None for another kind of call.
WarmCall = Callable[[tuple], tuple[Any, States] | None]


def is_plain(args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether a call is of the kind that the fast way is for."""
    types = set(map(type, args[1:]))
    arrays = all(issubclass(t, jax.Array) and not issubclass(t, Tracer) for t in types)
    return not kwargs and type(args[0]) is States and len(types) < 2 and arrays


def chosen_of(compiled: Compiled, aux: Aux) -> tuple[Chosen, int]:
    """The states that a call reads or writes, and how many of them are its inputs."""
    donated, kept = compiled.touched or ((), ())
    inputs = donated + kept
    return Chosen(inputs + tuple(sorted(set(aux.indices) - set(inputs)))), len(inputs)


def warm_call(
    compiled: Compiled,
    slots: Slots,
    args: tuple,
    function_arrays: tuple[Any, ...],
    chosen: Chosen,
    n_inputs: int,
    shardings: tuple[Any, ...] | None,
    finish: Callable[[Any, Aux], Any],
) -> WarmCall:
    """**Arguments:**

    - `args`: of a call that the slow way has made.
    - `function_arrays`: the function's own arrays.
    - `chosen`, `n_inputs`: from `chosen_of`.
    - `shardings`: where the arguments must lie, if the lanes lie on devices. Of the values of
        states that is known only if they came out of the mapping.
    - `finish`: for an output that is not done yet.
    """
    # A function with these as its locals is what Python calls fastest.
    count = len(args)
    array_type = type(args[1]) if count > 1 else None
    indices = chosen.indices
    is_whole = shardings is None and indices == tuple(range(len(slots.entries)))
    more = n_inputs < len(indices)  # states that are only written
    n_donated = len(compiled.touched[0]) if compiled.touched else 0
    jitted, donating = compiled.jitted, compiled.donating
    updates: dict[Aux, Any] = {}

    def call(args: tuple) -> tuple[Any, States] | None:
        if len(args) != count:
            return None
        states, rest = args[0], args[1:]
        if type(states) is not States or states._slots is not slots:
            return None
        for x in rest:
            if type(x) is not array_type:
                return None
        before, base = states._values, None
        if type(before) is Overlay and before.chosen is chosen:
            values, base = before.values, before.base
            if shardings is not None:
                for x, sharding in zip(rest, shardings):
                    if x.sharding is not sharding and x.sharding != sharding:
                        return None
        elif shardings is not None:
            return None
        elif is_whole and type(before) is tuple:
            values = before
        else:
            values = tuple(map(before.__getitem__, indices))
        given = values[:n_inputs] if more else values
        if function_arrays:
            rest += function_arrays
        try:
            if not n_donated:
                out, found = jitted(given, rest)
            elif is_base_trace():
                out, found = donating(given[n_donated:], rest, given[:n_donated], ())
            else:
                return None
        except (NotPending, ValueError, jax.errors.JaxRuntimeError):
            return None  # the slow way says what is wrong
        aux, new = found.popitem()
        if aux.special:
            out = finish(out, aux)
        if n_donated:
            mark_donated(states)
        try:
            update = updates[aux]
        except KeyError:
            update = updates[aux] = _update(chosen, aux)
        if update is None:
            values = new
        elif update is _OTHERS:
            return out, (make_states(slots, _replaced(before, aux, new)) if new else states)
        else:
            values = update(values + new)
        if is_whole:
            return out, make_states(slots, values)
        return out, make_states(slots, overlay(base or without(before, chosen), chosen, values))

    return call


_OTHERS: Any = object()


def _update(chosen: Chosen, aux: Aux) -> Any:
    """What makes, of the chosen values and the new ones after them, the chosen values after the
    call. None if the new ones are these; `_OTHERS` if nothing is written, or what is not chosen.
    """
    count = len(chosen.indices)
    if not aux.indices or not chosen.places.keys() >= set(aux.indices):
        return _OTHERS
    source = list(range(count))
    for k, i in enumerate(aux.indices):
        source[chosen.places[i]] = count + k
    is_all = source == list(range(count, 2 * count))
    return None if is_all else operator.itemgetter(*source)


def _replaced(values: Any, aux: Aux, new: tuple[Any, ...]) -> tuple[Any, ...]:
    every = list(values)
    for i, value in zip(aux.indices, new):
        every[i] = value
    return tuple(every)


def without(values: Any, chosen: Chosen) -> tuple[Any, ...]:
    """Values with None in the place of the chosen ones: the base of an overlay."""
    base = list(values)
    for i in chosen.indices:
        base[i] = None
    return tuple(base)


def as_overlay(values: list[Any], chosen: Chosen) -> Overlay:
    """Values that the slow way has placed on devices, known as such to the next call."""
    return overlay(without(values, chosen), chosen, tuple(values[i] for i in chosen.indices))
