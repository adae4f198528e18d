"""Mapping in chunks: a few lanes at a time, in a scan inside the compiled call."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ._jax import gather_lanes
from ._reduce import Reduction


def in_chunks(
    mapping: Callable[..., Any],
    chunk_size: int,
    shared: Sequence[Any],
    reduced: Mapping[int, tuple[Reduction, Any]],
) -> Callable[..., Any]:
    """What maps `chunk_size` lanes at a time, in the form that `Lane.over` calls.

    **Arguments:**

    - `chunk_size`: fewer than there are lanes.
    - `shared`: the shapes and dtypes of what all lanes share.
    - `reduced`: by its position among what the lanes return, what is reduced over them, with its
        shape and dtype in a lane. It comes back as what all lanes amount to.

    All chunks have one size, so that the program is mapped once: where the chunks do not come out
    even, the last one begins earlier, and what it computes a second time is dropped.
    """

    def chunked(fn: Callable[..., Any], *, in_axes: Any, out_axes: Any, axis_size: int) -> Any:
        one = mapping(fn, in_axes=in_axes, out_axes=out_axes, axis_size=chunk_size)

        def mapped(arrays: list[jax.Array]) -> Any:
            (axes,) = in_axes
            arrays = [gather_lanes(x, a) for x, a in zip(arrays, axes)]

            def take(start: Any) -> list[jax.Array]:
                piece = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=chunk_size)
                return [piece(x, start, axis=a) for x, a in zip(arrays, axes)]

            def step(carry: Any, first: jax.Array) -> Any:
                start = jnp.minimum(first, axis_size - chunk_size)
                stacked, alike = one(take(start))
                # Lanes before the first of this chunk were counted by the chunk before.
                is_even = axis_size % chunk_size == 0
                counted = None if is_even else start + jnp.arange(chunk_size) >= first
                amounts = [
                    reduction.join(so_far, reduction.part(stacked[k], counted))
                    for so_far, (k, (reduction, _)) in zip(carry[1], reduced.items())
                ]
                rest = [x for k, x in enumerate(stacked) if k not in reduced]
                return (alike, amounts), rest

            empty = [reduction.empty(x.shape) for reduction, x in reduced.values()]
            firsts = jnp.arange(0, axis_size, chunk_size)
            first = ([_empty(x) for x in shared], empty)
            (alike, amounts), rest = jax.lax.scan(step, first, firsts)
            amount, other = iter(amounts), (_join(x, axis_size) for x in rest)
            n = len(rest) + len(amounts)
            return [next(amount if k in reduced else other) for k in range(n)], alike

        return mapped

    return chunked


def _empty(x: Any) -> jax.Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        impl = jax.random.key_impl(x)
        data = jax.eval_shape(jax.random.key_data, x)
        return jax.random.wrap_key_data(jnp.zeros(data.shape, data.dtype), impl=impl)
    return jnp.zeros(x.shape, x.dtype)


def _join(chunks: jax.Array, axis_size: int) -> jax.Array:
    """All lanes in order, from chunks of which the last may begin within the one before."""
    n, size, *rest = chunks.shape
    over = n * size - axis_size
    if not over:
        return chunks.reshape((axis_size, *rest))
    whole = chunks[:-1].reshape(((n - 1) * size, *rest))
    return jnp.concatenate([whole, chunks[-1, over:]])
