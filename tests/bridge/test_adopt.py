"""`bridge.adopt`: any pytree as states; `Adopted`; models that are parts of a larger one."""

import copy
import dataclasses
import gc
import pickle
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import statemap as sm
from statemap import _programs, bridge


KEY = jr.key(0)
X = jr.normal(jr.key(1), (8, 3))


@pytest.fixture(autouse=True)
def strict_promotion():
    """Other libraries run as their users run them, without strict promotion."""


class Pair(NamedTuple):
    a: Any
    b: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Data:
    w: Any
    by: Any = dataclasses.field(default=1, metadata=dict(static=True))


class Two:
    """A node with two values."""

    def __init__(self, x, y, scale=1):
        self.x, self.y, self.scale = x, y, scale


jax.tree_util.register_pytree_node(
    Two, lambda t: ((t.x, t.y), t.scale), lambda scale, xy: Two(*xy, scale)
)


def is_two(x):
    return isinstance(x, Two)


def kinds_of(states):
    return {".".join(map(str, p)): type(s) for p, s in states}


TREE = {
    "pair": Pair(jnp.ones(3), (jnp.zeros(2, int), jr.key(3))),
    "data": Data(np.ones(2, np.float32)),
    "list": [None, "text", 1.5, jnp.ones(())],
}


def test_paths_and_the_way_back():
    model, states = bridge.adopt(TREE)
    assert kinds_of(states) == {
        "data.w": sm.LongTermState,
        "list.3": sm.LongTermState,
        "pair.a": sm.LongTermState,
        "pair.b.0": sm.LongTermState,
        "pair.b.1": sm.RandomState,
    }
    built = model.rebuild(states)
    assert jax.tree.structure(built) == jax.tree.structure(TREE)
    assert built["list"][:3] == TREE["list"][:3] and isinstance(built["data"], Data)
    built["data"].w = built["data"].w * 2
    new = model.read(states, built)
    assert new["data.w"].tolist() == [2, 2] and states["data.w"].tolist() == [1, 1]
    assert bridge.adopt(jnp.ones(3))[1]["value"].shape == (3,)


def test_a_lane_fills_in_its_own():
    model, states = bridge.adopt(TREE)

    def step(states, x):
        tree = model.rebuild(states)
        noise = jr.normal(tree["pair"].b[1], ())
        tree["pair"] = tree["pair"]._replace(a=tree["pair"].a + x)
        return noise, model.read(states, tree)

    out, new = sm.vmap2(step, state_in_axes={0: lambda path, _: path == ("pair", "a")})(
        states, jnp.arange(3.0)
    )
    assert new["pair.a"].tolist() == [1, 2, 3] and len(set(out.tolist())) == 3


def test_an_optimiser_of_optax():
    adam = optax.chain(optax.clip(1.0), optax.adam(0.1))
    params = {"w": jnp.ones(3)}
    optimiser, states = bridge.adopt(adam.init(params))
    assert "1.0.mu.w" in states
    state = adam.init(params)

    @jax.jit
    def step(states, grads):
        updates, new = adam.update(grads, optimiser.rebuild(states))
        return updates, optimiser.read(states, new)

    for _ in range(2):
        updates, states = step(states, params)
        expected, state = adam.update(params, state)
        np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-6)
    make = lambda w: bridge.adopt(adam.init({"w": w}))
    _, states, axes = sm.vmap2_new_states(make, dict(w=jnp.ones((4, 3))), in_axes=dict(w=0))
    assert states["1.0.mu.w"].shape == (4, 3) and states["1.0.count"].shape == (4,)


def test_kinds():
    chosen = lambda **kwargs: kinds_of(bridge.adopt(TREE, **kwargs)[1])
    assert chosen(kinds={"pair": sm.ParamState})["pair.a"] is sm.ParamState
    assert chosen(kinds={jax.Array: sm.ParamState})["data.w"] is sm.LongTermState
    by_path = lambda path, x: sm.ShortTermState if path == ("list", 3) else None
    found = chosen(kinds=by_path)
    assert found["list.3"] is sm.ShortTermState and found["pair.b.1"] is sm.RandomState
    _, states = bridge.adopt({"key": jr.PRNGKey(3)}, kinds={"key": sm.RandomState})
    assert kinds_of(states) == {"key": sm.RandomState}
    model, states = bridge.adopt({"key": jr.PRNGKey(3)}, kinds={"key": sm.RandomState})
    assert (model.rebuild(states)["key"] == jr.PRNGKey(3)).all()
    with pytest.raises(TypeError, match=r"`kinds` gave 3 for `data.w` of `adopted`, which is no"):
        bridge.adopt(TREE, kinds=lambda path, x: 3)
    with pytest.raises(TypeError, match="A RandomState takes a key") as info:
        bridge.adopt({"a": jnp.ones(3)}, kinds={"a": sm.RandomState})
    assert "(Raised when `a` of `adopted` became a state.)" in info.value.__notes__


