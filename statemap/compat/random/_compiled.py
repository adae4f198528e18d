"""What is compiled as one piece, as it is in brainstate: else the last bits would differ.

Each of these draws from a key, for parameters that broadcast to the shape.
"""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jax.scipy.special import zeta

from .. import environ


_jit = functools.partial(jax.jit, static_argnames=("shape", "dtype"))


@_jit
def f(key, dfnum, dfden, shape, dtype):
    dfnum, dfden = _full(dfnum, shape, dtype), _full(dfden, shape, dtype)
    above, below = jr.split(key)
    numerator = 2 * jr.gamma(above, 0.5 * dfnum, shape, dtype) / dfnum
    return numerator / (2 * jr.gamma(below, 0.5 * dfden, shape, dtype) / dfden)


def noncentral_chisquare(keys, df, nonc, shape, dtype):
    """Not compiled as one piece by itself, but where it is a part of `noncentral_f`."""
    twice = 2 * jr.poisson(keys[0], 0.5 * nonc, shape, environ.ditype()).astype(dtype)
    normal = jr.normal(keys[1], shape, dtype) + jnp.sqrt(nonc)
    many = df > 1
    central = jnp.where(many, df - 1, df + twice)
    chisquare = 2 * jr.gamma(keys[2], 0.5 * central, shape, dtype)
    return jnp.where(many, chisquare + normal * normal, chisquare)


@_jit
def noncentral_f(key, dfnum, dfden, nonc, shape, dtype):
    dfnum, dfden, nonc = (lax.convert_element_type(x, dtype) for x in (dfnum, dfden, nonc))
    above, below = jr.split(key)
    numerator = noncentral_chisquare(jr.split(above, 3), dfnum, nonc, shape, dtype) / dfnum
    return numerator / (2 * jr.gamma(below, 0.5 * dfden, shape, dtype) / dfden)


@_jit
def power(key, a, shape, dtype):
    tiny = jnp.finfo(dtype).tiny
    inverse = jnp.reciprocal(jnp.maximum(_full(a, shape, dtype), tiny))
    return jnp.power(jr.uniform(key, shape, dtype, tiny, 1), inverse)


# Below which concentration the von Mises distribution is that of one over its root.
_SMALL_KAPPA = {"float16": 1.8e-1, "float32": 2e-2, "float64": 1.2e-4}


@_jit
def von_mises(key, kappa, shape, dtype):
    """Around 0, by Best and Fisher (1979): angles are proposed, and most are kept."""
    small = _SMALL_KAPPA.get(jnp.dtype(dtype).name)
    if small is None:
        raise ValueError(
            f"`vonmises` draws float16, float32 or float64, not {jnp.dtype(dtype).name}."
        )
    kappa = jnp.broadcast_to(kappa, shape)
    flat, key = jr.split(key)
    r = 1 + jnp.sqrt(1 + 4 * kappa**2)
    rho = (r - jnp.sqrt(2 * r)) / (2 * kappa)
    s = jnp.where(kappa > small, (1 + rho**2) / (2 * rho), 1 / kappa)

    def propose(carry):
        i, key, kept, _, w = carry
        angle_key, keep_key, key = jr.split(key, 3)
        angle = jr.uniform(angle_key, shape, dtype, -1, 1)
        z = jnp.cos(np.pi * angle)
        w = jnp.where(kept, w, (1 + s * z) / (s + z))
        y = kappa * (s - w)
        v = jr.uniform(keep_key, shape, dtype)
        keep = (y * (2 - y) >= v) | (jnp.log(y / v) + 1 >= y)
        return i + 1, key, kept | keep, angle, w

    zero = jnp.zeros(shape, dtype)
    start = (0, key, jnp.zeros(shape, bool), zero, zero)
    going = lambda carry: (carry[0] < 100) & ~jnp.all(carry[2])
    *_, angle, w = lax.while_loop(going, propose, start)
    anywhere = jr.uniform(flat, shape, dtype, -np.pi, np.pi)
    return jnp.where(kappa <= 0, anywhere, jnp.sign(angle) * jnp.arccos(w))


