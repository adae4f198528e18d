"""`bridge.equinox`: models of Equinox as functions of states. The law: outputs and new states are
those of Equinox itself, `filter_vmap` over models and `eqx.nn.State`s.
"""

import copy
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import statemap as sm
from statemap import bridge

from . import alike


KEY = jr.key(0)
X = jr.normal(jr.key(1), (8, 3))


@pytest.fixture(autouse=True)
def strict_promotion():
    """Models of other libraries run as their users run them, without strict promotion."""


def close(a, b, tol=1e-5):
    alike.close(eqx.filter(a, eqx.is_array), eqx.filter(b, eqx.is_array), tol)


class Count(eqx.Module):
    """A layer of a user's own."""

    index: eqx.nn.StateIndex

    def __init__(self):
        self.index = eqx.nn.StateIndex({"n": jnp.array(0), "half": jnp.zeros(3)})

    def __call__(self, x, state):
        old = state.get(self.index)
        new = {"n": old["n"] + 1, "half": old["half"] + 0.5}
        return x * new["n"].astype(x.dtype), state.set(self.index, new)


class Net(eqx.Module):
    """Every sort of stateful layer, a substate, and a method."""

    count: Count
    spectral: eqx.nn.SpectralNorm
    layers: list
    extra: dict
    norm: eqx.nn.BatchNorm
    steps: jax.Array
    act: object

    def __init__(self, *, key, mode="batch"):
        a, b, c, d = jr.split(key, 4)
        self.count = Count()
        self.spectral = eqx.nn.SpectralNorm(eqx.nn.Linear(3, 4, key=a), "weight", key=b)
        self.layers = [eqx.nn.WeightNorm(eqx.nn.Linear(4, 4, key=c)), eqx.nn.LayerNorm(4)]
        self.extra = {"bias": jr.normal(d, (4,))}
        self.norm = eqx.nn.BatchNorm(4, "batch", mode=mode)
        self.steps = jnp.array(7)
        self.act = jax.nn.relu

    def __call__(self, x, state, *, scale=None):
        x, part = self.count(x, state.substate(self.count))
        state = state.update(part)
        x, state = self.spectral(x, state)
        x, state = self.norm(x, state)
        for layer in self.layers:
            x = layer(x)
        out = self.act(x + self.extra["bias"])
        return out if scale is None else out * scale, state

    def count_only(self, x, state):
        return self.count(x, state)

    def encode(self, x):
        return self.layers[1](x)


def make(key):
    return bridge.equinox(*eqx.nn.make_with_state(Net)(key=key))


def population(n=3, mode="batch"):
    make = eqx.filter_vmap(lambda k: eqx.nn.make_with_state(Net)(key=k, mode=mode))
    return make(jr.split(KEY, n))


@eqx.filter_jit
def over_batch(model, state, x):
    call = jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name="batch")
    return call(x, state)


NET, STATES = make(KEY)
BATCH = sm.vmap2(NET, axis_name="batch")


@pytest.fixture(scope="module")
def members():
    return sm.vmap2_new_states(lambda *, key: make(key), key=KEY, axis_size=3)


def test_paths_kinds_and_tags():
    found = {".".join(map(str, p)): (type(s), s.tag) for p, s in STATES}
    assert found == {
        "count.index": (sm.LongTermState, "StateIndex"),
        "extra.bias": (sm.ParamState, None),
        "layers.0.layer.bias": (sm.ParamState, None),
        "layers.0.layer.weight": (sm.ParamState, None),
        "layers.0.g": (sm.ParamState, None),
        "layers.1.bias": (sm.ParamState, None),
        "layers.1.weight": (sm.ParamState, None),
        "norm.batch_counter": (sm.LongTermState, "StateIndex"),
        "norm.batch_state_index": (sm.LongTermState, "StateIndex"),
        "norm.bias": (sm.ParamState, None),
        "norm.weight": (sm.ParamState, None),
        "spectral.layer.bias": (sm.ParamState, None),
        "spectral.layer.weight": (sm.ParamState, None),
        "spectral.uv_index": (sm.LongTermState, "StateIndex"),
        "steps": (sm.LongTermState, None),
    }


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_a_batch_is_that_of_equinox(mode):
    model, state = eqx.nn.make_with_state(lambda k: eqx.nn.BatchNorm(3, "batch", mode=mode))(KEY)
    net, states = bridge.equinox(model, state)
    mapped = sm.vmap2(net, axis_name="batch")
    for _ in range(2):
        out, states = mapped(states, X)
        expected, state = over_batch(model, state, X)
        close(out, expected)
        close(net.rebuild(states)[1], state)
    frozen, same = bridge.equinox(eqx.nn.inference_mode(model), state)
    assert [p for p, _ in same] == [p for p, _ in states]
    out, after = sm.vmap2(frozen, axis_name="batch")(states, X)  # the context of the other mode
    close(out, over_batch(eqx.nn.inference_mode(model), state, X)[0])
    assert after == states


