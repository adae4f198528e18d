"""`Reduce` and `Restore`: what comes out shared, combined, or as it went in."""

import gc
import operator
import pickle
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, strategies as st
from jax.sharding import NamedSharding, PartitionSpec as P

import statemap as sm

from .models import leaves_are


# By how states are mapped: the mapping, and what it is given besides.
WAYS = {
    "whole": (sm.vmap2, {}),
    "even chunks": (sm.vmap2, {"chunk_size": 4}),
    "uneven chunks": (sm.vmap2, {"chunk_size": 3}),
    "one at a time": (sm.vmap2, {"chunk_size": 1}),
    "devices": (sm.pmap2, {}),
}
EXACT = ("min", "max", "any", "all")


def context():
    return sm.States(
        count=sm.ShortTermState(3, tag="count"),
        mean=sm.LongTermState(jnp.array([1.0, 2.0])),
        hidden=sm.HiddenState(jnp.zeros(2)),
        rng=sm.RandomState(0),
    )


def step(states, x):
    noise, states = sm.random.normal(states, "rng", (2,))
    hidden = states["hidden"] + x + 0 * noise
    states = states.update({"hidden": hidden, "count": states["count"] + 1})
    return hidden.sum(), states.set("mean", 0.9 * states["mean"] + 0.1 * x)


RULES = {
    sm.Reduce("changes"): "count",
    sm.Reduce("mean"): sm.LongTermState,
    sm.Restore: sm.HiddenState,
}
XS = jnp.arange(16.0).reshape(8, 2)


@pytest.mark.parametrize("way", WAYS)
def test_a_counter_a_running_mean_and_a_hidden_state(way):
    mapping, options = WAYS[way]
    mapped = mapping(step, state_out_axes=RULES, **options)
    states = context()
    for k in (1, 2):
        out, new = mapped(states, XS)
        np.testing.assert_allclose(out, XS.sum(axis=1))
        assert new["count"] == 3 + 8 * k and new["count"].dtype == states["count"].dtype
        expected = 0.9 * states["mean"] + 0.1 * XS.mean(axis=0)
        np.testing.assert_allclose(new["mean"], expected, rtol=1e-6)
        assert new["hidden"].tolist() == [0, 0]
        assert new["rng"] == jr.split(states["rng"], 9)[0]
        states = new


def test_what_is_restored_is_the_very_array():
    states = context()
    _, new = sm.vmap2(step, state_out_axes=RULES)(states, XS)
    assert new["hidden"] is states["hidden"]


def loop(f, states, axes, rules, xs):
    """The rules, lane by lane, in NumPy."""
    news = []
    for i in range(len(xs)):
        _, new = f(sm.lane(states, axes, i) if axes else states, xs[i])
        news.append(new)
    out = {}
    for path, state in states.items():
        name = path[0]
        how, values = rules[name], np.stack([np.asarray(new[name]) for new in news])
        old = np.asarray(states[name])
        dtype = values.dtype
        out[name] = {
            "mean": lambda: values.mean(axis=0, dtype=np.float64 if dtype.kind == "f" else None),
            "sum": lambda: values.sum(axis=0, dtype=dtype),
            "min": lambda: values.min(axis=0),
            "max": lambda: values.max(axis=0),
            "any": lambda: values.any(axis=0),
            "all": lambda: values.all(axis=0),
            "changes": lambda: old + (values - old).sum(axis=0, dtype=dtype),
            "restore": lambda: old,
        }[how]()
    return out


HOWS = {
    "float32": ["mean", "sum", "min", "max", "changes", "restore"],
    "bfloat16": ["mean", "sum", "min", "max", "changes", "restore"],
    "int8": ["sum", "min", "max", "changes", "restore"],
    "uint32": ["sum", "min", "max", "changes", "restore"],
    "bool": ["any", "all", "min", "max", "restore"],
    "complex64": ["mean", "sum", "changes", "restore"],
}


