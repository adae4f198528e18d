"""The law of random streams: which numbers each lane draws."""

from typing import Any

import jax

from ._state import State


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
