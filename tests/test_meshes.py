"""Lanes and meshes: names of axes, explicit meshes, chunks, effects."""

import contextlib
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import statemap as sm

from .models import add, counter


XS = jnp.arange(8.0)
SHORT = {0: sm.ShortTermState}


def auto(*shape_and_names):
    shape, names = shape_and_names
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))


def constraints(jaxpr):
    """The specs of the sharding constraints in a program."""
    found = []
    for eqn in jaxpr.eqns:
        if "sharding_constraint" in eqn.primitive.name:
            found.append(eqn.params["sharding"].spec)
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            found += constraints(inner) if hasattr(inner, "eqns") else []
    return found


def test_the_name_of_a_mesh_axis_reaches_the_program():
    mesh = auto((8,), ("x",))

    def f(states, x):
        return jax.lax.with_sharding_constraint(2 * x, NamedSharding(mesh, P(None))), states

    def specs(**options):
        mapping = sm.vmap2(f, **options)
        x = jnp.ones((8, 4))
        np.testing.assert_array_equal(mapping(sm.States(), x)[0], 2 * x)
        return constraints(mapping.get_jaxpr_by_cache(mapping.get_arg_cache_key(sm.States(), x)))

    assert specs(spmd_axis_name="x") == [P("x")]
    assert specs() == [P(P.UNCONSTRAINED, None)]


@pytest.fixture(params=[False, True], ids=["outside", "set_mesh"])
def explicit(request):
    mesh = jax.make_mesh((4, 2), ("lane", "feature"))
    assert AxisType.Explicit in mesh.axis_types
    with jax.set_mesh(mesh) if request.param else contextlib.nullcontext():
        yield mesh


SPECS = {
    "lanes": P("lane"),
    "features": P(None, "feature"),
}
MAPPINGS = {
    "vmap2": (sm.vmap2, {}),
    "one chunk at a time": (sm.vmap2, {"chunk_size": 1}),
    "uneven chunks": (sm.vmap2, {"chunk_size": 3}),
    "pmap2": (sm.pmap2, {"axis_name": "lane"}),
}


@functools.cache
def drawn():
    return sm.vmap2(lambda s, x: sm.random.uniform(s, "r"))(sm.States(r=sm.RandomState(0)), XS)[0]


@pytest.mark.parametrize("how", MAPPINGS)
@pytest.mark.parametrize("spec", SPECS)
def test_explicit_meshes(explicit, spec, how):
    x = jax.device_put(jr.normal(jr.key(0), (8, 4)), NamedSharding(explicit, SPECS[spec]))
    transform, options = MAPPINGS[how]
    if how == "pmap2":
        options = {**options, "devices": explicit}
    g = lambda v, x: jnp.sin(v) + x.sum()

    def f(states, x):
        noise, states = sm.random.uniform(states, "r")
        new = g(states["v"], x)
        return (new, noise), states.set("v", new)

    expected = jax.jit(jax.vmap(g))(x, x)
    states = sm.States(v=sm.ShortTermState(x), r=sm.RandomState(0))
    mapping = transform(f, state_in_axes=SHORT, **options)
    for _ in range(2):
        (out, noise), new = mapping(states, x)
        np.testing.assert_allclose(out, expected, rtol=1e-5)
        np.testing.assert_allclose(new["v"], expected, rtol=1e-5)
    np.testing.assert_array_equal(noise, drawn())
    assert new["r"] == jr.split(jr.key(0), 9)[0]
    if how == "vmap2":
        assert jax.typeof(out) == jax.typeof(expected)
        assert jax.typeof(new["v"]) == jax.typeof(expected)
    if how == "pmap2":
        assert out.sharding.spec[0] == "lane"
        _, again = mapping(new, x)
        np.testing.assert_allclose(again["v"], jax.jit(jax.vmap(g))(expected, x), rtol=1e-4)


class Gained(eqx.Module):
    w: sm.ParamState
    rng: sm.RandomState

    def __init__(self, gain, *, key):
        self.w = sm.ParamState(gain * jr.normal(key, (4,)))
        self.rng = sm.RandomState(key)


@pytest.mark.parametrize("spec", [P("lane"), P(None, "feature")])
def test_new_states_on_an_explicit_mesh(explicit, spec):
    plain = jnp.arange(1.0, 33.0).reshape(8, 4)
    gain = jax.device_put(plain, NamedSharding(explicit, spec))
    _, states, _ = sm.vmap2_new_states(Gained, dict(gain=gain), key=0, in_axes={"gain": 0})
    _, expected, _ = sm.vmap2_new_states(Gained, dict(gain=plain), key=0, in_axes={"gain": 0})
    np.testing.assert_allclose(states["w"], expected["w"], rtol=1e-6)
    np.testing.assert_array_equal(jr.key_data(states["rng"]), jr.key_data(expected["rng"]))
    by_hand = jax.vmap(lambda g: g * jnp.ones(4))(gain)
    assert states["w"].sharding.spec == by_hand.sharding.spec


