"""Counts, events, and draws of several numbers at a time."""

import operator

import jax
import jax.core
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from . import _samplers as samplers
from ._draw import cast, draw, DType, fits, float_dtype, Param, Require, Size, Source
from ._keys import Seed


PROBABILITY = Require(("p",), lambda p: (p < 0) | (p > 1), "`p` within [0, 1]")
POSITIVE_P = Require(("p",), lambda p: (p <= 0) | (p > 1), "`p` within (0, 1]")
ABOVE_ONE = Require(("a",), lambda a: ~(a > 1), "`a > 1`")
SUM_TO_ONE = Require(
    ("pvals",),
    lambda pvals: pvals[..., :-1].sum(-1, dtype=float) > 1 + 1e-6,
    "`pvals[..., :-1]` with a sum of up to 1",
)


class Discrete(Source):
    @draw(None, PROBABILITY)
    def bernoulli(
        self, p: Param, size: Size = None, key: Seed = None, check_valid: bool = True
    ) -> jax.Array:
        """True or False.

        **Arguments:**

        - `p`: how probable True is.
        """
        return jr.bernoulli(key, p, size)

    @draw(int, PROBABILITY)
    def binomial(
        self,
        n: Param,
        p: Param,
        size: Size = None,
        key: Seed = None,
        dtype: DType = None,
        check_valid: bool = True,
    ) -> jax.Array:
        """The binomial distribution.

        **Arguments:**

        - `n`, `p`: the number of trials, and how probable success is in each.
        """
        return jnp.asarray(jr.binomial(key, n, p, size), dtype)

    @draw(sized=False)
    def categorical(
        self, logits: Param, axis: int = -1, size: Size = None, key: Seed = None
    ) -> jax.Array:
        """Indices, by the logarithms of their probabilities.

        **Arguments:**

        - `logits`: the logarithms, up to a constant.
        - `axis`: the axis of `logits` that the indices are for.
        - `size`: the shape of what is drawn, an int or ints; that of `logits` without `axis`.
        """
        return jr.categorical(key, logits, axis, size)

    @draw(int, POSITIVE_P)
    def geometric(
        self, p: Param, size: Size = None, key: Seed = None, dtype: DType = None
    ) -> jax.Array:
        """The number of trials up to and with the first success.

        **Arguments:**

        - `p`: how probable success is in each.
        """
        drawn = jr.uniform(key, size, float_dtype())
        return jnp.asarray(jnp.floor(jnp.log1p(-drawn) / jnp.log1p(-p)) + 1, dtype)

    @draw(int)
    def hypergeometric(
        self,
        ngood: Param,
        nbad: Param,
        nsample: Param,
        size: Size = None,
        key: Seed = None,
        dtype: DType = None,
    ) -> jax.Array:
        """How many good ones there are among those drawn without replacement.

        **Arguments:**

        - `ngood`, `nbad`: how many good and bad ones there are.
        - `nsample`: how many are drawn.
        """
        return samplers.hypergeometric(key, ngood, nbad, nsample, size, dtype)

    @draw(int)
    def logseries(
        self, p: Param, size: Size = None, key: Seed = None, dtype: DType = None
    ) -> jax.Array:
        """The logarithmic series distribution.

        **Arguments:**

        - `p`: its parameter, between 0 and 1.
        """
        return samplers.logseries(key, p, size, dtype)

    @draw(int, keys=2)
    def negative_binomial(
        self, n: Param, p: Param, size: Size = None, key: Seed = None, dtype: DType = None
    ) -> jax.Array:
        """The number of failures before the `n`th success.

        **Arguments:**

        - `n`, `p`: how many successes, and how probable one is in each trial.
        """
        odds = jnp.exp(-(jnp.log(p) - jnp.log1p(-p)))
        rate = jr.gamma(key[0], n, size, float_dtype()) * odds
        return jr.poisson(key[1], rate, rate.shape, dtype)

    @draw(int)
    def poisson(
        self, lam: Param = 1.0, size: Size = None, key: Seed = None, dtype: DType = None
    ) -> jax.Array:
        """The Poisson distribution.

        **Arguments:**

        - `lam`: the mean.
        """
        return jr.poisson(key, lam, size, dtype)

    @draw(int, ABOVE_ONE)
    def zipf(self, a: Param, size: Size = None, key: Seed = None, dtype: DType = None) -> jax.Array:
        """The Zipf, or zeta, distribution. Numbers are cut off at 1000001.

        **Arguments:**

        - `a`: the exponent.
        """
        return samplers.zipf(key, a, size, dtype)

    @draw(int, SUM_TO_ONE, sized=False)
    def multinomial(
        self,
        n: Param,
        pvals: Param,
        size: Size = None,
        key: Seed = None,
        dtype: DType = None,
        check_valid: bool = True,
    ) -> jax.Array:
        """How often each outcome comes.

        **Arguments:**

        - `n`: the number of trials, which can't be traced.
        - `pvals`: how probable the outcomes are, along the last axis.
        - `size`: further axes of what is drawn, an int or ints. Its shape is that of `n` and of
            `pvals` without outcomes, then `size`, then the number of outcomes.
        """
        if isinstance(n, jax.core.Tracer):
            raise ValueError(
                "`n` of `multinomial` decides how much is computed, and can't be traced. Make it "
                "a static argument."
            )
        shape = jnp.broadcast_shapes(jnp.shape(pvals)[:-1], jnp.shape(n)) + (size or ())
        return jnp.asarray(samplers.multinomial(key, n, pvals, int(np.max(n)), shape), dtype)

    @draw(float, sized=False)
    def dirichlet(
        self, alpha: Param, size: Size = None, key: Seed = None, dtype: DType = None
    ) -> jax.Array:
        """Positive numbers with the sum 1.

        **Arguments:**

        - `alpha`: the concentrations, along the last axis.
        """
        return jr.dirichlet(key, alpha, size or (), dtype)

    @draw(float, sized=False)
    def multivariate_normal(
        self,
        mean: Param,
        cov: Param,
        size: Size = None,
        method: str = "cholesky",
        key: Seed = None,
        dtype: DType = None,
    ) -> jax.Array:
        """Normal vectors.

        **Arguments:**

        - `mean`: of shape `(..., n)`.
        - `cov`: the covariance, of shape `(..., n, n)`.
        - `size`: the shape of what is drawn, without the axis of the vectors; that which
            the other axes of `mean` and `cov` broadcast to.
        - `method`: how the covariance is factored: `"cholesky"`, `"eigh"` or `"svd"`.
        """
        mean, cov = cast(mean, dtype), cast(cov, dtype)
        if mean.ndim == 0 or cov.shape[-2:] != mean.shape[-1:] * 2:
            raise ValueError(
                "`multivariate_normal` takes `mean` of shape (..., n) and `cov` of shape (..., n, "
                f"n). These came with the shapes {mean.shape} and {cov.shape}."
            )
        if size is None:
            size = jnp.broadcast_shapes(mean.shape[:-1], cov.shape[:-2])
        fits("multivariate_normal", size, mean.shape[:-1], cov.shape[:-2])
        if method == "cholesky":
            factor = jnp.linalg.cholesky(cov)
        elif method == "eigh":
            values, vectors = jnp.linalg.eigh(cov)
            factor = vectors * jnp.sqrt(values[..., None, :])
        elif method == "svd":
            vectors, values, _ = jnp.linalg.svd(cov)
            factor = vectors * jnp.sqrt(values[..., None, :])
        else:
            raise ValueError(f"`method` is 'cholesky', 'eigh' or 'svd', not {method!r}.")
        normal = jr.normal(key, (*size, mean.shape[-1]), dtype)
        return mean + jnp.einsum("...ij,...j->...i", factor, normal)

    @draw(float, sized=False)
    def orthogonal(
        self, n: int, size: Size = None, key: Seed = None, dtype: DType = None
    ) -> jax.Array:
        """Orthogonal matrices, uniform in the sense of Haar.

        **Arguments:**

        - `n`: the number of their rows and columns.
        - `size`: axes before those of the matrices, an int or ints; `()`.
        """
        return jr.orthogonal(key, operator.index(n), size or (), dtype)
