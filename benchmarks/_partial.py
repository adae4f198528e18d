"""2. A warm call that reads two states and writes one: does a call cost what it touches?

The limit takes the two arrays out of a dictionary by hand. With two states as the smallest number.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax

from ._contestants import BY_HAND, Call, Contestant, prepare, STATEMAP
from ._libraries import HAND, HAND_DONATED, OURS, OURS_DONATED, PEERS
from ._timing import Pace, Row, rows_of, take_turns, Target
from ._work import partial, Work


def two_by_hand(work: Work) -> Call:
    held, names = work.values(), work.names
    written, other = names[0], names[len(names) // 2]

    def lane(a: Any, b: Any, x: Any) -> Any:
        out, new = work.step({written: a, other: b}, x)
        return out, new[written]

    jitted = jax.jit(jax.vmap(lane))

    def step() -> Any:
        out, held[written] = jitted(held[written], held[other], *work.args)
        return out

    return Call(step, lambda: held)


ALL_BY_HAND = f"{BY_HAND}, all N"
CONTESTANTS = (
    Contestant(BY_HAND, two_by_hand),
    Contestant(ALL_BY_HAND, HAND.make),
    Contestant(f"{ALL_BY_HAND}, donated", HAND_DONATED.make),
    OURS,
    OURS_DONATED,
    *PEERS,
)


def measure(n: int, pace: Pace) -> list[Row]:
    calls = prepare(CONTESTANTS, partial(n))
    targets = [Target(STATEMAP, 1.2)]
    return rows_of("reads two, writes one", n, take_turns(calls, pace), targets)


def parts(pace: Pace) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    for n in (max(n, 2) for n in pace.sizes):
        yield f"reads two, writes one, N = {n}", functools.partial(measure, n, pace)
