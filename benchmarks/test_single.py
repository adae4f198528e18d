"""Single timings by pytest-benchmark: `pytest benchmarks --benchmark-only`.

Each is one call, waited for. For ratios, which are what holds from one machine to another, run
`python -m benchmarks`. Nothing about time is asserted; that all compute the same is.
"""

import jax
import pytest

from . import _partial, _random, _scan, _shim, _warm
from ._contestants import Contestant, prepare, skipped
from ._work import light, partial
from .conftest import checks


if checks():
    pytest.skip("statemap's annotations are being checked", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")  # of peers

SIZES = (2, 10, 100)
CASES = {
    "warm call": (_warm.CONTESTANTS, light),
    "reads two, writes one": (_partial.CONTESTANTS, partial),
    "a scan of 1,000 steps": (_scan.CONTESTANTS, light),
    "one draw a lane": (_random.contestants(1), light),
    "call of mutable states": (_shim.there_are(), light),
}


@pytest.mark.parametrize(
    ("case", "contestant", "n"),
    [
        pytest.param(case, contestant, n, id=f"{case}, {contestant.name}, N = {n}")
        for case, (contestants, _) in CASES.items()
        for n in SIZES
        for contestant in contestants
    ],
)
def test_call(benchmark, case: str, contestant: Contestant, n: int):
    contestants, make = CASES[case]
    limit = [] if contestant is contestants[0] else [contestants[0]]
    call = prepare([*limit, contestant], make(n)).get(contestant.name)
    if call is None:
        pytest.skip(skipped[contestant.name])
    benchmark.group = f"{case}, N = {n}"

    @benchmark
    def _() -> None:
        jax.block_until_ready((call.step(), call.wait and call.wait()))