@st.composite
def programs(draw):
    """Of each state its dtype, how it is reduced, its shape, whether it is mapped, a seed, and
    what lanes write to it; and a number of lanes.
    """
    parts = []
    for _ in range(draw(st.integers(1, 4))):
        dtype = draw(st.sampled_from(sorted(HOWS)))
        how = draw(st.sampled_from(HOWS[dtype]))
        shape = draw(st.sampled_from([(), (2,), (2, 3)]))
        is_mapped = how != "changes" and draw(st.booleans())
        op = draw(st.sampled_from(["same", "alike", "lane", "swap"]))
        parts.append((dtype, how, shape, is_mapped, draw(st.integers(0, 99)), op))
    return parts, draw(st.sampled_from([1, 2, 5, 8]))


def build(parts, lanes):
    states, rules, ops = {}, {}, {}
    for k, (dtype, how, shape, is_mapped, seed, op) in enumerate(parts):
        numbers = np.random.default_rng(seed).integers(0, 3, (lanes, *shape))
        value = jnp.asarray(numbers if is_mapped else numbers[0]).astype(dtype)
        name = f"s{k}"
        states[name] = sm.ShortTermState(value, tag="mapped" if is_mapped else None)
        rules[name], ops[name] = how, op
    return sm.States(states), rules, ops


def run(ops):
    def f(states, x):
        for name, op in ops.items():
            old = states[name]
            new = {
                "same": lambda: old,
                "alike": lambda: ~old if old.dtype == bool else old + jnp.ones((), old.dtype),
                "lane": lambda: old ^ (x > 2) if old.dtype == bool else old * x.astype(old.dtype),
                "swap": lambda: jnp.where(x > 1, jnp.zeros_like(old), old),
            }[op]()
            states = states.set(name, new)
        return x, states

    return f


def filters(rules):
    """`state_out_axes` for rules by name; each state has an entry of its own."""

    def at(name):
        return lambda path, state: path == (name,)

    restored = [at(n) for n, how in rules.items() if how == "restore"]
    found = {sm.Reduce(how): at(n) for n, how in rules.items() if how != "restore"}
    return found | ({sm.Restore: restored} if restored else {})


@given(programs(), st.sampled_from([*WAYS, "jit", "scan", "nested"]))
def test_equal_to_a_loop_over_lanes(program, way):
    parts, lanes = program
    states, rules, ops = build(parts, lanes)
    # A shared state that nobody writes is as it was.
    is_mapped = {path[0]: state.tag == "mapped" for path, state in states.items()}
    expected_rules = {
        n: "restore" if ops[n] == "same" and not is_mapped[n] else how for n, how in rules.items()
    }
    f, xs = run(ops), jnp.arange(lanes, dtype=jnp.int32)
    members = {0: "mapped"} if any(is_mapped.values()) else None
    expected = loop(f, states, members, expected_rules, xs)
    mapping, options = WAYS.get(way, (sm.vmap2, {}))
    if way == "devices" and lanes % 8:
        options = {"devices": jax.devices()[:1]}
    axes = {"state_in_axes": members}
    mapped = mapping(f, state_out_axes=filters(rules), **axes, **options)
    if way == "jit":
        _, new = jax.jit(mapped)(states, xs)
    elif way == "scan":
        one = lambda _, x: (None, mapped(states, x)[1])
        new = jax.tree.map(operator.itemgetter(0), jax.lax.scan(one, None, xs[None])[1])
    elif way == "nested":
        outer = sm.vmap2(mapped, in_axes=None, axis_size=2, state_out_axes={0: ...})
        _, both = outer(states, xs)
        plan = outer.plan(states, xs)
        new = {n: both[n][1] if plan[n].axis_out == 0 else both[n] for n in rules}
    else:
        _, new = mapped(states, xs)
    for name, how in expected_rules.items():
        value, wanted = np.asarray(new[name]), np.asarray(expected[name])
        assert value.dtype == states[name].dtype, name
        if how in EXACT or how == "restore" or value.dtype.kind in "iub":
            np.testing.assert_array_equal(value, wanted, err_msg=name)
        else:
            rtol = 2e-2 if value.dtype == jnp.bfloat16 else 1e-5
            kind = np.complex128 if value.dtype.kind == "c" else np.float64
            np.testing.assert_allclose(
                value.astype(kind), wanted.astype(kind), rtol=rtol, atol=rtol, err_msg=name
            )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("how", ["min", "max"])
