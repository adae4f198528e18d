"""8. Growth: with the states that are touched, with those that are not, with lanes, in chunks.

By how much a time grows from the smallest size on is compared with how the limit grows. Memory is
what the compiled program says it takes at its peak: inputs, outputs and temporary arrays, less what
shares memory because it was donated.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from ._contestants import BY_HAND, Call, Contestant, prepare, STATEMAP
from ._libraries import (
    HAND,
    HAND_DONATED,
    OURS,
    OURS_DONATED,
    statemap_map,
    statemap_read,
    statemap_states,
    threaded,
)
from ._partial import two_by_hand
from ._timing import Pace, Row, rows_of, take_turns, Target
from ._work import light, partial, start, Values, WIDTH, Work


ALL = (HAND, HAND_DONATED, OURS, OURS_DONATED)
NO_MORE = [Target(STATEMAP, 1.15)]  # which is noise: growths are of two times each
SAME_BYTES = [Target(STATEMAP, 1.001), Target(OURS_DONATED.name, 1.001, HAND_DONATED.name)]


def grow(
    measure: str,
    contestants: tuple[Contestant, ...],
    works: dict[int, Work],
    pace: Pace,
    memory_up_to: int = 0,
) -> list[Row]:
    """All contestants at all sizes, in the same rounds."""
    calls: dict[Any, Call] = {}
    for n, work in works.items():
        calls |= {(name, n): call for name, call in prepare(contestants, work).items()}
    samples = take_turns(calls, pace)
    smallest = min(works)
    rows: list[Row] = []
    growth: list[Row] = []
    memory: list[Row] = []
    for n in works:
        here = {name: taken for (name, m), taken in samples.items() if m == n}
        rows += rows_of(measure, n, here)
        if n != smallest:
            since = f"{measure}: growth since {smallest:,}"
            times = {
                name: [a / b for a, b in zip(taken, samples[name, smallest])]
                for name, taken in here.items()
            }
            growth += rows_of(since, n, times, NO_MORE, "times")
        if n <= memory_up_to:
            taken = {name: [peak(calls[name, n])] for name in here}
            memory += rows_of(f"{measure}: peak memory", n, taken, SAME_BYTES, "bytes")
    return rows + growth + memory


def peak(call: Call) -> float:
    """Bytes."""
    assert call.lower is not None
    found = call.lower().compile().memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes
    return held - found.alias_size_in_bytes + found.temp_size_in_bytes


def touched(pace: Pace) -> list[Row]:
    sizes = (10, 100) if pace.quick else (10, 100, 1000)
    works = {n: light(n) for n in sizes}
    return grow("all of N states touched", ALL, works, pace, memory_up_to=sizes[-1])


def many_touched(pace: Pace) -> list[Row]:
    """By itself, for a program of 10,000 states takes ten seconds to compile."""
    works = {n: light(n) for n in (1000, 10_000)}
    return grow("all of very many states touched", (HAND, OURS), works, pace)


def untouched(pace: Pace) -> list[Row]:
    sizes = (10, 100, 1000) if pace.quick else (10, 100, 1000, 10_000)
    works = {n: partial(n) for n in sizes}
    contestants = (Contestant(BY_HAND, two_by_hand), OURS, OURS_DONATED)
    return grow("two of N states touched", contestants, works, pace)


def lanes(pace: Pace) -> list[Row]:
    sizes = (10**3, 10**4, 10**5) if pace.quick else (10**3, 10**4, 10**5, 10**6)
    works = {n: light(1, lanes=n) for n in sizes}
    return grow("lanes of one state", ALL, works, pace, memory_up_to=sizes[-1])


def wide(lanes: int, width: int = 64) -> Work:
    """Work with much in between: a lane of four numbers needs 64 to compute them."""

    def step(values: Values, x: Any, there: Any, back: Any) -> Any:
        value = values["s00000"]
        return x.sum(), {"s00000": 0.5 * value + jnp.tanh((value + x) @ there) @ back}

    there = jnp.sin(jnp.arange(WIDTH * width, dtype=jnp.float32)).reshape(WIDTH, width)
    args = (jnp.ones((lanes, WIDTH)), there, 0.1 * there.T)
    return Work(step, start(1, lanes), args, (0, None, None))


def chunks_by_hand(work: Work, size: int | None) -> Call:
    if size is None:
        return HAND.make(work)

    def step(values: Any, x: Any, *shared: Any) -> Any:
        lane = lambda of_lane: work.step(*of_lane, *shared)
        return jax.lax.map(lane, (values, x), batch_size=size)

    return threaded(jax.jit(step), work.values(), work.args)


def chunks_statemap(work: Work, size: int | None) -> Call:
    mapped = statemap_map(work, chunk_size=size)
    return threaded(mapped, statemap_states(work), work.args, statemap_read)


def chunks(pace: Pace) -> list[Row]:
    n = 10**5 if pace.quick else 10**6
    work = wide(n)
    rows: list[Row] = []
    memory: list[Row] = []
    for size in (None, n // 10, n // 100, n // 1000):
        contestants = (
            Contestant(BY_HAND, functools.partial(chunks_by_hand, size=size)),
            Contestant(STATEMAP, functools.partial(chunks_statemap, size=size)),
        )
        calls = prepare(contestants, work)
        rows += rows_of("lanes in chunks", size or n, take_turns(calls, pace))
        taken = {name: [peak(call)] for name, call in calls.items()}
        memory += rows_of("lanes in chunks: peak memory", size or n, taken, SAME_BYTES, "bytes")
    return rows + memory


def parts(pace: Pace) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    everything = (touched, untouched, lanes, chunks) + (() if pace.quick else (many_touched,))
    for part in everything:
        yield part.__name__.replace("_", " "), functools.partial(part, pace)
