"""That all who take part in the benchmarks compute the same; how long they take is not tested."""

import importlib

import pytest


pytest.importorskip("matplotlib")
contestants = importlib.import_module("benchmarks._contestants")
work = importlib.import_module("benchmarks._work")


@pytest.mark.filterwarnings("default")  # those of the peers are theirs
@pytest.mark.parametrize("case", ["warm", "scan", "devices"])
def test_contestants_compute_the_same(case):
    module = importlib.import_module(f"benchmarks._{case}")
    own = [c for c in module.CONTESTANTS if c.needs is None]
    prepared = contestants.prepare(own, work.light(2))
    assert any(name.startswith(contestants.STATEMAP) for name in prepared)


def test_contestants_of_partial_compute_the_same():
    module = importlib.import_module("benchmarks._partial")
    own = [c for c in module.CONTESTANTS if c.needs is None]
    assert contestants.STATEMAP in contestants.prepare(own, module.partial(2))