@functools.partial(jax.jit, static_argnames=("trials", "shape"))
def multinomial(key, n, pvals, trials, shape):
    """Draws an outcome for each of `trials`, and counts the first `n` of them."""
    edges = jnp.cumsum(pvals, axis=-1)
    outcome = jnp.sum(edges < jr.uniform(key, (trials, *shape, 1)), axis=-1)
    is_trial = jnp.arange(trials).reshape(-1, *(1 for _ in shape)) < n
    is_outcome = outcome[..., None] == jnp.arange(edges.shape[-1])
    return jnp.sum(is_trial[..., None] & is_outcome, axis=0)


@_jit
def hypergeometric(key, ngood, nbad, nsample, shape, dtype):
    """Draws one after the other."""
    calc = _calculation_dtype()

    def sample(key, good, bad, draws):
        def one(_, carry):
            key, left_good, left = carry
            key, now = jr.split(key)
            share = left_good.astype(calc) / left.astype(calc)
            is_good = jr.uniform(now, (), calc) < share
            return key, left_good - is_good.astype(dtype), left - jnp.ones((), dtype)

        _, left_good, _ = lax.fori_loop(
            0, jnp.minimum(draws, good + bad).astype(int), one, (key, good, good + bad)
        )
        return good - left_good

    counts = [jnp.maximum(_full(x, shape, dtype), 0).ravel() for x in (ngood, nbad, nsample)]
    keys = jr.split(key, counts[0].size + 1)[1:]
    return jax.vmap(sample)(keys, *counts).reshape(shape)


@_jit
def logseries(key, p, shape, dtype):
    """Goes up from 1, adding the probabilities, till their sum reaches a uniform number. It does
    so with logarithms.
    """
    calc = _calculation_dtype()
    tiny = jnp.finfo(calc).tiny
    below_one = np.nextafter(np.ones((), calc), np.zeros((), calc))
    p = _full(_full(p, shape, environ.dftype()), shape, calc).ravel()
    p = jnp.clip(p, tiny, below_one)

    def sample(key, p):
        log_p = jnp.log(p)
        first = log_p - jnp.log(-jnp.log1p(-p))
        target = jnp.log(jr.uniform(key, (), calc, tiny, below_one))

        def next(carry):
            k, log_mass, log_sum = carry
            log_mass = log_mass + log_p + jnp.log(k) - jnp.log(k + 1)
            return k + 1, log_mass, jnp.logaddexp(log_sum, log_mass)

        start = (jnp.ones((), calc), first, first)
        return lax.while_loop(lambda carry: target > carry[2], next, start)[0]

    return jax.vmap(sample)(jr.split(key, p.size), p).astype(dtype).reshape(shape)


@_jit
def zipf(key, a, shape, dtype):
    """Goes up from 1, till the distribution function reaches a uniform number."""
    calc = _calculation_dtype()
    target = jr.uniform(key, shape, calc, jnp.finfo(calc).tiny, 1)

    def sample(a, target):
        one = jnp.ones((), calc)
        total = zeta(a, one)
        reached = lambda k: 1 - zeta(a, k + 1) / total
        going = lambda carry: (target > carry[1]) & (carry[0] <= 1_000_000)
        next = lambda carry: (carry[0] + 1, reached(carry[0] + 1))
        return lax.while_loop(going, next, (one, reached(one)))[0]

    drawn = jax.vmap(sample)(_full(a, shape, calc).ravel(), target.ravel())
    return drawn.astype(dtype).reshape(shape)


def _full(x, shape, dtype):
    return jnp.broadcast_to(lax.convert_element_type(x, dtype), shape)


def _calculation_dtype():
    """The widest float there is: float64 only if JAX has been told to have it."""
    return jax.dtypes.canonicalize_dtype(np.float64)
