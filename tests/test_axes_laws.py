"""Axes: the table of states with its reasons, word for word, and what keeps to it."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import statemap as sm


XS = jnp.arange(3.0)
V = sm.PathContains("v")
R = sm.PathContains("r")


def leave(states, x):
    return x, states


def alike(states, x):
    return x, states.set("v", states["v"] * 0 + 1)


def constant(states, x):
    return x, states.set("v", jnp.ones(states["v"].shape))


def by_lane(states, x):
    return x, states.set("v", states["v"] + x)


def listed(axis):
    return f"listed under {axis} in `state_out_axes`, PathContains('v')"


STAYS, KEPT = "written, stays on the axis it came in", "mapped, not written"
SAME, SHARED = "the same in every lane, out axis None", "shared, not written"
ALIKE = "written alike in every lane"

# in, the function, out: axis out and why
TABLE = [
    (0, leave, {}, 0, KEPT),
    (0, by_lane, {}, 0, STAYS),
    (1, by_lane, {}, 1, STAYS),
    (-1, leave, {}, -1, KEPT),
    (0, leave, {0: V}, 0, KEPT),
    (0, leave, {1: V}, 1, listed(1)),
    (0, by_lane, {1: V}, 1, listed(1)),
    (1, by_lane, {-2: V}, -2, listed(-2)),
    (0, constant, {None: V}, "shared", SAME),
    ("shared", leave, {}, "shared", SHARED),
    ("shared", leave, {0: V}, "shared", SHARED),
    ("shared", leave, {None: V}, "shared", SHARED),
    ("shared", alike, {}, "shared", ALIKE),
    ("shared", alike, {None: V}, "shared", SAME),
    ("shared", alike, {0: V}, 0, listed(0)),
    ("shared", by_lane, {1: V}, 1, listed(1)),
]


@pytest.mark.parametrize("axis_in, f, out, axis_out, why", TABLE)
def test_the_table_says_why(axis_in, f, out, axis_out, why):
    shape = {0: (3, 2), 1: (2, 3), -1: (2, 3), "shared": (2,)}[axis_in]
    states = sm.States(v=sm.State(jr.normal(jr.key(0), shape)))
    mapping = sm.vmap2(
        f, state_in_axes={} if axis_in == "shared" else {axis_in: V}, state_out_axes=out
    )
    row = mapping.plan(states, XS)["v"]
    assert (row.axis_in, row.axis_out, row.why) == (axis_in, axis_out, why)
    assert row.why in repr(mapping.plan(states, XS))
    _, new = mapping(states, XS)
    lanes = np.moveaxis(states["v"], axis_in, 0) if axis_in != "shared" else [states["v"]] * 3
    expected = [f(sm.States(v=sm.State(v)), x)[1]["v"] for v, x in zip(lanes, XS)]
    expected = expected[0] if axis_out == "shared" else np.stack(expected, axis_out)
    np.testing.assert_allclose(new["v"], expected, rtol=1e-6)


@pytest.mark.parametrize("axis_in, f", [(0, leave), (0, by_lane), (None, by_lane)])
def test_lanes_that_differ_where_one_value_is_asked_for(axis_in, f):
    states = sm.States(v=sm.State(XS))
    with pytest.raises(sm.BatchAxisError, match="`v` is listed under None in `state_out_axes`"):
        sm.vmap2(f, state_in_axes={axis_in: V}, state_out_axes={None: V})(states, XS)


def test_the_policy_puts_lanes_on_axis_0():
    states = sm.States(v=sm.State(jnp.zeros(2)))
    quiet = sm.vmap2(by_lane, unexpected_out_state_mapping="ignore")
    row = quiet.plan(states, XS)["v"]
    assert (row.axis_out, row.why) == (0, "lanes differ, policy 'ignore'")
    assert quiet(states, XS)[1]["v"].shape == (3, 2)
    loud = sm.vmap2(by_lane, unexpected_out_state_mapping="warn")
    assert loud.plan(states, XS)["v"].why == "lanes differ, policy 'warn'"
    for _ in range(2):  # cold and warm
        with pytest.warns(UserWarning, match="wrote values that depend on the lane .*: `v`"):
            assert loud(states, XS)[1]["v"].tolist() == [[0, 0], [1, 1], [2, 2]]
    with pytest.raises(sm.BatchAxisError, match="`v` is shared by all lanes"):
        sm.vmap2(by_lane).plan(states, XS)


def draw(states, x):
    noise, states = sm.random.normal(states, "r")
    return x + noise, states


SPLIT = "a key for each lane; the state itself moves on once"
STREAMS = [
    ({}, draw, {}, "split", "shared", SPLIT, ()),
    ({}, draw, {None: R}, "split", "shared", SPLIT, ()),
    ({}, draw, {0: R}, "split", 0, "listed under 0 in `state_out_axes`, PathContains('r')", (3,)),
    ({}, leave, {}, "split", "shared", "shared, not used", ()),
    ({}, leave, {0: R}, "split", "shared", "shared, not used", ()),
    ({None: R}, draw, {}, "shared", "shared", ALIKE, ()),
    ({None: R}, draw, {None: R}, "shared", "shared", SAME, ()),
    ({None: R}, leave, {}, "shared", "shared", SHARED, ()),
    ({0: R}, draw, {}, 0, 0, STAYS, (3,)),
    ({0: R}, leave, {}, 0, 0, KEPT, (3,)),
]


@pytest.mark.parametrize("into, f, out, axis_in, axis_out, why, shape", STREAMS)
def test_the_table_of_streams_says_why(into, f, out, axis_in, axis_out, why, shape):
    key = jr.split(jr.key(0), 3) if 0 in into else jr.key(0)
    states = sm.States(r=sm.RandomState(key))
    mapping = sm.vmap2(f, state_in_axes=into, state_out_axes=out)
    row = mapping.plan(states, XS)["r"]
    assert (row.axis_in, row.axis_out, row.why) == (axis_in, axis_out, why)
    x, new = mapping(states, XS)
    assert new["r"].shape == shape
    assert (new["r"] == states["r"]).all() == (f is leave)
    alone = jr.split(jr.key(0), 4)
    if why == SPLIT:
        assert new["r"] == alone[0]
    if f is draw:
        assert len(set((x - XS).round(4).tolist())) == (1 if None in into else 3)


def test_arrays_of_keys_that_lanes_share_are_split_key_by_key():
    keys = jr.split(jr.key(0), 4)
    states = sm.States(r=sm.RandomState(keys))
    for options in ({}, {"chunk_size": 2}):
        out, new = sm.vmap2(lambda s, x: (jr.key_data(s["r"]), s), **options)(states, XS)
        for j in range(4):
            mine = jr.split(keys[j], 4)
            assert new["r"][j] == mine[0]
            np.testing.assert_array_equal(out[:, j], jr.key_data(mine[1:]))


@pytest.mark.parametrize("out, axes", [({}, (1, 1)), ({0: ...}, (0, 0)), ({-1: ...}, (-1, -1))])
def test_one_leaf_of_a_pytree_is_written_on_its_axis(out, axes):
    value = {"a": jnp.arange(6.0).reshape(2, 3), "b": jr.normal(jr.key(0), (4, 3, 2))}

    def f(states, x):
        d = states["d"]
        d["a"] = d["a"] + x
        return x, states.set("d", d)

    states = sm.States(d=sm.State(value))
    mapping = sm.vmap2(f, state_in_axes={1: ...}, state_out_axes=out)
    for _ in range(2):
        _, new = mapping(states, XS)
        np.testing.assert_array_equal(new["d"]["a"], np.moveaxis(value["a"] + XS, 1, axes[0]))
        np.testing.assert_array_equal(new["d"]["b"], np.moveaxis(value["b"], 1, axes[1]))


def test_keys_stack_on_the_last_of_their_own_axes():
    members = [sm.States(r=sm.RandomState(k)) for k in jr.split(jr.key(0), 3)]
    assert (sm.stack(members, {-1: ...})["r"] == jr.split(jr.key(0), 3)).all()
    members = [sm.States(r=sm.RandomState(jr.split(jr.key(i)))) for i in range(3)]
    states = sm.stack(members, {-1: ...})
    assert states["r"].shape == (2, 3)
    assert [m == e for m, e in zip(sm.unstack(states, {-1: ...}), members)] == [True] * 3
    out, _ = sm.vmap2(lambda s, x: (jr.key_data(s["r"]), s), state_in_axes={-1: ...})(states, XS)
    np.testing.assert_array_equal(out, [jr.key_data(m["r"]) for m in members])


def test_members_that_are_not_there():
    states = sm.States(v=sm.State(jnp.arange(8.0)))
    assert sm.lane(states, {0: ...}, -8)["v"] == 0.0 and sm.lane(states, {0: ...}, 7)["v"] == 7.0
    for index in (-9, 8, [0, -9], jnp.array([8])):
        with pytest.raises(IndexError, match="8 members"):
            sm.lane(states, {0: ...}, index)


def test_a_state_that_never_has_lanes():
    states = sm.States(n=sm.NonBatchState(jnp.zeros(3)), v=sm.ShortTermState(jnp.zeros(3)))
    f = lambda s, x: (s["n"].shape[0] + x, s.set("v", s["v"] + x))
    for filter in (..., sm.ShortTermState, sm.Not(sm.ParamState)):
        mapping = sm.vmap2(f, state_in_axes={0: filter}, state_out_axes={0: filter})
        row = mapping.plan(states, XS)["n"]
        assert (row.axis_in, row.axis_out, row.why) == ("shared", "shared", SHARED)
        assert mapping(states, XS)[0].tolist() == (3 + XS).tolist()
    for meant in (sm.NonBatchState, sm.OfType(sm.NonBatchState)):
        with pytest.raises(ValueError, match="`n` the axis 0, and a NonBatchState never has lanes"):
            sm.vmap2(f, state_in_axes={0: meant})(states, XS)
    for policy in ("raise", "ignore"):
        options = {"state_out_axes": {0: ...}, "unexpected_out_state_mapping": policy}
        mapping = sm.vmap2(lambda s, x: (x, s.set("n", s["n"] + x)), **options)
        with pytest.raises(sm.BatchAxisError, match="`n` is a NonBatchState, .* share one value"):
            mapping(states, XS)


def not_batching(fn, *, in_axes, out_axes, axis_size, axis_name=None):
    return fn


def in_blocks(fn, *, in_axes, out_axes, axis_size, axis_name=None):
    def mapped(*args):
        halves = lambda a: a.reshape(2, a.shape[0] // 2, *a.shape[1:])
        out = jax.vmap(fn)(*jax.tree.map(halves, args))
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), out)

    return mapped


@pytest.mark.parametrize(
    "mapping_fn, shape", [(not_batching, r"\(4, 2\)"), (in_blocks, r"\(2, 2\)")]
)
def test_a_mapping_function_that_gives_no_lanes_is_refused(mapping_fn, shape):
    states = sm.States(v=sm.State(jnp.zeros((4, 2))))
    mapping = sm.StatefulMapping(by_lane, state_in_axes={0: V}, mapping_fn=mapping_fn)
    with pytest.raises(
        ValueError, match=f"`mapping_fn` gave the function an array of shape {shape}"
    ):
        mapping(states, jnp.ones((4, 2)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_of_a_mapping_function_that_does_not_batch_nothing_is_known():
    def summed(states, x):
        return x, states.set("v", jax.lax.psum(x, "i"))

    states, xs = sm.States(v=sm.State(0.0)), jnp.arange(8.0)
    assert sm.StatefulMapping(summed, axis_name="i")(states, xs)[1]["v"] == 28.0
    parallel = {"axis_name": "i", "mapping_fn": jax.pmap}
    with pytest.raises(sm.BatchAxisError, match="`v` is shared by all lanes"):
        sm.StatefulMapping(summed, **parallel)(states, xs)
    _, new = sm.StatefulMapping(summed, state_out_axes={0: V}, **parallel)(states, xs)
    assert new["v"].tolist() == [28.0] * 8


def one_by_one(fn, *, in_axes, out_axes, axis_size, axis_name=None):
    """Maps a lane at a time, and stacks what `out_axes` says is shared."""
    return lambda *args: jax.lax.map(lambda args: fn(*args), args)


def test_a_mapping_function_that_stacks_what_lanes_share_is_refused():
    states = sm.States(v=sm.State(jnp.zeros(2)))
    mapping = sm.StatefulMapping(lambda s, x: (x, s.set("v", s["v"] + 1)), mapping_fn=one_by_one)
    with pytest.raises(ValueError, match="`mapping_fn`"):
        mapping(states, jnp.arange(3.0))


def test_arguments_behind_args_have_no_name_of_their_own():
    def fn(states, first, *rest, **options):
        return first, states

    with pytest.raises(ValueError, match=r"^Argument 1 has shape \(\) and no axis 0"):
        sm.vmap2(fn)(sm.States(), jnp.ones(2), jnp.float32(1.0))
    with pytest.raises(ValueError, match=r"^Argument 0 \(`first`\) has shape \(\) and no axis 0"):
        sm.vmap2(fn)(sm.States(), jnp.float32(1.0), jnp.ones(2))