def test_the_mesh_that_arrays_lie_on_is_adopted():
    mesh = auto((4,), ("d",))
    x = jax.device_put(XS, NamedSharding(mesh, P("d")))
    step = sm.pmap2(add, state_in_axes=SHORT)
    states = counter(8)
    for _ in range(3):
        out, states = step(states, x)
        assert out.sharding.mesh == states["counter"].sharding.mesh == mesh
        assert out.sharding.spec == P("d")
    out, states = step(states, XS)  # by where the states lie
    assert out.sharding.mesh == mesh
    assert len(step(counter(8), XS)[0].sharding.device_set) == 8
    grid = auto((2, 4), ("a", "b"))
    x = jax.device_put(XS, NamedSharding(grid, P("b")))
    assert step(counter(8), x)[0].sharding.spec == P("b")
    named = sm.pmap2(add, "a", state_in_axes=SHORT)
    assert named(counter(8), x)[0].sharding.spec == P("a")
    fixed = sm.pmap2(add, devices=jax.devices()[:2], state_in_axes=SHORT)
    assert len(fixed(counter(8), x)[0].sharding.device_set) == 2


@pytest.mark.parametrize("options", [{}, {"chunk_size": 1}, {"devices": True}])
def test_zero_lanes(options):
    transform = sm.pmap2 if options.pop("devices", False) else sm.vmap2

    def f(states, x):
        noise, states = sm.random.normal(states, "r")
        states = states.set("w", states["w"] * 2)
        return x + noise, states.set("v", states["v"] + x)

    states = sm.States(
        v=sm.ShortTermState(jnp.zeros((0, 2))), w=sm.ParamState(3.0), r=sm.RandomState(0)
    )
    for _ in range(2):
        out, new = transform(f, state_in_axes=SHORT, **options)(states, jnp.zeros((0, 2)))
        assert out.shape == new["v"].shape == (0, 2)
        assert new["r"] == jr.split(jr.key(0), 1)[0]
    assert jax.vmap(lambda x: x)(jnp.zeros((0, 2))).shape == (0, 2)


def test_the_size_of_the_axis_is_known_in_chunks_and_the_index_is_not():
    sized = lambda s, x: (x * jax.lax.psum(1, "i"), s)
    out, _ = sm.vmap2(sized, axis_name="i", chunk_size=3)(sm.States(), XS)
    np.testing.assert_array_equal(out, 8 * XS)
    named = lambda s, x: (x * jax.lax.axis_size("i"), s)
    out, _ = sm.vmap2(named, axis_name="i", chunk_size=3)(sm.States(), XS)
    np.testing.assert_array_equal(out, 8 * XS)
    index = sm.vmap2(
        lambda s, x: (x + jax.lax.axis_index("i").astype(float), s), axis_name="i", chunk_size=3
    )
    with pytest.raises(ValueError, match="uses a collective over 'i'.* 3 of 8 lanes are there"):
        index(sm.States(), XS)
    looped = lambda s, x: (jax.lax.fori_loop(0, 2, lambda i, y: jax.lax.psum(y, "i"), x), s)
    with pytest.raises(ValueError, match="uses a collective over 'i'"):
        sm.vmap2(looped, axis_name="i", chunk_size=3)(sm.States(), XS)


def test_ordered_effects_are_refused_over_devices(capfd):
    def f(ordered):
        def printing(states, x):
            jax.debug.print("lane {}", x, ordered=ordered)
            return x, states

        return printing

    with pytest.raises(ValueError, match="an effect that comes in an order.*several devices"):
        sm.pmap2(f(True))(sm.States(), XS)

    def looped(states, x):
        body = lambda c, _: (f(True)(states, c)[0], None)
        return jax.lax.scan(body, x, None, length=1)[0], states

    with pytest.raises(ValueError, match="an effect that comes in an order.*several devices"):
        sm.pmap2(looped)(sm.States(), XS)
    sm.pmap2(f(False))(sm.States(), XS)
    sm.pmap2(f(True), devices=jax.devices()[:1])(sm.States(), XS)
    jax.effects_barrier()
    assert capfd.readouterr().out.count("lane") == 16
