"""Layers of Equinox: as the value of one state, and declared, each array a state of its own."""

import copy
import functools
import inspect
import io
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import statemap as sm


KEY = jr.key(0)
V, IMAGE, VOLUME = (4,), (4, 8, 8), (2, 4, 4, 4)
nn = eqx.nn


def shared(key):
    one, other = nn.Linear(4, 4, key=key), nn.Linear(4, 4, key=key)
    return nn.Shared((one, other), lambda pair: pair[1].weight, lambda pair: pair[0].weight)


def call_shared(layer, x):
    one, other = layer()
    return other(one(x))


def sequential(key):
    layers = [nn.Linear(4, 4, key=key), nn.Lambda(jnp.tanh), nn.Dropout(0.5), nn.LayerNorm(4)]
    return nn.Sequential(layers)


def with_key(layer, x):
    return layer(x, key=jr.key(1))


def attend(layer, x):
    return layer(x, x, x)


def embed(layer, x):
    return layer(jnp.argmax(x))


# How a layer is made, the shape of its input, and how it is called.
LAYERS = {
    "Linear": (lambda key: nn.Linear(4, 3, key=key), V),
    "Identity": (lambda key: nn.Identity(), V),
    "MLP": (lambda key: nn.MLP(4, 3, 5, 2, key=key), V),
    "Conv1d": (lambda key: nn.Conv1d(4, 3, 2, key=key), (4, 8)),
    "Conv2d": (lambda key: nn.Conv2d(4, 3, 2, key=key), IMAGE),
    "Conv3d": (lambda key: nn.Conv3d(2, 3, 2, key=key), VOLUME),
    "ConvTranspose1d": (lambda key: nn.ConvTranspose1d(4, 3, 2, key=key), (4, 8)),
    "ConvTranspose2d": (lambda key: nn.ConvTranspose2d(4, 3, 2, key=key), IMAGE),
    "ConvTranspose3d": (lambda key: nn.ConvTranspose3d(2, 3, 2, key=key), VOLUME),
    "LayerNorm": (lambda key: nn.LayerNorm(4), V),
    "RMSNorm": (lambda key: nn.RMSNorm(4), V),
    "GroupNorm": (lambda key: nn.GroupNorm(2, 4), IMAGE),
    "PReLU": (lambda key: nn.PReLU(), V),
    "Embedding": (lambda key: nn.Embedding(4, 3, key=key), V, embed),
    "RotaryPositionalEmbedding": (lambda key: nn.RotaryPositionalEmbedding(4), (3, 4)),
    "MultiheadAttention": (lambda key: nn.MultiheadAttention(2, 4, key=key), (3, 4), attend),
    "Dropout": (lambda key: nn.Dropout(0.5), V, with_key),
    "GRUCell": (lambda key: nn.GRUCell(4, 3, key=key), V, lambda f, x: f(x, jnp.ones(3))),
    "LSTMCell": (
        lambda key: nn.LSTMCell(4, 3, key=key),
        V,
        lambda f, x: f(x, (jnp.ones(3), jnp.ones(3)))[0],
    ),
    "Lambda": (lambda key: nn.Lambda(jnp.tanh), V),
    "Sequential": (sequential, V, with_key),
    "Shared": (shared, V, call_shared),
    "WeightNorm": (lambda key: nn.WeightNorm(nn.Linear(4, 3, key=key)), V),
    **{
        f"{kind}Pool{n}d": (
            lambda key, make=getattr(nn, f"{kind}Pool{n}d"): make(2, 2),
            (2, *[4] * n),
        )
        for kind in ("Avg", "Max")
        for n in (1, 2, 3)
    },
    **{
        f"Adaptive{kind}Pool{n}d": (
            lambda key, make=getattr(nn, f"Adaptive{kind}Pool{n}d"): make(2),
            (2, *[4] * n),
        )
        for kind in ("Avg", "Max")
        for n in (1, 2, 3)
    },
}
# Stateful or abstract; the former have tests of their own below.
OTHERS = {
    *("AdaptivePool", "BatchNorm", "Conv", "ConvTranspose", "Pool", "SpectralNorm"),
    *("State", "StateIndex", "StatefulLayer"),
}
every_layer = pytest.mark.parametrize("name", LAYERS)
FORMS = {"whole": sm.ParamState, "declared": lambda layer: sm.declare(layer, sm.ParamState)}
both_forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


