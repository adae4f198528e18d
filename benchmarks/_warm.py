"""1. A warm call that reads and writes all states: how much is added to a call by hand."""

import functools
from collections.abc import Callable, Iterator

from ._contestants import Contestant, prepare, STATEMAP
from ._libraries import HAND, HAND_DONATED, OURS, OURS_DONATED, PEERS
from ._timing import Pace, Row, rows_of, take_turns, Target
from ._work import heavy, light, Work


CONTESTANTS = (HAND, HAND_DONATED, OURS, OURS_DONATED, *PEERS)
# Where the work takes most of the time the forms of a library hardly differ: one of each.
FEWER = ("Equinox, Module", "NNX, jit_partial", "brainstate, jit")
HEAVY_CONTESTANTS = (*CONTESTANTS[:4], *(peer for peer in PEERS if peer.name in FEWER))


def targets(n: int) -> list[Target]:
    return [Target(STATEMAP, 1.15 if n == 1 else 1.05)]


def donated_targets(n: int) -> list[Target]:
    return targets(n) + ([Target(OURS_DONATED.name, 0.8)] if n >= 10 else [])


def measure(
    name: str,
    contestants: tuple[Contestant, ...],
    work: Callable[[int], Work],
    targets: Callable[[int], list[Target]],
    n: int,
    pace: Pace,
) -> list[Row]:
    calls = prepare(contestants, work(n))
    return rows_of(name, n, take_turns(calls, pace), targets(n))


def parts(pace: Pace) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    for name, *options, sizes in (
        ("warm call", CONTESTANTS, light, donated_targets, pace.sizes),
        # Donation saves memory traffic, of which there is little here: no target for it.
        ("compute-bound call", HEAVY_CONTESTANTS, heavy, targets, pace.heavy_sizes),
    ):
        for n in sizes:
            yield f"{name}, N = {n}", functools.partial(measure, name, *options, n, pace)
