"""What models of several libraries are made of: a key, and containers of arrays."""

from typing import Any

import jax
import jax.numpy as jnp

from .._keys import one_key


def init_and_stream(key: Any, taker: str) -> tuple[Any, Any]:
    """The key that a model is initialised with, and that of its streams, which are independent;
    twice None without a key.
    """
    return (None, None) if key is None else tuple(jax.random.split(one_key(key, taker)))


def as_arrays(tree: Any) -> Any:
    """A container with arrays in the place of Python's numbers, as under `jax.jit`."""
    numbers = (bool, int, float, complex)
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, numbers) else x, tree)
