"""The exceptions of statemap, and the small helpers that word their messages."""

import difflib
from collections.abc import Iterable, Sequence


class BatchAxisError(ValueError):
    """A state and the axis it is mapped on do not fit: the state lacks the axis, or its
    value differs between lanes where one shared value is needed.
    """


class StateNotFoundError(KeyError):
    """A context was asked for a state that it does not hold."""

    def __str__(self) -> str:  # `KeyError` would print the message quoted
        return str(self.args[0]) if self.args else ""


class DonatedStatesError(RuntimeError):
    """A context was used after a mapping with `donate=True` took its memory."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows below a header, in columns."""
    lines = [tuple(header), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, tuple("-" * w for w in widths))
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(l, widths)).rstrip() for l in lines)


def near(
    name: str,
    known: Iterable[str],
    empty: str = "The context holds no states.",
    holds: str = "It holds",
) -> str:
    """A sentence with the names closest to `name`, or all of them where few are known."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f" Did you mean {_either(close)}?"
    if not known:
        return f" {empty}"
    shown = ", ".join(f"`{k}`" for k in known[:8])
    return f" {holds} {shown}{', ...' if len(known) > 8 else ''}."


def _either(names: list[str]) -> str:
    quoted = [f"`{n}`" for n in names]
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " or " + quoted[-1]
