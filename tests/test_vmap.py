"""`vmap2`: the table of axes, arguments, containers, nesting, collectives and decorators."""

import functools
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import statemap as sm

from .models import add, counter, leaves_are, LIF, Nested


N = 3
XS = jnp.arange(1.0, N + 1)


def mapped(fn, state, in_axes, out_axes, **kwargs):
    """Maps `fn(value, x) -> value` over one state."""

    def lane(states, x):
        return x, states.set("s", fn(states["s"], x))

    mapping = sm.vmap2(lane, state_in_axes=in_axes, state_out_axes=out_axes, **kwargs)
    _, new = mapping(sm.States(s=sm.State(state)), XS)
    return new["s"]


ROWS = jnp.arange(6.0).reshape(N, 2)
KEEP = lambda v, x: v
ADD = lambda v, x: v + x
CONST = lambda v, x: jnp.full_like(v, 7.0)
ANY = sm.Everything()


@pytest.mark.parametrize(
    "fn, state, in_axes, out_axes, expected",
    [
        # axis a: out no match, out axis b, out None
        (ADD, ROWS, {0: ANY}, None, ROWS + XS[:, None]),
        (ADD, ROWS.T, {1: ANY}, None, ROWS.T + XS),
        (ADD, ROWS.T, {-1: ANY}, {}, ROWS.T + XS),
        (ADD, ROWS, {0: ANY}, {1: ANY}, (ROWS + XS[:, None]).T),
        (ADD, ROWS, {0: ANY}, {-1: ANY}, (ROWS + XS[:, None]).T),
        (KEEP, ROWS, {0: ANY}, {1: ANY}, ROWS.T),
        (KEEP, ROWS, {0: ANY}, {0: ANY}, ROWS),
        (CONST, ROWS, {0: ANY}, {None: ANY}, jnp.full(2, 7.0)),
        (CONST, ROWS, {0: ANY}, None, jnp.full((N, 2), 7.0)),
        # shared: not written, written alike, written by lane
        (KEEP, XS, None, {0: ANY}, XS),
        (KEEP, XS, {None: ANY}, {None: ANY}, XS),
        (CONST, XS, None, None, jnp.full(N, 7.0)),
        (CONST, XS, None, {None: ANY}, jnp.full(N, 7.0)),
        (CONST, XS, None, {1: ANY}, jnp.full((N, N), 7.0)),
        (ADD, jnp.zeros(2), None, {0: ANY}, jnp.stack([XS, XS], 1)),
        (ADD, jnp.zeros(2), None, {-1: ANY}, jnp.stack([XS, XS])),
        # a bare filter, and the first match
        (ADD, ROWS, ANY, None, ROWS + XS[:, None]),
        (ADD, ROWS, {0: sm.State, None: ANY}, None, ROWS + XS[:, None]),
    ],
)
def test_the_table(fn, state, in_axes, out_axes, expected):
    new = mapped(fn, state, in_axes, out_axes)
    assert new.shape == expected.shape
    np.testing.assert_array_equal(new, expected)


@pytest.mark.parametrize("fn, in_axes", [(ADD, None), (ADD, {0: ANY}), (KEEP, {0: ANY})])
def test_lanes_that_differ_under_none(fn, in_axes):
    with pytest.raises(sm.BatchAxisError, match="`s` is listed under None in `state_out_axes`"):
        mapped(fn, XS, in_axes, {None: ANY})