def test_a_single_call_and_the_two_ways_back():
    model, state = eqx.nn.make_with_state(Net)(key=KEY)
    out, states = BATCH(STATES, X)
    expected, new = over_batch(model, state, X)
    close(out, expected)
    rebuilt, now = NET.rebuild(states)
    close(now, new)
    assert jax.tree.structure((rebuilt, now)) == jax.tree.structure((model, new))
    assert NET.read(STATES, (model, new)) == states  # Equinox's own objects do
    with pytest.raises(TypeError, match=r"`Net` is immutable.*\n.*\n.*model.rebuild"):
        NET.write_back(states)


def test_members_are_a_loop(members):
    net, states, axes = members
    mapped = sm.vmap2(sm.vmap2(net, axis_name="batch"), in_axes=None, state_in_axes=axes)
    out, new = mapped(states, X)
    for i, key in enumerate(jr.split(KEY, 3)):
        model, state = eqx.nn.make_with_state(Net)(key=key)
        expected, state = over_batch(model, state, X)
        close(out[i], expected)
        close(net.rebuild(sm.lane(new, axes, i)), (model, state))


def test_an_ensemble_of_equinox(members):
    models, state = population()
    expected, after = eqx.filter_vmap(over_batch, in_axes=(eqx.if_array(0), 0, None))(
        models, state, X
    )
    # The ensemble as it is. Its handles declare all members, so that the inner mapping is told
    # that it sees one of them.
    net, states = bridge.equinox(models, state)
    inner = sm.vmap2(net, axis_name="batch", state_in_axes={None: ...})
    out, new = sm.vmap2(inner, in_axes=None, state_in_axes={0: ...})(states, X)
    close(out, expected)
    close(net.rebuild(new), (models, after))
    # As a population: its members are brought in.
    arrays, static = eqx.partition(models, eqx.is_array)
    member = lambda arrays, state: bridge.equinox(eqx.combine(arrays, static), state)
    net, states, axes = sm.vmap2_new_states(
        member, dict(arrays=arrays, state=state), in_axes=dict(arrays=0, state=0)
    )
    mapped = sm.vmap2(sm.vmap2(net, axis_name="batch"), in_axes=None, state_in_axes=axes)
    out, new = mapped(states, X)
    close(out, expected)
    close(net.rebuild(new), (models, after))
    assert mapped(members[1], X)[0].shape == out.shape  # which one that is made here fits


def test_chunks_and_devices(members):
    net, states, axes = sm.vmap2_new_states(lambda *, key: make(key), key=KEY, axis_size=8)
    inner = sm.vmap2(net, axis_name="batch")
    kwargs = dict(in_axes=None, state_in_axes=axes)
    whole = sm.vmap2(inner, **kwargs)(states, X)
    close(sm.vmap2(inner, chunk_size=3, **kwargs)(states, X), whole)
    close(sm.pmap2(inner, **kwargs)(states, X), whole)
    model, made, _ = sm.pmap2_new_states(lambda *, key: make(key), key=KEY, axis_size=8)
    close(made, states)


def test_map():
    population = sm.Map(lambda *, key: make(key), init_map_size=2, in_axes=None, axis_name="m")
    population, states = population.init_all_states(key=KEY)
    step = population.map("count_only", in_axes=None)
    out, states = step(states, jnp.ones(3))
    assert out.shape == (2, 3) and states["count.index"]["n"].tolist() == [1, 1]


