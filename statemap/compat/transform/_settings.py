"""What is compiled, once for each combination of the settings of `environ` that it read."""

from collections.abc import Callable
from typing import TypeVar

from ..._settings import now, Read


class Variant:
    """Something compiled."""

    def __init__(self) -> None:
        self.seen: Read = {}  # the settings that are constants of it


V = TypeVar("V", bound=Variant)
_KEPT = 16


def variant(variants: list[V], make: Callable[[], V]) -> V:
    """The one of the variants that fits the present settings, made if there is none."""
    for kept in variants:
        if not kept.seen or now(kept.seen) == tuple(kept.seen.values()):
            return kept
    made = make()
    variants.insert(0, made)
    del variants[_KEPT:]
    return made