def test_no_layer_is_left_out():
    public = {n for n in dir(nn) if n[0].isupper()}
    assert public == set(LAYERS) | OTHERS


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # some layers of Equinox mix dtypes
        yield


class Model(eqx.Module):
    layer: eqx.Module
    use: object = eqx.field(static=True)

    def __call__(self, states, x):
        return self.use(states[self.layer], x), states


def pieces(name):
    make, shape, use = (*LAYERS[name], lambda layer, x: layer(x))[:3]
    return make, jr.normal(jr.key(2), shape), use


def make_model(name, form, *, key=KEY):
    make, _, use = pieces(name)
    return Model(form(make(key)), use)


def arrays_of(tree):
    return [x for x in jax.tree.leaves(tree) if eqx.is_array(x)]


def assert_close(a, b):
    for x, y in zip(arrays_of(a), arrays_of(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)


@both_forms
@every_layer
def test_a_layer_is_what_it_was(name, form):
    make, x, use = pieces(name)
    layer = make(KEY)
    model, states = sm.make_with_states(make_model)(name, form)
    # (The functions of a layer that is made again may be others.)
    assert type(states[model.layer]) is type(layer)
    assert_close(states[model.layer], layer)
    assert_close(model(states, x)[0], use(layer, x))
    assert len(jax.tree.leaves(states)) == len(arrays_of(layer))

    def loss(states):
        return jnp.sum(model(states, x)[0] ** 2)

    def plain(layer):
        return jnp.sum(use(layer, x) ** 2)

    if len(jax.tree.leaves(states)):
        grads = jax.jit(jax.grad(loss))(states)
        assert_close(grads[model.layer], eqx.filter_jit(eqx.filter_grad(plain))(layer))

    # Written back, and carried.
    twice = jax.tree.map(lambda x: 2 * x if eqx.is_array(x) else x, states[model.layer])
    written = states.set(model.layer, twice)
    assert_close(written[model.layer], twice)
    assert_close(states.update({model.layer: twice}), written)
    step = lambda s, _: (s.set(model.layer, s[model.layer]), None)
    assert_close(jax.lax.scan(step, states, None, length=2)[0], states)

    # On shapes alone, and from a file.
    skeleton = jax.eval_shape(lambda states: states.set(model.layer, states[model.layer]), states)
    assert jax.tree.structure(skeleton) == jax.tree.structure(states)
    assert type(skeleton[model.layer]) is type(layer)
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, written)
    file.seek(0)
    assert_close(eqx.tree_deserialise_leaves(file, states), written)
    copied = copy.deepcopy((model, states))
    assert_close(copied[1][copied[0].layer], layer)


@both_forms
@pytest.mark.parametrize("name", [n for n in LAYERS if "Pool" not in n and "3d" not in n])
def test_a_population_is_a_loop(name, form):
    make, x, use = pieces(name)
    model, states, axes = sm.vmap2_new_states(
        functools.partial(make_model, name, form), key=KEY, axis_size=8
    )
    xs = jnp.stack([x * (i + 1) for i in range(8)])
    alone = eqx.filter_jit(lambda key, x: use(make(key), x))
    expected = [alone(key, x) for key, x in zip(jr.split(KEY, 8), xs)]
    options = dict(state_in_axes=axes, state_out_axes=axes)
    mappings = [sm.vmap2(model, **options)]
    if name in ("MLP", "Sequential", "Conv1d", "Dropout"):
        mappings += [sm.vmap2(model, **options, chunk_size=4), sm.pmap2(model, **options)]
    for mapped in mappings:
        for _ in range(2):  # cold and warm
            out, after = mapped(states, xs)
            assert_close(list(out), expected)
            assert_close(after, states)
    paths = [row.path for row in mapped.plan(states, xs)]
    if form is sm.ParamState:
        assert paths == ["layer"]
    else:
        assert len(paths) == len(arrays_of(make(KEY)))
        assert all(path.startswith("layer.") for path in paths)


