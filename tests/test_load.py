"""`States.load`: the values of the context of a model that has changed since."""

import io

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, strategies as st

import statemap as sm


def _old():
    return sm.States(
        w=sm.ParamState(jnp.arange(3.0)),
        v=sm.ShortTermState({"a": jnp.ones(2), "b": jnp.array([1, 2])}),
        rng=sm.RandomState(7),
        gone=sm.LongTermState(jnp.array(5.0)),
    )


def _new():
    return sm.States(
        w=sm.ParamState(jnp.zeros(3)),
        v=sm.ShortTermState({"a": jnp.zeros(2), "b": jnp.array([0, 0])}),
        rng=sm.RandomState(0),
        fresh=sm.LongTermState(jnp.array(9.0)),
    )


def test_by_path():
    old, new = _old(), _new()
    got, report = new.load(old, strict=False)
    for key in ("w", "v", "rng"):
        assert eqx.tree_equal(got[key], old[key])
    assert got["fresh"] == 9.0 and "gone" not in got
    assert report.loaded == ("rng", "v", "w")
    assert (report.added, report.dropped, report.changed) == (("fresh",), ("gone",), ())
    assert len(report) == len(list(report)) == 5
    assert new["w"].tolist() == [0.0, 0.0, 0.0]  # as it was


def test_the_report_is_a_table():
    _, report = _new().load(_old(), strict=False)
    lines = [line.split("  ") for line in repr(report).splitlines()]
    assert lines[0][0].startswith("path") and len(lines) == 7
    assert [line[0].strip() for line in lines[2:]] == ["fresh", "rng", "v", "w", "gone"]


def test_strict_names_all_that_differs():
    old = _old().merge(sm.States(x=sm.ParamState(jnp.ones(2)), y=sm.ParamState(jnp.ones(2))))
    new = _new().merge(sm.States(x=sm.ParamState(jnp.ones(3)), y=sm.LongTermState(jnp.ones(2))))
    with pytest.raises(ValueError, match="4 of 7 states differ") as caught:
        new.load(old)
    said = str(caught.value)
    for line in (
        r"fresh  added    LongTermState(f32[])",
        r"x      changed  ParamState(f32[3])      ParamState(f32[2])",
        r"y      changed  LongTermState(f32[2])   ParamState(f32[2])",
        r"gone   dropped                          LongTermState(f32[])",
    ):
        assert " ".join(line.split()) in [" ".join(l.split()) for l in said.splitlines()]
    assert "strict=False" in said and "\nw " not in said


def test_strict_loads_what_is_the_same():
    got, report = _old().load(jax.tree.map(lambda x: x + x.dtype.type(1), _old()))
    assert got["w"].tolist() == [1.0, 2.0, 3.0] and len(report.loaded) == 4


@pytest.mark.parametrize(
    "there",
    [
        sm.LongTermState(jnp.zeros(3)),
        sm.ParamState(jnp.zeros(4)),
        sm.ParamState(jnp.zeros(3, jnp.int32)),
        sm.ParamState({"a": jnp.zeros(3)}),
        sm.State(jnp.zeros(3)),
    ],
)
def test_what_does_not_fit_stays(there):
    new = sm.States(w=sm.ParamState(jnp.ones(3)))
    got, report = new.load(sm.States(w=there), strict=False)
    assert got == new and report.changed == ("w",)


def test_names_and_tags_may_change_and_other_fields_not():
    class Decaying(sm.State):
        decay: float = eqx.field(static=True, default=0.5)

        def __init__(self, value, decay, **kwargs):
            super().__init__(value, **kwargs)
            self.decay = decay

    make = lambda decay, x, **kw: sm.States({"w": Decaying(jnp.full(2, x), decay, **kw)})
    new = make(0.5, 0.0, name="n", tag="t")
    assert new.load(make(0.5, 1.0, tag="u"))[0]["n"].tolist() == [1.0, 1.0]
    assert new.load(make(0.25, 1.0), strict=False)[1].changed == ("w",)
    one, other = sm.RandomState(jr.key(0, impl="rbg")), sm.RandomState(jr.key(0, impl="unsafe_rbg"))
    assert sm.States(r=one).load(sm.States(r=other), strict=False)[1].changed == ("r",)


