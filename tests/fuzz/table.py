"""Which axis a filter gives a state, and what becomes of it: the contract's table, once more."""

from typing import Any, NamedTuple

import statemap as sm

from .programs import Entries, Filter, Slot


class Refused(Exception):
    """The mapping refuses the program, with this error."""

    def __init__(self, kind: type[Exception], about: str):
        super().__init__(f"{kind.__name__}: {about}")
        self.kind = kind


class Unclear(Refused):
    """A program on which the engine and the contract are known to disagree: see `FINDINGS.md`."""

    def __init__(self, about: str):
        super().__init__(Exception, about)


def matches(f: Filter, slot: Slot) -> bool:
    name, *rest = f
    if name in ("type", "of"):
        return issubclass(slot.kind, rest[0])
    if name in ("tag", "tagged"):
        return slot.tag == rest[0]
    if name == "path":
        return rest[0] in slot.path
    if name == "lambda":
        return any(c in slot.path[-1] for c in rest[0])
    if name == "not":
        return not matches(rest[0], slot)
    if name in ("any", "list"):
        return any(matches(g, slot) for g in rest)
    if name == "all":
        return all(matches(g, slot) for g in rest)
    return name == "every"


def means(f: Filter, slot: Slot) -> bool:
    """Whether a filter that matches a NonBatchState names it by its type or its path."""
    name, *rest = f
    if name in ("type", "of"):
        return rest[0] is sm.NonBatchState
    if name == "path":
        return rest[0] == slot.path[-1]
    if name in ("any", "list", "all"):
        mine = any(means(g, slot) for g in rest if matches(g, slot))
        if not mine and any(names(g, slot) for g in rest):
            raise Unclear("a filter names a NonBatchState in a part that does not match it")
        return mine
    return False


def names(f: Filter, slot: Slot) -> bool:
    parts = f[1:] if f[0] in ("any", "list", "all") else ()
    return any(names(g, slot) for g in parts) or not parts and matches(f, slot) and means(f, slot)


def assign(entries: Entries, slots: tuple[Slot, ...]) -> list[tuple[int | None] | None]:
    """For each slot the axis that the first entry gives it, as a tuple of one; or None."""
    found: list[Any] = [None] * len(slots)
    for axis, f in entries:
        for i, slot in enumerate(slots):
            if found[i] is not None or not matches(f, slot):
                continue
            if axis is not None and slot.kind is sm.NonBatchState:
                if means(f, slot):
                    raise Refused(ValueError, "a NonBatchState never has lanes")
                continue
            found[i] = (axis,)
    return found


class Fate(NamedTuple):
    """What becomes of a state: "kept", "shared", "stacked" or "moved on"."""

    came: Any  # its axis, "shared" or "split"
    result: str
    axis: int | None = None
    unexpected: bool = False


def fate(slot: Slot, came: Any, goes: Any, written: bool, differs: bool, policy: str) -> Fate:
    """The table."""
    if came == "split":
        if not written:
            return Fate(came, "kept")
        at = None if goes is None else goes[0]
        return Fate(came, "moved on") if at is None else Fate(came, "stacked", at)
    if came == "shared" and not written:
        return Fate(came, "kept")
    if slot.kind is sm.NonBatchState and differs:
        raise Refused(sm.BatchAxisError, "a NonBatchState differs")
    if goes is None and came != "shared":
        return Fate(came, "stacked", came) if written else Fate(came, "kept")
    if goes is not None and goes[0] is not None:
        same = came == goes[0] and not written
        return Fate(came, "kept") if same else Fate(came, "stacked", goes[0])
    if not differs:
        return Fate(came, "shared")
    if goes is not None or policy == "raise":
        raise Refused(sm.BatchAxisError, f"{slot.path} differs")
    return Fate(came, "stacked", 0, unexpected=True)


def place(axis: int, slot: Slot, ndim: int) -> int:
    """A position for the lanes among the axes of an array that has `ndim` without them."""
    ndim -= slot.is_random
    if not -ndim - 1 <= axis <= ndim:
        raise Refused(sm.BatchAxisError, f"{slot.path} has no axis {axis}")
    return axis % (ndim + 1)
