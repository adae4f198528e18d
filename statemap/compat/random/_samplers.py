"""How the numbers are drawn, in the steps and to the bit of brainstate.

Each of these is given a key, the parameters of the distribution, the shape and the dtype.
"""

import operator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax

from .. import environ
from . import _compiled as compiled


def cast(param, dtype) -> Any:
    """A parameter in the dtype of what is drawn. What is NumPy's stays so: where NumPy divides by
    a number, JAX multiplies by its reciprocal, and brainstate leaves it to either likewise.
    """
    asarray = np.asarray if isinstance(param, (np.ndarray, np.generic)) else jnp.asarray
    return asarray(param, dtype)


def fits(fn, shape, *shapes):
    """Refuses a shape that the parameters do not broadcast to."""
    try:
        full = jnp.broadcast_shapes(shape, *shapes)
    except ValueError:
        full = None
    if full != shape:
        raise ValueError(
            f"`{fn}` has parameters of shapes {', '.join(map(str, shapes))}, which do not "
            f"broadcast to `size={shape}`. Leave `size` out to have the shape they broadcast to."
        )


def moved(drawn, loc, scale):
    if scale is not None:
        drawn = drawn * scale
    return drawn if loc is None else drawn + loc


def placed(standard):
    """A distribution with a place and a scale, of a standard one."""
    return lambda key, loc, scale, shape, dtype: moved(standard(key, shape, dtype), loc, scale)


def uniform(key, low, high, shape, dtype):
    return jr.uniform(key, shape, dtype, low, high)


def truncated_normal(key, lower, upper, loc, scale, shape, dtype):
    lower, upper, loc, scale = (cast(x, dtype) for x in (lower, upper, loc, scale))
    root = np.sqrt(2).astype(dtype)

    def edge(bound):
        """`erf` of a bound, by way of the distribution function: it decides the last bits."""
        return 2 * ((1 + lax.erf((bound - loc) / scale / root)) / 2) - 1

    above, below = np.array([-np.inf, np.inf], dtype)
    low, high = jnp.nextafter(edge(lower), below), jnp.nextafter(edge(upper), above)
    drawn = lax.erf_inv(jr.uniform(key, shape, dtype, low, high)) * scale * root + loc
    low = jnp.nextafter(lax.stop_gradient(lower), below)
    return jnp.clip(drawn, low, jnp.nextafter(lax.stop_gradient(upper), above))


def vonmises(key, mu, kappa, shape, dtype):
    mu, kappa = cast(mu, dtype), cast(kappa, dtype)
    around = compiled.von_mises(key, kappa, shape or kappa.shape, dtype) + mu
    return (around + np.pi) % (2 * np.pi) - np.pi


def lognormal(key, mean, sigma, shape, dtype):
    mean, sigma = (x if x is None else cast(x, dtype) for x in (mean, sigma))
    return jnp.exp(moved(jr.normal(key, shape, dtype), mean, sigma))


def t(keys, df, shape, dtype):
    """The distribution of `standard_t`, from other keys."""
    half = cast(df, dtype) / 2
    fits("t", shape, half.shape)
    return jr.normal(keys[0], shape, dtype) * jnp.sqrt(half / jr.gamma(keys[1], half, shape, dtype))


def chisquare(key, df, shape, dtype):
    return 2.0 * jr.gamma(key, 0.5 * cast(df, dtype), shape, dtype)


def exponential(key, scale, shape, dtype):
    drawn = jr.exponential(key, shape, dtype)
    return drawn if scale is None else drawn * cast(scale, dtype)


def gamma(key, a, scale, shape, dtype):
    return moved(jr.gamma(key, a, shape, dtype), None, scale)


def pareto(key, a, shape, dtype):
    return jr.pareto(key, cast(a, dtype), shape, dtype)


def rayleigh(key, scale, shape, dtype):
    return moved(jnp.sqrt(-2.0 * jnp.log(jr.uniform(key, shape, dtype))), None, scale)


def noncentral_chisquare(keys, df, nonc, shape, dtype):
    return compiled.noncentral_chisquare(keys, cast(df, dtype), cast(nonc, dtype), shape, dtype)


def wald(key, mean, scale, shape, dtype):
    mean, scale = cast(mean, dtype), cast(scale, dtype)
    normal_key, uniform_key = jr.split(key)
    square = jnp.square(jr.normal(normal_key, shape, dtype))
    # The smaller root of the quadratic equation by Michael, Schucany and Haas (1976), over the
    # mean: 1 + (1 - sqrt(1 + c)) * 2 / c, in a form that loses no digits.
    c = 4 * scale / (mean * square)
    finite = c < jnp.inf
    c = jnp.where(finite, c, 1)
    root = jnp.expm1(0.5 * jnp.log1p(c)) / (1 + jnp.sqrt(c + 1))
    root = mean * jnp.where(finite, root, 1)
    smaller = jr.uniform(uniform_key, shape, dtype) <= mean / (mean + root)
    return jnp.where(smaller, root, jnp.square(mean) / root)


