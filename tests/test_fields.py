"""States that are named once, by `sm.field`, are those of a model with an `__init__`."""

import pickle
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from hypothesis import given, settings, strategies as st
from jaxtyping import Array, Float

import statemap as sm
from statemap._fields import Keys

from . import fields_as_strings


T = TypeVar("T")


def derived(key, path):
    return Keys("", key, True).derive(tuple(path.split(".")))


def step(self, states, x):
    noise, states = sm.random.normal(states, self.rng, self.v.shape)
    v = 0.9 * states[self.v] + states[self.weight] @ x + 0.1 * noise
    return v * states[self.gain], states.set(self.v, v)


class LIF(eqx.Module):
    n_in: int
    n_out: int
    weight: sm.ParamState[Float[Array, "out in"]] = sm.field(
        lambda self, key: jr.normal(key, (self.n_out, self.n_in))
    )
    v: sm.ShortTermState[Float[Array, "out"]] = sm.field(
        lambda self: jnp.zeros(self.n_out), tag="membrane"
    )
    gain: sm.ParamState[Float[Array, ""]] = sm.field(2.0)
    rng: sm.RandomState = sm.field()

    __call__ = step

    def membrane(self, states, scale):
        return states[self.v] * scale, states


class ByHand(eqx.Module):
    n_in: int
    n_out: int
    weight: sm.ParamState[Float[Array, "out in"]]
    v: sm.ShortTermState[Float[Array, "out"]]
    gain: sm.ParamState[Float[Array, ""]]
    rng: sm.RandomState

    def __init__(self, n_in, n_out, *, key):
        self.n_in, self.n_out = n_in, n_out
        self.weight = sm.ParamState(jr.normal(derived(key, "weight"), (n_out, n_in)))
        self.v = sm.ShortTermState(jnp.zeros(n_out), tag="membrane")
        self.gain = sm.ParamState(2.0)
        self.rng = sm.RandomState(derived(key, "rng"))

    __call__ = step


ByHand.__qualname__ = LIF.__qualname__  # which a context knows its model by


class Net(eqx.Module):
    first: LIF
    rest: dict[str, list[LIF]]


def net():
    return Net(LIF(3, 4), {"a": [LIF(4, 4), LIF(4, 5)]})


def both(**kwargs):
    return [sm.make_with_states(M)(3, 4, key=jr.key(0), **kwargs) for M in (LIF, ByHand)]


def test_it_is_what_an_init_makes():
    (model, states), (other, others) = both()
    assert states == others
    assert states._slots is others._slots  # paths, kinds, names, tags, fingerprint, order
    for name in ("weight", "v", "gain", "rng"):
        mine, theirs = getattr(model, name), getattr(other, name)
        assert type(mine) is type(theirs) and mine == theirs
        assert mine.is_handle and (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, eqx.filter_jit])
def test_calls_are_the_same(wrap):
    (model, states), (other, others) = both()
    x = jnp.arange(3.0)
    for _ in range(2):
        out, states = wrap(model.__call__)(states, x)
        expected, others = wrap(other.__call__)(others, x)
        assert out.tolist() == expected.tolist()
    assert states == others


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("mapping", ["vmap2", "pmap2"])
def test_mapped_calls_are_the_same(mapping, chunk_size):
    results = []
    for make in (LIF, ByHand):
        if mapping == "vmap2":
            new, mapped, options = sm.vmap2_new_states, sm.vmap2, dict(chunk_size=chunk_size)
        elif chunk_size is None:
            new, mapped, options = sm.pmap2_new_states, sm.pmap2, {}
        else:
            return
        model, states, axes = new(make, dict(n_in=3, n_out=4), key=jr.key(1), axis_size=8)
        fn = mapped(model, in_axes=None, state_in_axes=axes, state_out_axes=axes, **options)
        plan = str(fn.plan(states, jnp.ones(3))).partition("\n")[2]
        results.append((plan, axes, *fn(states, jnp.ones(3))))
    (plan, axes, out, states), (plans, their_axes, outs, others) = results
    assert plan == plans and axes == their_axes
    assert out.tolist() == outs.tolist() and states == others


