"""Operations on many arrays, at a cost that grows with their number: XLA takes seconds to compile
one of hundreds, so a few are taken at a time.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ._jax import gather_lanes, INLINE


_GROUP = 16


def join_on(axis: int, is_new: bool = False) -> Callable[..., Any]:
    """A function that joins arrays on an axis, which they have unless it is new."""

    def joined(*xs: Any) -> Any:
        join = _stacked if is_new else _concatenated
        parts = [join(axis, *xs[k : k + _GROUP]) for k in range(0, len(xs), _GROUP)]
        while len(parts) > 1:
            groups = range(0, len(parts), _GROUP)
            parts = [_concatenated(axis, *parts[k : k + _GROUP]) for k in groups]
        return parts[0]

    return joined


def members_on(axis: int, n: int) -> Callable[[Any], list[jax.Array]]:
    """A function that takes an array apart on an axis of size `n`."""

    def members(x: Any) -> list[jax.Array]:
        x = gather_lanes(jnp.asarray(x), axis)
        taken: list[jax.Array] = []
        for k in range(0, n, _GROUP):
            taken += _some(axis, min(_GROUP, n - k), x, k)
        return taken

    return members


@functools.partial(jax.jit, static_argnums=0, inline=INLINE)
def _stacked(axis: int, *xs: Any) -> jax.Array:
    return jnp.stack(xs, axis)


@functools.partial(jax.jit, static_argnums=0, inline=INLINE)
def _concatenated(axis: int, *xs: Any) -> jax.Array:
    return jnp.concatenate(xs, axis)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=INLINE)
def _some(axis: int, count: int, x: Any, start: Any) -> list[jax.Array]:
    some = jax.lax.dynamic_slice_in_dim(x, start, count, axis)
    return [jax.lax.index_in_dim(some, k, axis, keepdims=False) for k in range(count)]