@both_forms
def test_members_and_parts(form):
    make, x, use = pieces("MLP")
    model, states, axes = sm.vmap2_new_states(
        functools.partial(make_model, "MLP", form), key=KEY, axis_size=3
    )
    member = sm.lane(states, axes, 1)
    assert_close(member[model.layer], make(jr.split(KEY, 3)[1]))
    assert sm.stack(sm.unstack(states, axes), axes) == states
    params, rest = states.partition(sm.ParamState, ...)
    assert len(rest) == 0 and rest.merge(params) == states
    assert [s.value is not None for _, s in states.items()]
    population = sm.Map(functools.partial(make_model, "MLP", form), init_map_size=3, in_axes=None)
    population, others = population.init_all_states(key=KEY)
    assert_close(
        population(others, x)[0], sm.vmap2(model, in_axes=None, state_in_axes=axes)(states, x)[0]
    )


def test_optimisers_see_arrays():
    optax = pytest.importorskip("optax")
    for form in FORMS.values():
        model, states = sm.make_with_states(make_model)("MLP", form)
        optimiser = optax.adam(1e-2)
        opt = optimiser.init(states)

        def loss(states):
            return jnp.sum(model(states, jnp.ones(4))[0] ** 2)

        before = loss(states)
        for _ in range(3):
            updates, opt = optimiser.update(jax.grad(loss)(states), opt)
            states = optax.apply_updates(states, updates)
        assert loss(states) < before
        assert states[model.layer].activation is jax.nn.relu


# The static part of a value.


def act(x):
    return x * 2


class Net(eqx.Module):
    mlp: sm.ParamState[eqx.nn.MLP]

    def __init__(self, activation, key=KEY):
        self.mlp = sm.ParamState(nn.MLP(2, 1, 4, 1, activation=activation, key=key))


def test_what_is_no_array_is_static():
    value = {"w": jnp.ones(3), "f": act, "s": "text", "n": 2, "b": True, "d": nn.Dropout(0.5)}
    state = sm.State(value, name="v")
    states = sm.States(state)
    assert len(jax.tree.leaves(states)) == 3  # `w`, `n` and `b`
    for found in (states["v"], state.value, dict(states.items())[("v",)].value):
        assert found["f"] is act and found["s"] == "text"
        assert isinstance(found["n"], jax.Array) and isinstance(found["b"], jax.Array)
        assert found["d"].p == 0.5 and found["d"].inference is False
    assert state.struct["w"].shape == (3,) and state.struct["f"] is act
    assert "text" in repr(state) and "text" in repr(states)
    assert sm.State({"w": jnp.ones(3), "f": act}).shape == (3,)
    new = states.set("v", value | {"w": jnp.zeros(3), "n": 3})
    assert new["v"]["n"] == 3 and new["v"]["f"] is act


@pytest.mark.parametrize(
    "value",
    [[np.array(["a"])], {"a": np.array([None]), "b": 1.0}, {"a": jax.ShapeDtypeStruct((), float)}],
)
def test_arrays_of_another_sort_are_refused(value):
    with pytest.raises(TypeError, match="The value of a State is a pytree of arrays, and holds"):
        sm.State(value)


@pytest.mark.parametrize("value", [act, [act, "a"], {"a": {}, "b": None}, "a"])
def test_a_value_of_neither_arrays_nor_modules_is_refused(value):
    with pytest.raises(TypeError, match="holds no array"):
        sm.State(value)


def test_what_is_static_is_hashable():
    with pytest.raises(TypeError, match=r"set\(\) of type `set` at `\['a'\]\[0\]`.*hashable"):
        sm.State({"a": [set()], "b": 1.0})


