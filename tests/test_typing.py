"""What a type checker infers. The assertions are pyright's: it checks this file in CI, and here
where it is installed. At run time `assert_type` does nothing.
"""

import pathlib
import subprocess
import sys
from typing import Any, assert_type

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
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
        return states[self.v] + x + noise, states.set(self.v, x)


class Fields(eqx.Module):
    n: int
    w: sm.ParamState[Float[Array, " n"]] = sm.field(lambda self, key: jr.normal(key, (self.n,)))
    v: sm.ShortTermState[Float[Array, " n"]] = sm.field(lambda self: jnp.zeros(self.n), tag="fast")
    cell: sm.ParamState[eqx.nn.Linear] = sm.field(lambda key: eqx.nn.Linear(2, 2, key=key))
    gain: sm.ParamState[Array] = sm.field(1.0)
    rng: sm.RandomState = sm.field()

    def __call__(self, states: sm.States, x: Array) -> tuple[Array, sm.States]:
        assert_type(states[self.v], Float[Array, " n"])
        assert_type(states[self.cell], eqx.nn.Linear)
        return states[self.w] * x, states


def test_fields():
    model, states = sm.make_with_states(Fields)(3, key=jr.key(0))
    assert_type(model, Fields)
    assert_type(states, sm.States)
    again, _ = sm.make_with_states(lambda: Fields(3, v=sm.ShortTermState(jnp.ones(3))))(key=0)
    assert_type(again, Fields)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        sm.make_with_states(Fields)()  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="unexpected keyword"):
        Fields(3, gian=sm.ParamState(1.0))  # pyright: ignore[reportCallIssue]


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