def test_values_with_static_parts():
    make = lambda act, x: sm.States(
        act=sm.ParamState((jnp.full(2, x), act)), drop=sm.ParamState(eqx.nn.Dropout(0.5))
    )
    new, old = make(jax.nn.relu, 0.0), make(jax.nn.relu, 1.0)
    assert new.load(old)[0] == old
    got, report = new.load(make(jnp.tanh, 1.0), strict=False)
    assert got == new and report.changed == ("act",) and report.loaded == ("drop",)
    row = next(row for row in report if row.path == "act")
    assert "relu" in row.here and "tanh" in row.old
    # Of arrays alone, a value without any is there as it is.
    got, report = new.load({"act.0": jnp.ones(2)})
    assert got == old and report.loaded == ("act", "drop")
    assert new.load({}, strict=False)[1].added == ("act",)


def test_models_and_handles():
    class Small(eqx.Module):
        w: sm.ParamState

        def __init__(self, n):
            self.w = sm.ParamState(jnp.full(n, 2.0))

    class Large(eqx.Module):
        w: sm.ParamState
        b: sm.ParamState

        def __init__(self, n):
            self.w = sm.ParamState(jnp.zeros(n))
            self.b = sm.ParamState(jnp.zeros(n))

    old_model, old = sm.make_with_states(Small)(3)
    model, states = sm.make_with_states(Large)(3)
    got, report = states.load(old, strict=False)
    assert got[model.w].tolist() == [2.0] * 3 and got._slots is states._slots
    assert report.added == ("b",)
    with pytest.raises(TypeError, match="was given a model.*\nWrong:  states.load.old_model"):
        states.load(old_model)


def test_states_at_several_places():
    """Tied weights are found by either path; what was tied may be untied."""
    both = sm.ParamState(jnp.ones(2))
    tied = lambda: sm.make_with_states(lambda: {"a": both, "b": both})()[1]
    apart = sm.States(a=sm.ParamState(jnp.zeros(2)), b=sm.ParamState(jnp.zeros(2)))
    got, report = apart.load(tied())
    assert got["a"].tolist() == got["b"].tolist() == [1.0, 1.0]
    moved = sm.States(b=sm.ParamState(jnp.full(2, 5.0)))
    assert tied().load(moved)[0]["a"].tolist() == [5.0, 5.0]


ARRAYS = {
    "flat": lambda: {
        "w": np.arange(3.0, dtype=np.float32),
        "v.a": np.ones(2, np.float32),
        "v.b": np.array([1, 2], np.int32),
        "rng": np.asarray(jr.key_data(jr.key(7))),
    },
    "nested": lambda: {
        "w": jnp.arange(3.0),
        "v": {"a": jnp.ones(2), "b": jnp.array([1, 2])},
        "rng": jr.key(7),
    },
    "tuples": lambda: {
        ("w",): jnp.arange(3.0),
        ("v", "a"): jnp.ones(2),
        ("v", "b"): jnp.array([1, 2]),
        ("rng",): jr.key(7),
    },
    "states": lambda: {k: v for (k,), v in _old().items() if k != "gone"},
}


@pytest.mark.parametrize("form", ARRAYS)
def test_pytrees_of_arrays(form):
    new = _new().select(sm.Not(sm.LongTermState))
    got, report = new.load(ARRAYS[form]())
    assert got == _old().select(sm.Not(sm.LongTermState))
    assert report.loaded == ("rng", "v", "w")
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(got))


def test_npz(tmp_path):
    file = io.BytesIO()
    np.savez(file, **ARRAYS["flat"]())
    file.seek(0)
    got, _ = _new().load(np.load(file), strict=False)
    assert got["w"].tolist() == [0.0, 1.0, 2.0]


def test_pytrees_that_do_not_fit():
    new = _new()
    arrays = {"w": np.zeros(3), "v.a": np.ones(2, np.float32), "extra": np.ones(1), "f": jnp.sin}
    got, report = new.load(arrays, strict=False)
    assert got == new  # float64 is not float32, and half of a value is none
    assert report.changed == ("v", "w") and report.added == ("fresh", "rng")
    assert report.dropped == ("extra",)
    key = {"rng": jr.key(0, impl="rbg")}
    assert new.load(key, strict=False)[1].changed == ("rng",)
    with pytest.raises(ValueError, match="Two of the arrays to load have the path `v.a`"):
        new.load({"v": {"a": jnp.ones(2)}, "v.a": jnp.ones(2)})
    for wrong in ("weights.npz", jnp.ones(3), None):
        with pytest.raises(TypeError, match='(?s)takes a context, or a pytree.*Wrong:.*"weights.n'):
            new.load(wrong)


