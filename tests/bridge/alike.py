"""What the tests of several bridges have alike."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import statemap as sm


WAYS = {
    "whole": sm.vmap2,
    "chunks": lambda *args, **kwargs: sm.vmap2(*args, chunk_size=3, **kwargs),
    "devices": sm.pmap2,
}


def close(a, b, tol=1e-5):
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert x.dtype == y.dtype and x.shape == y.shape
        if jnp.issubdtype(x.dtype, jnp.inexact):
            np.testing.assert_allclose(x, y, atol=tol, rtol=tol)
        elif jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            assert (jr.key_data(x) == jr.key_data(y)).all()
        else:
            np.testing.assert_array_equal(x, y)
