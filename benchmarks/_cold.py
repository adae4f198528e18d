"""3. The first call: how often the function runs, and what tracing and compiling take.

JAX tells how long it lowers and compiles (`jax.monitoring`), whichever library asks for it. What
is left of the first call is tracing, with all that the library does around it; the run itself is
too short to count.
"""

import dataclasses
import functools
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.monitoring

from ._contestants import Contestant, prepare, STATEMAP
from ._libraries import HAND, OURS, PEERS
from ._timing import Pace, rounds, Row, rows_of, Samples, Target
from ._work import light, Values, Work


CONTESTANTS = (HAND, OURS, *PEERS)
TRACE, COMPILE, TOTAL = "tracing", "lowering and compiling", "first call"
RUNS, MORE_RUNS = "runs of the function, first call", "runs of the function, second call"
_EVENTS = ("jaxpr_to_mlir_module_duration", "backend_compile_duration")
_compiling: list[float] = []


def _listen(event: str, seconds: float, **_: Any) -> None:
    if event.rsplit("/", 1)[-1] in _EVENTS:
        _compiling.append(seconds)


def counted(work: Work) -> tuple[Work, list[None]]:
    """The work, and a list that gets longer whenever it is run."""
    runs: list[None] = []

    def step(values: Values, *args: Any) -> Any:
        runs.append(None)
        return work.step(values, *args)

    return dataclasses.replace(work, step=step), runs


def first_call(contestant: Contestant, work: Work, samples: dict[str, Samples]) -> None:
    """Notes down one first call, and one second."""
    work, runs = counted(work)
    call = contestant.make(work)
    jax.clear_caches()
    gc.collect()
    _compiling.clear()
    begin = time.perf_counter()
    jax.block_until_ready(call.step())
    total = time.perf_counter() - begin
    compiling, first = sum(_compiling), len(runs)
    call.step()
    for measure, value in (
        (TRACE, total - compiling),
        (COMPILE, compiling),
        (TOTAL, total),
        (RUNS, first),
        (MORE_RUNS, len(runs) - first),
    ):
        samples[measure].setdefault(contestant.name, []).append(value)


def targets(measure: str) -> list[Target]:
    limits = {TRACE: 1.1, RUNS: 1.0, MORE_RUNS: 1.0}
    return [Target(STATEMAP, limits[measure])] if measure in limits else []


def measure(n: int, pace: Pace) -> list[Row]:
    work = light(n)
    able = prepare(CONTESTANTS, work)
    samples: dict[str, Samples] = {m: {} for m in (TRACE, COMPILE, TOTAL, RUNS, MORE_RUNS)}

    def turn(contestant: Contestant) -> float:
        first_call(contestant, work, samples)
        return 0.0

    turns = {c.name: functools.partial(turn, c) for c in CONTESTANTS if c.name in able}
    rounds(turns, (3 if n < 100 else 2) if pace.quick else (9 if n < 1000 else 3))
    made = []
    for name, of_measure in samples.items():
        unit = "runs" if name in (RUNS, MORE_RUNS) else "us"
        made += rows_of(name, n, of_measure, targets(name), unit)
    return made


def parts(pace: Pace) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    jax.monitoring.register_event_duration_secs_listener(_listen)
    for n in pace.sizes:
        yield f"first call, N = {n}", functools.partial(measure, n, pace)
