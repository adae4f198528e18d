"""Programs that must not be taken for one another, and functions that are not traced again."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import statemap as sm


S = sm.ShortTermState


@jax.custom_vjp
def reverse(x):
    return x


reverse.defvjp(lambda x: (x, None), lambda _, g: (-g,))


@jax.custom_jvp
def fivefold(x):
    return x


fivefold.defjvp(lambda p, t: (p[0], 5 * t[0]))


@jax.custom_batching.custom_vmap
def hundredfold(x):
    return x


hundredfold.def_vmap(lambda n, batched, x: (100 * x, True))


def in_scan(rule):
    return lambda x: jax.lax.scan(lambda c, _: (rule(c), None), x, None, length=1)[0]


@pytest.mark.parametrize("around", [lambda f: f, jax.jit, jax.checkpoint, in_scan])
def test_rules_of_an_identity_are_kept(around):
    def grad(rule):
        mapping = sm.vmap2(lambda s, x: (around(rule)(x) * 1.0, s))
        return jax.grad(lambda x: mapping(sm.States(), x)[0].sum())(jnp.ones(3)).tolist()

    assert grad(reverse) == [-1.0] * 3
    assert grad(fivefold) == [5.0] * 3
    out, _ = sm.vmap2(lambda s, x: (around(hundredfold)(x), s))(sm.States(), jnp.ones(3))
    assert out.tolist() == [100.0] * 3
    weights = sm.States(w=sm.ParamState(2.0))
    mapping = sm.vmap2(lambda s, x: (around(reverse)(s["w"]) * x, s))
    total = lambda w: mapping(weights.set("w", w), jnp.ones(2))[0].sum()
    assert jax.grad(total)(2.0) == -2.0


def test_a_barrier_stays():
    mapping = sm.vmap2(lambda s, x: (jax.lax.optimization_barrier(x), s))
    assert "optimization_barrier" in mapping.lower(sm.States(), jnp.ones(3)).as_text()


def test_outer_axes_of_other_sizes():
    inner = sm.vmap2(lambda s, x: (jax.lax.pmean(x, "o") * jax.lax.psum(1, "o"), s))
    outer = sm.vmap2(lambda s, x: inner(s, x), axis_name="o")
    for n in (3, 5, 3):
        out, _ = outer(sm.States(), jnp.ones((n, 2)))
        assert out.tolist() == [[n, n]] * n
        out, _ = jax.vmap(lambda x: inner(sm.States(), x), axis_name="o")(jnp.ones((n, 2)))
        assert out.tolist() == [[n, n]] * n
    with pytest.raises(NameError, match="unbound axis name"):
        inner(sm.States(), jnp.ones(2))


def test_contexts_of_the_users():
    factor = jax.make_user_context(2.0)
    mapping = sm.vmap2(lambda s, x: (x * factor.value, s))
    for _ in range(2):
        assert mapping(sm.States(), jnp.ones(2))[0].tolist() == [2.0, 2.0]
        with factor(3.0):
            assert mapping(sm.States(), jnp.ones(2))[0].tolist() == [3.0, 3.0]


class Layers(eqx.Module):
    layers: list
    act: object = eqx.field(static=True)

    def __call__(self, states, x):
        for layer in self.layers:
            x = self.act(layer(x))
        return x, states


@pytest.mark.parametrize("own", [False, True])
def test_a_module_with_a_list_and_a_closure_is_traced_once(own):
    runs, factor = [], 2.0
    layers = [eqx.nn.Linear(2, 2, key=jax.random.key(i)) for i in range(2)]
    model = Layers(layers, lambda x: runs.append(1) or x * factor)
    options = {"mapping_fn": lambda f, **k: eqx.filter_vmap(f, **k)} if own else {}
    mapping = sm.StatefulMapping(model, **options)
    x = jnp.ones((3, 2))
    first = [mapping(sm.States(), x)[0] for _ in range(4)][0]
    assert len(runs) == 2  # one for each layer
    model.layers[0] = eqx.tree_at(lambda m: m.bias, layers[0], layers[0].bias + 1)
    assert not jnp.array_equal(mapping(sm.States(), x)[0], first) and len(runs) == 2
    model.layers.append(layers[1])
    mapping(sm.States(), x)
    assert len(runs) == 5


def test_shapes_in_turn_ask_no_program_for_another_trace(monkeypatch):
    from statemap import _program

    mapping = sm.vmap2(lambda s, x: (s["a"] + x, s.set("a", s["a"] + x)), state_in_axes={0: S})
    calls = [(sm.States(a=S(jnp.zeros(n))), jnp.ones(n)) for n in (3, 4)]
    for states, x in calls * 2:
        mapping(states, x)
    refused = []
    original = _program.Retrace.__init__
    monkeypatch.setattr(
        _program.Retrace, "__init__", lambda self, *a: refused.append(1) or original(self, *a)
    )
    for states, x in calls * 3:
        assert mapping(states, x)[0].shape == x.shape
    assert not refused


@pytest.mark.parametrize("with_argument", [False, True])
def test_a_warm_call_in_a_lane_marks_what_it_moves(with_argument):
    y = (jnp.ones(2),) if with_argument else ()
    inner = sm.vmap2(
        lambda s, *y: (None, s.set("a", s["a"] + 1)), state_in_axes={0: S}, state_out_axes={1: S}
    )

    def lane(states, x):
        return x, inner(states, *y)[1]

    outer = sm.vmap2(lane, state_in_axes={0: S}, state_out_axes={0: S})
    for n in (3, 4, 3):
        _, new = outer(sm.States(a=S(jnp.zeros((n, 2, 5)))), jnp.ones(n))
        assert new["a"].shape == (n, 5, 2)


def test_a_state_that_only_tells_the_number_of_lanes():
    mapping = sm.vmap2(lambda s, x: (x * 2, s), in_axes=None, state_in_axes={0: S})
    for n in (3, 5, 3):
        assert mapping(sm.States(a=S(jnp.zeros(n))), jnp.ones(()))[0].shape == (n,)
    both = sm.vmap2(lambda s, x: (x * 2, s), state_in_axes={0: S})
    both(sm.States(a=S(jnp.zeros(3))), jnp.ones(3))
    with pytest.raises(ValueError, match="The number of lanes differs"):
        both(sm.States(a=S(jnp.zeros(5))), jnp.ones(3))


def test_what_makes_a_model_may_be_a_module():
    class Model(eqx.Module):
        w: sm.ParamState

        def __init__(self, n):
            self.w = sm.ParamState(jnp.zeros(n))

    class Builder(eqx.Module):
        n: int

        def build(self):
            return Model(self.n)

    for make in (eqx.Partial(Model, 3), eqx.filter_jit(lambda: Model(3)), Builder(3).build):
        assert sm.make_with_states(make)()[1]["w"].shape == (3,)
        assert sm.vmap2_new_states(make, axis_size=2)[1]["w"].shape == (2, 3)


def test_a_container_from_outside_is_refused():
    outside = {"v": S(jnp.zeros(3))}
    mapping = sm.vmap2(lambda s, x: (x, outside), state_in_axes={0: S}, state_out_axes={0: S})
    with pytest.raises(ValueError, match="the state `v` back in another shape"):
        mapping(outside, jnp.ones(3))


def test_pmap2_adopts_a_mesh_of_two_axes():
    axis_types = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=axis_types)
    spec = jax.sharding.PartitionSpec("a", "b")
    x = jax.device_put(jnp.ones((4, 4)), jax.NamedSharding(mesh, spec))
    out, _ = sm.pmap2(lambda s, k, x: (x, s), in_axes=(None, 0))(sm.States(), "text", x)
    assert out.sharding.mesh == mesh and out.sharding.spec[0] == "a"
    step = sm.pmap2(lambda s, x: (x, s.set("v", s["v"] * x)), state_in_axes={0: S})
    _, new = step(sm.States(v=S(x)), jnp.ones(4))
    assert new["v"].sharding.mesh == mesh and new["v"].sharding.spec[0] == "a"


@pytest.mark.parametrize("around", [lambda f: f, jax.jit])
def test_draws_two_deep_on_an_explicit_mesh(around):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    x = jnp.arange(24.0).reshape(8, 3)
    placed = jax.device_put(x, jax.NamedSharding(mesh, jax.sharding.PartitionSpec("d")))
    states = sm.States(r=sm.RandomState(0))

    def lane(states, x):
        bits, states = sm.random.bits(states, "r")
        return bits + 0 * x.astype(bits.dtype), states

    nested = sm.vmap2(sm.vmap2(lane))
    expected, _ = nested(states, x)
    for mapping in (nested, sm.pmap2(sm.vmap2(lane))):
        got, _ = around(mapping)(states, placed + 0)
        assert got.tolist() == expected.tolist()
