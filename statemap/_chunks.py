"""Mapping in chunks: a few lanes at a time, in a scan inside the compiled call."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ._jax import gather_lanes


def in_chunks(
    mapping: Callable[..., Any], chunk_size: int, shared: Sequence[Any]
) -> Callable[..., Any]:
    """What maps `chunk_size` lanes at a time, in the form that `Lane.over` calls.

    **Arguments:**

    - `shared`: the shapes and dtypes of what all lanes share.

    All chunks have one size, so that the program is mapped once: where the chunks do not come out
    even, the last one begins earlier, and what it computes a second time is dropped.
    """

    def chunked(fn: Callable[..., Any], *, in_axes: Any, out_axes: Any, axis_size: int) -> Any:
        if chunk_size >= axis_size:
            return mapping(fn, in_axes=in_axes, out_axes=out_axes, axis_size=axis_size)
        one = mapping(fn, in_axes=in_axes, out_axes=out_axes, axis_size=chunk_size)

        def mapped(arrays: list[jax.Array]) -> Any:
            (axes,) = in_axes
            arrays = [gather_lanes(x, a) for x, a in zip(arrays, axes)]

            def take(start: Any) -> list[jax.Array]:
                piece = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=chunk_size)
                return [piece(x, start, axis=a) for x, a in zip(arrays, axes)]

            def step(_: list[jax.Array], start: jax.Array) -> Any:
                stacked, alike = one(take(start))
                return alike, stacked

            n = -(-axis_size // chunk_size)
            starts = jnp.minimum(jnp.arange(n) * chunk_size, axis_size - chunk_size)
            alike, stacked = jax.lax.scan(step, [_empty(x) for x in shared], starts)
            return [_join(x, axis_size) for x in stacked], alike

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
