"""Mapping in chunks: a few lanes at a time, in a scan inside the compiled call."""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp


def chunked(
    fn: Callable[..., Any],
    *,
    mapping_fn: Callable[..., Any],
    chunk_size: int,
    in_axes: Any,
    out_axes: Any,
    axis_name: Hashable,
    axis_size: int,
) -> Callable[..., Any]:
    """A mapping function that maps `chunk_size` lanes at a time.

    It has the form that the engine calls: `fn(marker, mapped) -> (stacked, shared)`. All chunks
    have one size, so that the function is traced once: where the chunks do not come out even,
    the last one begins earlier, and what it computes a second time is dropped.
    """
    del out_axes
    if chunk_size >= axis_size:
        return mapping_fn(
            fn, in_axes=in_axes, out_axes=(0, None), axis_name=axis_name, axis_size=axis_size
        )
    axes = in_axes[1]

    def mapped(marker: jax.Array, arrays: list[jax.Array]) -> Any:
        def take(start: Any) -> tuple[jax.Array, list[jax.Array]]:
            piece = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=chunk_size)
            return piece(marker, start), [piece(x, start, axis=a) for x, a in zip(arrays, axes)]

        one = mapping_fn(fn, in_axes=in_axes, out_axes=(0, None), axis_size=chunk_size)
        # The name is bound to no map, so that a collective over it stays in the program.
        env = None if axis_name is None else [(axis_name, axis_size)]
        make = jax.make_jaxpr(one, axis_env=env, return_shape=True)
        program, shape = make(*jax.eval_shape(take, 0))
        if axis_name is not None and axis_name in _named_axes(program):
            raise ValueError(
                f"The function uses a collective over {axis_name!r}, the axis of its lanes, and "
                f"is mapped in chunks: {chunk_size} of {axis_size} lanes are there at a time. "
                "Leave `chunk_size` out, or take the collective out of the function."
            )
        treedef = jax.tree.structure(shape)

        def step(shared: list[jax.Array], start: jax.Array) -> Any:
            flat = jax.core.eval_jaxpr(program.jaxpr, program.consts, *jax.tree.leaves(take(start)))
            stacked, new = jax.tree.unflatten(treedef, flat)
            return new, stacked

        n = -(-axis_size // chunk_size)
        starts = jnp.minimum(jnp.arange(n) * chunk_size, axis_size - chunk_size)
        empty = [jnp.zeros(s.shape, s.dtype) for s in shape[1]]
        shared, stacked = jax.lax.scan(step, empty, starts)
        return [_join(x, axis_size) for x in stacked], shared

    return mapped


def _named_axes(program: Any) -> set[Hashable]:
    """The names of axes that a program has collectives over."""
    return {effect.name for effect in program.effects if hasattr(effect, "name")}


def _join(chunks: jax.Array, axis_size: int) -> jax.Array:
    """All lanes in order, from chunks of which the last may begin within the one before."""
    n, size, *rest = chunks.shape
    over = n * size - axis_size
    if not over:
        return chunks.reshape((axis_size, *rest))
    whole = chunks[:-1].reshape(((n - 1) * size, *rest))
    return jnp.concatenate([whole, chunks[-1, over:]])