def test_nodes_with_several_children():
    tree = {"one": Two(jnp.ones(3), jnp.zeros(2)), "none": Two(None, 3)}
    model, states = bridge.adopt(tree, is_node=is_two, kinds={Two: sm.ShortTermState})
    assert [x.shape for x in states["one"]] == [(3,), (2,)]
    assert dict(states)[("one",)].tag == "Two" and len(states) == 1
    built = model.rebuild(states)
    assert isinstance(built["one"], Two) and built["none"].y == 3
    built["one"].x = built["one"].x * 2
    assert model.read(states, built)["one"][0].tolist() == [2, 2, 2]
    built["one"].scale = 2
    with pytest.raises(ValueError, match="`one` of `adopted` was .*Two.*changed to .*Two"):
        model.read(states, built)
    built = model.rebuild(states)
    built["none"].y = 4
    with pytest.raises(ValueError, match="`none` of `adopted` was 3 and was changed to 4"):
        model.read(states, built)
    assert model.rebuild(states)["none"].y == 3  # whoever changes what he was handed changes his


def test_keys_that_are_tuples_are_several():
    model, states = bridge.adopt({"stats": {("kernel", "u"): jnp.ones(3)}})
    assert states["stats.kernel.u"].shape == (3,)
    assert model.rebuild(states)["stats"]["kernel", "u"].shape == (3,)


def test_what_is_changed_is_told():
    model, states = bridge.adopt(TREE)
    for change, message in [
        (lambda t: t["list"].append(X), r"made `list.4`, for which the context has no place"),
        (lambda t: t["list"].pop(), r"took `list.3` away"),
        (lambda t: t["list"].__setitem__(2, 2.5), r"`list.2` of `adopted` was 1.5 and was .* 2.5"),
        (lambda t: t["list"].__setitem__(2, X), r"`list.2` of `adopted` was 1.5 .* an array"),
        (lambda t: t["list"].__setitem__(3, jnp.ones(2)), r"`list.3` was given .* another shape"),
        (lambda t: t["data"].__setattr__("by", 2), r"changed its structure"),
    ]:
        tree = model.rebuild(states)
        change(tree)
        with pytest.raises(ValueError, match=message):
            model.read(states, tree)
    with pytest.raises(TypeError, match="`adopted` holds no array to be a state"):
        bridge.adopt({"a": 1})
    with pytest.raises(TypeError, match="A `dict` can't be called. Name what is called of it"):
        model(states)
    with pytest.raises(TypeError, match="`adopted` is immutable"):
        model.write_back(states)
    with pytest.raises(AttributeError, match="`statemap.bridge` has no `torch`. It has .*`adopt`"):
        bridge.torch


def test_methods():
    model, states = bridge.adopt(TREE)
    total = model.method(lambda tree, x: tree["pair"].a.sum() + x)
    out, same = sm.vmap2(total)(states, jnp.arange(3.0))
    assert out.tolist() == [3, 4, 5] and same == states


def test_a_penzai_model():
    pz = pytest.importorskip("penzai.pz")
    from penzai.models import simple_mlp

    mlp = simple_mlp.MLP.from_config(init_base_rng=KEY, feature_sizes=[3, 4, 2])
    unbound, values = pz.unbind_params(mlp, freeze=True)
    model, states = bridge.adopt(
        [v.freeze() if hasattr(v, "freeze") else v for v in values],
        is_node=lambda x: type(x).__name__ == "ParameterValue",
    )
    assert len(states) == 4

    def call(values, x):
        named = pz.nx.wrap(x).tag("features")
        return pz.bind_variables(unbound, values)(named).untag("features").unwrap()

    out, _ = sm.vmap2(model.method(call))(states, X)
    expected = jnp.stack([call(values, x) for x in X])
    np.testing.assert_allclose(out, expected, rtol=1e-5)


def linear(n, key):
    return bridge.equinox(eqx.nn.Linear(3, n, key=key))


def test_adopted_is_a_pytree():
    net, states = linear(4, KEY)
    other, _ = linear(4, jr.key(1))
    assert jax.tree.map(lambda x: x, net)(states, X[0])[0].shape == (4,)
    assert not jax.tree.leaves(net)
    one, two = map(jax.tree.structure, (net, other))
    assert one == two and hash(one) == hash(two)
    assert jax.tree.structure(linear(5, KEY)[0]) != one
    assert jax.tree.structure(net.method("__call__")) != one
    out = jax.jit(lambda net, s, x: net(s, x)[0])(net, states, X[0])
    np.testing.assert_allclose(out, net(states, X[0])[0], rtol=1e-6)
    again = pickle.loads(pickle.dumps(net))
    assert jax.tree.structure(again) == one and copy.deepcopy(net) is net is copy.copy(net)
    assert repr(net) == "Adopted(Linear, 2 states)" and sm.vmap2(net).__name__ == "Linear"
    with pytest.raises(AttributeError, match="`Adopted` is immutable"):
        net.x = 1
    keyed = jax.tree_util.tree_flatten_with_path(net, is_leaf=lambda x: isinstance(x, sm.State))
    assert [jax.tree_util.keystr(path) for path, _ in keyed[0]] == ["['bias']", "['weight']"]