def test_a_static_part_stays_as_it_is():
    model, states = sm.make_with_states(Net)(act)
    layer = states[model.mlp]
    other = eqx.tree_at(lambda m: m.activation, layer, jnp.tanh)
    with pytest.raises(ValueError, match=r"`mlp` was given a value whose `.activation` is .*tanh"):
        states.set(model.mlp, other)
    with pytest.raises(ValueError, match=r"`w` .*structure: expected"):
        sm.States(w=sm.State([1.0, act])).set("w", [1.0])
    drop = sm.States(d=sm.State(nn.Dropout(1.0)))
    for p in (1, True):
        with pytest.raises(ValueError, match=r"whose `.p` is (1|True), and was 1.0"):
            drop.set("d", nn.Dropout(p))
    with pytest.raises(ValueError, match=r"whose `.inference` is True, and was False"):
        drop.set("d", nn.inference_mode(drop["d"]))
    lane = sm.vmap2(lambda s, x: (x, s.set("d", nn.Dropout(0.5))))
    with pytest.raises(ValueError, match=r"whose `.p` is 0.5, and was 1.0"):
        lane(drop, jnp.ones(2))


def test_messages_show_arrays_of_values_with_static_parts():
    states = sm.States(p=sm.ParamState((jnp.ones(2), "relu")))
    with pytest.raises(ValueError, match=r"expected \(array, 'relu'\), got \[f32\[2\], 'relu'\]"):
        states.set("p", [jnp.ones(2), "relu"])


def test_models_of_other_static_parts_do_not_mix():
    one, states = sm.make_with_states(Net)(act)
    two, others = sm.make_with_states(Net)(jnp.tanh)
    with pytest.raises(KeyError, match=r"`.activation` is <jax.numpy.tanh> in one and .*act>"):
        states[two.mlp]
    with pytest.raises(ValueError, match=r"`.activation` is .*act> in one and <jax.numpy.tanh>"):
        states.merge(others)
    same, more = sm.make_with_states(Net)(act, jr.key(1))
    assert states[same.mlp].activation is act and states.merge(more) == more
    assert states.merge(more)._slots is states._slots
    # Two lambdas are written alike, and are two.
    one, states = sm.make_with_states(Net)(lambda x: x)
    two, others = sm.make_with_states(Net)(lambda x: x)
    with pytest.raises(KeyError, match="another object that is written alike"):
        states[two.mlp]
    assert (
        sm.State(nn.WeightNorm(nn.Linear(2, 2, key=KEY))).rest
        == sm.State(nn.WeightNorm(nn.Linear(2, 2, key=KEY))).rest
    )


def test_a_fingerprint_knows_no_addresses():
    fingerprint = lambda activation: sm.make_with_states(Net)(activation)[0].mlp.handle.model
    assert fingerprint(lambda x: x) == fingerprint(lambda x: x)
    assert fingerprint(jnp.tanh) != fingerprint(act)


def test_pickle():
    for activation in (act, jnp.tanh, jax.nn.relu, jax.nn.silu, jax.nn.gelu):
        make = lambda activation=activation: sm.State(
            (nn.Lambda(activation), jnp.ones(2)), name="f"
        )
        model, states = sm.make_with_states(make)()
        model, again = pickle.loads(pickle.dumps((model, states)))
        assert again[model][0].fn is activation
        assert again._slots is states._slots
    for thing in sm.make_with_states(Net)(lambda x: x):
        with pytest.raises(Exception, match="(?i)pickle.*lambda") as error:
            pickle.dumps(thing)
        assert "`.activation` in the value of a state" in error.value.__notes__[0]
        copy.deepcopy(thing)


def test_values_that_are_not_arrays_under_tree_map():
    model, states = sm.make_with_states(Net)(act)
    axes = jax.tree.map(lambda x: 0, states)
    assert axes[model.mlp].layers[0].weight == 0 and axes[model.mlp].activation is act
    collapsed = jax.tree.map(lambda x: 1, states, is_leaf=lambda x: isinstance(x, nn.Linear))
    assert collapsed[model.mlp].layers == (1, 1)