def test_gradients_are_the_same():
    grads = []
    for model, states in both():
        params, rest = states.partition(sm.ParamState, ...)

        def loss(params, model=model, rest=rest):
            return jnp.sum(model(rest.merge(params), jnp.ones(3))[0] ** 2)

        grads.append(jax.grad(loss)(params))
    assert grads[0] == grads[1]


def test_skeletons():
    make = sm.make_with_states(LIF)
    model, states = eqx.filter_eval_shape(make, 3, 4, key=jr.key(0))
    real, values = make(3, 4, key=jr.key(0))
    assert states._slots is values._slots
    assert jax.tree.structure(model) == jax.tree.structure(real)
    assert states[model.weight].shape == (4, 3)


def test_made_under_jit():
    states = jax.jit(lambda key: sm.make_with_states(LIF)(3, 4, key=key)[1])(jr.key(0))
    assert states == both()[0][1]


def test_model_and_context_are_pickled():
    model, states = both()[0]
    again, others = pickle.loads(pickle.dumps((model, states)))
    assert others == states and again == model
    assert others[again.v].tolist() == states[model.v].tolist()
    assert pickle.loads(pickle.dumps(LIF(3, 4))) == LIF(3, 4)  # not made yet


@settings(max_examples=5)
@given(st.integers(1, 6), st.integers(1, 6))
def test_a_lane_is_a_model_of_its_own(n, m):
    i = min(n, m) - 1
    lanes = []
    for size in (n, m):
        model, states, axes = sm.vmap2_new_states(
            LIF, dict(n_in=2, n_out=3), key=jr.key(3), axis_size=size
        )
        lanes.append(sm.lane(states, axes, i))
    alone = sm.make_with_states(LIF)(2, 3, key=jr.split(jr.key(3), n)[i])[1]
    assert lanes[0] == lanes[1]
    for path, state in alone.items():
        assert jnp.array_equal(lanes[0][path], state.value)


def test_in_a_map():
    population = sm.Map(LIF, init_map_size=5, in_axes=None)
    population, states = population.init_all_states(n_in=3, n_out=4, key=jr.key(0))
    out, states = population(states, jnp.ones(3))
    assert out.shape == (5, 4)
    assert population.map("membrane", in_axes=None)(states, 2.0)[0].shape == (5, 4)


def test_keys_follow_the_path():
    model, states = sm.make_with_states(net)(key=jr.key(0))
    assert [p for p, _ in states if "weight" in p] == [
        ("first", "weight"), ("rest", "a", 0, "weight"), ("rest", "a", 1, "weight")
    ]  # fmt: skip
    for path in ("first", "rest.a.0", "rest.a.1"):
        shape = states[f"{path}.weight"].shape
        expected = jr.normal(derived(jr.key(0), f"{path}.weight"), shape)
        assert states[f"{path}.weight"].tolist() == expected.tolist()
    # Any key at all: typed, legacy, a seed.
    for key in (0, jr.PRNGKey(0)):
        assert sm.make_with_states(net)(key=key)[1] == states


@given(st.sets(st.sampled_from("abcdef"), min_size=1), st.permutations("abcdef"))
def test_other_fields_do_not_matter(names, order):
    def make(order):
        fields = {n: sm.field(lambda key: jr.normal(key, (2,))) for n in order}
        namespace = {"__annotations__": {n: sm.ParamState for n in order}, **fields}
        return sm.make_with_states(type(eqx.Module)("M", (eqx.Module,), namespace))(key=0)[1]

    every, some = make("abcdef"), make([n for n in order if n in names])
    assert len({tuple(s.value.tolist()) for _, s in every}) == 6
    for path, state in some:
        assert every[path].tolist() == state.value.tolist()