def test_policies():
    with pytest.raises(sm.BatchAxisError, match="`s` is shared by all lanes, and the function"):
        mapped(ADD, jnp.zeros(()), None, None)
    assert issubclass(sm.BatchAxisError, ValueError)
    policy = {"unexpected_out_state_mapping": "ignore"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(mapped(ADD, jnp.zeros(()), None, None, **policy), XS)
    mapping = sm.vmap2(
        lambda s, x: (x, s.set("s", s["s"] + x)), unexpected_out_state_mapping="warn"
    )
    states = sm.States(s=sm.State(0.0))
    for _ in range(2):  # a cached call warns, too
        with pytest.warns(UserWarning, match="shared states, which `state_out_axes` does not list"):
            _, new = mapping(states, XS)
    np.testing.assert_array_equal(new["s"], XS)
    # The policy says nothing of what is declared or written alike.
    assert mapped(CONST, jnp.zeros(2), None, None, unexpected_out_state_mapping="warn").shape == (
        2,
    )


def test_lane_dependence_is_seen_from_the_innermost_map():
    @sm.vmap2(state_in_axes={0: sm.LongTermState})
    def outer(states, x):
        @sm.vmap2
        def inner(states, y):
            return y, states.set("s", states["s"] + x)  # varies over `outer` alone

        return inner(states, jnp.arange(2.0))

    states = sm.States(s=sm.LongTermState(jnp.zeros(N)))
    _, new = outer(states, XS)
    np.testing.assert_array_equal(new["s"], XS)


def test_values_that_are_pytrees():
    states = sm.States(s=sm.State({"a": jnp.zeros((N, 2)), "b": [jnp.ones(N)]}))

    @sm.vmap2(state_in_axes={0: ...}, state_out_axes={-1: ...})
    def step(states, x):
        value = states["s"]
        return value["b"][0], states.set("s", {"a": value["a"] + x, "b": value["b"]})

    out, new = step(states, XS)
    assert out.shape == (N,)
    assert new["s"]["a"].shape == (2, N) and new["s"]["b"][0].shape == (N,)


def test_arguments():
    def f(states, a, b, *, c=1.0):
        return a * b * c, states

    none = sm.States()
    ones = jnp.ones((2, N))
    out, _ = sm.vmap2(f, in_axes=(0, None))(none, XS, 2.0)
    np.testing.assert_array_equal(out, XS * 2)
    out, _ = sm.vmap2(f, in_axes=(1, -1), out_axes=1)(none, ones, ones)
    assert out.shape == (2, N)
    out, _ = sm.vmap2(f, in_axes=[0, eqx.if_array(0)])(none, XS, XS, c=XS)
    np.testing.assert_array_equal(out, XS**3)
    out, _ = sm.vmap2(f, in_axes=eqx.if_array(0))(none, XS, 3, c=2.0)
    np.testing.assert_array_equal(out, XS * 6)
    out, _ = sm.vmap2(f, in_axes=None, axis_size=4)(none, 2.0, np.float32(3), c=2.0)
    np.testing.assert_array_equal(out, jnp.full(4, 12.0))
    tree = sm.vmap2(lambda s, t: (t["a"] + t["b"], s), in_axes=({"a": 0, "b": None},))
    np.testing.assert_array_equal(tree(none, {"a": XS, "b": jnp.ones(())})[0], XS + 1)


def test_what_is_no_array_is_shared_under_an_axis():
    seen = []

    def f(states, x, number, flag, fn, options):
        seen.append((flag, options))
        return fn(x * number) if flag else x, states

    mapping = sm.vmap2(f)
    out, _ = mapping(sm.States(), XS, 2.0, True, jnp.negative, {"mode": "a", "n": 3})
    np.testing.assert_array_equal(out, -2 * XS)
    assert seen == [(True, {"mode": "a", "n": 3})]  # bools, strings and functions are as given
    mapping(sm.States(), XS, 5.0, True, jnp.negative, {"mode": "a", "n": 3})
    assert len(seen) == 1  # numbers are traced
    mapping(sm.States(), XS, 5.0, False, jnp.negative, {"mode": "a", "n": 3})
    assert len(seen) == 2


def test_static_arguments():
    @functools.partial(sm.vmap2, static_argnums=1, static_argnames=("flip",))
    def power(states, x, n, *, flip=1):
        return flip * sum(x**i for i in range(n)), states

    out, _ = power(sm.States(), XS, 3, flip=-1)
    np.testing.assert_array_equal(out, -(1 + XS + XS**2))
    assert power(sm.States(), XS, 2)[0].tolist() == (1 + XS).tolist()


def test_static_values_of_other_types_are_others():
    seen = []

    def f(states, x, value):
        seen.append(type(value["n"] if isinstance(value, dict) else value))
        return x, states

    for value in (1, 1.0, True):
        sm.vmap2(f)(sm.States(), XS, {"n": value})
    assert seen == [int, float, bool]
    for value in (1, 1.0, True):
        sm.vmap2(f, static_argnums=1)(sm.States(), XS, value)
    assert seen[3:] == [int, float, bool]


def test_outputs():
    @sm.vmap2(out_axes={"rows": 1, "lanes": 0, "last": -1, "same": None, "name": None, "n": 0})
    def f(states, x):
        out = {
            "rows": jnp.stack([x, x]),
            "lanes": x,
            "last": jnp.ones((2, 4)) * x,
            "same": jnp.ones(2),
            "name": "model",
            "n": 3,
        }
        return out, states

    for _ in range(2):
        out, _ = f(sm.States(), XS)
        shapes = {k: jnp.shape(v) for k, v in out.items() if k != "name"}
        assert shapes == {
            "rows": (2, N), "lanes": (N,), "last": (2, 4, N), "same": (2,), "n": (N,)
        }  # fmt: skip
        assert out["name"] == "model"
    out, _ = sm.vmap2(lambda s, x: (None, s))(sm.States(), XS)
    assert out is None
    with pytest.raises(ValueError, match=r"The output `\['a'\]` differs between lanes"):
        sm.vmap2(lambda s, x: ({"a": x}, s), out_axes=None)(sm.States(), XS)
    with pytest.raises(ValueError, match=r"has shape \(\) in a lane, and can't have .* axis 1"):
        sm.vmap2(lambda s, x: (x, s), out_axes=1)(sm.States(), XS)
    with pytest.raises(ValueError, match="`out_axes` = .* is no prefix"):
        sm.vmap2(lambda s, x: (x, s), out_axes=(0, 0))(sm.States(), XS)


def test_collectives():
    @sm.vmap2(state_in_axes={0: sm.ShortTermState}, axis_name="lanes")
    def centre(states, x):
        x = x - jax.lax.pmean(x, "lanes") + jax.lax.axis_index("lanes").astype(x.dtype)
        mean = jax.lax.pmean(states["v"], "lanes")
        return x, states.update({"v": states["v"] - mean, "mean": mean})

    states = sm.States(v=sm.ShortTermState(XS), mean=sm.LongTermState(0.0))
    out, new = centre(states, XS)
    np.testing.assert_array_equal(out, XS - 2 + jnp.arange(3.0))
    assert new["mean"] == 2.0 and new["v"].tolist() == [-1.0, 0.0, 1.0]


def test_collectives_over_two_levels():
    @sm.vmap2(axis_name="outer")
    def outer(states, row):
        @sm.vmap2(axis_name="inner")
        def inner(states, x):
            return x - jax.lax.pmean(x, ("outer", "inner")), states

        return inner(states, row)

    rows = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(outer(sm.States(), rows)[0], rows - 2.5)


@pytest.mark.parametrize("n", [0, 1])
def test_empty_and_single_batches(n):
    out, states = sm.vmap2(add, state_in_axes=sm.ShortTermState)(counter(n), jnp.ones(n))
    assert out.shape == states["counter"].shape == (n,)
    model, states = sm.make_with_states(LIF)(3, 4, key=jr.key(0))
    step = sm.vmap2(model, state_out_axes={0: sm.ShortTermState})
    spikes, states = step(states, jnp.ones((n, 3)))
    assert spikes.shape == states[model.v].shape == (n, 4)


def test_decorators_and_methods():
    @sm.vmap2
    def plain(states, x):
        "Doc."
        return x, states

    @sm.vmap2()
    def called(states, x):
        return x, states

    assert isinstance(plain, sm.StatefulMapping) and isinstance(called, sm.StatefulMapping)
    assert plain.__name__ == "plain" and plain.__doc__ == "Doc."
    assert plain.__wrapped__ is plain.origin_fun

    class Model(eqx.Module):
        scale: jax.Array

        @sm.vmap2(in_axes=(0, None))
        def __call__(self, states, x, y):
            return self.scale * x * y, states

        @sm.vmap2
        def double(self, states, x):
            return 2 * x, states

    model = Model(jnp.array(3.0))
    np.testing.assert_array_equal(model(sm.States(), XS, 2.0)[0], 6 * XS)
    np.testing.assert_array_equal(model.double(sm.States(), XS)[0], 2 * XS)
    assert Model.double.__name__ == "double"


def test_containers_are_other_pytrees_too():
    model, inner = sm.make_with_states(LIF)(3, N, key=jr.key(0))
    container = {
        "v": sm.ShortTermState(jnp.zeros(N), tag="t"),
        "net": (inner, "label"),
        "scale": jnp.array(2.0),
        "none": None,
    }

    @sm.vmap2(state_in_axes={0: sm.All(sm.ShortTermState, sm.Not(sm.PathContains("net")))},
              state_out_axes={0: sm.PathContains("v")})  # fmt: skip
    def step(container, x):
        states, label = container["net"]
        assert label == "label"
        _, states = model(states, jnp.ones(3) * x)
        v = container["v"]
        new = {**container, "v": v.set(v.value + container["scale"] * x), "net": (states, label)}
        return x, new

    _, new = step(container, XS)
    np.testing.assert_array_equal(new["v"].value, 2 * XS)
    assert new["v"].tag == "t" and new["net"][0][model.v].shape == (N, N)
    assert new["net"][0][model.weight] is inner[model.weight]
    assert new["scale"] is container["scale"] and new["net"][1] == "label"
    assert container["v"].value.sum() == 0
    # A single State, a module, and None
    one, _ = sm.vmap2(lambda s, x: (s.value + x, s), state_in_axes=...)(sm.State(XS), XS)
    np.testing.assert_array_equal(one, 2 * XS)
    assert sm.vmap2(lambda s, x: (x, s))(None, XS)[1] is None


def test_containers_come_back_as_they_went_in():
    c = {"v": sm.ShortTermState(XS), "w": jnp.ones(2), "tag": "a"}

    def run(change):
        return sm.vmap2(lambda c, x: (x, change(c, x)), state_in_axes=...)(c, XS)

    with pytest.raises(ValueError, match="changed `w`, an array of its container"):
        run(lambda c, x: {**c, "w": c["w"] + 1})
    with pytest.raises(ValueError, match="changed `tag` from 'a' to 'b'"):
        run(lambda c, x: {**c, "tag": "b"})
    with pytest.raises(ValueError, match="returned states of another structure"):
        run(lambda c, x: {"v": c["v"]})
    with pytest.raises(ValueError, match=r"for the ShortTermState `v`. Replace a value with"):
        run(lambda c, x: {**c, "v": sm.ParamState(x)})
    with pytest.raises(ValueError, match="another dtype"):
        run(lambda c, x: {**c, "v": sm.ShortTermState(1)})


def test_an_inner_mapping_may_give_a_state_lanes():
    model, states = sm.make_with_states(LIF)(3, 4, key=jr.key(0))
    batch = sm.vmap2(model, state_out_axes={0: sm.ShortTermState})
    population = sm.vmap2(
        batch, in_axes=None, axis_size=2, state_in_axes={0: ...}, state_out_axes={0: ...}
    )
    members = jax.tree.map(lambda x: jnp.stack([x, x]), states)
    spikes, members = population(members, jnp.ones((5, 3)))
    assert spikes.shape == members[model.v].shape == (2, 5, 4)
    assert members[model.rng].shape == (2,) and members[model.weight].shape == (2, 4, 3)


def test_nested_models_and_three_levels():
    model, states = sm.make_with_states(Nested)(key=jr.key(0))
    assert sm.vmap2(model, state_out_axes={0: sm.ShortTermState})(states, jnp.ones((4, 2)))[
        0
    ].shape == (4, 2)

    def level(fn):
        return sm.vmap2(fn, state_in_axes={0: sm.ShortTermState})

    states = sm.States(counter=sm.ShortTermState(jnp.zeros((2, 3, 4))))
    xs = jnp.arange(24.0).reshape(2, 3, 4)
    out, new = level(level(level(add)))(states, xs)
    np.testing.assert_array_equal(out, xs)
    np.testing.assert_array_equal(new["counter"], xs)


def test_spmd_axis_name_and_mapping_fn():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        out, _ = sm.vmap2(lambda s, x: (x, s), spmd_axis_name="x")(sm.States(), XS)
    np.testing.assert_array_equal(out, XS)
    for fn in (jax.vmap, functools.partial(jax.vmap, spmd_axis_name=None), eqx.filter_vmap):
        mapping = sm.StatefulMapping(add, state_in_axes={0: sm.ShortTermState}, mapping_fn=fn)
        out, new = mapping(counter(), XS)
        np.testing.assert_array_equal(new["counter"], XS)


def test_untouched_states_are_the_same_arrays():
    states = sm.States(
        shared=sm.ParamState(jnp.ones(2)),
        idle=sm.ShortTermState(XS),
        counter=sm.ShortTermState(XS),
        rng=sm.RandomState(0),
    )
    before = jax.tree.leaves(states)
    _, new = sm.vmap2(add, state_in_axes={0: sm.ShortTermState})(states, XS)
    assert new["shared"] is states["shared"] and new["idle"] is states["idle"]
    assert leaves_are(new.select(sm.RandomState), states.select(sm.RandomState))
    assert all(a is b for a, b in zip(before, jax.tree.leaves(states)))
    np.testing.assert_array_equal(states["counter"], XS)
    _, same = sm.vmap2(lambda s, x: (s["shared"] + x, s))(states, XS)
    assert same is states


def test_nothing_is_donated_under_other_transforms():
    step = sm.vmap2(add, state_in_axes={0: ...}, donate=True)
    states = counter()
    grad = jax.grad(lambda x: step(states, x)[0].sum())
    np.testing.assert_array_equal(grad(XS), grad(XS))
    assert states["counter"].sum() == 0
    with pytest.raises(ValueError, match="With `donate=True` the states are given as a context"):
        step({"counter": sm.State(XS)}, XS)


def test_donated_memory_is_used_once():
    zeros = jnp.zeros(N)
    step = sm.vmap2(
        lambda s, x: (x, jax.tree.map(lambda a: a + x, s)), state_in_axes=..., donate=True
    )
    with pytest.raises(ValueError, match="of state `a` is donated, and state `b` is the very same"):
        step(sm.States(a=sm.State(zeros), b=sm.State(zeros)), XS)
    with pytest.raises(ValueError, match="of state `a` is donated, and an argument is the very"):
        step(sm.States(a=sm.State(zeros)), zeros)
    assert zeros.sum() == 0


def test_donation():
    step = sm.vmap2(add, state_in_axes={0: sm.ShortTermState}, donate=True)
    old = sm.States(counter=sm.ShortTermState(jnp.zeros(3)), p=sm.ParamState(jnp.ones(2)))
    _, new = step(old, XS)
    _, newer = step(new, XS)
    np.testing.assert_array_equal(newer["counter"], 2 * XS)
    for use in (lambda: old["counter"], lambda: step(old, XS), lambda: jax.tree.leaves(new)):
        with pytest.raises(sm.DonatedStatesError, match="Right:  out, states = step"):
            use()
    assert newer["p"].sum() == 2
    outer = jax.jit(lambda s: step(s, XS)[1])
    kept = counter()
    outer(kept)
    assert kept["counter"].sum() == 0  # nothing is donated inside another jit
