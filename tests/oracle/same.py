"""What the comparisons with brainstate share: the same program, given both libraries."""

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from statemap import compat

from .peer import brainstate


def assert_same(expected, got):
    """The same structure, shapes and dtypes, and numbers that differ by rounding at most."""
    structures = jax.tree.structure(expected), jax.tree.structure(got)
    assert structures[0] == structures[1], structures
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got)):
        if isinstance(a, str):
            assert a == b
            continue
        a, b = jnp.asarray(a), jnp.asarray(b)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), f"{a.aval} and {b.aval}"
        if jnp.issubdtype(a.dtype, jnp.inexact):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        elif jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(jax.random.key_data(a), jax.random.key_data(b))
        else:
            np.testing.assert_array_equal(a, b)


def same(program):
    """A test that a program, whose first argument is a library, gives the same with each."""

    def test(**kwargs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = program(brainstate, **kwargs)
        assert_same(expected, program(compat, **kwargs))

    own = inspect.signature(program)
    test.__signature__ = own.replace(parameters=list(own.parameters.values())[1:])
    test.__name__ = program.__name__
    return test


def non_batch(bst):
    """brainstate has the class, and forgot to export it."""
    return next(c for c in bst.ShortTermState.__subclasses__() if c.__name__ == "NonBatchState")


def values(*cells):
    return [cell.value for cell in cells]


def arange(*shape):
    return jnp.arange(1.0, np.prod(shape) + 1).reshape(shape) / 7