def test_a_make_that_takes_key_gets_it_too():
    class Both(eqx.Module):
        raw: sm.ParamState
        drawn: sm.ParamState = sm.field(lambda key: jr.normal(key, (2,)))

        def __init__(self, key):
            self.raw = sm.ParamState(jr.normal(key, (2,)))

    for states in (
        sm.make_with_states(Both)(key=jr.key(0))[1],
        sm.make_with_states(Both)(jr.key(0))[1],
        sm.make_with_states(lambda **kw: Both(**kw))(key=jr.key(0))[1],
        sm.make_with_states(sm.make_with_states(lambda key: Both(key)).__wrapped__)(jr.key(0))[1],
    ):
        assert states["raw"].tolist() == jr.normal(jr.key(0), (2,)).tolist()
        assert states["drawn"].tolist() == jr.normal(derived(jr.key(0), "drawn"), (2,)).tolist()


def test_make_with_states_in_new_states():
    made = sm.make_with_states(LIF)
    states = sm.vmap2_new_states(made, dict(n_in=3, n_out=4), key=jr.key(1), axis_size=3)[1]
    direct = sm.vmap2_new_states(LIF, dict(n_in=3, n_out=4), key=jr.key(1), axis_size=3)[1]
    assert states == direct


def test_a_field_called_key():
    class Keyed(eqx.Module):
        key: sm.RandomState = sm.field()

    states = sm.make_with_states(Keyed)(key=jr.key(0))[1]
    assert states["key"] == derived(jr.key(0), "key")


def test_a_module_at_two_places_is_one():
    class Plain(eqx.Module):
        v: sm.ShortTermState = sm.field(lambda: jnp.zeros(2))

    one = Plain()
    model, states = sm.make_with_states(lambda: [one, one, Plain()])()
    assert len(states) == 2
    states = states.set(model[0].v, jnp.ones(2))
    assert states[model[1].v].tolist() == [1, 1] and states[model[2].v].tolist() == [0, 0]


def test_fields_see_those_above():
    class Chain(eqx.Module):
        inner: LIF
        weight: sm.ParamState = sm.field(lambda self: jnp.ones(self.inner.weight.shape))
        bias: sm.ParamState = sm.field(lambda self: self.weight.value[0] + 1)

    model, states = sm.make_with_states(lambda: Chain(LIF(3, 4)))(key=0)
    assert states[model.weight].shape == (4, 3) and states[model.bias].tolist() == [2, 2, 2]


def test_inheritance():
    class Base(eqx.Module):
        n: int
        v: sm.ShortTermState = sm.field(lambda self: jnp.zeros(self.n))

    class More(Base):
        m: int  # after a field with a default: that one is by keyword alone
        w: sm.ParamState = sm.field(lambda self: jnp.zeros((self.m, self.n)))

    class Other(More):
        v: sm.HiddenState = sm.field(lambda self: jnp.ones(self.n))

    model, states = sm.make_with_states(More)(2, 3)
    assert states[model.w].shape == (3, 2) and type(model.v) is sm.ShortTermState
    model, states = sm.make_with_states(Other)(2, 3)
    assert states[model.v].tolist() == [1, 1] and type(model.v) is sm.HiddenState


def test_inits_of_all_sorts():
    class Custom(eqx.Module):
        n: int = eqx.field(static=True)
        w: sm.ParamState = sm.field(lambda self: jnp.zeros(self.n))
        v: sm.ShortTermState = sm.field(lambda self: jnp.zeros(self.n))

        def __init__(self, n):
            self.n = 2 * n
            self.v = sm.ShortTermState(jnp.ones(n))

        def __check_init__(self):
            assert self.n > 0

    class Post(eqx.Module):
        n: int
        half: int = eqx.field(static=True, default=0)
        w: sm.ParamState = sm.field(lambda self: jnp.zeros(self.half))

        def __post_init__(self):
            self.half = self.n // 2

    model, states = sm.make_with_states(Custom)(2)
    assert states[model.w].shape == (4,) and states[model.v].tolist() == [1, 1]
    model, states = sm.make_with_states(lambda: jax.tree.map(lambda x: x, Custom(2)))()
    assert states[model.w].shape == (4,)
    model, states = sm.make_with_states(Post)(4)
    assert states[model.w].shape == (2,)


