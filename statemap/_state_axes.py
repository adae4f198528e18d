"""From filters to axes: which axis each state of a context is mapped on."""

import dataclasses
import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ._errors import near
from ._filters import (
    Everything,
    Filter,
    is_definite,
    names_state,
    Predicate,
    show_filter,
    to_predicate,
    wanted,
    WithTag,
)
from ._rules import HOWS, Reduce, Restore, Rule
from ._slots import Slots
from ._state import NonBatchState
from ._values import dotted


Axis = int | None
# One for each type of key that a dictionary may be inferred to have: keys are invariant.
StateAxisSpec = Mapping[Axis, Filter] | Mapping[Axis | Rule, Filter] | Filter


class Listed(NamedTuple):
    """An entry of `state_in_axes` or `state_out_axes`."""

    axis: Axis
    predicate: Predicate
    rule: Rule | None = None  # instead of an axis


@dataclasses.dataclass(frozen=True)
class StateAxes:
    """`state_in_axes` or `state_out_axes`, normalised: axes with their predicates, in order."""

    entries: tuple[Listed, ...]
    parameter: str = dataclasses.field(compare=False)  # its name, for messages

    @staticmethod
    def parse(spec: Any, parameter: str, rules: bool = False) -> "StateAxes":
        """**Arguments:**

        - `spec`: a mapping from axes to filters, a bare filter (for axis 0), or `None`.
        - `rules`: whether `Reduce` and `Restore` may stand beside axes.
        """
        if isinstance(spec, StateAxes):
            return StateAxes(spec.entries, parameter)
        if spec is None:
            return StateAxes((), parameter)
        if not isinstance(spec, Mapping):
            spec = {0: spec}
        entries = []
        for axis, filter in spec.items():
            rule = None
            if isinstance(axis, Reduce) or axis is Restore:
                rule, axis = axis, None
                if not rules:
                    raise ValueError(
                        f"`{parameter}` holds the rule {rule!r}, and takes axes alone. A rule says "
                        "how a state comes out of a mapped call: "
                        f"`sm.vmap2(fn, state_out_axes={{sm.{rule!r}: ...}})`."
                    )
            elif axis is not None:
                if isinstance(axis, (bool, np.bool_)) or not hasattr(axis, "__index__"):
                    wrong, right = "sm.ParamState: 0", "0: sm.ParamState"
                    if rules and axis is Reduce:
                        wrong, right = "sm.Reduce: ...", 'sm.Reduce("mean"): ...'
                    elif rules and isinstance(axis, str) and axis in HOWS:
                        wrong, right = f'"{axis}": ...', f'sm.Reduce("{axis}"): ...'
                    raise TypeError(
                        f"`{parameter}` goes from axes to filters, and {axis!r} is no axis (an "
                        f"int or None{', or `sm.Reduce(...)` or `sm.Restore`' * rules}).\n"
                        f"Wrong:  {{{wrong}}}\n"
                        f"Right:  {{{right}}}"
                    )
                axis = operator.index(axis)
            entries.append(Listed(axis, to_predicate(filter), rule))
        return StateAxes(tuple(entries), parameter)

    def over(self, other: "StateAxes") -> "StateAxes":
        """These axes, and those of `other` for what these do not match."""
        return StateAxes(self.entries + other.entries, self.parameter)

    @property
    def without_rules(self) -> "StateAxes":
        return StateAxes(tuple(e for e in self.entries if e.rule is None), self.parameter)

    @property
    def as_dict(self) -> dict[Any, Filter]:
        return {e.rule or e.axis: e.predicate for e in self.entries}

    def assign(self, slots: Slots, values: Sequence[Any]) -> list[Listed | None]:
        """For each slot the first entry that matches it. A `NonBatchState` has no lanes: entries
        that do not mean it alone pass over it.

        **Raises:**

        `ValueError` if an entry gives a `NonBatchState` an axis by its type, name or handle.
        """
        found: list[Listed | None] = [None] * len(slots.entries)
        for entry, matches in zip(self.entries, self._matches(slots, values)):
            for i, match in enumerate(matches):
                if match and found[i] is None and self._applies(entry, slots, i):
                    found[i] = entry
        return found

    def assign_new(self, slots: Slots, values: Sequence[Any]) -> list[Axis]:
        """The axis of each new state: 0 where no entry matches, none for a `NonBatchState`.

        **Raises:**

        `ValueError` if entries, apart from those that match every state, give one two axes.
        """
        matches = self._matches(slots, values)
        out: list[Axis] = []
        for i, slot in enumerate(slots.entries):
            entries = [e for e, match in zip(self.entries, matches) if match[i]]
            found = [e for e in entries if self._applies(e, slots, i)]
            explicit = [e.axis for e in found if not isinstance(e.predicate, Everything)]
            if len(set(explicit)) > 1:
                raise ValueError(
                    f"`{self.parameter}` gives the state `{dotted(slot.path)}` the axes "
                    f"{' and '.join(map(str, dict.fromkeys(explicit)))}: it matches the filters "
                    "of each. A state has one axis."
                )
            default = None if issubclass(slot.kind, NonBatchState) else 0
            out.append(found[0].axis if found else default)
        return out

    def warn_idle(self, slots: Slots, values: Sequence[Any]) -> None:
        """Warns of the filters that match no state of a context, where it holds any."""
        if not slots.entries:
            return
        for entry, matches in zip(self.entries, self._matches(slots, values)):
            if not any(matches):
                where = f"under {entry.rule or entry.axis} in `{self.parameter}`"
                warn_idle(entry.predicate, slots, where)

    def _matches(self, slots: Slots, values: Sequence[Any]) -> list[list[bool]]:
        states = slots.states(values) if self.entries else []
        return [slots.matching(e.predicate, states, self.parameter) for e in self.entries]

    def _applies(self, entry: Listed, slots: Slots, i: int) -> bool:
        """Whether an entry that matches a slot is meant for it."""
        slot = slots.entries[i]
        if entry.axis is None or not issubclass(slot.kind, NonBatchState):
            return True
        if names_state(entry.predicate, slot.path, slots.specs[i]):
            raise ValueError(
                f"`{self.parameter}` gives the state `{dotted(slot.path)}` the axis "
                f"{entry.axis}, and a {slot.kind.__name__} never has lanes: all of them share its "
                "value. Leave it out, or make it a state of another kind."
            )
        return False


def warn_idle(predicate: Predicate, slots: Slots, where: str) -> None:
    """Warns of a filter that matches no state of a context, if it names one.

    **Arguments:**

    - `where`: where it is listed.
    """
    if not is_definite(predicate):
        return
    known = {
        *(k for slot in slots.entries for k in slot.path if isinstance(k, str)),
        *(spec.tag for spec in slots.specs if spec.tag is not None),
        *(slot.kind.__name__ for slot in slots.entries),
    }
    name = wanted(predicate)
    close = near(name, sorted(known), holds="There are")
    if isinstance(predicate, WithTag) and name in known:
        close = f" A string is a tag; for what is at the path: `sm.PathContains({name!r})`."
    warnings.warn(
        f"The filter `{show_filter(predicate)}`, listed {where}, matches no state of the "
        f"context.{close}",
        stacklevel=2,
    )