def test_nan_is_the_least_and_the_most(how, dtype, way):
    mapping, options = WAYS[way]
    f = lambda states, x: (x, states.set("v", x))
    mapped = mapping(f, state_out_axes={sm.Reduce(how): ...}, **options)
    xs = jnp.arange(16.0, dtype=dtype).reshape(8, 2).at[5, 0].set(jnp.nan)
    _, new = mapped(sm.States(v=sm.ShortTermState(xs[0])), xs)
    np.testing.assert_array_equal(
        new["v"].astype("float32"), [np.nan, {"min": 1.0, "max": 15.0}[how]]
    )


@pytest.mark.parametrize("how, expected", [("sum", 3), ("changes", None), ("min", 0), ("max", 2)])
@pytest.mark.parametrize("dtype", ["int4", "uint4", "float8_e4m3fn"])
def test_numbers_of_few_bits(dtype, how, expected):
    states = sm.States(v=sm.ShortTermState(jnp.array(1.5 if "f" in dtype else 1, dtype)))
    for options in ({}, {"chunk_size": 2}):
        f = lambda s, x: (x, s.set("v", x.astype(dtype)))
        mapped = sm.vmap2(f, state_out_axes={sm.Reduce(how): ...}, **options)
        _, new = mapped(states, jnp.arange(3))
        old = float(states["v"])
        wanted = 3 - 2 * old if how == "changes" else expected
        assert float(new["v"].astype("float32")) == wanted and new["v"].dtype == dtype


def test_a_function_sees_all_lanes_and_the_old_value(runs):
    def best(stacked, old):
        return jnp.maximum(stacked.max(axis=0), old)

    states = sm.States(best=sm.LongTermState(5.0), v=sm.ShortTermState(0.0))
    rules = {sm.Reduce(runs(best)): sm.LongTermState}
    mapped = sm.vmap2(lambda s, x: (x, s.set("best", x)), state_out_axes=rules)
    for xs, expected in ((jnp.arange(4.0), 5.0), (jnp.arange(9.0)[5:], 8.0)):
        assert mapped(states, xs)[1]["best"] == expected
    assert runs.count == 1
    _, new = sm.pmap2(lambda s, x: (x, s.set("best", x)), state_out_axes=rules)(
        states, jnp.arange(16.0)
    )
    assert new["best"] == 15.0


def test_a_function_of_a_state_of_several_arrays_that_came_in_on_an_axis():
    def pick(stacked, old):
        k = jnp.argmax(stacked["score"])
        assert old["x"].shape == (3, 2) and stacked["x"].shape == (2, 3)
        return jax.tree.map(lambda leaf: leaf[k], stacked)

    value = {"score": jnp.array([[1.0, 5.0]]), "x": jnp.arange(6.0).reshape(3, 2)}
    states = sm.States(best=sm.LongTermState(value))
    mapped = sm.vmap2(
        lambda s: (None, s), state_in_axes={-1: ...}, state_out_axes={sm.Reduce(pick): ...}
    )
    _, new = mapped(states)
    assert new["best"]["score"].tolist() == [5.0] and new["best"]["x"].tolist() == [1.0, 3.0, 5.0]