def weibull(key, a, shape, dtype, fn="weibull"):
    fits(fn, shape, jnp.shape(a))
    return jnp.power(-jnp.log1p(-jr.uniform(key, shape, dtype)), 1.0 / a)


def weibull_min(key, a, scale, shape, dtype):
    return moved(weibull(key, a, shape, dtype, "weibull_min"), None, scale)


def binomial(key, n, p, shape, dtype):
    return jnp.asarray(jr.binomial(key, n, p, shape), dtype)


def geometric(key, p, shape, dtype):
    drawn = jr.uniform(key, shape, environ.dftype())
    return jnp.asarray(jnp.floor(jnp.log1p(-drawn) / jnp.log1p(-p)) + 1, dtype)


def negative_binomial(keys, n, p, shape, dtype):
    odds = jnp.exp(-(jnp.log(p) - jnp.log1p(-p)))
    rate = jr.gamma(keys[0], n, shape, environ.dftype()) * odds
    return jr.poisson(keys[1], rate, rate.shape, dtype)


def randint(key, low, high, shape, dtype):
    low, high = (0, low) if high is None else (low, high)
    return jr.randint(key, shape, low, high, dtype)


def random_integers(key, low, high, shape, dtype):
    low, high = (1, low) if high is None else (low, high)
    return jr.randint(key, shape, low, high + 1, dtype)


def dirichlet(key, alpha, shape, dtype):
    return jr.dirichlet(key, alpha, shape or (), dtype)


def orthogonal(key, n, shape, dtype):
    return jr.orthogonal(key, operator.index(n), shape or (), dtype)


def multivariate_normal(key, mean, cov, method, shape, dtype):
    mean, cov = cast(mean, dtype), cast(cov, dtype)
    if mean.ndim == 0 or cov.shape[-2:] != mean.shape[-1:] * 2:
        raise ValueError(
            "`multivariate_normal` takes `mean` of shape (..., n) and `cov` of shape (..., n, n). "
            f"These came with the shapes {mean.shape} and {cov.shape}."
        )
    if shape is not None:
        fits("multivariate_normal", shape, mean.shape[:-1], cov.shape[:-2])
    if method not in ("cholesky", "eigh", "svd"):
        raise ValueError(f"`method` is 'cholesky', 'eigh' or 'svd', not {method!r}.")
    return jr.multivariate_normal(key, mean, cov, shape, dtype, method=method)


def multinomial(key, n, pvals, shape, dtype):
    if isinstance(n, jax.core.Tracer):
        raise ValueError(
            "`n` of `multinomial` decides how much is computed, and can't be traced. Make it a "
            "static argument."
        )
    shape = jnp.broadcast_shapes(jnp.shape(pvals)[:-1], jnp.shape(n)) + (shape or ())
    return jnp.asarray(compiled.multinomial(key, n, pvals, int(np.max(n)), shape), dtype)


def choice(key, a, replace, p, shape):
    """From what JAX has no arrays of, such as strings, NumPy's elements."""
    shape = shape or ()
    if not isinstance(a, np.ndarray) or a.dtype.kind in "biufc":
        return jr.choice(key, a, shape, replace, p)
    chosen = jr.choice(key, len(a), shape, replace, p)
    if isinstance(chosen, jax.core.Tracer):
        raise TypeError(
            f"`choice` from an array of dtype {a.dtype} can't be traced. Choose numbers, "
            "`choice(len(a), ...)`, and look the elements up outside."
        )
    return a[np.asarray(chosen)]


def rand_like(key, array, dtype):
    return jr.uniform(key, jnp.shape(array), environ.dftype()).astype(_dtype_like(array, dtype))


def randn_like(key, array, dtype):
    return jr.normal(key, jnp.shape(array), environ.dftype()).astype(_dtype_like(array, dtype))


def randint_like(key, array, low, high, dtype):
    high = jnp.max(array) if high is None else high
    drawn = jr.randint(key, jnp.shape(array), low, high, environ.ditype())
    return drawn.astype(_dtype_like(array, dtype))


def _dtype_like(array, dtype):
    if dtype is not None:
        return dtype
    if hasattr(array, "dtype"):
        return jax.dtypes.canonicalize_dtype(array.dtype)
    if isinstance(array, bool):
        return bool
    return environ.ditype() if isinstance(array, int) else environ.dftype()