def test_another_state_for_an_instance():
    model, states = sm.make_with_states(LIF)(3, 4, v=sm.ShortTermState(jnp.ones(4)), key=0)
    assert states[model.v].tolist() == [1, 1, 1, 1] and model.v.tag is None


class Unit(sm.ParamState[T]):
    unit: str = eqx.field(static=True)

    def __init__(self, value, unit="mV", name=None, tag=None):
        super().__init__(value, name, tag)
        self.unit = unit


def test_names_and_tags():
    class Named(eqx.Module):
        v: sm.ShortTermState = sm.field(0.0, name="membrane", tag="fast")
        rng: sm.RandomState = sm.field(tag="fast")

    model, states = sm.make_with_states(Named)(key=0)
    assert states["membrane"] == 0 and len(states.select("fast")) == 2
    assert (model.v.name, model.v.tag, model.rng.tag) == ("membrane", "fast", "fast")


def test_kinds_of_all_sorts():
    class Kinds(eqx.Module, Generic[T]):
        unit: Unit[Array] = sm.field(1.0, unit="nA", tag="current")
        bare: Unit = sm.field(1.0)
        generic: sm.ParamState[T] = sm.field(1.0)
        maybe: sm.ParamState[Array] | None = sm.field(lambda: None)
        there: sm.LongTermState | None = sm.field(lambda: jnp.zeros(2))
        tree: sm.State[dict[str, Array]] = sm.field({"a": 1.0, "b": 2.0})
        layer: sm.ParamState[eqx.nn.GRUCell] = sm.field(lambda key: eqx.nn.GRUCell(2, 3, key=key))
        value: sm.ParamState[eqx.nn.Linear] = sm.field(eqx.nn.Linear(2, 3, key=jr.key(0)))
        seeded: sm.RandomState = sm.field(3)
        numbers: sm.ShortTermState = sm.field(jnp.arange(2))

    model, states = sm.make_with_states(Kinds)(key=0)
    assert (model.unit.unit, model.unit.tag, model.bare.unit) == ("nA", "current", "mV")
    assert type(model.generic) is sm.ParamState and model.maybe is None
    assert type(model.there) is sm.LongTermState
    assert states[model.tree]["b"] == 2 and states[model.seeded] == jr.key(3)
    assert isinstance(states[model.layer], eqx.nn.GRUCell)
    assert states[model.value].weight.shape == (3, 2)


def test_what_a_function_returns_with_states_is_kept():
    def as_states(layer):
        return jax.tree.map(lambda x: sm.ParamState(x) if eqx.is_array(x) else x, layer)

    class Held(eqx.Module):
        layer: eqx.nn.MLP = sm.field(lambda key: as_states(eqx.nn.MLP(2, 2, 4, 1, key=key)))
        net: LIF = sm.field(lambda: LIF(2, 2))
        state: sm.ShortTermState = sm.field(lambda: sm.HiddenState(1.0, tag="own"))

    model, states = sm.make_with_states(Held)(key=0)
    assert ("layer", "layers", 0, "weight") in [p for p, _ in states]
    assert type(model.state) is sm.HiddenState and model.state.tag == "own"
    expected = jr.normal(derived(jr.key(0), "net.weight"), (2, 2))
    assert states[model.net.weight].tolist() == expected.tolist()


def test_annotations_that_are_strings():
    model, states = sm.make_with_states(fields_as_strings.Model)(3, key=0)
    assert [type(s) for _, s in states] == [sm.RandomState, sm.ShortTermState, sm.ParamState]
    assert model.maybe is None and states[model.w].shape == (3,)
    with pytest.raises(TypeError, match=r"`Model.w` is annotated `ParamState.*f32\[3,3\]"):
        sm.make_with_states(fields_as_strings.Model)(3, w=sm.ParamState(jnp.zeros((3, 3))), key=0)
    with pytest.raises(TypeError, match=r"'Unknown\[Array\]' can't be resolved.*module `tests"):
        sm.make_with_states(fields_as_strings.Lost)()
    assert len(sm.make_with_states(fields_as_strings.Found)()[1]) == 1