def test_training_is_that_of_equinox():
    adam = optax.adam(0.1)
    model, state = eqx.nn.make_with_state(Net)(key=KEY)
    net, states = bridge.equinox(model, state)
    mapped = sm.vmap2(net, axis_name="batch")

    @eqx.filter_value_and_grad(has_aux=True)
    def loss(model, state):
        out, state = over_batch(model, state, X)
        return (out**2).mean(), state

    @eqx.filter_jit
    def their_step(model, state, opt):
        (value, state), grads = loss(model, state)
        updates, opt = adam.update(grads, opt)
        return value, eqx.apply_updates(model, updates), state, opt

    @jax.jit
    def our_step(states, opt):
        params, rest = states.partition(sm.ParamState, ...)

        def loss(params):
            out, new = mapped(rest.merge(params), X)
            return (out**2).mean(), new

        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt = adam.update(grads, opt)
        return value, new.merge(optax.apply_updates(params, updates)), opt

    opt = adam.init(states.select(sm.ParamState))
    theirs = adam.init(eqx.filter(model, eqx.is_inexact_array))
    for _ in range(3):
        value, states, opt = our_step(states, opt)
        expected, model, state, theirs = their_step(model, state, theirs)
        close(value, expected)
    close(net.rebuild(states), (model, state), 1e-4)


def test_scan():
    out, states = jax.jit(
        lambda s: jax.lax.scan(lambda s, _: BATCH(s, X)[::-1], s, length=3)[::-1]
    )(STATES)
    assert states["count.index"]["n"] == 3 and out.shape == (3, 8, 4)
    out, again = sm.scan(lambda s, x: BATCH(s, x))(STATES, jnp.stack([X] * 3))
    close(states, again)


TRACES = []


def traced(model, x, state):
    TRACES.append(None)
    return model.count(x, state)


def test_models_made_alike_share_what_is_compiled():
    del TRACES[:]
    one, two = (make(jr.key(i)) for i in range(2))
    for net, states in [(one[0], two[1]), (two[0], one[1])]:
        out, _ = sm.vmap2(net.method(traced))(states, jnp.ones((2, 3)))
    call = jax.jit(lambda net, states, x: net.method(traced)(states, x))
    for net, states in [(one[0], two[1]), (two[0], one[1])]:
        call(net, states, jnp.ones(3))
    assert len(TRACES) == 2
    structures = [jax.tree.structure(net) for net, _ in (one, two)]
    assert structures[0] == structures[1] and hash(structures[0]) == hash(structures[1])


def unmarked(key):
    """A model whose markers are objects, as those are that `eqx.nn.State` is called on."""
    whole = Net(key=key)
    return eqx.nn.delete_init_state(whole), eqx.nn.State(whole)


def test_markers_that_are_objects():
    nets = [bridge.equinox(*unmarked(jr.key(i))) for i in range(2)]
    assert jax.tree.structure(nets[0][0]) == jax.tree.structure(nets[1][0])
    (net, states), (_, others) = nets
    out, new = sm.vmap2(net, axis_name="batch")(others, X)
    model, state = unmarked(jr.key(1))
    expected, state = over_batch(model, state, X)
    close(out, expected)
    close(net.rebuild(new), (model, state))
    assert net.read(others, (model, state)) == net.read(states, (model, state)) == new


def test_a_model_that_still_has_its_initial_values():
    whole = Net(key=KEY)
    state = eqx.nn.State(whole)
    _, state = whole.count(jnp.ones(3), state)
    net, states = bridge.equinox(whole, state)
    assert states["count.index"]["n"] == 1
    model, _ = net.rebuild(states)
    assert not jax.tree.leaves(model.count.index)


class Twice(eqx.Module):
    a: Count
    b: Count
    shared: eqx.nn.Shared

    def __init__(self, key):
        self.a = self.b = Count()
        pair = (eqx.nn.Linear(3, 3, key=key), eqx.nn.Linear(3, 3, use_bias=False, key=key))
        self.shared = eqx.nn.Shared(pair, lambda p: p[1].weight, lambda p: p[0].weight)

    def __call__(self, x, state):
        x, state = self.a(x, state)
        x, state = self.b(x, state)
        one, two = self.shared()
        return two(one(one(x))), state