def test_a_function_that_closes_over_a_tracer():
    def outer(scale):
        rules = {sm.Reduce(lambda stacked, old: scale * stacked.sum(axis=0)): ...}
        mapped = sm.vmap2(lambda s, x: (x, s.set("v", x)), state_out_axes=rules)
        return mapped(sm.States(v=sm.ShortTermState(0.0)), jnp.arange(3.0))[1]["v"]

    assert jax.jit(outer)(2.0) == 6.0
    assert jax.grad(outer)(2.0) == 3.0
    assert jax.vmap(outer)(jnp.arange(2.0)).tolist() == [0.0, 3.0]


def test_a_program_that_holds_a_tracer_is_not_kept():
    box = {}
    rules = {sm.Reduce(lambda stacked, old: box["scale"].astype(float) * stacked.sum(axis=0)): ...}
    mapped = sm.vmap2(lambda s, x: (x, s.set("v", x)), state_out_axes=rules)

    @jax.jit
    def outer(scale):
        box["scale"] = jnp.asarray(scale)
        return mapped(sm.States(v=sm.ShortTermState(0.0)), jnp.arange(3.0))[1]["v"]

    assert outer(2.0) == 6.0 and outer(jnp.array(3)) == 9.0  # another dtype: traced again


@pytest.mark.parametrize("how", ["mean", "sum", "changes", "min", "max"])
@pytest.mark.parametrize("way", WAYS)
def test_gradients(how, way):
    mapping, options = WAYS[way]
    f = lambda s, x: (None, s.set("v", s["v"] * jnp.sin(x)))
    mapped = mapping(f, state_out_axes={sm.Reduce(how): ...}, **options)
    by = {"mean": jnp.mean, "sum": jnp.sum, "min": jnp.min, "max": jnp.max}

    def ours(v, xs):
        return mapped(sm.States(v=sm.ShortTermState(v)), xs)[1]["v"]

    def plain(v, xs):
        new = v * jnp.sin(xs)
        return v + (new - v).sum() if how == "changes" else by[how](new)

    xs = jnp.arange(1.0, 9.0)
    for argument in (0, 1):
        mine = jax.grad(ours, argument)(jnp.array(2.0), xs)
        np.testing.assert_allclose(mine, jax.grad(plain, argument)(2.0, xs), rtol=1e-5)


def test_through_scan_and_cond():
    mapped = sm.vmap2(step, state_out_axes=RULES)
    states = context()

    def body(states, x):
        return jax.lax.cond(x.sum() > 0, mapped, lambda s, x: (x.sum(axis=1), s), states, x)[::-1]

    scanned, outs = jax.lax.scan(body, states, jnp.stack([XS, -XS, XS]))
    one = mapped(mapped(states, XS)[1], XS)[1]
    assert scanned["count"] == 3 + 2 * 8
    np.testing.assert_allclose(scanned["mean"], one["mean"], rtol=1e-6)
    assert scanned["rng"] == one["rng"]


def test_the_plan_says_it():
    plan = sm.vmap2(step, state_out_axes=RULES)
    rows = plan.plan(context(), XS)
    assert rows["count"].why == "Reduce(\"changes\") over the lanes, WithTag('count')"
    assert rows["hidden"].why == "comes out as it came in, OfType(HiddenState)"
    assert rows["hidden"].written and rows["hidden"].axis_out == "shared"
    assert rows["mean"].axis_out == "shared" and rows["mean"].written


def test_a_restored_stream_draws_the_same_at_each_call_and_the_plan_says_so():
    mapped = sm.vmap2(
        lambda s: sm.random.uniform(s, "rng"), axis_size=3, state_out_axes={sm.Restore: ...}
    )
    states = context()
    first, after = mapped(states)
    again, _ = mapped(after)
    assert first.tolist() == again.tolist() and len(set(first.tolist())) == 3
    assert after["rng"] == states["rng"]
    assert "; each call draws the same numbers" in mapped.plan(states)["rng"].why