def model_of(annotation, default):
    namespace = {"__annotations__": {"v": annotation}, "v": default}
    return type(eqx.Module)("M", (eqx.Module,), namespace)


@pytest.mark.parametrize(
    "annotation, default, message",
    [
        (sm.ShortTermState, (), r"`M.v` has no value: only .*, and this is a `ShortTermState`\.\n"),
        (Array, (), "`M.v` has no value: only a .* without, and its annotation .* names no kind"),
        (Array, (1.0,), r"`M.v` is a field of `sm.field`, and its annotation `.*` names no kind"),
        (sm.ParamState[Float[Array, "2"]], (jnp.zeros(3),), r"`M.v` is annotated `ParamState\["),
        (sm.ParamState, (lambda: sm.RandomState(0),), "annotated `ParamState`.*a RandomState"),
        (sm.ParamState, (lambda: "no array",), "'no array' holds no array"),
        (sm.ParamState, (lambda: None,), "None holds no array"),
        (sm.ParamState | sm.RandomState, (1.0,), "names no kind"),
        (Any, (1.0,), "names no kind"),
    ],
)  # fmt: skip
def test_refused_when_made(annotation, default, message):
    with pytest.raises(TypeError, match=message):
        sm.make_with_states(model_of(annotation, sm.field(*default)))()


def test_errors_name_the_field():
    fails = model_of(sm.ParamState, sm.field(lambda self: jnp.zeros(2) @ jnp.zeros(3)))
    with pytest.raises(TypeError, match="dot_general") as info:
        sm.make_with_states(fails)()
    assert "(Raised by the function of the field `M.v`.)" in info.value.__notes__
    bad = model_of(sm.ParamState, sm.field(1.0, unit="mV"))
    with pytest.raises(TypeError, match="unit") as info:
        sm.make_with_states(bad)()
    assert "`M.v`" in info.value.__notes__[0]
    tagged = model_of(sm.ParamState, sm.field(lambda: sm.ParamState(1.0), tag="a"))
    with pytest.raises(TypeError, match="`M.v` returned States.*give `tag='a'` to them"):
        sm.make_with_states(tagged)()


@pytest.mark.parametrize(
    "function, needs",
    [
        (lambda n: n, "`n`"),
        (lambda self, k: k, "`self`, `k`"),
        (eqx.nn.Linear, "`in_features`, `out_features`, `key`"),
    ],
)
def test_functions_with_other_parameters(function, needs):
    with pytest.raises(TypeError, match=rf"as `self`, a key of its own as `key`.*needs {needs}\."):
        sm.field(function)


def test_a_state_is_no_value():
    with pytest.raises(TypeError, match="it would be one slot"):
        sm.field(sm.ParamState(1.0))


def test_missing_keys():
    right = r"Right:  sm.make_with_states\(LIF\)\(..., key=jr.key\(0\)\)"
    with pytest.raises(TypeError, match=rf"(?s)`LIF.weight` \(at `weight`\).*{right}"):
        sm.make_with_states(LIF)(3, 4)
    with pytest.raises(TypeError, match=r"`LIF.weight` \(at `first.weight`\) is made from a key"):
        sm.make_with_states(net)()
    with pytest.raises(TypeError, match=r"`LIF.weight` .*none was given"):
        sm.vmap2_new_states(LIF, dict(n_in=3, n_out=4), axis_size=3)


def test_keys_of_no_use():
    make = model_of(sm.ParamState, sm.field(1.0))
    with pytest.raises(TypeError, match="`M` was given a `key`, which it does not take"):
        sm.make_with_states(make)(key=0)
    with pytest.raises(TypeError, match="`M` was given a `key`, which it does not take"):
        sm.vmap2_new_states(make, key=0, axis_size=3)