def test_an_index_at_two_places_and_tied_weights():
    whole = Twice(KEY)
    state = eqx.nn.State(whole)
    net, states = bridge.equinox(whole, state)
    paths = [".".join(map(str, p)) for p, _ in states]
    assert "a.index" in paths and "b.index" not in paths
    assert sum("weight" in p for p in paths) == 1
    out, new = net(states, jnp.ones(3))
    expected, state = whole(jnp.ones(3), state)
    close(out, expected)
    assert new["a.index"]["n"] == 2
    close(net.rebuild(new)[1], state)
    assert net.read(states, net.rebuild(new)) == new
    # `make_with_state` makes two of it.
    _, states = bridge.equinox(*eqx.nn.make_with_state(Twice)(KEY))
    assert "b.index" in states


def test_a_part_of_a_model_with_all_of_the_state():
    model, state = eqx.nn.make_with_state(Net)(key=KEY)
    net, states = bridge.equinox(model.count, state)
    assert len(states) == 1 + 2 + 1 + 2
    out, new = net(states, jnp.ones(3))
    expected, after = model.count(jnp.ones(3), state)
    close(out, expected)
    close(net.rebuild(new), (model.count, after))
    assert new["index"]["n"] == 1 and new["state.0"] is not None
    net, states = bridge.equinox(model.count, after.substate(model.count))
    assert len(states) == 1


def test_a_model_without_state():
    net, states = bridge.equinox(eqx.nn.MLP(3, 2, 4, 1, key=KEY))
    mlp = eqx.nn.MLP(3, 2, 4, 1, key=KEY)
    out, _ = sm.vmap2(net)(states, X)
    close(out, jax.vmap(mlp)(X))
    assert eqx.tree_equal(net.rebuild(states), mlp)
    double = net.read(states, jax.tree.map(lambda x: x * 2 if eqx.is_array(x) else x, mlp))
    close(double["layers.0.weight"], mlp.layers[0].weight * 2)
    with pytest.raises(ValueError, match="`activation` of `MLP` was .*relu.* changed to .*tanh"):
        net.read(states, eqx.tree_at(lambda m: m.activation, mlp, jnp.tanh))


def test_sequential_and_dropout():
    def build(key):
        a, b = jr.split(key)
        return eqx.nn.Sequential(
            [
                eqx.nn.Linear(3, 4, key=a),
                eqx.nn.BatchNorm(4, "batch", mode="ema"),
                eqx.nn.Lambda(jax.nn.relu),
                eqx.nn.Dropout(0.5),
            ]
        )

    model, state = eqx.nn.make_with_state(build)(KEY)
    net, states = bridge.equinox(model, state)
    keys = jr.split(jr.key(2), 8)
    out, new = sm.vmap2(net, axis_name="batch")(states, X, key=keys)
    call = jax.vmap(
        lambda x, s, k: model(x, s, key=k),
        in_axes=(0, None, 0),
        out_axes=(0, None),
        axis_name="batch",
    )
    expected, state = call(X, state, keys)
    close(out, expected)
    close(net.rebuild(new)[1], state)
    frozen, _ = bridge.equinox(eqx.nn.inference_mode(model), state)
    out, after = sm.vmap2(frozen, axis_name="batch")(new, X)
    assert after == new and (out > 0).any()


class Noisy(eqx.Module):
    """Equinox's way to keep a stream of its own, and one that is an argument to be drawn from."""

    index: eqx.nn.StateIndex
    is_on: bool = True

    def __init__(self, key):
        self.index = eqx.nn.StateIndex(key)
        self.is_on = True

    def __call__(self, x, state):
        if not self.is_on:
            return x, state
        new, own = jr.split(state.get(self.index))
        return x + jr.normal(own, x.shape), state.set(self.index, new)