def test_a_mapped_state_is_restored_on_its_axis():
    states = sm.States(v=sm.ShortTermState(jnp.arange(6.0).reshape(2, 3)))
    f = lambda s, x: (s["v"].sum(), s.set("v", s["v"] + x))
    mapped = sm.vmap2(f, state_in_axes={1: ...}, state_out_axes={sm.Restore: ...}, donate=True)
    out, new = mapped(states, jnp.arange(3.0))
    assert out.tolist() == [3.0, 5.0, 7.0] and new["v"] is states["v"]
    assert mapped.plan(states, jnp.arange(3.0))["v"].axis_out == 1
    out, _ = mapped(states, jnp.arange(3.0))  # it was not donated
    assert out.tolist() == [3.0, 5.0, 7.0]


def test_what_is_reduced_is_donated():
    states = sm.States(v=sm.ShortTermState(jnp.zeros(1000)))
    f = lambda s, x: (x, s.set("v", s["v"] + x))
    mapped = sm.vmap2(f, state_out_axes={sm.Reduce("changes"): ...}, donate=True)
    old = states["v"]
    _, new = mapped(states, jnp.arange(3.0))
    assert new["v"][0] == 3.0 and old.is_deleted()
    with pytest.raises(sm.DonatedStatesError, match="donate"):
        mapped(states, jnp.arange(3.0))


def test_rules_stand_before_the_axes_of_a_population():
    class Model(eqx.Module):
        v: sm.ShortTermState
        seen: sm.NonBatchState

        def __init__(self):
            self.v = sm.ShortTermState(0.0)
            self.seen = sm.NonBatchState(0)

        def __call__(self, states, x):
            v = states[self.v] + x
            return v, states.update({self.v: v, self.seen: states[self.seen] + 1})

    model, states, axes = sm.vmap2_new_states(Model, axis_size=4)
    rules = {sm.Reduce("changes"): sm.NonBatchState, **axes}
    mapped = sm.vmap2(model, state_in_axes=axes, state_out_axes=rules)
    _, states = mapped(states, jnp.arange(4.0))
    assert states[model.seen] == 4 and states[model.v].tolist() == [0.0, 1.0, 2.0, 3.0]

    population = sm.Map(Model, 4, call_state_axes={sm.Reduce("changes"): sm.NonBatchState})
    population, states = population.init_all_states()
    _, states = population(states, jnp.arange(4.0))
    assert states["seen"] == 4 and states["v"].shape == (4,)
    total = population.map("__call__", state_axes={sm.Reduce("sum"): sm.ShortTermState})
    _, states = total(states, jnp.arange(4.0))
    assert states["seen"] == 8 and states["v"] == 2 * (0 + 1 + 2 + 3)


def test_only_the_lanes_of_this_map_are_combined():
    inner = sm.vmap2(
        lambda s, x: (x, s.set("n", s["n"] + 1)), state_out_axes={sm.Reduce("changes"): ...}
    )
    states = sm.States(n=sm.ShortTermState(jnp.zeros(3, int)))
    each = sm.vmap2(inner, state_in_axes={0: ...})
    _, new = each(states, jnp.zeros((3, 5)))
    assert new["n"].tolist() == [5, 5, 5]
    both = sm.vmap2(inner, state_out_axes={sm.Reduce("changes"): ...})
    _, new = both(sm.States(n=sm.ShortTermState(0)), jnp.zeros((3, 5)))
    assert new["n"] == 15


def test_what_no_lane_writes_is_the_very_array_and_costs_nothing():
    states = sm.States(a=sm.ShortTermState(jnp.ones(3)), b=sm.ShortTermState(0.0))
    mapped = sm.vmap2(lambda s, x: (x, s.set("a", s["a"])), state_out_axes={sm.Reduce("sum"): ...})
    _, new = mapped(states, jnp.arange(3.0))
    assert leaves_are(new, states)
    program = mapped.get_jaxpr_by_cache(mapped.get_arg_cache_key(states, jnp.arange(3.0)))
    assert "reduce_sum" not in str(program)


