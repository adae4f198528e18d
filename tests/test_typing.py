"""What a type checker infers. The assertions are pyright's: it checks this file in CI, and here
where it is installed. At run time `assert_type` does nothing.
"""

import pathlib
import subprocess
import sys
from typing import Any, assert_type

import equinox as eqx
import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float

import statemap as sm


class Model(eqx.Module):
    v: sm.ShortTermState[Float[Array, " n"]]
    pair: sm.State[tuple[Array, int]]
    rng: sm.RandomState

    def __init__(self, n: int):
        self.v = sm.ShortTermState(jnp.zeros(n))
        self.pair = sm.State((jnp.zeros(n), 1))
        self.rng = sm.RandomState(0)

    def __call__(self, states: sm.States, x: Array) -> tuple[Array, sm.States]:
        assert_type(states[self.v], Float[Array, " n"])
        assert_type(states[self.pair][0], Array)
        assert_type(states["v"], Any)
        noise, states = sm.random.normal(states, self.rng, (3,))
        assert_type(noise, Array)
        assert_type(states, sm.States)
        states = states.update({self.v: x, self.pair: states[self.pair]})
        return states[self.v] + x + noise, states.set(self.v, x)


def test_inferred_types_run():
    model, states = sm.make_with_states(Model)(3)
    assert_type(model, Model)
    assert_type(states, sm.States)
    mapped = sm.vmap2(model, state_out_axes={0: sm.ShortTermState})
    out, states = mapped(states, jnp.ones((2, 3)))
    assert_type(out, Array)
    assert_type(states, sm.States)
    decorated = sm.vmap2(in_axes=0, state_in_axes={0: sm.ShortTermState})(model)
    assert_type(decorated(states, jnp.ones((2, 3))), tuple[Array, sm.States])
    assert out.shape == (2, 3)


def test_pyright_agrees():
    pytest.importorskip("pyright", reason="pyright is in the `dev` extra")
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, __file__]
    root = pathlib.Path(__file__).parents[1]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert result.returncode == 0, result.stdout