def test_a_key_in_the_state_is_a_stream():
    model, state = eqx.nn.make_with_state(Noisy)(KEY)
    net, states = bridge.equinox(model, state)
    assert type(dict(states)[("index",)]) is sm.RandomState
    mapped = sm.vmap2(net, in_axes=None, axis_size=4)
    out, new = mapped(states, jnp.zeros(3))
    again, _ = mapped(new, jnp.zeros(3))
    fewer, _ = sm.vmap2(net, in_axes=None, axis_size=2)(states, jnp.zeros(3))
    chunks, _ = sm.vmap2(net, in_axes=None, axis_size=4, chunk_size=2)(states, jnp.zeros(3))
    eight, _ = sm.pmap2(net, in_axes=None, axis_size=8)(states, jnp.zeros(3))
    assert len(np.unique(np.concatenate([out, again]))) == 24
    close(out[:2], fewer)
    close(out, chunks)
    close(eight[:4], out)
    off, _ = bridge.equinox(eqx.tree_at(lambda m: m.is_on, model, False), state)
    _, same = sm.vmap2(off, in_axes=None, axis_size=4)(states, jnp.zeros(3))
    close(same, states)
    # A member is Equinox's own.
    net, states, axes = sm.vmap2_new_states(
        lambda *, key: bridge.equinox(*eqx.nn.make_with_state(Noisy)(key)), key=KEY, axis_size=3
    )
    out, new = sm.vmap2(net, in_axes=None, state_in_axes=axes)(states, jnp.zeros(3))
    for i, key in enumerate(jr.split(KEY, 3)):
        model, state = eqx.nn.make_with_state(Noisy)(key)
        close(out[i], model(jnp.zeros(3), state)[0])


def test_methods():
    out, new = NET.count_only(STATES, jnp.ones(3))
    assert new["count.index"]["n"] == 1
    assert (NET.method("count_only")(STATES, jnp.ones(3))[1]) == new
    out, same = NET.method(lambda m, x, state: (m.encode(x), state))(STATES, jnp.ones(4))
    assert out.shape == (4,) and same == STATES
    with pytest.raises(TypeError, match=r"`Net` returns `\(out, state\)`"):
        NET.method(lambda m, x, state: m.encode(x))(STATES, jnp.ones(4))
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3") as info:
        NET.encode(STATES, jnp.ones(4))
    assert "net.method(lambda model, x, state" in info.value.__notes__[0]
    with pytest.raises(AttributeError, match="`Net`, bridged, has no method `decode`"):
        NET.decode
    with pytest.raises(TypeError, match="A `dict` can't be called"):
        net, states = bridge.equinox({"a": jnp.ones(3)})
        net(states)


def test_keyword_arguments_are_mapped():
    out, _ = BATCH(STATES, X)
    scaled, _ = BATCH(STATES, X, scale=jnp.arange(8.0))
    close(scaled, out * jnp.arange(8.0)[:, None])


def test_kinds():
    model, state = eqx.nn.make_with_state(Net)(key=KEY)
    kinds = {eqx.nn.StateIndex: sm.ShortTermState, "steps": sm.NonBatchState}
    _, states = bridge.equinox(model, state, kinds=kinds)
    assert len(states.select(sm.ShortTermState)) == 4
    assert type(dict(states)[("steps",)]) is sm.NonBatchState
    frozen = lambda path, node: sm.LongTermState if path[0] == "spectral" else None
    _, states = bridge.equinox(model, state, kinds=frozen)
    assert not any(p[0] == "spectral" for p, _ in states.select(sm.ParamState))


def test_declare_says_the_same():
    class Declared(eqx.Module):
        net: Net

        def __init__(self, *, key):
            self.net = sm.declare(
                Net(key=key),
                lambda path, x: sm.ParamState if eqx.is_inexact_array(x) else sm.LongTermState,
            )

        def __call__(self, states, x):
            x, states = states[self.net.spectral](x, states)
            return states[self.net.norm](x, states)

    model, states = sm.make_with_states(Declared)(key=KEY)
    out, new = sm.vmap2(model, axis_name="batch")(states, X)
    mine = NET.method(lambda m, x, state: m.norm(*m.spectral(x, state)))
    expected, after = sm.vmap2(mine, axis_name="batch")(STATES, X)
    close(out, expected)
    close(new["net.norm.batch_state_index.init"], after["norm.batch_state_index"])


