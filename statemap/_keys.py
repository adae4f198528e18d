"""Random keys, from whatever they are given as."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._values import describe


def as_key(key: Any) -> jax.Array:
    """A new-style key from a new-style key, a legacy key or an integer seed."""
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        return jax.random.key(int(key))
    if isinstance(key, (jax.Array, np.ndarray)):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            return jnp.asarray(key)
        if key.dtype == np.uint32 and key.ndim >= 1:
            try:
                return jax.random.wrap_key_data(jnp.asarray(key))
            except TypeError:  # of another size than keys have
                pass
        if jnp.issubdtype(key.dtype, jnp.integer) and key.ndim == 0:
            return jax.random.key(key)  # a seed, perhaps traced
    raise TypeError(
        "A RandomState takes a key (`jax.random.key(0)`), a legacy key "
        f"(`jax.random.PRNGKey(0)`) or an integer seed, not {describe(key)}."
    )


def one_key(key: Any, taker: str) -> jax.Array:
    """A key that others are derived from.

    **Arguments:**

    - `taker`: what was given the key, for the message.

    **Raises:**

    `ValueError` if it is an array of keys.
    """
    key = as_key(key)
    if key.shape:
        raise ValueError(
            f"`key` is one key, and was given an array of keys of shape {key.shape}. `{taker}` "
            "takes one key and derives others from it.\n"
            f"Wrong:  {taker}(..., key=jr.split(key, 10))\n"
            f"Right:  {taker}(..., key=key)\n"
            "To choose the key of each member of a population, where it is made: "
            'init_kwargs `dict(key=keys)`, with `in_axes={"key": 0}`.'
        )
    return key
