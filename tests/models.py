"""Models that several tests use."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

import statemap as sm


class LIF(eqx.Module):
    weight: sm.ParamState[Float[Array, "out in"]]
    v: sm.ShortTermState[Float[Array, "out"]]
    rng: sm.RandomState

    def __init__(self, n_in, n_out, *, key):
        wkey, rkey = jr.split(key)
        self.weight = sm.ParamState(jr.normal(wkey, (n_out, n_in)))
        self.v = sm.ShortTermState(jnp.zeros(n_out))
        self.rng = sm.RandomState(rkey)

    def __call__(self, states, x):
        noise, states = sm.random.normal(states, self.rng, self.v.shape)
        v = 0.9 * states[self.v] + states[self.weight] @ x + 0.1 * noise
        spike = v > 1.0
        return spike, states.set(self.v, jnp.where(spike, 0.0, v))

    def membrane(self, states, scale):
        return states[self.v] * scale, states


class Nested(eqx.Module):
    layers: list[LIF]
    tied: sm.ParamState[Float[Array, "out in"]]
    gain: Array

    def __init__(self, *, key):
        keys = jr.split(key)
        self.layers = [LIF(2, 2, key=k) for k in keys]
        self.tied = self.layers[0].weight
        self.gain = jnp.array(2.0)

    def __call__(self, states, x):
        for layer in self.layers:
            spike, states = layer(states, x)
            x = spike.astype(x.dtype) * self.gain + states[self.tied] @ x
        return x, states


def counter(n=3):
    return sm.States(counter=sm.ShortTermState(jnp.zeros(n)))


def add(states, x):
    total = states["counter"] + x
    return total, states.set("counter", total)


def leaves_are(a, b):
    """Whether two pytrees hold the very same arrays."""
    return all(x is y for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