def test_checkpoints(tmp_path, members):
    net, states, axes = members
    path = tmp_path / "c.eqx"
    eqx.tree_serialise_leaves(path, states)
    assert eqx.tree_deserialise_leaves(path, states) == states
    assert pickle.loads(pickle.dumps(STATES)) == STATES
    count, own = bridge.equinox(*eqx.nn.make_with_state(Residual)(KEY))
    again = pickle.loads(pickle.dumps(count))
    assert jax.tree.structure(again) == jax.tree.structure(count) and copy.deepcopy(NET) is NET
    close(again.rebuild(own), count.rebuild(own))
    loaded, _ = make(jr.key(5))[1].load(STATES, strict=True)
    assert loaded == STATES


def test_half_precision_and_outputs():
    class Half(eqx.Module):
        w: jax.Array
        table: np.ndarray

        def __call__(self, x):
            return {"y": (x * self.w, None), "t": self.table[1]}

    net, states = bridge.equinox(Half(jnp.ones(3, jnp.bfloat16), np.arange(3)))
    out, _ = sm.vmap2(net)(states, X.astype(jnp.bfloat16))
    assert out["y"][0].dtype == jnp.bfloat16 and out["y"][1] is None
    assert type(dict(states)[("table",)]) is sm.LongTermState


def test_skeletons():
    net, states = eqx.filter_eval_shape(make, KEY)
    assert states["norm.bias"].shape == (4,)
    model, state = eqx.filter_eval_shape(lambda: eqx.nn.make_with_state(Net)(key=KEY))
    assert jax.tree.structure(net.rebuild(states)) == jax.tree.structure((model, state))


def test_wrong_input():
    model, state = eqx.nn.make_with_state(Net)(key=KEY)
    with pytest.raises(
        TypeError, match=r"takes a model of Equinox that is made.*\n.*\n.*make_with"
    ):
        bridge.equinox(Net)
    with pytest.raises(TypeError, match=r"has a state, `count.index`, and came without it"):
        bridge.equinox(model)
    with pytest.raises(TypeError, match="is an `eqx.nn.State`, not .*dict"):
        bridge.equinox(model, {})
    other = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="ema")[1]
    with pytest.raises(ValueError, match="no value for its index `count.index`"):
        bridge.equinox(model, other)
    with pytest.raises(TypeError, match="`Lambda` holds no array"):
        bridge.equinox(eqx.nn.Lambda(jax.nn.relu))
    with pytest.raises(TypeError, match="takes the context first"):
        NET(jnp.ones(3))
    with pytest.raises(sm.StateNotFoundError, match="No state"):
        NET(sm.States(v=sm.ShortTermState(jnp.ones(3))), jnp.ones(3))
    model.count(jnp.ones(3), state)
    with pytest.raises(ValueError, match=r"of `Net` is used up"):
        bridge.equinox(model, state)


def test_what_a_call_may_not_do():
    def old(m, x, state):
        m.count(x, state)
        return x, state

    with pytest.raises(ValueError, match=r"of `Net` is used up.*\nWrong"):
        NET.method(old)(STATES, jnp.ones(3))
    part = lambda m, x, state: m.count(x, state.substate(m.count))
    with pytest.raises(
        ValueError, match=r"no value for its index `spectral.uv_index`.*update\(part"
    ):
        NET.method(part)(STATES, jnp.ones(3))
    model, state = eqx.nn.make_with_state(Net)(key=KEY)
    net, states = bridge.equinox(model.count, state.substate(model.count))
    with pytest.raises(ValueError, match="made `state.0`"):
        net.read(states, (model.count, state))


class Residual(eqx.Module):
    convs: list
    norms: list

    def __init__(self, key):
        self.convs = [eqx.nn.Conv2d(4, 4, 3, padding=1, key=k) for k in jr.split(key, 4)]
        self.norms = [eqx.nn.BatchNorm(4, "batch", mode="ema") for _ in range(4)]

    def __call__(self, x, state):
        for conv, norm in zip(self.convs, self.norms):
            y, state = norm(conv(x), state)
            x = x + jax.nn.relu(y)
        return x.mean((1, 2)), state


class Transformer(eqx.Module):
    embed: eqx.nn.Embedding
    blocks: list

    def __init__(self, key):
        a, *keys = jr.split(key, 4)
        self.embed = eqx.nn.Embedding(11, 8, key=a)
        self.blocks = [
            (
                eqx.nn.MultiheadAttention(2, 8, key=k),
                eqx.nn.LayerNorm(8),
                eqx.nn.MLP(8, 8, 16, 1, key=k),
            )
            for k in keys
        ]

    def __call__(self, tokens):
        x = jax.vmap(self.embed)(tokens)
        mask = jnp.tril(jnp.ones((tokens.size, tokens.size), bool))
        for attention, norm, mlp in self.blocks:
            y = jax.vmap(norm)(x)
            x = x + attention(y, y, y, mask)
            x = x + jax.vmap(mlp)(x)
        return x


