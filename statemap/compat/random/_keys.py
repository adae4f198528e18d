"""Seeds and keys: what a random state takes, and the one form that it holds."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import jax.random as jr
import numpy as np


Seed = Any  # an int, a typed key, or the two uint32 words of a key


def is_typed(key: Any) -> bool:
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def as_key(seed: Seed) -> jax.Array:
    """The typed key that a seed stands for. That of a concrete seed is concrete, also under
    `jax.jit`.
    """
    if isinstance(seed, jax.Array) and is_typed(seed):
        return seed
    if isinstance(seed, jax.core.Tracer):
        return _make(seed)
    with jax.ensure_compile_time_eval():
        return _make(seed)


def _make(seed: Seed) -> jax.Array:
    if isinstance(seed, (int, np.integer)):
        return jr.key(int(seed))
    if isinstance(seed, (jax.Array, np.ndarray)):
        if seed.size == 1 and jnp.issubdtype(seed.dtype, jnp.integer):
            return jr.key(seed.reshape(()))
        if seed.dtype == jnp.uint32 and seed.size == 2:
            return jr.wrap_key_data(jnp.asarray(seed))
        came = f"an array of dtype {seed.dtype} and shape {seed.shape}"
    else:
        came = repr(seed)
    raise TypeError(
        "A seed is an integer, a key from `jax.random.key`, or the two uint32 words of a key, as "
        f"`jax.random.PRNGKey` gives them. This came: {came}."
    )


def entropy() -> np.ndarray:
    """The two words of a fresh key, from NumPy's global generator: `numpy.random.seed` decides
    them, as it does in brainstate.
    """
    return np.random.randint(0, 2**32, size=2, dtype=np.uint32)
