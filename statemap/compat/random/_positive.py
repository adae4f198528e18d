"""Real numbers that are positive, or lie on [0, 1]."""

import jax
import jax.numpy as jnp
import jax.random as jr

from . import _samplers as samplers
from ._draw import cast, draw, DType, fits, Param, Require, Size, Source
from ._keys import Seed


POSITIVE_DF = Require(("df",), lambda df: df <= 0, "`df > 0`")
POSITIVE_A = Require(("a",), lambda a: a <= 0, "`a > 0`")


class Positive(Source):
    @draw(float)
    def beta(
        self, a: Param, b: Param, size: Size = None, key: Seed = None, dtype: DType = None
    ) -> jax.Array:
        """The beta distribution.

        **Arguments:**

        - `a`, `b`: its shape parameters, positive.
        """
        return jr.beta(key, a, b, size, dtype)

    @draw(float, POSITIVE_DF)
    def chisquare(
        self,
        df: Param,
        size: Size = None,
        key: Seed = None,
        dtype: DType = None,
        check_valid: bool = True,
    ) -> jax.Array:
        """The chi-squared distribution.

        **Arguments:**

        - `df`: the degrees of freedom.
        """
        return 2.0 * jr.gamma(key, 0.5 * cast(df, dtype), size, dtype)

    @draw(float)
    def exponential(
        self, scale: Param = None, size: Size = None, key: Seed = None, dtype: DType = None
    ) -> jax.Array:
        """The exponential distribution.

        **Arguments:**

        - `scale`: the mean; 1.
        """
        drawn = jr.exponential(key, size, dtype)
        return drawn if scale is None else drawn * cast(scale, dtype)

    @draw(float)
    def f(
        self, dfnum: Param, dfden: Param, size: Size = None, key: Seed = None, dtype: DType = None
    ) -> jax.Array:
        """The F distribution.

        **Arguments:**

        - `dfnum`, `dfden`: degrees of freedom in the numerator and in the denominator.
        """
        return samplers.f(key, dfnum, dfden, size, dtype)

    @draw(float)
    def gamma(
        self,
        shape: Param,
        scale: Param = None,
        size: Size = None,
        key: Seed = None,
        dtype: DType = None,
    ) -> jax.Array:
        """The gamma distribution.

        **Arguments:**

        - `shape`, `scale`: its parameters, positive; the scale is 1.
        """
        drawn = jr.gamma(key, shape, size, dtype)
        return drawn if scale is None else drawn * scale

    @draw(float)
    def loggamma(
        self, a: Param, size: Size = None, key: Seed = None, dtype: DType = None
    ) -> jax.Array:
        """The logarithm of numbers with the gamma distribution, exact also for a small `a`.

        **Arguments:**

        - `a`: the shape parameter, positive.
        """
        return jr.loggamma(key, a, size, dtype)

    @draw(float)
    def maxwell(self, size: Size = None, key: Seed = None, dtype: DType = None) -> jax.Array:
        """The Maxwell distribution with scale 1."""
        return jnp.linalg.norm(jr.normal(key, (*size, 3), dtype), axis=-1)

    @draw(float, keys=3)
    def noncentral_chisquare(
        self, df: Param, nonc: Param, size: Size = None, key: Seed = None, dtype: DType = None
    ) -> jax.Array:
        """The noncentral chi-squared distribution.

        **Arguments:**

        - `df`, `nonc`: the degrees of freedom and the noncentrality.
        """
        df, nonc = cast(df, dtype), cast(nonc, dtype)
        return samplers.noncentral_chisquare(key, df, nonc, size, dtype)

    @draw(float)
    def noncentral_f(
        self,
        dfnum: Param,
        dfden: Param,
        nonc: Param,
        size: Size = None,
        key: Seed = None,
        dtype: DType = None,
    ) -> jax.Array:
        """The noncentral F distribution.

        **Arguments:**

        - `dfnum`, `dfden`: degrees of freedom in the numerator and in the denominator.
        - `nonc`: the noncentrality of the numerator.
        """
        return samplers.noncentral_f(key, dfnum, dfden, nonc, size, dtype)

    @draw(float)
    def pareto(
        self, a: Param, size: Size = None, key: Seed = None, dtype: DType = None
    ) -> jax.Array:
        """The Pareto distribution from 1 on.

        **Arguments:**

        - `a`: the shape parameter, positive.
        """
        return jr.pareto(key, cast(a, dtype), size, dtype)

    @draw(float, POSITIVE_A)
    def power(
        self,
        a: Param,
        size: Size = None,
        key: Seed = None,
        dtype: DType = None,
        check_valid: bool = True,
    ) -> jax.Array:
        """The power distribution on [0, 1], with the density `a * x**(a - 1)`.

        **Arguments:**

        - `a`: the exponent.
        """
        return samplers.power(key, a, size, dtype)

    @draw(float)
    def rayleigh(
        self, scale: Param = 1.0, size: Size = None, key: Seed = None, dtype: DType = None
    ) -> jax.Array:
        """The Rayleigh distribution.

        **Arguments:**

        - `scale`: the mode.
        """
        drawn = jnp.sqrt(-2.0 * jnp.log(jr.uniform(key, size, dtype)))
        return drawn if scale is None else drawn * scale

    @draw(float)
    def standard_exponential(
        self, size: Size = None, key: Seed = None, dtype: DType = None
    ) -> jax.Array:
        """The exponential distribution with mean 1."""
        return jr.exponential(key, size, dtype)

    @draw(float)
    def standard_gamma(
        self, shape: Param, size: Size = None, key: Seed = None, dtype: DType = None
    ) -> jax.Array:
        """The gamma distribution with scale 1.

        **Arguments:**

        - `shape`: the shape parameter, positive.
        """
        return jr.gamma(key, shape, size, dtype)

    @draw(float)
    def wald(
        self, mean: Param, scale: Param, size: Size = None, key: Seed = None, dtype: DType = None
    ) -> jax.Array:
        """The Wald, or inverse Gaussian, distribution.

        **Arguments:**

        - `mean`, `scale`: its parameters, positive.
        """
        mean, scale = cast(mean, dtype), cast(scale, dtype)
        normal_key, uniform_key = jr.split(key)
        square = jnp.square(jr.normal(normal_key, size, dtype))
        # The smaller root of the quadratic equation by Michael, Schucany and Haas (1976), over
        # the mean: 1 + (1 - sqrt(1 + c)) * 2 / c, in a form that loses no digits.
        c = 4 * scale / (mean * square)
        finite = c < jnp.inf
        c = jnp.where(finite, c, 1)
        root = jnp.expm1(0.5 * jnp.log1p(c)) / (1 + jnp.sqrt(c + 1))
        root = mean * jnp.where(finite, root, 1)
        smaller = jr.uniform(uniform_key, size, dtype) <= mean / (mean + root)
        return jnp.where(smaller, root, jnp.square(mean) / root)

    @draw(float)
    def weibull(
        self, a: Param, size: Size = None, key: Seed = None, dtype: DType = None
    ) -> jax.Array:
        """The Weibull distribution with scale 1.

        **Arguments:**

        - `a`: the shape parameter, positive.
        """
        fits("weibull", size, jnp.shape(a))
        return _weibull(key, a, size, dtype)

    @draw(float)
    def weibull_min(
        self,
        a: Param,
        scale: Param = None,
        size: Size = None,
        key: Seed = None,
        dtype: DType = None,
    ) -> jax.Array:
        """The Weibull distribution.

        **Arguments:**

        - `a`, `scale`: its parameters, positive; the scale is 1.
        """
        fits("weibull_min", size, jnp.shape(a))
        drawn = _weibull(key, a, size, dtype)
        return drawn if scale is None else drawn * scale


def _weibull(key: jax.Array, a: Param, size: Size, dtype: DType) -> jax.Array:
    return jnp.power(-jnp.log1p(-jr.uniform(key, size, dtype)), 1.0 / a)