def test_an_annotation_is_checked():
    class Wrong(eqx.Module):
        mlp: sm.ParamState[eqx.nn.MLP]

        def __init__(self):
            self.mlp = sm.ParamState(nn.Linear(2, 2, key=KEY))

    with pytest.raises(TypeError, match=r"`Wrong.mlp` is annotated `ParamState\[MLP\]`"):
        sm.make_with_states(Wrong)()


# Declared layers.


def test_paths_kinds_and_constants():
    def kind(path, array):
        assert isinstance(array, jax.Array)
        return {"weight": sm.ParamState, "bias": None}[path[-1]]

    layers = lambda: sm.declare([nn.Linear(2, 2, key=KEY), nn.LayerNorm(2)], kind)
    model, states = sm.make_with_states(layers)()
    assert [path for path, _ in states] == [(0, "weight"), (1, "weight")]
    assert isinstance(model[0].bias, jax.Array)
    filled = states[model]
    assert type(filled) is list and filled[0].bias is model[0].bias
    assert_close(filled, [nn.Linear(2, 2, key=KEY), nn.LayerNorm(2)])
    assert states[tuple(model)][1].weight is states["1.weight"]
    with pytest.raises(ValueError, match=r"`\[0\].bias` is an array.*no state but part of the m"):
        states.set(model, eqx.tree_at(lambda m: m[0].bias, filled, jnp.ones(2)))


def test_what_is_declared_alike_is_shared():
    def make():
        one = sm.declare(nn.Linear(2, 2, key=KEY), sm.ParamState)
        twice = nn.Linear(2, 2, key=KEY)
        return {"a": one, "b": one, "seq": sm.declare([twice, twice], sm.ParamState)}

    model, states = sm.make_with_states(make)()
    assert [path for path, _ in states] == [
        ("a", "bias"),
        ("a", "weight"),
        ("seq", 0, "bias"),
        ("seq", 0, "weight"),
    ]
    new = states.set(model["b"].weight, jnp.zeros((2, 2)))
    assert new[model["a"]].weight.sum() == 0 and new["b.weight"].sum() == 0
    # Two layers that start with one array are two.
    start = jnp.zeros(2)
    norms = [eqx.tree_at(lambda n: n.bias, nn.LayerNorm(2), start) for _ in range(2)]
    assert len(sm.make_with_states(lambda: sm.declare(norms, sm.ParamState))()[1]) == 4


class Wrapped:
    """A node whose children are made anew whenever JAX takes it apart."""

    def __init__(self, x):
        self.x = x


jax.tree_util.register_pytree_node(
    Wrapped, lambda w: ([[w.x]], None), lambda _, children: Wrapped(children[0][0])
)


def test_children_that_are_made_anew_are_not_taken_for_one():
    make = lambda: sm.declare([Wrapped(jnp.full(1, float(i))) for i in range(8)], sm.ParamState)
    model, states = sm.make_with_states(make)()
    assert [float(w.x[0]) for w in states[model]] == list(range(8))


def test_layers_are_keys_everywhere():
    model, states = sm.make_with_states(lambda: {"norm": Normed(), "drop": nn.Dropout(0.5)})()
    norm = model["norm"].norm
    assert norm in states and norm.weight in states and norm.batch_counter in states
    assert model in states and model["drop"] in states  # which `states[key]` gives back as it is
    assert object() not in states and nn.StateIndex(jnp.ones(2)) not in states
    assert norm not in states.select(sm.LongTermState)
    new = states.update({norm.batch_counter: jnp.array(3), norm.weight: jnp.full(3, 2.0)})
    assert new[norm.batch_counter] == 3 and new[norm].weight.tolist() == [2.0, 2.0, 2.0]


def test_numpy_arrays_and_states_in_a_layer():
    layer = eqx.tree_at(lambda m: m.weight, nn.LayerNorm(2), np.ones(2, np.float32))
    layer = eqx.tree_at(lambda m: m.bias, layer, sm.LongTermState(1.0))
    declared = sm.declare(layer, sm.ParamState)
    assert type(declared.weight) is sm.ParamState and type(declared.bias) is sm.LongTermState
    assert sm.declare(declared, sm.ShortTermState).weight is declared.weight
    drop = nn.Dropout()
    assert sm.declare(drop, sm.ParamState) == drop and sm.States()[drop] == drop