def test_models_that_were_never_made():
    model, (_, states) = LIF(3, 4), both()[0]
    once = r"(?s)`LIF.v` is declared by `sm.field` .*Right:  model, states = sm.make_with_states"
    with pytest.raises(AttributeError, match=once):
        model.v.value
    with pytest.raises(AttributeError, match=once):
        model(states, jnp.ones(3))
    with pytest.raises(TypeError, match=once):
        model.membrane(states, 1.0)
    with pytest.raises(AttributeError, match=once):
        sm.vmap2(model)(states, jnp.ones((2, 3)))
    with pytest.raises(TypeError, match="made already"):
        sm.make_with_states(model)
    with pytest.raises(TypeError, match="made by a class or a function"):
        sm.vmap2_new_states(model, axis_size=3)
    assert repr(model.v) == "<`LIF.v`, not made yet>"
    with pytest.raises(TypeError, match=once):
        sm.States({"v": model.v})


def test_later_fields_are_not_there():
    class Late(eqx.Module):
        a: sm.ParamState = sm.field(lambda self: self.b.value)
        b: sm.ParamState = sm.field(1.0)

    with pytest.raises(AttributeError, match="`Late.b` .*after those of the fields above"):
        sm.make_with_states(Late)()


def test_what_an_instance_may_not_be_given():
    with pytest.raises(TypeError, match=r"(?s)`LIF.v` was given.*v=sm.ShortTermState\(x\)\)"):
        LIF(3, 4, v=jnp.zeros(4))
    with pytest.raises(TypeError, match="takes 3 positional arguments"):
        LIF(3, 4, jr.key(0))


def test_reseed_gives_the_streams_that_a_key_makes():
    class Noise(eqx.Module):
        rng: sm.RandomState = sm.field()
        several: sm.RandomState = sm.field(lambda self, key: jr.split(key, 2))

    make = lambda: {"a": Noise(), "b": Noise()}
    _, made = sm.make_with_states(make)(key=jr.key(0))
    _, other = sm.make_with_states(make)(key=jr.key(1))
    assert sm.reseed(other, jr.key(0)) == made != other
    _, made, axes = sm.vmap2_new_states(make, key=jr.key(0), axis_size=5)
    _, other, _ = sm.vmap2_new_states(make, key=jr.key(1), axis_size=5)
    assert sm.reseed(other, jr.key(0), axes) == made != other


@pytest.mark.parametrize(
    "value, holds",
    [
        (jnp.ones(3), r"f32\[3\]"),
        (1.0, r"1\.0"),
        (sm.ParamState, "ParamState"),
        (sm.LongTermState(1.0), r"LongTermState\(f32\[\]\)"),
    ],
)
def test_an_annotation_without_brackets_is_checked(value, holds):
    class Model(eqx.Module):
        b: sm.ParamState

        def __init__(self):
            self.b = value

    class Outer(eqx.Module):
        inner: list[Model]

    for make in (Model, lambda: Outer([Model()])):
        with pytest.raises(TypeError, match=rf"`Model.b` is annotated `ParamState` and.*{holds}"):
            sm.make_with_states(make)()


def test_what_is_no_state_is_told_how_to_become_one():
    class Model(eqx.Module):
        b: sm.ParamState = 1.0  # pyright: ignore

    with pytest.raises(TypeError, match=r"Right:  self.b = sm.ParamState\(1.0\)\n.*sm.field"):
        sm.make_with_states(Model)()


def test_an_annotation_without_brackets_takes_what_is_below_its_kind():
    class Model(eqx.Module):
        b: sm.ShortTermState
        c: sm.ParamState | None
        d: list[sm.ParamState]

    hidden = lambda: Model(sm.HiddenState(0.0), None, [sm.ParamState(1.0)])
    assert len(sm.make_with_states(hidden)()[1]) == 2
