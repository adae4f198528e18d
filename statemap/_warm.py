"""The fast way for the call that is made most: a context and arrays, as in the call before."""

import operator
from typing import Any

import jax
from jax.core import Tracer

from ._compiled import Aux, Compiled, is_base_trace, NotPending
from ._overlay import Chosen, Overlay, overlay
from ._slots import Slots
from ._states import make_states, mark_donated, States


class Warm:
    """A call of a mapping that goes past flattening and look-ups.

    It only checks that the slots are the same, and that the arguments are as many arrays, each
    given by itself. Whether there is a program for their shapes and dtypes, `jax.jit` looks up.
    """

    __slots__ = (
        "array_type",
        "chosen",
        "count",
        "donating",
        "function_arrays",
        "is_whole",
        "jitted",
        "n_donated",
        "n_inputs",
        "shardings",
        "slots",
        "updates",
    )

    def __init__(
        self,
        compiled: Compiled,
        slots: Slots,
        args: tuple,
        function_arrays: list[Any],
        aux: Aux,
        shardings: tuple[Any, ...] | None,
    ):
        """**Arguments:**

        - `args`: of a call that the slow way has made.
        - `function_arrays`: the function's own arrays.
        - `aux`: what came of that call.
        - `shardings`: where arguments must lie, if lanes lie on devices.
        """
        donated, kept = compiled.touched or ((), ())
        inputs = donated + kept
        only_written = tuple(sorted(set(aux.indices) - set(inputs)))
        self.chosen = Chosen(inputs + only_written)
        self.n_inputs = len(inputs) if only_written else None  # of the chosen ones
        # Over devices, only of values that came out of the mapping is known where they lie.
        every = tuple(range(len(slots.entries)))
        self.is_whole = shardings is None and self.chosen.indices == every
        self.shardings = shardings
        self.n_donated = len(donated)
        self.jitted = compiled.jitted
        self.donating = compiled.donating
        self.slots = slots
        self.count = len(args)
        self.array_type = type(args[1]) if len(args) > 1 else None
        self.function_arrays = tuple(function_arrays)
        self.updates: dict[Aux, Any] = {}

    @staticmethod
    def fits(args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether the fast way can take calls like this one."""
        types = set(map(type, args[1:]))
        arrays = all(issubclass(t, jax.Array) and not issubclass(t, Tracer) for t in types)
        return not kwargs and type(args[0]) is States and len(types) < 2 and arrays

    def __call__(self, args: tuple) -> tuple[Any, Aux, States] | None:
        """The output, what is known of the trace, and the new context; or None if this is
        another kind of call.
        """
        if len(args) != self.count:
            return None
        states, rest = args[0], args[1:]
        if type(states) is not States or states._slots is not self.slots:
            return None
        for x in rest:
            if type(x) is not self.array_type:
                return None
        before, base = states._values, None
        if type(before) is Overlay and before.chosen is self.chosen:
            values, base = before.values, before.base
            if self.shardings is not None:
                for x, sharding in zip(rest, self.shardings):
                    if x.sharding is not sharding and x.sharding != sharding:
                        return None
        elif self.shardings is not None:
            return None
        elif self.is_whole and type(before) is tuple:
            values = before
        else:
            values = tuple(map(before.__getitem__, self.chosen.indices))
        given, n = values if self.n_inputs is None else values[: self.n_inputs], self.n_donated
        if self.function_arrays:
            rest += self.function_arrays
        try:
            if not n:
                out, found = self.jitted(given, rest)
            elif is_base_trace():
                out, found = self.donating(given[n:], rest, given[:n], ())
            else:
                return None
        except (NotPending, ValueError, jax.errors.JaxRuntimeError):
            # The slow way says what is wrong.
            return None
        aux, new = found.popitem()
        if not new:
            return out, aux, states
        if n:
            mark_donated(states)
        update = self.updates.get(aux) or self._update(aux)
        if update is None:  # of another trace, which writes to states that are not chosen
            return out, aux, make_states(self.slots, self._replaced(before, aux, new))
        values = new if update is _ALL else update(values + new)
        if not self.is_whole:
            values = overlay(base or self._base(before), self.chosen, values)
        return out, aux, make_states(self.slots, values)

    def adopt(self, values: list[Any]) -> Overlay:
        """Values that the slow way has placed, known as such to the next call."""
        chosen = tuple(map(values.__getitem__, self.chosen.indices))
        return overlay(self._base(values), self.chosen, chosen)

    def _update(self, aux: Aux) -> Any:
        """What makes, of the chosen values and the new ones after them, the chosen values after
        the call.
        """
        count = len(self.chosen.indices)
        source = list(range(count))
        if not self.chosen.places.keys() >= set(aux.indices):
            return None
        for k, i in enumerate(aux.indices):
            source[self.chosen.places[i]] = count + k
        is_all = source == list(range(count, 2 * count))
        self.updates[aux] = _ALL if is_all else operator.itemgetter(*source)
        return self.updates[aux]

    def _replaced(self, values: Any, aux: Aux, new: tuple[Any, ...]) -> tuple[Any, ...]:
        every = list(values)
        for i, value in zip(aux.indices, new):
            every[i] = value
        return tuple(every)

    def _base(self, values: Any) -> tuple[Any, ...]:
        base = list(values)
        for i in self.chosen.indices:
            base[i] = None
        return tuple(base)


_ALL = object()
