"""`pmap2`: the same results as `vmap2`, with lanes over devices."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import statemap as sm

from .models import add, counter, LIF


XS = jnp.arange(16.0)
SHORT = {0: sm.ShortTermState}


def spec(x):
    return x.sharding.spec


def test_eight_devices():
    assert jax.device_count() == 8


def test_the_example_of_the_document():
    @sm.pmap2(axis_name="devices", in_axes=0, out_axes=0,
              state_in_axes={0: sm.OfType(sm.ParamState)},
              state_out_axes={0: sm.OfType(sm.ParamState)})  # fmt: skip
    def update(states, delta):
        weights = states["weights"] + delta
        return weights, states.set("weights", weights)

    deltas = jnp.arange(8 * 4.0).reshape(8, 4)
    four = sm.States(weights=sm.ParamState(jnp.ones(4)))
    with pytest.raises(ValueError, match="The number of lanes differs"):
        update(four, deltas)
    with pytest.raises(ValueError, match="4 lanes can't be laid over 8 devices.* that works is 8"):
        update(four, deltas[:4])
    with pytest.raises(ValueError, match="`weights` was given a value of another shape"):
        update(sm.States(weights=sm.ParamState(jnp.ones(8))), deltas)
    updated, states = update(sm.States(weights=sm.ParamState(jnp.ones((8, 4)))), deltas)
    np.testing.assert_array_equal(updated, deltas + 1)
    assert states["weights"].shape == (8, 4)


@pytest.mark.parametrize("n", [8, 16, 40])
def test_it_is_vmap2(n):
    model, states, axes = sm.vmap2_new_states(LIF, dict(n_in=3, n_out=4), key=0, axis_size=n)
    xs = jr.normal(jr.key(1), (n, 3))
    plain = sm.vmap2(model, state_in_axes=axes)
    over = sm.pmap2(model, state_in_axes=axes)
    (out, new), (out2, new2) = plain(states, xs), over(states, xs)
    np.testing.assert_array_equal(out, out2)
    np.testing.assert_array_equal(jr.key_data(new["rng"]), jr.key_data(new2["rng"]))
    np.testing.assert_allclose(new["v"], new2["v"], rtol=1e-6, atol=1e-6)
    shared_states = sm.make_with_states(LIF)(3, 4, key=jr.key(0))[1]
    split = {"state_out_axes": SHORT}
    out, _ = sm.vmap2(model, **split)(shared_states, xs)
    out2, new2 = sm.pmap2(model, **split)(shared_states, xs)
    np.testing.assert_array_equal(out, out2)
    assert spec(new2["weight"]) == P() and spec(new2["v"]) == P("lanes")


def test_refused_lane_counts_name_the_nearest():
    with pytest.raises(ValueError, match="20 lanes .* over 8 devices.* that works is 16 or 24"):
        sm.pmap2(add, state_in_axes=SHORT)(counter(20), jnp.ones(20))


def test_outputs_and_states_stay_where_they_are(runs):
    step = sm.pmap2(runs(add), state_in_axes=SHORT)
    states = counter(16).merge(sm.States(w=sm.ParamState(1.0)))
    out, states = step(states, XS)
    assert spec(out) == spec(states["counter"]) == P("lanes")
    [compiled] = step._programs.made.items.values()
    assert compiled.jitted._cache_size() == 1
    xs = out
    with jax.transfer_guard("disallow"):
        out, new = step(states, xs)
    assert runs.count == 1 and compiled.jitted._cache_size() == 1
    assert [s.data.device for s in out.addressable_shards] == jax.devices()
    assert new["w"] is states["w"]


def test_collectives_give_what_vmap2_gives():
    def f(states, x):
        i = jax.lax.axis_index("i")
        n = jax.lax.axis_size("i")
        out = {
            "psum": jax.lax.psum(x, "i"),
            "pmean": jax.lax.pmean(x, "i"),
            "gather": jax.lax.all_gather(x, "i"),
            "index": i,
            "permute": jax.lax.ppermute(x, "i", [(k, (k + 1) % n) for k in range(n)]),
        }
        return out, states.set("mean", out["pmean"])

    states = sm.States(mean=sm.LongTermState(0.0))
    expected, new = sm.vmap2(f, axis_name="i")(states, XS)
    out, new2 = sm.pmap2(f, "i")(states, XS)
    jax.tree.map(np.testing.assert_array_equal, out, expected)
    assert new["mean"] == new2["mean"] == 7.5 and spec(new2["mean"]) == P()


def test_one_all_reduce_and_no_gather():
    @sm.pmap2(axis_name="i", state_in_axes=SHORT)
    def f(states, x):
        solved = jnp.linalg.solve(states["a"] @ states["a"].T + 9 * jnp.eye(3), x)
        return jax.lax.psum(solved, "i"), states.set("a", states["a"] + 1)

    states = sm.States(a=sm.ShortTermState(jnp.ones((16, 3, 3))))
    text = f.lower(states, jnp.ones((16, 3))).compile().as_text()
    assert "all-gather" not in text and text.count(" all-reduce(") == 1


def test_devices_meshes_and_axis_names():
    states, half = counter(16), jax.devices()[:4]
    out, _ = sm.pmap2(add, devices=half, state_in_axes=SHORT)(states, XS)
    assert {s.device for s in out.addressable_shards} == set(half)
    out, _ = sm.pmap2(add, backend="cpu", state_in_axes=SHORT)(states, XS)
    assert len(out.sharding.device_set) == 8
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    out, _ = sm.pmap2(add, "b", devices=mesh, state_in_axes=SHORT)(states, XS)
    assert spec(out) == P("b") and out.sharding.mesh == mesh
    with pytest.raises(ValueError, match="The mesh has several axes, 'a', 'b'"):
        sm.pmap2(add, devices=mesh)
    with pytest.raises(ValueError, match="The mesh has the axes 'a', 'b', and no 'c'"):
        sm.pmap2(add, "c", devices=mesh)
    with pytest.raises(ValueError, match="`devices` is empty"):
        sm.pmap2(add, devices=[])
    one = jax.make_mesh((8,), ("only",), axis_types=(jax.sharding.AxisType.Auto,))
    assert spec(sm.pmap2(add, devices=one, state_in_axes=SHORT)(states, XS)[0]) == P("only")


def test_parameters_of_the_document():
    @sm.pmap2(static_broadcasted_argnums=1)
    def power(states, x, n):
        return sum(x**i for i in range(n)), states

    np.testing.assert_array_equal(power(sm.States(), XS, 2)[0], 1 + XS)
    out, _ = sm.pmap2(lambda s: (jnp.arange(3), s), in_axes=None)(sm.States())
    assert out.shape == (8, 3)  # one lane for each device
    out, _ = sm.pmap2(lambda s: (jnp.arange(3), s), in_axes=None, axis_size=16)(sm.States())
    assert out.shape == (16, 3)
    sm.pmap2(add, global_arg_shapes=None)
    with pytest.raises(ValueError, match="`global_arg_shapes` has left JAX"):
        sm.pmap2(add, global_arg_shapes=((1,),))
    with pytest.raises(ValueError, match="Argument 0 is static, and has no memory to donate"):
        sm.pmap2(add, static_broadcasted_argnums=0, donate_argnums=0)


def test_donation_of_states_and_arguments():
    step = sm.pmap2(add, state_in_axes=SHORT, donate=True, donate_argnums=0)
    _, states = step(counter(16), XS + 0)
    x = step.origin_fun and jax.device_put(XS + 0, states["counter"].sharding)
    old = states["counter"]
    _, new = step(states, x)
    np.testing.assert_array_equal(new["counter"], 2 * XS)
    assert old.is_deleted() and x.is_deleted()
    with pytest.raises(sm.DonatedStatesError, match="has reused its memory"):
        states["counter"]


def test_new_states_are_made_where_they_lie():
    kwargs = dict(n_in=3, n_out=4)
    model, states, axes = sm.pmap2_new_states(LIF, kwargs, key=0, axis_size=16)
    expected = sm.vmap2_new_states(LIF, kwargs, key=0, axis_size=16)[1]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), states._values, expected._values
    )
    assert all(spec(x) == P("lanes") for x in jax.tree.leaves(states))
    step = sm.pmap2(model, state_in_axes=axes)
    out, new = step(states, jnp.ones((16, 3)))
    assert spec(new["weight"]) == P("lanes")
    assert sm.pmap2_new_states(LIF, kwargs, key=0)[1]["v"].shape == (8, 4)
    with pytest.raises(ValueError, match="9 lanes can't be laid over 8 devices"):
        sm.pmap2_new_states(LIF, kwargs, key=0, axis_size=9)


def test_under_jit_grad_and_scan():
    step = sm.pmap2(add, state_in_axes=SHORT)

    def loss(x):
        def body(states, _):
            out, states = step(states, x)
            return states, out.sum()

        _, sums = jax.lax.scan(body, counter(16), length=3)
        return sums.sum()

    np.testing.assert_allclose(jax.jit(loss)(XS), 6 * XS.sum())
    np.testing.assert_allclose(jax.grad(loss)(XS), jnp.full(16, 6.0))
    inner = sm.vmap2(lambda s, x: step(s, x), state_in_axes=SHORT)
    states = sm.States(counter=sm.ShortTermState(jnp.zeros((2, 16))))
    np.testing.assert_array_equal(inner(states, jnp.stack([XS, XS]))[0][1], XS)


def test_arrays_in_the_function_are_copied_to_each_device_once():
    fn = jax.tree_util.Partial(lambda w, s, x: (w.sum() * x, s), jnp.ones(3))
    mapping = sm.pmap2(fn)
    out, _ = mapping(sm.States(), XS)
    with jax.transfer_guard("disallow"):
        mapping(sm.States(), out)
    np.testing.assert_array_equal(out, 3 * XS)


def test_new_states_of_arguments_that_lie_elsewhere():
    gain = jax.device_put(jnp.arange(8.0), jax.devices()[1])
    _, states, _ = sm.pmap2_new_states(
        lambda gain, *, key: {"g": sm.ParamState(gain)},
        dict(gain=gain),
        key=jax.device_put(jr.PRNGKey(0), jax.devices()[2]),
        in_axes={"gain": 0},
    )
    np.testing.assert_array_equal(states["g"], jnp.arange(8.0))
    assert spec(states["g"]) == P("lanes")
