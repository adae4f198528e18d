"""Real numbers that are moved and scaled: uniform, normal, and others on the whole line."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax

from . import _samplers as samplers
from ._draw import cast, draw, DType, fits, Param, Require, Size, Source
from ._keys import Seed


NEAR = Require(
    ("lower", "upper", "loc", "scale"),
    lambda lower, upper, loc, scale: (loc < lower - 2 * scale) | (loc > upper + 2 * scale),
    "`loc` within two `scale`s of the interval from `lower` to `upper`, as the numbers are not "
    "exact further away",
)
ORDERED = Require(
    ("left", "mode", "right"),
    lambda left, mode, right: (left > mode) | (mode > right) | (left >= right),
    "`left <= mode <= right` and `left < right`",
)


class Real(Source):
    @draw(float)
    def uniform(
        self,
        low: Param = 0.0,
        high: Param = 1.0,
        size: Size = None,
        key: Seed = None,
        dtype: DType = None,
    ) -> jax.Array:
        """Uniform on [low, high).

        **Arguments:**

        - `low`, `high`: the bounds.
        """
        return jr.uniform(key, size, dtype, low, high)

    @draw(float)
    def normal(
        self,
        loc: Param = None,
        scale: Param = None,
        size: Size = None,
        key: Seed = None,
        dtype: DType = None,
    ) -> jax.Array:
        """The normal distribution.

        **Arguments:**

        - `loc`, `scale`: mean and standard deviation; 0 and 1.
        """
        return _placed(jr.normal(key, size, dtype), loc, scale)

    @draw(float)
    def gumbel(
        self,
        loc: Param = None,
        scale: Param = None,
        size: Size = None,
        key: Seed = None,
        dtype: DType = None,
    ) -> jax.Array:
        """The Gumbel distribution.

        **Arguments:**

        - `loc`, `scale`: mode and scale; 0 and 1.
        """
        return _placed(jr.gumbel(key, size, dtype), loc, scale)

    @draw(float)
    def laplace(
        self,
        loc: Param = None,
        scale: Param = None,
        size: Size = None,
        key: Seed = None,
        dtype: DType = None,
    ) -> jax.Array:
        """The Laplace distribution.

        **Arguments:**

        - `loc`, `scale`: mean and scale; 0 and 1.
        """
        return _placed(jr.laplace(key, size, dtype), loc, scale)

    @draw(float)
    def logistic(
        self,
        loc: Param = None,
        scale: Param = None,
        size: Size = None,
        key: Seed = None,
        dtype: DType = None,
    ) -> jax.Array:
        """The logistic distribution.

        **Arguments:**

        - `loc`, `scale`: mean and scale; 0 and 1.
        """
        return _placed(jr.logistic(key, size, dtype), loc, scale)

    @draw(float)
    def lognormal(
        self,
        mean: Param = None,
        sigma: Param = None,
        size: Size = None,
        key: Seed = None,
        dtype: DType = None,
    ) -> jax.Array:
        """The exponential of normal numbers.

        **Arguments:**

        - `mean`, `sigma`: mean and standard deviation of the normal numbers; 0 and 1.
        """
        mean, sigma = (x if x is None else cast(x, dtype) for x in (mean, sigma))
        return jnp.exp(_placed(jr.normal(key, size, dtype), mean, sigma))

    @draw(float)
    def standard_normal(
        self, size: Size = None, key: Seed = None, dtype: DType = None
    ) -> jax.Array:
        """Standard normal."""
        return jr.normal(key, size, dtype)

    @draw(float)
    def standard_cauchy(
        self, size: Size = None, key: Seed = None, dtype: DType = None
    ) -> jax.Array:
        """The Cauchy distribution about 0, with scale 1."""
        return jr.cauchy(key, size, dtype)

    @draw(float)
    def standard_t(
        self, df: Param, size: Size = None, key: Seed = None, dtype: DType = None
    ) -> jax.Array:
        """Student's t distribution.

        **Arguments:**

        - `df`: the degrees of freedom.
        """
        return jr.t(key, df, size, dtype)

    @draw(float, keys=2)
    def t(self, df: Param, size: Size = None, key: Seed = None, dtype: DType = None) -> jax.Array:
        """Student's t distribution: that of `standard_t`, from other keys.

        **Arguments:**

        - `df`: the degrees of freedom.
        """
        half = cast(df, dtype) / 2
        fits("t", size, half.shape)
        normal = jr.normal(key[0], size, dtype)
        return normal * jnp.sqrt(half / jr.gamma(key[1], half, size, dtype))

    @draw(float, NEAR)
    def truncated_normal(
        self,
        lower: Param,
        upper: Param,
        size: Size = None,
        loc: Param = 0.0,
        scale: Param = 1.0,
        key: Seed = None,
        dtype: DType = None,
        check_valid: bool = True,
    ) -> jax.Array:
        """Normal numbers that lie between two bounds.

        **Arguments:**

        - `lower`, `upper`: the bounds.
        - `loc`, `scale`: mean and standard deviation before what lies outside is cut off.
        """
        lower, upper, loc, scale = (cast(x, dtype) for x in (lower, upper, loc, scale))
        root = np.sqrt(2).astype(dtype)

        def edge(bound: Param) -> jax.Array:
            """`erf` of a bound, by way of the distribution function: it decides the last bits."""
            return 2 * ((1 + lax.erf((bound - loc) / scale / root)) / 2) - 1

        above, below = np.array([-np.inf, np.inf], dtype)
        inside = jr.uniform(
            key,
            size,
            dtype,
            jnp.nextafter(edge(lower), below),
            jnp.nextafter(edge(upper), above),
        )
        drawn = lax.erf_inv(inside) * scale * root + loc
        return jnp.clip(
            drawn,
            jnp.nextafter(lax.stop_gradient(lower), below),
            jnp.nextafter(lax.stop_gradient(upper), above),
        )

    @draw(float, ORDERED)
    def triangular(
        self,
        left: Param = 0.0,
        mode: Param = 0.5,
        right: Param = 1.0,
        size: Size = None,
        key: Seed = None,
        dtype: DType = None,
    ) -> jax.Array:
        """The triangular distribution.

        **Arguments:**

        - `left`, `mode`, `right`: where its density begins, is greatest, and ends.
        """
        left, mode, right = (cast(x, dtype) for x in (left, mode, right))
        width = right - left
        drawn = jr.uniform(key, size, dtype)
        rising = left + jnp.sqrt(drawn * width * (mode - left))
        falling = right - jnp.sqrt((1 - drawn) * width * (right - mode))
        return jnp.where(drawn < (mode - left) / width, rising, falling)

    @draw(float)
    def vonmises(
        self, mu: Param, kappa: Param, size: Size = None, key: Seed = None, dtype: DType = None
    ) -> jax.Array:
        """The von Mises distribution on [-pi, pi).

        **Arguments:**

        - `mu`, `kappa`: mode and concentration.
        """
        mu, kappa = cast(mu, dtype), cast(kappa, dtype)
        around = samplers.von_mises(key, kappa, size or kappa.shape, dtype) + mu
        return (around + np.pi) % (2 * np.pi) - np.pi


def _placed(drawn: jax.Array, loc: Param, scale: Param) -> jax.Array:
    if scale is not None:
        drawn = drawn * scale
    return drawn if loc is None else drawn + loc
