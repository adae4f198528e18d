"""Identity is identity: what Python has equal and is not the same is told apart."""

import dataclasses
import gc
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import statemap as sm
from statemap import _programs


XS = jnp.arange(3.0)
EMPTY = sm.States()


@dataclasses.dataclass(frozen=True)
class Hidden:
    """Equal where `key` is, whatever the gain."""

    key: float
    gain: float = dataclasses.field(default=0.0, compare=False)

    def f(self, states, x):
        return x * self.gain, states

    def __call__(self, states, x):
        return x + self.gain, states


class Typed:
    """`Typed(1)`, `Typed(1.0)` and `Typed(True)` are equal."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return isinstance(other, Typed) and self.value == other.value

    def __hash__(self):
        return hash(self.value)

    def f(self, states, x):
        return jnp.asarray(self.value), states

    __call__ = f


def dtypes(mappings):
    return [str(m(EMPTY, XS)[0].dtype) for m in mappings]


def test_methods_of_objects_that_compare_equal():
    a, b = Hidden(1.0, 2.0), Hidden(1.0, 3.0)
    assert a == b and hash(a) == hash(b)
    for _ in range(2):  # cold and warm, in both orders
        for one, gain in ((a, 2.0), (b, 3.0), (a, 2.0)):
            np.testing.assert_array_equal(sm.vmap2(one.f)(EMPTY, XS)[0], gain * XS)
    f, g = sm.vmap2(a.f), sm.vmap2(b.f)
    for _ in range(3):
        assert f(EMPTY, XS)[0].tolist() == (2 * XS).tolist()
        assert g(EMPTY, XS)[0].tolist() == (3 * XS).tolist()


def test_callable_objects_that_compare_equal():
    a, b = Hidden(1.0, 2.0), Hidden(1.0, 3.0)
    for _ in range(2):
        assert sm.vmap2(a)(EMPTY, XS)[0].tolist() == (XS + 2).tolist()
        assert sm.vmap2(b)(EMPTY, XS)[0].tolist() == (XS + 3).tolist()


def test_objects_of_one_and_one_point_nought():
    objects = [Typed(v) for v in (1, 1.0, True)]
    expected = ["int32", "float32", "bool"]
    for _ in range(2):
        assert dtypes(sm.vmap2(o.f) for o in objects) == expected
        assert dtypes(sm.vmap2(o) for o in objects) == expected


def test_a_method_made_anew_is_the_same_function(runs):
    class Model:
        def step(self, states, x):
            runs.count += 1
            return x, states

    model = Model()
    for _ in range(4):
        sm.vmap2(model.step)(EMPTY, XS)
    assert runs.count == 1
    sm.vmap2(Model().step)(EMPTY, XS)
    assert runs.count == 2


def test_filters_and_axes_that_compare_equal():
    class Named:
        def __init__(self, name, tag):
            self.name, self.tag = name, tag

        def __eq__(self, other):
            return self.tag == other.tag

        def __hash__(self):
            return hash(self.tag)

        def __call__(self, path, state):
            return path == (self.name,)

    def f(states, x):
        return (states["a"] + x).sum(), states

    states = sm.States(a=sm.State(XS), b=sm.State(XS))
    for _ in range(2):
        for name, expected in (("a", [0.0, 2.0, 4.0]), ("b", [3.0, 6.0, 9.0])):
            out, _ = sm.vmap2(f, state_in_axes={0: Named(name, 1)})(states, XS)
            assert out.tolist() == expected


class Part(eqx.Module):
    v: sm.ShortTermState

    def __init__(self):
        self.v = sm.ShortTermState(jnp.zeros(2))


class Pair(eqx.Module):
    first: Part
    second: Part


def test_two_models_made_apart_are_refused():
    a, _ = sm.make_with_states(Part)()
    b, _ = sm.make_with_states(Part)()
    with pytest.raises(ValueError, match="`v` of the model.*`first.v` and at `second.v`.*apart"):
        sm.make_with_states(Pair)(a, b)
    with pytest.raises(ValueError, match=r"`\[?0\]?.v` and at `\[?1\]?.v`.*apart"):
        sm.make_with_states(lambda: [a, b])()
    pair, states = sm.make_with_states(Pair)(a, a)  # one model at two places
    assert len(states) == 0 and pair.first is not None
    pair, states = sm.make_with_states(lambda: Pair(Part(), Part()))()
    assert [p for p, _ in states] == [("first", "v"), ("second", "v")]
    part = Part()
    pair, states = sm.make_with_states(Pair)(part, part)
    assert len(states) == 1
    states = states.set(pair.second.v, jnp.ones(2))
    assert states[pair.first.v].sum() == 2


def test_paths_that_are_written_alike():
    message = re.escape("written alike, `a.b`: ('a', 'b') and ('a.b',)")
    with pytest.raises(ValueError, match=message):
        sm.States({"a.b": sm.State(0.0), "a": {"b": sm.State(1.0)}})
    with pytest.raises(ValueError, match="written alike, `0`"):
        sm.States({"0": sm.State(0.0)}).merge(sm.States([sm.State(1.0)]))
    with pytest.raises(ValueError, match="written alike, `a.b`"):
        sm.States({"a.b": sm.State(0.0)}).merge(sm.States({"a": {"b": sm.State(1.0)}}))
    assert sm.States({"a.b": sm.State(0.0)})["a.b"] == 0.0


class Marked(sm.ShortTermState):
    mark: object = eqx.field(static=True, default=None)

    def __init__(self, value, mark):
        super().__init__(value)
        self.mark = mark


@pytest.mark.parametrize("marks", [(1, 1.0, True), (0.0, -0.0), ((1,), (True,))])
def test_slots_whose_static_fields_python_has_equal(marks):
    contexts = [sm.States(a=Marked(XS, mark)) for mark in marks]
    slots = [c._slots for c in contexts]
    assert len({id(s) for s in slots}) == len(marks)
    assert slots[0] is sm.States(a=Marked(XS + 1, marks[0]))._slots
    assert all(contexts[0] != other for other in contexts[1:])
    seen = []

    def f(states, x):
        ((_, state),) = states
        seen.append(repr(state.mark))
        return x, states

    mapping = sm.vmap2(f)
    for _ in range(2):
        for context in contexts:
            _, new = mapping(context, XS)
            ((_, state),) = new
            ((_, given),) = context
            assert repr(state.mark) == repr(given.mark)
    assert seen == [repr(m) for m in marks]
    jitted = jax.jit(lambda s: f(s, 0.0)[1])
    for context in contexts:
        jitted(context)
    assert seen == 2 * [repr(m) for m in marks]


def test_static_arguments_alternate(runs):
    mapping = sm.vmap2(runs(lambda s, x, n: (jnp.asarray(n), s)), static_argnums=1)
    for _ in range(3):
        for n, dtype in ((1, "int32"), (1.0, "float32"), (True, "bool")):
            assert mapping(EMPTY, XS, n)[0].dtype == dtype
            assert mapping(EMPTY, XS, (n,))[0].dtype == dtype
    assert runs.count == 6


def test_a_bool_is_no_axis():
    f = lambda s, x: (x, s)
    for axes in (True, (True,), (np.True_,), (False,), ([True],)):
        with pytest.raises(TypeError, match="`in_axes` holds .*(True|False).*an axis is an int"):
            sm.vmap2(f, in_axes=axes)(EMPTY, jnp.ones((3, 3)) if axes != ([True],) else [XS])
    with pytest.raises(TypeError, match="`out_axes` holds True"):
        sm.vmap2(f, out_axes=True)(EMPTY, jnp.ones((3, 3)))
    with pytest.raises(TypeError, match="True is no axis"):
        sm.vmap2(f, state_in_axes={True: ...})
    square = jnp.arange(9.0).reshape(3, 3)
    assert sm.vmap2(f, in_axes=(1,))(EMPTY, square)[0].tolist() == square.T.tolist()
    with pytest.raises(TypeError, match="`in_axes` holds True"):
        sm.vmap2(f, in_axes=(True,))(EMPTY, square)


def remade(make, times=6):
    """How many more arrays live after mappings were made anew with closures over large arrays."""
    make(jnp.zeros(1000))
    gc.collect()
    before, programs = len(jax.live_arrays()), len(_programs._shared)
    for i in range(times):
        make(jnp.full(1000, float(i)))
    gc.collect()
    return len(jax.live_arrays()) - before, len(_programs._shared) - programs


def passing(states, x):
    return x, states


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: sm.Not(f), lambda f: [f, sm.ParamState]])
def test_closures_of_filters_are_freed(wrap):
    def make(big):
        mapping = sm.vmap2(passing, state_in_axes={0: wrap(lambda p, s: big.size < 5)})
        states = sm.States(a=sm.State(XS))
        for _ in range(2):
            mapping(states, XS)

    assert remade(make) == (0, 0)


def test_closures_of_axes_and_functions_are_freed():
    def axes(big):
        sm.vmap2(passing, in_axes=lambda x: 0 if big.size else None)(EMPTY, XS)

    def function(big):
        sm.vmap2(lambda s, x: (x + big[0], s))(EMPTY, XS)

    def method(big):
        sm.vmap2(Hidden(1.0, big[0]).f)(EMPTY, XS)

    assert remade(axes) == remade(function) == remade(method) == (0, 0)


@jax.tree_util.register_pytree_node_class
class Mutable:
    def __init__(self, w):
        self.w = w

    def tree_flatten(self):
        return (self.w,), None

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children)

    def __call__(self, states, x):
        return x * self.w, states


def test_a_mutable_callable_is_taken_apart_at_each_call(runs):
    module = Mutable(jnp.ones(()))
    states = sm.States(v=sm.State(XS))
    calls = {
        "alone": (sm.vmap2(module), EMPTY),
        "within": (sm.vmap2(jax.tree_util.Partial(lambda m, s, x: m(s, x), module)), EMPTY),
        "with a state": (
            sm.vmap2(
                jax.tree_util.Partial(lambda m, s, x: m(s, s["v"]), module), state_in_axes=...
            ),
            states,
        ),
    }
    for gain in (1.0, 5.0, 5.0, 7.0):
        module.w = jnp.asarray(gain)
        for name, (mapping, given) in calls.items():
            assert mapping(given, XS)[0].tolist() == (gain * XS).tolist(), name
    module.w = jnp.arange(2.0)  # another shape
    assert calls["alone"][0](EMPTY, XS)[0].shape == (3, 2)
    module.w = jnp.asarray(2.0)
    assert calls["alone"][0](EMPTY, XS)[0].tolist() == (2 * XS).tolist()
