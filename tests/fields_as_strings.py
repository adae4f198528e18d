"""Models whose annotations are strings, since this file says so."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

import statemap as sm


class Model(eqx.Module):
    n: int
    w: sm.ParamState[Float[Array, " n"]] = sm.field(lambda self, key: jr.normal(key, (self.n,)))
    v: sm.ShortTermState[Float[Array, " n"]] = sm.field(lambda self: jnp.zeros(self.n))
    maybe: sm.ParamState | None = sm.field(lambda: None)
    rng: sm.RandomState = sm.field()


class Lost(eqx.Module):
    v: Unknown[Array] = sm.field(1.0)  # pyright: ignore


class Found(eqx.Module):
    v: Unknown[Array] = sm.field(lambda: sm.ParamState(1.0))  # pyright: ignore
