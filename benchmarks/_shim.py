"""7. `statemap.compat` against brainstate: the same text, a mapped function of mutable states.

It is `_libraries.cells_map`, to which either library is an argument. What it maps is called as it
is, and inside the library's own `jit`.
"""

import functools
import importlib
from collections.abc import Callable, Iterator

from ._contestants import Call, Contestant, prepare, reason, skipped
from ._libraries import cells_call, HAND
from ._timing import Pace, Row, rows_of, take_turns, Target
from ._work import light, Work


def make(work: Work, module: str, jit: bool) -> Call:
    return cells_call(work, importlib.import_module(module), jit)


SHIM, SHIM_JIT = "statemap.compat", "statemap.compat, jit"
THEIRS, THEIRS_JIT = "brainstate", "brainstate, jit"
CONTESTANTS = (
    HAND,
    Contestant(SHIM, functools.partial(make, module="statemap.compat", jit=False)),
    Contestant(SHIM_JIT, functools.partial(make, module="statemap.compat", jit=True)),
    Contestant(THEIRS, functools.partial(make, module="brainstate", jit=False), "brainstate"),
    Contestant(THEIRS_JIT, functools.partial(make, module="brainstate", jit=True), "brainstate"),
)
TARGETS = (Target(SHIM, 1 / 20, THEIRS), Target(SHIM, 1.0, THEIRS_JIT))


def there_are() -> tuple[Contestant, ...]:
    try:
        importlib.import_module("statemap.compat")
    except ImportError as error:
        skipped[SHIM] = skipped[SHIM_JIT] = f"no `statemap.compat` yet; {reason(error)}"
        return tuple(c for c in CONTESTANTS if c.name not in skipped)
    return CONTESTANTS


def measure(n: int, pace: Pace) -> list[Row]:
    calls = prepare(there_are(), light(n))
    return rows_of("call of mutable states", n, take_turns(calls, pace), TARGETS)


def parts(pace: Pace) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    for n in pace.sizes:
        yield f"call of mutable states, N = {n}", functools.partial(measure, n, pace)