def test_a_value_that_was_one_array_and_is_several_has_changed():
    one, several = sm.ParamState(jnp.ones(2)), sm.ParamState({"a": jnp.zeros(2)})
    states = sm.States(w=several)
    for old in (sm.States(w=one), {"w": jnp.ones(2)}):
        new, report = states.load(old, strict=False)
        assert [(row.path, row.what) for row in report] == [("w", "changed")]
        assert new["w"]["a"] is states["w"]["a"]
    new, report = states.load({"w": jnp.ones(2), "w.a": jnp.ones(2)}, strict=False)
    assert report.loaded == report.dropped == ("w",) and new["w"]["a"].tolist() == [1.0, 1.0]


def test_two_states_that_claim_an_array():
    new = sm.States(a=sm.State({"w": jnp.zeros(2)}))
    new = new.merge(sm.States({"a": {"w": sm.State(jnp.zeros(2))}}))
    with pytest.raises(ValueError, match="`a.w` would go to the states `a` and `a.w`"):
        new.load({"a": {"w": jnp.ones(2)}})


def test_values_are_owned():
    arrays = {"v": {"a": jnp.ones(2), "b": jnp.array([1, 2])}}
    got, _ = _new().load(arrays, strict=False)
    arrays["v"]["a"] = None
    assert got["v"]["a"].tolist() == [1.0, 1.0]


def test_under_jit_and_on_skeletons():
    old, new = _old(), _new()
    expected, report = new.load(old, strict=False)
    assert jax.jit(lambda n, o: n.load(o, strict=False)[0])(new, old) == expected
    shapes = jax.eval_shape(lambda: new)
    filled, of_shapes = shapes.load(old, strict=False)
    assert filled["w"] is old["w"] and isinstance(filled["fresh"], jax.ShapeDtypeStruct)
    assert of_shapes.loaded == report.loaded and repr(of_shapes) == repr(report)
    assert shapes.load(jax.eval_shape(lambda: old), strict=False)[0] == jax.eval_shape(
        lambda: expected
    )
    grads = jax.grad(lambda o: new.load(o, strict=False)[0]["w"].sum())(old.select(sm.ParamState))
    assert grads["w"].tolist() == [1.0] * 3


class Part(eqx.Module):
    w: sm.ParamState
    rng: sm.RandomState

    def __init__(self, *, key):
        wkey, rkey = jr.split(key)
        self.w = sm.ParamState(jr.normal(wkey, (3,)))
        self.rng = sm.RandomState(rkey)


class Whole(eqx.Module):
    part: Part
    head: sm.ParamState

    def __init__(self, *, key):
        self.part = Part(key=key)
        self.head = sm.ParamState(jr.normal(key, ()))


@given(st.integers(1, 5), st.integers(0, 9))
def test_populations_are_loaded_member_by_member(n, seed):
    make = lambda seed: sm.vmap2_new_states(Whole, key=jr.key(seed), axis_size=n)
    _, new, axes = make(0)
    part = lambda *, key: {"part": Part(key=key)}
    _, old, _ = sm.vmap2_new_states(part, key=jr.key(seed), axis_size=n)
    together, report = new.load(old, strict=False)
    alone = [
        member.load(part, strict=False)[0]
        for member, part in zip(sm.unstack(new, axes), sm.unstack(old, {0: ...}))
    ]
    assert together == sm.stack(alone, axes)
    assert report.loaded == ("part.rng", "part.w") and report.added == ("head",)


def test_inside_a_lane():
    """A lane's values may be loaded into it; what is mapped stays mapped."""
    states = sm.States(v=sm.ShortTermState(jnp.zeros(3)))
    step = sm.vmap2(
        lambda s, x: (x, s.load({"v": x})[0]),
        state_in_axes={0: ...},
        state_out_axes={0: ...},
    )
    _, out = step(states, jnp.arange(3.0))
    assert out["v"].tolist() == [0.0, 1.0, 2.0]


def test_shardings_are_kept():
    mesh = jax.make_mesh((8,), ("d",))
    lanes = jax.NamedSharding(mesh, jax.P("d"))
    old = sm.States(v=sm.State(jax.device_put(jnp.arange(8.0), lanes)))
    got, _ = sm.States(v=sm.State(jnp.zeros(8))).load(old)
    assert got["v"] is old["v"]