def test_in_chunks_the_lanes_are_never_all_there():
    f = lambda s, x: (None, s.set("v", jnp.outer(x, x)))
    states = sm.States(v=sm.LongTermState(jnp.zeros((64, 64))))
    xs = jnp.ones((256, 64))
    rules = {sm.Reduce("mean"): ...}

    def temp(**options):
        compiled = sm.vmap2(f, state_out_axes=rules, **options).lower(states, xs).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    text = str(jax.make_jaxpr(sm.vmap2(f, state_out_axes=rules, chunk_size=4))(states, xs))
    assert "f32[4,64,64]" in text and "f32[256,64,64]" not in text and "f32[64,4,64" not in text
    assert temp(chunk_size=4) < 2**20


@pytest.mark.parametrize("how", ["mean", "changes", "max"])
@pytest.mark.parametrize("chunk_size", [None, 3, 4])
@pytest.mark.parametrize("spec", [P("lane"), P(None, "feature")])
def test_explicit_meshes(how, chunk_size, spec):
    mesh = jax.make_mesh((4, 2), ("lane", "feature"))
    xs = jax.device_put(jr.normal(jr.key(0), (8, 4)), NamedSharding(mesh, spec))
    f = lambda s, x: (None, s.set("v", s["v"] + jnp.sin(x)))
    zeros = jax.device_put(jnp.zeros(4), NamedSharding(mesh, P(*spec[1:])))
    states = sm.States(v=sm.LongTermState(zeros))
    mapped = sm.vmap2(f, state_out_axes={sm.Reduce(how): ...}, chunk_size=chunk_size)
    _, new = mapped(states, xs)
    wanted = np.sin(np.asarray(xs))
    wanted = {"mean": wanted.mean(0), "changes": wanted.sum(0), "max": wanted.max(0)}[how]
    np.testing.assert_allclose(np.asarray(new["v"]), wanted, rtol=1e-5)


def test_short_floats_do_not_lose_what_chunks_add():
    states = sm.States(v=sm.LongTermState(jnp.zeros((), jnp.bfloat16)))
    f = lambda s, x: (None, s.set("v", x))
    xs = jnp.ones(1024, jnp.bfloat16)
    mapped = sm.vmap2(f, state_out_axes={sm.Reduce("sum"): ...}, chunk_size=1)
    assert mapped(states, xs)[1]["v"] == 1024


def test_no_lanes():
    def f(states, x):
        ok = states["ok"] & (x > 0)
        return x, states.update({"ok": ok, "v": x, "n": states["n"] + 1, "s": jnp.ones(())})

    states = sm.States(
        ok=sm.ShortTermState(False),
        v=sm.ShortTermState(7.0),
        n=sm.ShortTermState(7),
        s=sm.LongTermState(7.0),
    )
    at = lambda name: lambda path, state: path == (name,)
    rules = {sm.Reduce("all"): at("ok"), sm.Reduce("sum"): at("v"), sm.Reduce("changes"): at("n")}
    mapped = sm.vmap2(f, state_out_axes=rules)
    _, new = mapped(states, jnp.zeros(0))
    assert new["ok"] == True and new["v"] == 0 and new["n"] == 7  # noqa: E712
    assert new["s"] == 7  # written alike in every lane, of which there are none
    for how in ("mean", "min", "max", lambda stacked, old: old):
        mapped = sm.vmap2(f, state_out_axes={sm.Reduce(how): at("v"), sm.Restore: ...})
        with pytest.raises(ValueError, match=r"`v` is listed under .* there are no lanes"):
            mapped(states, jnp.zeros(0))


def test_equal_rules_share_what_they_compiled(runs):
    f = runs(lambda s, x: (x, s.set("v", x)))
    states = sm.States(v=sm.ShortTermState(0.0))
    for _ in range(3):
        mapped = sm.vmap2(f, state_out_axes={sm.Reduce("sum"): ...})
        assert mapped(states, jnp.arange(3.0))[1]["v"] == 3.0
    assert runs.count == 1
    assert (
        sm.vmap2(f, state_out_axes={sm.Reduce("max"): ...})(states, jnp.arange(3.0))[1]["v"] == 2.0
    )
    assert runs.count == 2


