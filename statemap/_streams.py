"""The law of random streams: which numbers each lane draws, and each member made of another."""

import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._state import State
from ._values import dotted, Path


def split_lanes(data: Any, n: int, spec: State) -> tuple[jax.Array, jax.Array]:
    """The law of random streams, `new, *lanes = split(key, n + 1)`, on the data of keys.

    **Returns:**

    The new value of the state, and the keys of the lanes along axis 0. With partitionable
    Threefry, JAX's default, a lane's key does not depend on `n`.
    """

    def split(key: jax.Array) -> jax.Array:
        return jax.random.key_data(jax.random.split(spec.decode(key), n + 1))

    for _ in range(data.ndim - 1):  # an array of keys is shared by the lanes, key by key
        split = jax.vmap(split, out_axes=1)
    keys = split(data)
    return keys[0], keys[1:]


# A small number would give the key of a draw: with partitionable Threefry, `fold_in(key, i)` is
# `split(key, n)[i]`.
_COPY = int.from_bytes(b"copy", "big")


def copied_streams(data: Any, copies: Any, axis: int, spec: State) -> jax.Array:
    """The data of keys, of which some members are taken again: copy c of a member has the key
    `fold_in(fold_in(key, 0x636f7079), c)`, its first copy, with c = 0, its own.

    **Arguments:**

    - `copies`: which copy each member along the axis is.
    """
    data = jnp.moveaxis(data, axis, 0)
    keys = spec.decode(data)
    which = jnp.asarray(copies).astype(jnp.uint32).reshape(-1, *[1] * (keys.ndim - 1))
    which = jnp.broadcast_to(which, keys.shape)

    def copy(key: jax.Array, c: jax.Array) -> jax.Array:
        return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, _COPY), c))

    for _ in range(keys.ndim):
        copy = jax.vmap(copy)
    return jnp.moveaxis(jnp.where(which[..., None] == 0, data, copy(keys, which)), 0, axis)


def key_at(key: jax.Array, path: Path) -> jax.Array:
    """The key of a path, derived from one key: no two paths have the same."""
    digest = hashlib.blake2b(dotted(path).encode(), digest_size=8).digest()
    for word in np.frombuffer(digest, "<u4"):
        key = jax.random.fold_in(key, word)
    return key


def new_streams(
    key: jax.Array, path: Path, shape: tuple[int, ...], axis: int | None, spec: State
) -> jax.Array:
    """The data of new keys for a random state, which depend on its path and on no other state:
    those with which a field of `sm.field` is made from this key.

    **Arguments:**

    - `shape`: of the data.
    - `axis`: that of the members. The keys of a member do not depend on how many there are.
    """
    impl = spec.impl  # pyright: ignore
    if str(jax.random.key_impl(key)) != impl:
        key = jax.random.wrap_key_data(jax.random.bits(key, shape[-1:], "uint32"), impl=impl)

    def made(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.key_data(_of_shape(key_at(key, path), shape))

    rest = shape[:-1]
    if axis is None:
        return made(key, rest)
    member = rest[:axis] + rest[axis + 1 :]
    keys = jax.vmap(lambda k: made(k, member))(jax.random.split(key, rest[axis]))
    return jnp.moveaxis(keys, 0, axis)


def _of_shape(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """As many keys as an array of this shape has; a single one is the key."""
    return jax.random.split(key, shape) if math.prod(shape) != 1 else key.reshape(shape)
