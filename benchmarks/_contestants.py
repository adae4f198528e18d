"""Who takes part, and the check that all of them compute the same."""

import dataclasses
import importlib.util
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np


BY_HAND = "by hand"
STATEMAP = "statemap"

# Those that do not take part, and why. A case has a process of its own, so this is one case's.
skipped: dict[str, str] = {}


@dataclasses.dataclass(frozen=True)
class Call:
    """A call that is ready to be made, again and again: it keeps its states itself.

    - `step()`: makes it, and returns its output.
    - `read()`: the states by name, for comparison.
    - `lower()`: its program, a `jax.stages.Lowered`, where the library shows it.
    - `wait()`: what has to be waited for besides the output. What one program computes is ready
        together.
    """

    step: Callable[[], Any]
    read: Callable[[], dict[str, Any]]
    lower: Callable[[], Any] | None = None
    wait: Callable[[], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A way to do some work; the first one in a list is the limit that others are measured by.

    `make(work)` sets a `Call` up and calls nothing yet. `needs` names the package that has to be
    installed; without one, whatever goes wrong is an error.
    """

    name: str
    make: Callable[[Any], Call]
    needs: str | None = None
    same_numbers: bool = True  # draws from the same random streams, that is


def taking_part(contestants: Iterable[Contestant]) -> list[Contestant]:
    """Those whose package is installed."""
    able = []
    for contestant in contestants:
        if contestant.needs is None or importlib.util.find_spec(contestant.needs):
            able.append(contestant)
        else:
            skipped[contestant.name] = f"{contestant.needs} is not installed"
    return able


def prepare(contestants: Iterable[Contestant], work: Any) -> dict[str, Call]:
    """The calls of all contestants, each made twice and checked against those of the first.

    A peer that fails is skipped: that is no fault of statemap, and of its versions probably.
    """
    calls: dict[str, Call] = {}
    expected: Any = None
    for contestant in taking_part(contestants):
        try:
            call = contestant.make(work)
            call.step()
            got = call.step(), call.read()
            expected = got if expected is None else expected
            compare(got, expected, contestant.same_numbers)
        except Exception as error:
            if contestant.needs is None:
                raise
            skipped[contestant.name] = reason(error)
        else:
            calls[contestant.name] = call
    return calls


def reason(error: Exception) -> str:
    """The gist of an error, without paths, which are nobody's business."""
    first = re.sub(r"\(?/\S+", "", (str(error).strip() or "no message").splitlines()[0])
    return f"{type(error).__name__}: {first[:100].strip()}"


def compare(got: Any, expected: Any, same_numbers: bool = True) -> None:
    """Raises an `AssertionError` if an output or a state differs."""
    (out, states), (out2, states2) = got, expected
    for name, value, wanted in (
        ("out", out, out2),
        *((k, states[k], states2[k]) for k in states2),
    ):
        wanted = np.asarray(wanted)
        value = np.asarray(value).reshape(wanted.shape)  # lanes may be laid out (devices, lanes)
        if same_numbers:
            np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-4, err_msg=name)
        else:
            assert np.isfinite(value).all(), f"{name} is not finite"