@pytest.mark.parametrize("layer", [1.0, "a", [], {"a": None}, act])
def test_what_holds_no_array_is_not_declared(layer):
    with pytest.raises(TypeError, match="`declare` makes the arrays of a layer states"):
        sm.declare(layer, sm.ParamState)


@pytest.mark.parametrize("kind", [sm.ParamState(1.0), "param", None, int, lambda p, x: "param"])
def test_what_is_no_kind(kind):
    with pytest.raises(TypeError, match="`declare` takes a kind of State"):
        inspect.unwrap(sm.declare)(nn.LayerNorm(2), kind)  # without checks of its annotations


def test_what_is_written_fits():
    model, states = sm.make_with_states(make_model)("MLP", FORMS["declared"])
    layer = states[model.layer]
    wrong = eqx.tree_at(lambda m: m.layers[0].bias, layer, jnp.ones(7))
    with pytest.raises(ValueError, match=r"`layer.layers.0.bias` was given a value of another sh"):
        states.set(model.layer, wrong)
    with pytest.raises(ValueError, match=r"`.activation` is .*tanh>, and was .*relu>"):
        states.set(model.layer, eqx.tree_at(lambda m: m.activation, layer, jnp.tanh))
    with pytest.raises(ValueError) as error:  # noqa: PT011
        states.set(model.layer, layer.layers)
    assert "another structure" in error.value.__notes__[0]
    with pytest.raises(TypeError, match="asked for a handle, a path or a name"):
        states[[1, 2]]


def test_inference_mode_of_a_declared_model():
    model, states = sm.make_with_states(make_model)("Sequential", FORMS["declared"])
    quiet = nn.inference_mode(model)
    x = jnp.ones(4)
    expected = nn.inference_mode(sequential(KEY))(x)
    assert_close(quiet(states, x)[0], expected)
    assert_close(sm.vmap2(quiet)(states, x[None])[0][0], expected)


# Stateful layers.


class Normed(eqx.Module):
    norm: eqx.Module

    def __init__(self, mode="batch", declare=True):
        norm = nn.BatchNorm(3, "batch", mode=mode, momentum=0.9)
        self.norm = sm.declare(norm, sm.ParamState) if declare else norm

    def __call__(self, states, x):
        return states[self.norm](x, states)


