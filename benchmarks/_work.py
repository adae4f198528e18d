"""What is measured: a function of a lane, which reads some of N states and writes some."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np


LANES, WIDTH = 32, 4

Values = Mapping[str, Any]  # of states, by name


@dataclasses.dataclass(frozen=True)
class Work:
    """One call's work, the same for every library.

    `step(values, *args)` is the work of one lane: it returns an output, and the new values of the
    states that it writes.
    """

    step: Callable[..., tuple[Any, dict[str, Any]]]
    start: dict[str, np.ndarray]  # the states' first values, with lanes on axis 0
    args: tuple[Any, ...]
    in_axes: tuple[int | None, ...] = (0,)

    @property
    def names(self) -> list[str]:
        return list(self.start)

    def values(self) -> dict[str, Any]:
        """Fresh arrays, which may be donated."""
        return {name: jnp.array(value) for name, value in self.start.items()}


def start(n: int, lanes: int = LANES, width: int = WIDTH) -> dict[str, np.ndarray]:
    return {f"s{i:05d}": np.full((lanes, width), i / n, np.float32) for i in range(n)}


def light(n: int, lanes: int = LANES) -> Work:
    """All states are read and written, with next to nothing to compute."""

    def step(values: Values, x: Any) -> Any:
        return x.sum(), {name: values[name] * 0.9 + x for name in first}

    first = start(n, lanes)
    return Work(step, first, (jnp.ones((lanes, WIDTH)),))


def heavy(n: int, width: int = 1024) -> Work:
    """All states are read and written, with a matrix product for each."""

    def step(values: Values, x: Any, weight: Any) -> Any:
        return x.sum(), {name: 0.5 * (weight @ values[name]) + x for name in first}

    first = start(n, width=width)
    weight = np.random.default_rng(0).normal(size=(width, width)) / width**0.5
    return Work(step, first, (jnp.ones((LANES, width)), jnp.float32(weight)), (0, None))


def partial(n: int) -> Work:
    """Two of the states are read and the first of them is written, however many there are."""

    def step(values: Values, x: Any) -> Any:
        return x.sum(), {written: 0.5 * values[written] + 0.1 * values[other] + x}

    first = start(n)
    written, other = next(iter(first)), list(first)[n // 2]
    return Work(step, first, (jnp.ones((LANES, WIDTH)),))
