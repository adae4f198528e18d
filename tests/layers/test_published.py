"""What published programs use, and what they print of it."""

import sys

import jax.numpy as jnp
import pytest


@pytest.mark.parametrize("jitted", [False, True], ids=["plain", "jit"])
def test_where_a_nan_comes_from(both, jitted):
    def program(bs):
        seen, w = bs.ShortTermState(jnp.zeros(())), bs.ParamState(jnp.array([0.0, 4.0]))

        def loss(x):
            seen.value = seen.value + 1.0
            return (jnp.sqrt(w.value - 1.0) * x).sum()

        step = bs.transform.grad(loss, w, return_value=True, debug_nan=True)
        step = bs.transform.jit(step) if jitted else step
        with pytest.raises(Exception, match="NaN/Inf detected") as caught:
            step(1.0).block_until_ready()
        return str(caught.value)[str(caught.value).index("NaN/Inf detected") :], seen.value

    theirs, ours = both(program)
    assert "by primitive : `sqrt`" in theirs[0]
    report = lambda message: [
        x for x in message.splitlines() if "Introduced" in x or "output[" in x
    ]
    assert report(ours[0]) == report(theirs[0])
    assert ours[1] == 0.0


def test_a_finite_derivative_that_is_looked_at(both):
    def program(bs):
        seen, w = bs.ShortTermState(jnp.zeros(())), bs.ParamState(jnp.array([1.0, 4.0]))

        def loss(x):
            seen.value = seen.value + x
            return (jnp.sqrt(w.value) * x).sum()

        step = bs.transform.jit(bs.transform.grad(loss, w, debug_nan=True))
        return *step(1.0).tolist(), *step(3.0).tolist(), float(seen.value)

    theirs, ours = both(program)
    assert theirs == ours


@pytest.mark.filterwarnings("ignore:core.Jaxpr is missing a DebugInfo")  # brainstate's
@pytest.mark.parametrize("passes", ["cse", ("dce", "cse"), ["algebraic_simplification"]])
def test_optimizations_of_a_jaxpr(both, passes):
    def program(bs):
        count = bs.State(jnp.array(0.0))

        def step(x):
            count.value = count.value + x * 1.0
            return jnp.sin(x) + jnp.sin(x)

        fn = bs.transform.StatefulFunction(step, ir_optimizations=passes)
        out = fn(3.0)
        names = [eqn.primitive.name for eqn in fn.get_jaxpr(3.0).eqns]
        return names.count("sin"), names.count("mul"), float(out), float(count.value)

    theirs, ours = both(program)
    assert theirs == ours


def test_optimizations_without_brainstate(layers, monkeypatch):
    make = layers.transform.StatefulFunction
    monkeypatch.setitem(sys.modules, "brainstate.transform", None)
    with pytest.raises(NotImplementedError, match="which is not installed"):
        make(jnp.sin, ir_optimizations="cse")