class ActorCritic(eqx.Module):
    actor: bridge.Adopted
    critic: bridge.Adopted
    gain: sm.ParamState

    def __init__(self, *, key):
        a, c = jr.split(key)
        self.actor = bridge.unbind(*linear(2, a))
        self.critic = bridge.unbind(*linear(1, c))
        self.gain = sm.ParamState(jnp.ones(()))

    def __call__(self, states, x):
        action, states = self.actor(states, x)
        value, states = self.critic(states, x)
        return (states[self.gain] * action, value), states


def test_two_models_in_one():
    model, states, axes = sm.vmap2_new_states(ActorCritic, key=KEY, axis_size=3)
    assert set(kinds_of(states)) == {
        "actor.weight", "actor.bias", "critic.weight", "critic.bias", "gain"
    }  # fmt: skip
    (action, value), _ = sm.vmap2(model, in_axes=None, state_in_axes=axes)(states, X[0])
    for i, key in enumerate(jr.split(KEY, 3)):
        a, c = jr.split(key)
        np.testing.assert_allclose(action[i], eqx.nn.Linear(3, 2, key=a)(X[0]), rtol=1e-5)
        np.testing.assert_allclose(value[i], eqx.nn.Linear(3, 1, key=c)(X[0]), rtol=1e-5)
    # A part finds its states in the context of the whole.
    member = sm.lane(states, axes, 0)
    close = model.actor.rebuild(member)
    assert isinstance(close, eqx.nn.Linear)
    np.testing.assert_allclose(close(X[0]), action[0], rtol=1e-5)
    # One part at two places is one.
    twice = lambda: [part := bridge.unbind(*linear(2, KEY)), part]
    both, states = sm.make_with_states(twice)()
    assert set(kinds_of(states)) == {"0.weight", "0.bias"}
    assert (both[0](states, X[0])[0] == both[1](states, X[0])[0]).all()
    # Back to parts, and in again.
    again, states = sm.make_with_states(lambda: bridge.unbind(both, states))()
    assert jax.tree.structure(again) == jax.tree.structure(both)


def test_unbind_refuses_what_is_no_model_and_its_context():
    net, states = linear(2, KEY)
    with pytest.raises(TypeError, match="`unbind` takes a model of handles and its context, not L"):
        bridge.unbind(eqx.nn.Linear(3, 2, key=KEY), states)
    with pytest.raises(sm.StateNotFoundError, match="No state|handle"):
        bridge.unbind(net, linear(3, KEY)[1])
    with pytest.raises(TypeError, match="no name"):
        bridge.unbind(net, states)(states, X[0])


def test_contexts_side_by_side():
    (actor, a), (critic, c) = linear(2, KEY), linear(1, KEY)

    def step(states, x):
        action, a = actor(states["actor"], x)
        value, c = critic(states["critic"], x)
        return (action, value), {"actor": a, "critic": c}

    mapped = sm.vmap2(step)
    (action, value), new = mapped({"actor": a, "critic": c}, X)
    assert action.shape == (8, 2) and value.shape == (8, 1)
    assert new == {"actor": a, "critic": c}
    assert "actor.weight" in str(mapped.plan({"actor": a, "critic": c}, X))


def test_arrays_that_a_model_closes_over_are_freed():
    """What is static in a model keys its programs; a model that is made anew with other arrays in
    a closure is not kept alive by them.
    """
    x = jnp.ones(3)

    def use(big):
        tree = {"w": jnp.ones(3), "act": lambda v: v + big.sum()}
        model, states = bridge.adopt(tree)
        call = model.method(lambda tree, x: tree["act"](tree["w"] * x))
        return sm.vmap2(call)(states, x)[0][0].tolist()

    use(jnp.zeros(1000))
    gc.collect()
    before = len(jax.live_arrays()), len(_programs._shared)
    for i in range(4):
        assert use(jnp.full(1000, float(i))) == [1000.0 * i + 1] * 3
    gc.collect()
    arrays, programs = before
    assert len(jax.live_arrays()) <= arrays and len(_programs._shared) <= programs


def test_closures_without_arrays_share_what_is_compiled():
    def scaled(by):
        return lambda v: v * by

    tree, runs = {"w": jnp.ones(3), "act": scaled(2.0), "jitted": jax.jit(jax.nn.relu)}, []

    def call(tree, x, runs=runs):
        runs.append(1)
        return tree["act"](tree["w"] * x)

    for _ in range(3):
        model, states = bridge.adopt(tree)
        assert sm.vmap2(model.method(call))(states, jnp.ones(3))[0].shape == (3, 3)
    assert len(runs) == 1
