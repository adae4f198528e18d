"""How calls are timed: in rounds, in each of which everyone takes a turn.

A machine's speed drifts, and by more than what is measured here. So a contestant's time is
divided by that of the limit in the same round, and what is reported is the median of these ratios
with its quartiles. Within a turn a call is made many times, and waited for at the end.
"""

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from ._contestants import BY_HAND, Call


@dataclasses.dataclass(frozen=True)
class Pace:
    """How much to measure."""

    sizes: tuple[int, ...]  # numbers of states
    rounds: int
    turn: float  # seconds
    budget: float  # seconds for all rounds of one comparison; five rounds there are anyway
    heavy_sizes: tuple[int, ...]  # where much is computed
    quick: bool = False


FULL = Pace((1, 10, 100, 1000), 25, 0.015, 8.0, (1, 10, 100, 1000))
QUICK = Pace((1, 100), 7, 0.003, 0.5, (1, 10), quick=True)


@dataclasses.dataclass(frozen=True)
class Target:
    """At most `limit` times what `against` needs."""

    contestant: str
    limit: float
    against: str = BY_HAND


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure: what a contestant took, and how that compares."""

    measure: str
    n: int
    contestant: str
    unit: str  # "us", "bytes", or what is counted
    value: float
    ratio: float
    low: float  # quartiles of the ratio
    high: float
    against: str = BY_HAND
    target: float | None = None

    @property
    def verdict(self) -> str | None:
        if self.target is None:
            return None
        if self.ratio <= self.target:
            return "met"
        return "within noise" if self.low <= self.target else "missed"

    def as_dict(self) -> dict[str, Any]:
        figures = ((name, getattr(self, name)) for name in ("ratio", "low", "high"))
        return {
            "measure": self.measure,
            "n": self.n,
            "contestant": self.contestant,
            self.unit: float(f"{self.value:.6g}") if self.unit == "us" else self.value,
            **{name: float(f"{value:.6g}") for name, value in figures},
            "against": self.against,
            "target": self.target,
            "verdict": self.verdict,
        }


Samples = dict[str, list[float]]  # of each contestant, one a round


def take_turns(calls: Mapping[str, Call], pace: Pace) -> Samples:
    """The seconds a call took in each round. The calls have been made before."""
    counts = {name: _count(call, pace.turn) for name, call in calls.items()}
    turns = {name: _turn(calls[name], count) for name, (count, _) in counts.items()}
    one_round = sum(seconds for _, seconds in counts.values())
    return rounds(turns, min(pace.rounds, max(5, int(pace.budget / one_round))))


def rounds(turns: Mapping[str, Callable[[], float]], n: int) -> Samples:
    """What each turn returns, in `n` rounds that go forwards and backwards by turns."""
    samples: Samples = {name: [] for name in turns}
    gc.collect()
    gc.freeze()  # so that a collection looks at what the calls left only
    gc.disable()
    try:
        for i in range(n):
            for name in list(turns)[:: -1 if i % 2 else 1]:
                samples[name].append(turns[name]())
                gc.collect()
    finally:
        gc.enable()
        gc.unfreeze()
    return samples


def _turn(call: Call, count: int) -> Callable[[], float]:
    step, wait = call.step, call.wait or (lambda: None)

    def turn() -> float:
        repeat, out = range(count), None
        begin = time.perf_counter()
        for _ in repeat:
            out = step()
        jax.block_until_ready((out, wait()))
        return (time.perf_counter() - begin) / count

    return turn


def _count(call: Call, seconds: float) -> tuple[int, float]:
    """How many calls fill a turn, and the seconds that they take."""
    count = 1
    while True:
        one = _turn(call, count)()
        if one * count > seconds / 4 or count >= 2000:
            count = max(1, min(2000, round(seconds / one)))
            return count, count * one
        count *= 4


def rows_of(
    measure: str,
    n: int,
    samples: Mapping[str, Sequence[float]],
    targets: Iterable[Target] = (),
    unit: str = "us",
    against: str = BY_HAND,
) -> list[Row]:
    """A row for each contestant against the limit, and one for each target against another."""
    targets = [t for t in targets if t.contestant in samples and t.against in samples]
    pairs = {(name, against): None for name in samples} if against in samples else {}
    pairs |= {(t.contestant, t.against): None for t in targets}
    limits = {(t.contestant, t.against): t.limit for t in targets}
    scale = 1e6 if unit == "us" else 1
    made = []
    for name, other in pairs:
        low, middle, high = quartiles([_over(a, b) for a, b in zip(samples[name], samples[other])])
        value = statistics.median(samples[name]) * scale
        limit = limits.get((name, other))
        made.append(Row(measure, n, name, unit, value, middle, low, high, other, limit))
    return made


def _over(a: float, b: float) -> float:
    return 1.0 if a == b else a / b if b else float(a > b)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