def add_one(states, x):
    return x, states.set("v", states["v"] + 1.0)


def test_the_function_of_a_rule_is_not_kept_alive():
    def make():
        held = jnp.ones(3)
        rules = {sm.Reduce(lambda stacked, old: stacked.sum() + held.sum()): ...}
        mapped = sm.vmap2(add_one, state_out_axes=rules)
        states = sm.States(v=sm.ShortTermState(0.0))
        for _ in range(2):
            assert mapped(states, jnp.arange(3.0))[1]["v"] == 6.0
        (rule,) = rules
        return weakref.ref(rule), weakref.ref(rule.how)

    rule, how = make()
    gc.collect()
    assert rule() is None and how() is None


def test_rules_are_keys():
    a, b = sm.Reduce("mean"), sm.Reduce("mean")
    assert a != b and len({a: 0, b: 1, sm.Restore: 2}) == 3
    mapped = sm.vmap2(step, state_out_axes={a: "x", b: "y", sm.Restore: sm.HiddenState, 0: "z"})
    assert list(mapped.state_out_axes) == [a, b, sm.Restore, 0]
    assert pickle.loads(pickle.dumps(sm.Restore)) is sm.Restore
    assert pickle.loads(pickle.dumps(a)).how == "mean"
    assert repr(a) == 'Reduce("mean")' and repr(sm.Restore) == "Restore"


def only(name):
    return lambda path, state: path == (name,)


@pytest.mark.parametrize(
    "how, name, options, message",
    [
        ("mean", "i", {}, "ShortTermState `i` is listed under .*mean.*: a mean is no integer"),
        ("any", "v", {}, "`v` is listed under .*any.*: `any` is of bools"),
        ("all", "i", {}, "`i` is listed under .*all.*: `all` is of bools"),
        ("sum", "b", {}, "`b` is listed under .*sum.*: `sum` is of numbers"),
        ("min", "c", {}, "`c` is listed under .*min.*: complex numbers have no order"),
        ("max", "c", {}, "`c` is listed under .*max.*: complex numbers have no order"),
        ("sum", "k", {}, "`k` is listed under .*sum.*: keys are no numbers"),
        ("mean", "rng", {}, "RandomState `rng` is listed under .*: keys have no mean"),
        ("changes", "m", {}, "`m` is listed under .*changes.*: it comes in on axis 0"),
        (max, "v", {"chunk_size": 2}, "`v` is listed under Reduce.max.*: a function sees all"),
    ],
)
def test_refused_by_name(how, name, options, message):
    states = sm.States(
        i=sm.ShortTermState(0),
        v=sm.ShortTermState(0.0),
        b=sm.ShortTermState(False),
        c=sm.ShortTermState(1j),
        k=sm.ShortTermState(jr.key(0)),
        m=sm.LongTermState(jnp.zeros(3)),
        rng=sm.RandomState(0),
    )

    def f(states, x):
        new = {"i": states["i"] + 1, "v": x, "b": x > 1, "m": x, "c": jax.lax.complex(x, x)}
        states = states.update({**new, "k": jr.fold_in(states["k"], states["i"])})
        return sm.random.normal(states, "rng")

    rules = {sm.Reduce(how): only(name), 0: sm.OfType(sm.LongTermState), sm.Restore: ...}
    mapped = sm.vmap2(f, state_in_axes={0: sm.LongTermState}, state_out_axes=rules, **options)
    before = jax.tree.leaves(states)
    with pytest.raises(ValueError, match=message):
        mapped(states, jnp.arange(3.0))
    assert all(x is y for x, y in zip(before, jax.tree.leaves(states)))