def test_a_convolutional_net():
    images = jr.normal(KEY, (4, 4, 6, 6))
    make = lambda *, key: bridge.equinox(*eqx.nn.make_with_state(Residual)(key))
    net, states, axes = sm.vmap2_new_states(make, key=KEY, axis_size=2)
    mapped = sm.vmap2(sm.vmap2(net, axis_name="batch"), in_axes=None, state_in_axes=axes)
    assert "norms.3.ema_state_index" in str(mapped.plan(states, images))
    out, new = mapped(states, images)
    for i, key in enumerate(jr.split(KEY, 2)):
        model, state = eqx.nn.make_with_state(Residual)(key)
        expected, state = over_batch(model, state, images)
        close(out[i], expected)
        close(net.rebuild(sm.lane(new, axes, i))[1], state)


def test_a_transformer():
    tokens = jr.randint(KEY, (3, 5), 0, 11)
    make = lambda *, key: bridge.equinox(Transformer(key))
    net, states, axes = sm.vmap2_new_states(make, key=KEY, axis_size=2)
    mapped = sm.vmap2(sm.vmap2(net), in_axes=None, state_in_axes=axes)
    assert len(states) == 1 + 3 * (4 + 2 + 4)
    assert "blocks.2.0.query_proj.weight" in str(mapped.plan(states, tokens))
    out, _ = mapped(states, tokens)
    for i, key in enumerate(jr.split(KEY, 2)):
        close(out[i], jax.jit(jax.vmap(Transformer(key)))(tokens))


def test_static_parts_are_told_apart():
    """`1`, `1.0` and `True` are equal in Python, and other programs."""

    class Scaled(eqx.Module):
        w: jax.Array
        by: object
        fixed: object = eqx.field(static=True)

        def __call__(self, x):
            return x * self.w * (2 if type(self.by) is bool else 3), repr(self.fixed)

    nets = [
        bridge.equinox(Scaled(jnp.ones(()), by, fixed))
        for by, fixed in [(1, 1), (True, 1), (1, 1.0), (1, True)]
    ]
    run = jax.jit(lambda net, s, x: net(s, x)[0][0])
    mapped = [sm.vmap2(net)(states, jnp.ones(2))[0] for net, states in nets]
    assert [float(y[0]) for y, _ in mapped] == [3.0, 2.0, 3.0, 3.0]
    assert [shown for _, shown in mapped] == ["1", "1", "1.0", "True"]
    assert [float(run(net, s, jnp.ones(()))) for net, s in nets] == [3.0, 2.0, 3.0, 3.0]
    assert jax.tree.structure(nets[0][0]) != jax.tree.structure(nets[1][0])


@pytest.mark.leaks
def test_nothing_leaks():
    net, states, axes = sm.vmap2_new_states(lambda *, key: make(key), key=KEY, axis_size=2)
    with jax.checking_leaks():
        mapped = sm.vmap2(sm.vmap2(net, axis_name="batch"), in_axes=None, state_in_axes=axes)
        jax.jit(mapped)(states, X)


def test_inference_mode_of_a_bridged_model_is_refused():
    net, states = bridge.equinox([eqx.nn.Linear(2, 2, key=jr.key(0)), eqx.nn.Dropout(0.5)])
    with pytest.raises(TypeError, match="Wrong:  evaluate = eqx.nn.inference_mode"):
        eqx.nn.inference_mode({"part": net})
    linear, _ = bridge.equinox(eqx.nn.Linear(2, 2, key=jr.key(0)))  # has no flag to set
    assert isinstance(eqx.nn.inference_mode(linear), bridge.Adopted)

    def call(parts, x):
        linear, dropout = eqx.nn.inference_mode(parts)
        return dropout(linear(x))

    assert net.method(call)(states, jnp.ones(2))[0].shape == (2,)
