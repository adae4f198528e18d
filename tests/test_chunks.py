"""`chunk_size`: the same results, a few lanes at a time."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import statemap as sm

from .models import add, counter, LIF


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 7, 9])
@pytest.mark.parametrize("shared", [False, True])
def test_the_same_results_to_the_bit_for_draws(chunk, shared, runs):
    n, xs = 7, jr.normal(jr.key(1), (7, 3))
    if shared:
        model, states = sm.make_with_states(LIF)(3, 4, key=jr.key(0))
        axes = {"state_out_axes": {0: sm.ShortTermState}}
    else:
        model, states, made = sm.vmap2_new_states(LIF, dict(n_in=3, n_out=4), key=0, axis_size=n)
        axes = {"state_in_axes": made}
    out, new = sm.vmap2(model, **axes)(states, xs)
    mapping = sm.vmap2(runs(model), chunk_size=chunk, **axes)
    for _ in range(2):
        out2, new2 = mapping(states, xs)
        np.testing.assert_array_equal(out, out2)
        np.testing.assert_array_equal(jr.key_data(new["rng"]), jr.key_data(new2["rng"]))
        np.testing.assert_allclose(new["v"], new2["v"], rtol=1e-6)
    assert runs.count == 1


def test_axes_other_than_the_first():
    def f(states, x):
        v = states["v"] + x
        return v, states.set("v", v)

    states = sm.States(v=sm.ShortTermState(jnp.zeros((2, 5))))
    xs = jnp.arange(15.0).reshape(3, 5)[:2]
    options = dict(in_axes=1, out_axes=1, state_in_axes={1: ...}, state_out_axes={0: ...})
    out, new = sm.vmap2(f, **options)(states, xs)
    out2, new2 = sm.vmap2(f, chunk_size=2, **options)(states, xs)
    np.testing.assert_array_equal(out, out2)
    np.testing.assert_array_equal(new["v"], new2["v"])


def test_memory_follows_the_chunk():
    def f(states, x):
        big = jnp.sin(jnp.outer(x, x))
        return jnp.sort(big @ big, axis=0).sum(), states  # nothing that XLA fuses away

    x = jnp.ones((256, 64))

    def temp(**kwargs):
        compiled = sm.vmap2(f, **kwargs).lower(sm.States(), x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole, sixteen, four = temp(), temp(chunk_size=16), temp(chunk_size=4)
    assert sixteen < whole / 8 and four < sixteen / 2


def test_what_cannot_be_chunked_is_refused():
    mean = lambda s, x: (x - jax.lax.pmean(x, "lanes"), s)
    xs = jnp.arange(6.0)
    with pytest.raises(ValueError, match="uses a collective over 'lanes'.* 2 of 6 lanes are there"):
        sm.vmap2(mean, chunk_size=2, axis_name="lanes")(sm.States(), xs)
    out, _ = sm.vmap2(mean, chunk_size=6, axis_name="lanes")(sm.States(), xs)
    np.testing.assert_array_equal(out, xs - 2.5)
    with pytest.raises(sm.BatchAxisError, match="`counter` is shared by all lanes"):
        sm.vmap2(add, chunk_size=2)(counter(6), xs)
    with pytest.raises(ValueError, match="The output differs between lanes"):
        sm.vmap2(lambda s, x: (x, s), out_axes=None, chunk_size=2)(sm.States(), xs)
    for bad in (0, -1, True, 2.0):
        with pytest.raises((ValueError, TypeError), match="chunk_size"):
            sm.vmap2(add, chunk_size=bad)


def test_an_outer_axis_of_the_same_name_is_not_meant():
    inner = sm.vmap2(lambda s, x: (jax.lax.psum(x, "i"), s), axis_name="i", chunk_size=2)
    outer = sm.vmap2(inner, axis_name="i")
    with pytest.raises(ValueError, match="uses a collective over 'i'"):
        outer(sm.States(), jnp.ones((2, 3)))
    other = sm.vmap2(lambda s, x: (jax.lax.psum(x, "j"), s), axis_name="i", chunk_size=2)
    out, _ = sm.vmap2(other, axis_name="j")(sm.States(), jnp.ones((2, 3)))
    np.testing.assert_array_equal(out, jnp.full((2, 3), 2.0))


def test_writes_alike_and_outputs_that_are_shared():
    def f(states, x):
        return {"x": x, "same": jnp.ones(3) * 2}, states.set("n", states["n"] + 1)

    options = dict(out_axes={"x": 0, "same": None}, chunk_size=2)
    out, states = sm.vmap2(f, **options)(sm.States(n=sm.State(3)), jnp.arange(5.0))
    assert out["same"].tolist() == [2.0] * 3 and states["n"] == 4
    assert out["x"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.leaks
def test_under_grad_and_nested():
    def f(states, x):
        return jnp.sin(states["w"] * x), states

    states = sm.States(w=sm.ParamState(2.0))
    xs = jnp.arange(5.0)
    loss = lambda w, **k: sm.vmap2(f, **k)(states.set("w", w), xs)[0].sum()
    np.testing.assert_allclose(
        jax.grad(lambda w: loss(w, chunk_size=2))(2.0), jax.grad(loss)(2.0), rtol=1e-6
    )
    inner = sm.vmap2(add, chunk_size=2, state_in_axes={0: ...})
    outer = sm.vmap2(inner, chunk_size=2, state_in_axes={0: ...})
    grid = sm.States(counter=sm.ShortTermState(jnp.zeros((3, 5))))
    rows = jnp.arange(15.0).reshape(3, 5)
    np.testing.assert_array_equal(outer(grid, rows)[1]["counter"], rows)
    assert sm.vmap2(add, chunk_size=2, state_in_axes={0: ...})(counter(0), jnp.ones(0))[0].size == 0