def test_wrong_rules():
    with pytest.raises(ValueError, match="takes one of 'mean', 'sum'.* not 'median'"):
        sm.Reduce("median")
    with pytest.raises(TypeError, match=r"(?s)a word or a function.*Right:  \{sm.Reduce"):
        sm.Reduce(sm.LongTermState)
    rules = {sm.Reduce("mean"): ...}
    with pytest.raises(ValueError, match="`state_in_axes` holds the rule .*takes axes alone"):
        sm.vmap2(step, state_in_axes=rules)
    make = lambda: {"v": sm.ShortTermState(0.0)}
    for rule in (sm.Reduce("mean"), sm.Restore):
        rules = {rule: ...}
        with pytest.raises(ValueError, match="`state_out_axes` holds the rule .* takes axes"):
            sm.vmap2_new_states(make, axis_size=3, state_out_axes=rules)
        with pytest.raises(ValueError, match="`init_state_axes` holds the rule"):
            sm.Map(make, 3, init_state_axes=rules)
    for key in ("mean", sm.Reduce):
        with pytest.raises(TypeError, match=r'Right:  \{sm.Reduce\("mean"\): \.\.\.\}'):
            sm.vmap2(step, state_out_axes={key: ...})
        with pytest.raises(TypeError, match=r"Right:  \{0: sm.ParamState\}"):
            sm.vmap2(step, state_in_axes={key: ...})


def test_a_function_that_returns_another_shape():
    f = lambda s, x: (x, s.set("v", x))
    mapped = sm.vmap2(f, state_out_axes={sm.Reduce(lambda stacked, old: stacked): ...})
    with pytest.raises(ValueError, match="`v` was given a value of another shape") as info:
        mapped(sm.States(v=sm.ShortTermState(0.0)), jnp.arange(3.0))
    assert "expected f32[], got f32[3]" in str(info.value)
    assert "Reduce(<lambda>) in `state_out_axes`" in info.value.__notes__[0]


def test_a_function_that_raises():
    def largest(stacked):  # of one argument
        return stacked.max()

    mapped = sm.vmap2(lambda s, x: (x, s.set("v", x)), state_out_axes={sm.Reduce(largest): ...})
    with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given") as info:
        mapped(sm.States(v=sm.ShortTermState(0.0)), jnp.arange(3.0))
    assert "Reduce(largest) in `state_out_axes`, for the state `v`" in info.value.__notes__[0]


def test_a_function_that_does_not_take_stacked_and_old():
    f = lambda s, x: (x, s.set("v", x))
    mapped = sm.vmap2(f, state_out_axes={sm.Reduce(jnp.mean): ...})
    with pytest.raises(jax.errors.ConcretizationTypeError, match="axis argument") as info:
        mapped(sm.States(v=sm.ShortTermState(0.0)), jnp.arange(3.0))
    note = "".join(info.value.__notes__)
    assert "state `v`" in note and "`(stacked, old)`" in note and "stacked.mean(0)" in note


def test_the_message_of_the_policy_names_them():
    with pytest.raises(sm.BatchAxisError, match=r"sm.Reduce\(\"mean\"\)") as info:
        sm.vmap2(step)(context(), XS)
    assert "sm.Restore" in str(info.value)


def test_a_function_is_given_layers_and_gives_one_back():
    layer = eqx.nn.MLP(2, 1, 3, 1, key=jr.key(0))
    states = sm.States(net=sm.ParamState(layer))

    def scale(states, x):
        grown = jax.tree.map(lambda w: w * x if eqx.is_array(w) else w, states["net"])
        return x, states.set("net", grown)

    def average(stacked, old):
        assert stacked.activation is old.activation is layer.activation
        return jax.tree.map(lambda w: w.mean(axis=0) if eqx.is_array(w) else w, stacked)

    for how in (average, "mean"):
        mapped = sm.vmap2(scale, state_out_axes={sm.Reduce(how): ...})
        _, new = mapped(states, jnp.arange(3.0))
        np.testing.assert_allclose(new["net"].layers[0].weight, layer.layers[0].weight, rtol=1e-6)