@pytest.mark.parametrize("mode", ["ema", "batch"])
def test_batch_norm_is_that_of_equinox(mode):
    theirs, state = nn.make_with_state(lambda: Normed(mode, declare=False).norm)()
    model, states = sm.make_with_states(Normed)(mode)
    assert all(type(s) in (sm.ParamState, sm.LongTermState) for _, s in states)
    reference = eqx.filter_vmap(theirs, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    mapped = sm.vmap2(model, axis_name="batch")
    for i in range(4):
        x = jr.normal(jr.key(i), (8, 3)) + i
        expected, state = reference(x, state)
        out, states = mapped(states, x)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
        running = [s.value for _, s in states.select(sm.LongTermState)]
        assert_close(running, arrays_of(state))
    over_devices, _ = sm.pmap2(model, axis_name="batch")(states, x)
    np.testing.assert_allclose(over_devices, mapped(states, x)[0], rtol=1e-5, atol=1e-6)
    expected, _ = eqx.filter_vmap(
        nn.inference_mode(theirs), axis_name="batch", in_axes=(0, None), out_axes=(0, None)
    )(x, state)
    out, after = sm.vmap2(nn.inference_mode(model), axis_name="batch")(states, x)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    assert after == states


@pytest.mark.parametrize("mode", ["ema", "batch"])
def test_batch_norm_in_a_population(mode):
    model, states, axes = sm.vmap2_new_states(Normed, dict(mode=mode), axis_size=3)
    inner = sm.vmap2(model, axis_name="batch")
    population = sm.vmap2(inner, state_in_axes=axes, state_out_axes=axes)
    xs = jr.normal(KEY, (3, 8, 3))
    _, after = population(states, xs)
    out, after = population(after, xs)
    for i in range(3):
        alone, member = sm.make_with_states(Normed)(mode)
        for _ in range(2):
            expected, member = sm.vmap2(alone, axis_name="batch")(member, xs[i])
        np.testing.assert_allclose(out[i], expected, rtol=1e-5, atol=1e-6)
        assert_close(sm.lane(after, axes, i), member)


def test_spectral_norm_and_sequential():
    def make():
        k1, k2 = jr.split(KEY)
        spectral = nn.SpectralNorm(nn.Linear(4, 4, key=k1), "weight", key=k2)
        return nn.Sequential([spectral, nn.Lambda(jnp.tanh), nn.BatchNorm(4, "b", mode="ema")])

    theirs, state = nn.make_with_state(make)()
    model, states = sm.make_with_states(lambda: sm.declare(make(), sm.ParamState))()
    mapped = sm.vmap2(lambda states, x: states[model](x, states), axis_name="b")
    reference = eqx.filter_vmap(theirs, axis_name="b", in_axes=(0, None), out_axes=(0, None))
    x = jr.normal(jr.key(5), (8, 4))
    for _ in range(3):
        expected, state = reference(x, state)
        out, states = mapped(states, x)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    params, rest = states.partition(sm.ParamState, ...)
    gradient = jax.grad(lambda params: jnp.sum(mapped(rest.merge(params), x)[0] ** 2))(params)
    assert gradient["layers.0.layer.weight"].any()


def test_each_index_keeps_its_initial_value():
    class Two(eqx.Module):
        a: nn.StateIndex
        b: nn.StateIndex
        again: nn.StateIndex

        def __init__(self):
            self.a, self.b = nn.StateIndex(jnp.array(1.0)), nn.StateIndex((jnp.array(2), 3.0))
            self.again = self.a

        def __call__(self, x, state):
            a = state.get(self.again)
            return x + a, state.set(self.a, a + 1)

    make = lambda: sm.declare(Two(), sm.ParamState)
    model, states = sm.make_with_states(make)()
    assert [path for path, _ in states] == [("a", "init"), ("b", "init")]
    assert states.get(model.a) == states[model.again] == 1 and states[model.b][1] == 3
    layer = states[model]
    out, states = layer(0.0, states)
    assert out == 1 and states["a.init"] == 2 and states.set(model, layer) == states
    assert jax.tree.structure(sm.make_with_states(make)()[0]) == jax.tree.structure(model)


def test_a_stateful_layer_is_declared_first():
    bare = Normed(declare=False)
    with pytest.raises(TypeError, match=r"Right:  self.norm = sm.declare"):
        sm.vmap2(bare, axis_name="batch")(sm.States(), jnp.ones((2, 3)))
    emptied, _ = nn.make_with_state(lambda: bare.norm)()
    with pytest.raises(ValueError, match=r"`batch_counter` of the layer has no initial value any"):
        sm.declare(emptied, sm.ParamState)
    with pytest.raises(TypeError, match=r"Right:  sm.declare\(eqx.nn.BatchNorm"):
        sm.ParamState(bare.norm)


def test_dropout_draws_from_a_stream():
    class Drop(eqx.Module):
        drop: nn.Dropout
        rng: sm.RandomState

        def __init__(self):
            self.drop = sm.declare(nn.Dropout(0.5), sm.ParamState)
            self.rng = sm.RandomState(0)

        def __call__(self, states, x):
            key, states = sm.random.next_key(states, self.rng)
            return states[self.drop](x, key=key), states

    model, states = sm.make_with_states(Drop)()
    out, after = sm.vmap2(model)(states, jnp.ones((4, 16)))
    assert len({tuple(row) for row in out.tolist()}) == 4
    assert after["rng"] != states["rng"]
