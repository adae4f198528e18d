"""Modules of Flax Linen as functions of states, against Linen itself."""

import copy
import functools
import io
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

from .alike import WAYS


pytest.importorskip("flax")
import flax.errors
from flax import linen as nn, nnx
from flax.core import freeze
from flax.traverse_util import flatten_dict


class Net(nn.Module):
    """Parameters, statistics, random numbers, and a collection of its own."""

    axis_name: str | None = None
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train=True):
        count = self.variable("counter", "n", lambda: jnp.array(0))
        count.value = count.value + 1
        x = nn.Dense(4)(x)
        x = nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name)(x)
        return nn.Dropout(self.rate, deterministic=not train)(x)


X = jr.normal(jr.key(1), (8, 3))


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-5), a, b)


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def own(module, variables, key, x, **kwargs):
    """What Linen itself does with the variables of a member and its stream."""
    carry, draw = jr.split(key)
    mutable = [c for c in variables if c != "params"]
    out, new = module.apply(variables, x, rngs={"params": draw}, mutable=mutable, **kwargs)
    return out, {**variables, **new}, carry


def make(*, key):
    return bridge.linen(Net(), X, key=key)


@pytest.fixture(scope="module")
def population():
    return sm.vmap2_new_states(make, key=jr.key(0), axis_size=8)


@pytest.mark.parametrize("way", WAYS)
def test_a_population_is_a_loop_over_linens_own(population, way):
    net, states, axes = population
    members = [sm.lane(states, axes, i) for i in range(8)]
    members = [(net.rebuild(s), s["rngs.params"]) for s in members]
    f = WAYS[way](net, in_axes=None, state_in_axes=axes)
    for train in (True, True, False):
        out, states = f(states, X, train)
        for i, (variables, key) in enumerate(members):
            y, variables, carry = own(Net(), variables, key, X, train=train)
            key = carry if train else key
            close(out[i], y)
            member = sm.lane(states, axes, i)
            close(net.rebuild(member), variables)
            assert member["rngs.params"] == key
            members[i] = variables, key
    assert states["counter.n"].tolist() == [4] * 8  # as in Linen, `init` is a call, too


def test_a_member_is_initialised_as_linen_does_with_its_key():
    net, states = make(key=jr.key(3))
    close(net.rebuild(states), Net().init(jr.split(jr.key(3))[0], X))
    for key in (3, jr.PRNGKey(3), np.int32(3)):  # however the key is given
        assert make(key=key)[1] == states
    kinds = {path[0]: type(state) for path, state in states}
    assert kinds == {
        "params": sm.ParamState,
        "batch_stats": sm.BatchState,
        "counter": sm.LongTermState,
        "rngs": sm.RandomState,
    }


def test_statistics_over_a_batch_of_lanes_are_linens_own():
    net, states = bridge.linen(Net("batch", rate=0.0), X[0], train=False, key=0)
    f = sm.vmap2(net, axis_name="batch")
    variables = net.rebuild(states)
    for train in (True, True, False):
        out, states = f(states, X, train=train)
        y, new = Net(rate=0.0).apply(variables, X, train, mutable=["batch_stats", "counter"])
        variables = {**variables, **new}
        close(out, y)
        close(net.rebuild(states), variables)


def test_members_by_batch(population):
    def make_one(*, key):
        return bridge.linen(Net("batch", rate=0.0), X[0], train=False, key=key)

    net, states, axes = sm.vmap2_new_states(make_one, key=jr.key(0), axis_size=3)
    batch = sm.vmap2(net, axis_name="batch")
    out, new = sm.vmap2(batch, in_axes=None, state_in_axes=axes)(states, X)
    for i in range(3):
        variables = net.rebuild(sm.lane(states, axes, i))
        y, variables, _ = own(Net(rate=0.0), variables, jr.key(0), X)
        close(out[i], y)
        close(net.rebuild(sm.lane(new, axes, i)), variables)


class Noise(nn.Module):
    """Nothing but random bits."""

    stream: str = "dropout"

    @nn.compact
    def __call__(self, x, train=True):
        return jr.bits(self.make_rng(self.stream), (2,)) if train else jnp.zeros(2, jnp.uint32)


def test_the_lanes_of_one_model_draw_by_the_law():
    net, states = bridge.linen(Noise(), 0.0, key=0)
    key = states["rngs.params"]
    out, after = sm.vmap2(net)(states, jnp.ones(8))
    new, *lanes = jr.split(key, 9)
    for i in range(8):
        assert (out[i] == own(Noise(), {}, lanes[i], 1.0)[0]).all()
    assert after["rngs.params"] == new
    assert (sm.vmap2(net)(states, jnp.ones(3))[0] == out[:3]).all()
    assert (sm.vmap2(net, chunk_size=3)(states, jnp.ones(8))[0] == out).all()
    assert (sm.pmap2(net)(states, jnp.ones(8))[0] == out).all()
    again, _ = sm.vmap2(net)(after, jnp.ones(8))
    assert len({tuple(row) for row in (*out.tolist(), *again.tolist())}) == 16


def test_a_stream_that_a_call_does_not_draw_from_is_not_used():
    net, states = bridge.linen(Noise(), 0.0, key=0)
    for f in (net, jax.jit(net, static_argnames="train"), sm.vmap2(net)):
        assert f(states, jnp.ones(2), train=False)[1] == states
    row = sm.vmap2(net).plan(states, jnp.ones(2), train=False)["rngs.params"]
    assert not (row.drawn or row.read or row.written)


class Inner(nn.Module):
    train: bool = True

    @nn.compact
    def __call__(self, x, _=None):
        x = nn.Dense(3, kernel_init=nn.initializers.uniform(1.0))(x)
        return nn.Dropout(0.5, deterministic=not self.train)(x), None


def lifted(lift):
    """A module that has `Inner` in it, lifted."""

    class Outer(nn.Module):
        train: bool = True

        @nn.compact
        def __call__(self, x):
            return lift(self, x)

    return Outer


def cond(module, x):
    inner = Inner(module.train)
    if module.is_initializing():
        return inner(x)[0]
    return nn.cond(x.sum() > -1e9, lambda m, x: m(x)[0], lambda m, x: x, inner, x)


def while_loop(module, x):
    inner = Inner(module.train)
    if module.is_initializing():
        return inner(x)[0]
    body = lambda m, c: (c[0] + 1, m(c[1])[0])
    start = (0, x)
    return nn.while_loop(lambda m, c: c[0] < 2, body, inner, start, split_rngs={"params": True})[1]


class Setup(nn.Module):
    train: bool = True

    def setup(self):
        self.noise = jr.normal(self.make_rng("setup"), (3,)) if self.train else jnp.zeros(3)

    def __call__(self, x):
        return x + self.noise


class Plain(nn.Module):
    train: bool = True

    def draw(self, x):
        return jr.normal(self.make_rng("plain"), x.shape)

    def __call__(self, x):
        return x + (self.draw(x) if self.train else 0)


class Shared(nn.Module):
    train: bool = True

    def setup(self):
        self.child = Inner(self.train)
        nn.share_scope(self, self.child)

    def __call__(self, x):
        return self.child(x)[0]


class Based(nn.Module):
    """As `Shared`, the other way round: the scope of one that it is given."""

    base: nn.Module

    def setup(self):
        nn.share_scope(self, self.base)

    def __call__(self, x):
        return self.base(x)[0]


def scan(module, x):
    lift = nn.scan(Inner, {"params": 0}, split_rngs={"params": True}, length=3)
    return lift(module.train)(x, None)[0]


def each(module, x):
    axes = {"params": 0}
    lift = nn.vmap(Inner, variable_axes=axes, split_rngs={"params": True}, axis_size=2)
    return lift(module.train)(x)[0]


LIFTS = {
    "nested": lifted(lambda m, x: lifted(lambda m, x: Inner(m.train)(x)[0])(m.train)(x)),
    "remat": lifted(lambda m, x: nn.remat(Inner)(m.train)(x)[0]),
    "jit": lifted(lambda m, x: nn.jit(Inner)(m.train)(x)[0]),
    "scan": lifted(scan),
    "vmap": lifted(each),
    "cond": lifted(cond),
    "while": lifted(while_loop),
    "twice": lifted(lambda m, x: (f := Inner(m.train))(f(x)[0])[0]),
    "list": lifted(lambda m, x: nn.Sequential([Inner(m.train), lambda y, _: y])(x)),
    "setup": Setup,
    "plain": Plain,
    "share_scope": Shared,
    "shared_base": lifted(lambda m, x: Based(Inner(m.train))(x)),
}


@pytest.mark.parametrize("lift", LIFTS)
def test_a_stream_moves_on_just_when_it_is_drawn_from_however_deep(lift):
    x = jnp.ones((2, 8, 3))
    net, states = bridge.linen(LIFTS[lift](), x, key=0)
    call = jax.jit(net)
    for _ in range(2):
        key = states["rngs.params"]
        out, states = call(states, x)
        close(out, own(LIFTS[lift](), net.rebuild(states), key, x)[0])
        assert states["rngs.params"] == jr.split(key)[0]
    assert (call(states, x)[0] != out).any()
    # Where `nn.jit` and JAX remember what they traced, too.
    lanes, after = sm.vmap2(net, in_axes=None, axis_size=2)(states, x)
    assert after["rngs.params"] == jr.split(states["rngs.params"], 3)[0]
    assert (lanes[0] != lanes[1]).any()

    still, states = bridge.linen(LIFTS[lift](train=False), variables=net.rebuild(states), key=0)
    row = sm.vmap2(still, in_axes=None, axis_size=2).plan(states, x)["rngs.params"]
    # Linen makes a key for what `nn.jit` compiles, whether that draws or not.
    assert row.drawn == row.written == (lift == "jit")


class Two(nn.Module):
    @nn.compact
    def __call__(self, x, noise=True, drop=True):
        x = x + jr.normal(self.make_rng("noise"), x.shape) if noise else x
        return nn.Dropout(0.5, deterministic=not drop)(x)


def test_streams_by_name():
    net, states = bridge.linen(Two(), X, key=0, rngs=("noise", "dropout"))
    assert [path for path, _ in states] == [("rngs", "dropout"), ("rngs", "noise")]
    _, after = net(states, X, drop=False)
    assert after["rngs.dropout"] == states["rngs.dropout"]
    assert after["rngs.noise"] == jr.split(states["rngs.noise"])[0]
    out, _ = net(states, X)
    draws = {name: jr.split(states["rngs", name])[1] for name in ("noise", "dropout")}
    close(out, Two().apply({}, X, rngs=draws))
    net, states = bridge.linen(Two(), X, key=0, rngs=("noise",), drop=False)
    with pytest.raises(flax.errors.InvalidRngError, match='needs PRNG for "dropout"') as error:
        net(states, X)
    assert "told of" in error.value.__notes__[-1]


def test_a_stream_of_its_own_where_scan_splits_it():
    class Layers(nn.Module):
        @nn.compact
        def __call__(self, x):
            rngs = {"params": False, "dropout": True}
            return nn.scan(Inner, {"params": 0}, split_rngs=rngs, length=3)()(x, None)[0]

    net, states = bridge.linen(Layers(), X, key=0, rngs=("dropout",))
    out, after = net(states, X)
    draw = {"dropout": jr.split(states["rngs.dropout"])[1]}
    close(out, Layers().apply(net.rebuild(states), X, rngs=draw))
    assert after["rngs.dropout"] != states["rngs.dropout"]


def test_training_is_linens_own():
    module, optimiser = Net(rate=0.0), optax.sgd(0.1, momentum=0.9)
    net, states = bridge.linen(module, X, key=0)
    variables = net.rebuild(states)
    params, rest = states.partition(sm.ParamState, ...)
    theirs, others = variables["params"], {c: variables[c] for c in ("batch_stats", "counter")}
    opt, their_opt = optimiser.init(params), optimiser.init(theirs)

    @jax.jit
    def step(params, rest, opt):
        def loss(params):
            out, states = net(rest.merge(params), X)
            return (out**2).sum(), states.partition(sm.ParamState, ...)[1]

        grads, rest = jax.grad(loss, has_aux=True)(params)
        updates, opt = optimiser.update(grads, opt)
        return optax.apply_updates(params, updates), rest, opt

    @jax.jit
    def their_step(params, others, opt):
        def loss(params):
            variables = {"params": params, **others}
            out, new = module.apply(variables, X, mutable=["batch_stats", "counter"])
            return (out**2).sum(), new

        grads, new = jax.grad(loss, has_aux=True)(params)
        updates, opt = optimiser.update(grads, opt)
        return optax.apply_updates(params, updates), new, opt

    for _ in range(3):
        params, rest, opt = step(params, rest, opt)
        theirs, others, their_opt = their_step(theirs, others, their_opt)
    close(net.rebuild(rest.merge(params)), {"params": theirs, **others})


def test_a_context_is_carried_through_a_scan():
    net, states = make(key=0)
    final, outs = jax.jit(lambda s, xs: jax.lax.scan(lambda s, x: net(s, x)[::-1], s, xs))(
        states, jnp.stack([X, 2 * X])
    )
    for x, out in zip((X, 2 * X), outs):
        y, states = net(states, x)
        close(out, y)
    close(net.rebuild(final), net.rebuild(states))
    assert final["rngs.params"] == states["rngs.params"]


def test_checkpoints(population):
    net, states, axes = population
    assert pickle.loads(pickle.dumps(states)) == states
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, states)
    file.seek(0)
    fresh = jax.tree.map(jnp.zeros_like, states)
    assert eqx.tree_deserialise_leaves(file, fresh) == states
    assert fresh.load(states)[0] == states
    assert copy.deepcopy(states) == states


class Residual(nn.Module):
    features: int
    train: bool = True

    @nn.compact
    def __call__(self, x):
        y = nn.Conv(self.features, (3, 3), use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not self.train, name="norm")(y))
        y = nn.BatchNorm(use_running_average=not self.train)(nn.Conv(self.features, (3, 3))(y))
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), name="skip")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    widths: tuple[int, ...] = (8, 8)

    @nn.compact
    def __call__(self, x, train=True):
        for width in self.widths:
            x = Residual(width, train)(x)
        return nn.Dense(3)(x.mean((-3, -2)))


class Block(nn.Module):
    heads: int = 2

    @nn.compact
    def __call__(self, x, train=True):
        y = nn.LayerNorm()(x)
        mask = nn.make_causal_mask(x[..., 0])
        attend = nn.MultiHeadDotProductAttention(
            self.heads, dropout_rate=0.1, deterministic=not train
        )
        x = x + attend(y, mask=mask)
        y = nn.gelu(nn.Dense(16)(nn.LayerNorm()(x)))
        return x + nn.Dropout(0.1, deterministic=not train)(nn.Dense(8)(y))


class Transformer(nn.Module):
    """With embeddings that are tied."""

    @nn.compact
    def __call__(self, tokens, train=True):
        embed = nn.Embed(11, 8)
        x = embed(tokens)
        for _ in range(2):
            x = Block()(x, train)
        return embed.attend(nn.LayerNorm()(x))


IMAGES = jr.normal(jr.key(2), (4, 6, 6, 2))
TOKENS = jr.randint(jr.key(3), (4, 5), 0, 11)


@pytest.mark.parametrize(
    "module, x", [(ResNet(), IMAGES), (Transformer(), TOKENS)], ids=["resnet", "transformer"]
)
def test_a_model_of_linens_layers(module, x):
    numbers = np.random.default_rng(0)
    draw = lambda s: abs(numbers.normal(size=s.shape)).astype(s.dtype) / 2
    shapes = jax.eval_shape(module.init, jr.key(0), x)
    made = [bridge.linen(module, variables=jax.tree.map(draw, shapes), key=i) for i in range(2)]
    (net, _), axes = made[0], {0: ...}
    states = sm.stack([states for _, states in made], axes)
    f = sm.vmap2(net, in_axes=None, state_in_axes=axes)
    paths = {".".join(p) for p in flatten_dict(net.rebuild(states))}
    assert {row.path for row in f.plan(states, x)} == paths | {"rngs.params"}
    assert sum(p.size for p in jax.tree.leaves(net.rebuild(states))) > 1500
    out, new = f(states, x)
    for i in range(2):
        member = sm.lane(states, axes, i)
        y, variables, _ = own(module, net.rebuild(member), member["rngs.params"], x)
        close(out[i], y)
        close(net.rebuild(sm.lane(new, axes, i)), variables)
    member = sm.lane(states, axes, 0)
    evaluated, _ = sm.vmap2(net)(member, x, train=False)  # example by example
    close(evaluated, own(module, net.rebuild(member), jr.key(0), x, train=False)[0])


def test_a_cache_is_short_term():
    module = nn.MultiHeadDotProductAttention(2, decode=True)
    x = jr.normal(jr.key(0), (5, 8))
    net, states = bridge.linen(module, x, key=0)
    index = ("cache", "cache_index")
    assert {path for path, s in states if type(s) is sm.ShortTermState} == {
        index,
        ("cache", "cached_key"),
        ("cache", "cached_value"),
    }
    variables = net.rebuild(states)
    for i in range(3):
        out, states = net(states, x[i : i + 1])
        y, new = module.apply(variables, x[i : i + 1], mutable=["cache"])
        variables = {**variables, **new}
        close(out, y)
        close(net.rebuild(states), variables)
    assert states[index] == 3


def test_a_recurrent_net():
    module = nn.RNN(nn.GRUCell(4))
    xs = jr.normal(jr.key(0), (6, 5, 3))
    net, states = bridge.linen(module, xs[0], key=0)
    out, new = sm.vmap2(net)(states, xs)
    close(out, module.apply(net.rebuild(states), xs))
    assert new == states


class Auto(nn.Module):
    def setup(self):
        self.encoder = nn.Dense(2)
        self.decoder = nn.Dense(3)

    def encode(self, x, twice=False):
        return self.encoder(x) * (1 + twice)

    def decode(self, z):
        return self.decoder(z)

    def __call__(self, x):
        return self.decode(self.encode(x))


def test_other_methods():
    net, states = bridge.linen(Auto(), X, key=0)
    variables = net.rebuild(states)
    z = Auto().apply(variables, X, method="encode")
    close(net.encode(states, X)[0], z)
    close(net.method("encode")(states, X, twice=True)[0], 2 * z)
    close(net.method(Auto.decode)(states, z)[0], Auto().apply(variables, z, method="decode"))
    close(net.method("encoder")(states, X)[0], z)  # a submodule
    round_trip = net.method(lambda module, x: module.decode(module.encode(x)))
    close(round_trip(states, X)[0], Auto().apply(variables, X))
    with pytest.raises(AttributeError, match="`Auto`, bridged, has no method `decipher`"):
        net.decipher
    with pytest.raises(AttributeError, match="has no method `apply`"):  # Linen's, not the model's
        net.apply
    only, states = bridge.linen(Auto(), X, key=0, method="encode")
    assert {path[1] for path, _ in states} == {"encoder", "params"}
    assert only.__name__ == "Auto.encode" and only(states, X)[0].shape == (8, 2)
    third, _ = bridge.linen(Auto(), X, key=0, method=lambda module, x: module.encode(x) + 1)
    assert third(states, X)[0].shape == (8, 2)


def test_a_module_without_call():
    class Part(nn.Module):
        @nn.compact
        def encode(self, x):
            return nn.Dense(2)(x)

    net, states = bridge.linen(Part(), X, key=0, method="encode")
    assert net(states, X)[0].shape == (8, 2)
    with pytest.raises(TypeError, match="A `Part` can't be called. Name what is called of it"):
        bridge.linen(Part(), variables=net.rebuild(states), key=0)[0](states, X)


def test_variables_of_a_trained_module():
    variables = Net().init(jr.key(0), X)
    numpy = jax.tree.map(np.asarray, variables)
    for given in (variables, freeze(variables), numpy, freeze(numpy)):
        net, states = bridge.linen(Net(), variables=given)
        assert not [path for path, _ in states if path[0] == "rngs"]
        assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(states))
        close(net.rebuild(states), variables)
        close(net(states, X, False)[0], Net().apply(variables, X, False, mutable=["counter"])[0])
    with pytest.raises(flax.errors.InvalidRngError, match="needs PRNG") as error:
        net(states, X)
    assert "key=key" in error.value.__notes__[-1]
    net, states = bridge.linen(Net(), variables=variables, key=0)
    assert net(states, X)[1]["rngs.params"] != states["rngs.params"]
    assert variables["counter"]["n"] == 1  # as it was


def test_variables_are_read_back():
    net, states = make(key=0)
    variables = net.rebuild(states)
    _, new = Net().apply(variables, X, False, mutable=["counter"])
    assert net.read(states, new)["counter.n"] == states["counter.n"] + 1  # as `apply` returns it
    assert net.read(states, freeze({**variables, **new}))["counter.n"] == states["counter.n"] + 1
    zeros = jax.tree.map(jnp.zeros_like, variables)
    read = net.read(states, zeros)
    assert not read["params.Dense_0.kernel"].any()
    assert read["rngs.params"] == states["rngs.params"]
    with pytest.raises(ValueError, match="made `other.n`, for which the context has no place"):
        net.read(states, {**variables, "other": {"n": jnp.ones(2)}})
    with pytest.raises(ValueError, match="`counter.n` was given a value of another shape"):
        net.read(states, {**variables, "counter": {"n": jnp.ones(2, int)}})
    with pytest.raises(TypeError, match="variables of `Net` are a dictionary of collections"):
        net.read(states, [variables])
    with pytest.raises(TypeError, match="`Net` is immutable"):
        net.write_back(states)


class Boxed(nn.Module):
    @nn.compact
    def __call__(self, x):
        boxed = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        logical = nn.with_logical_partitioning(nn.initializers.ones, ("hidden",))
        x = nn.Dense(4, kernel_init=boxed)(x)
        return x * self.param("scale", logical, (4,))


def test_boxes_stay_around_values():
    net, states = bridge.linen(Boxed(), X, key=0)
    assert states["params.Dense_0.kernel"].shape == (3, 4)
    tags = {".".join(path): state.tag for path, state in states}
    assert tags["params.Dense_0.kernel"] == "Partitioned"
    assert tags["params.scale"] == "LogicallyPartitioned"
    assert tags["params.Dense_0.bias"] is None
    rebuilt = net.rebuild(states)["params"]
    assert isinstance(rebuilt["scale"], nn.LogicallyPartitioned)
    assert rebuilt["Dense_0"]["kernel"].names == (None, "model")
    out, new = sm.vmap2(net)(states, X)
    close(out, Boxed().apply(net.rebuild(states), X))
    assert new == states
    kinds = {nn.Partitioned: sm.HiddenState}
    _, states = bridge.linen(Boxed(), X, key=0, kinds=kinds)
    found = {".".join(path): type(state) for path, state in states}
    assert found["params.Dense_0.kernel"] is found["params.scale"] is sm.HiddenState
    assert found["params.Dense_0.bias"] is sm.ParamState


class Numbers(nn.Module):
    """Python's numbers and a pytree as variables, and a key."""

    @nn.compact
    def __call__(self, x):
        n = self.variable("counter", "n", lambda: 0)
        n.value += 1
        pair = self.variable("pair", "p", lambda: (jnp.zeros(2), {"a": 1.5}))
        pair.value = (pair.value[0] + 1, {"a": pair.value[1]["a"] * 2})
        key = self.variable("keys", "k", lambda: jr.key(7))
        key.value, draw = jr.split(key.value)
        return x + jr.normal(draw)


def test_what_collections_may_hold():
    kinds = {"counter": sm.HiddenState, "pair": sm.ShortTermState}
    net, states = bridge.linen(Numbers(), 0.0, key=0, kinds=kinds)
    found = {".".join(map(str, path)): type(state) for path, state in states}
    assert found == {
        "counter.n": sm.HiddenState,
        "keys.k": sm.RandomState,  # a key is one wherever it is
        "pair.p.0": sm.ShortTermState,
        "pair.p.1.a": sm.ShortTermState,
        "rngs.params": sm.RandomState,
    }
    assert states["counter.n"] == 1 and states["pair.p.1.a"] == 3.0
    out, new = net(states, 0.0)
    assert new["counter.n"] == 2 and new["pair.p.1.a"] == 6.0
    assert new["keys.k"] == jr.split(states["keys.k"])[0]
    lanes, new = sm.vmap2(net)(states.set("counter.n", 5), jnp.zeros(3))
    assert new["counter.n"] == 6 and len(set(lanes.tolist())) == 3


class Sown(nn.Module):
    collection: str = "intermediates"

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(2)(x)
        self.sow(self.collection, "h", x)
        return x.sum()


def test_what_is_sown():
    net, states = bridge.linen(Sown(), X[0], key=0)
    out, _ = sm.vmap2(net)(states, X)  # dropped, as in Linen
    assert out.shape == (8,)
    for collection in ("intermediates", "losses"):
        net, states = bridge.linen(Sown(collection), X[0], key=0, sown=(collection,))
        assert {path[0] for path, _ in states} == {"params", "rngs"}
        (out, sown), new = sm.vmap2(net)(states, X)
        assert new == states
        y, expected = Sown(collection).apply(net.rebuild(states), X, mutable=[collection])
        close(sown, expected)
    # What `init` made is a state, and a state keeps its structure.
    net, states = bridge.linen(Sown("losses"), X[0], key=0)
    with pytest.raises(ValueError, match=r"`Sown` made `losses.h.1`, for which the context has no"):
        net(states, X[0])


class Late(nn.Module):
    how: str

    @nn.compact
    def __call__(self, x):
        if not self.is_initializing():
            if self.how == "variable":
                self.variable("counter", "new", lambda: jnp.zeros(()))
            elif self.how == "collection":
                self.variable("other", "new", lambda: jnp.zeros(()))
            elif self.how == "params":
                self.put_variable("params", "w", x)
            else:
                self.put_variable("counter", "n", jnp.zeros(self.how))
        self.param("w", nn.initializers.ones, ())
        self.variable("counter", "n", lambda: jnp.zeros(()))
        return x


@pytest.mark.parametrize(
    "how, error, match",
    [
        ("variable", ValueError, "`Late` made `counter.new`, for which the context has no place"),
        ("collection", flax.errors.ScopeCollectionNotFound, 'collection "other"'),
        ("params", flax.errors.ModifyScopeVariableError, "params"),
        ((3,), ValueError, "`counter.n` was given a value of another shape"),
    ],
)
def test_what_a_call_may_not_write(how, error, match):
    net, states = bridge.linen(Late(how), 1.0, key=0)
    for f in (net, sm.vmap2(net, in_axes=None, axis_size=2)):
        with pytest.raises(error, match=match) as raised:
            f(states, 1.0)
    if error is not ValueError:
        assert "keeps the states that it was made with" in raised.value.__notes__[0]


def test_models_that_are_made_the_same_way_share_what_is_compiled(runs):
    class Counted(nn.Module):
        rate: float = 0.5
        sizes: tuple = (4, 2)
        act: object = nn.relu
        table: object = None

        @nn.compact
        def __call__(self, x):
            seen()
            for size in self.sizes:
                x = self.act(nn.Dense(size)(x))
            return nn.Dropout(self.rate)(x, deterministic=True)

    seen = runs(lambda: None)

    def call(module):
        net, states = bridge.linen(module, X[0], key=0)
        before = runs.count
        jitted(net, states)
        return runs.count - before

    jitted = jax.jit(lambda net, states: sm.vmap2(net)(states, X)[0])
    assert call(Counted()) == 1
    assert call(Counted()) == 0
    assert call(Counted(rate=1)) == 1 and call(Counted(rate=1.0)) == 1
    assert call(Counted(rate=True)) == 1
    assert call(Counted(act=nn.gelu)) == 1
    table = jnp.ones(2)
    assert call(Counted(table=table)) == 1 and call(Counted(table=table)) == 0
    assert call(Counted(table=jnp.zeros(2))) == 1


def test_contexts_are_exchanged():
    net, states = make(key=0)
    other, others = make(key=1)
    close(other(states, X)[0], net(states, X)[0])
    assert jax.tree.structure(net) == jax.tree.structure(other)

    class Net2(Net):
        """Another class, of the same fields."""

    Net2.__name__ = "Net"
    subclass, _ = bridge.linen(Net2(), X, key=0)
    assert jax.tree.structure(subclass) != jax.tree.structure(net)
    assert jax.tree.structure(states) == jax.tree.structure(others)


class Pair(nn.Module):
    first: nn.Module
    second: nn.Module

    def __call__(self, x):
        return self.second(self.first(x))


def test_one_layer_at_two_places_is_another_model_than_two():
    layer = nn.Dense(3)
    once, states = bridge.linen(Pair(layer, layer), X, key=0)
    assert [".".join(path) for path, _ in states][:2] == [
        "params.first.bias",
        "params.first.kernel",
    ]
    close(once(states, X)[0], Pair(layer, layer).apply(once.rebuild(states), X))
    drop = nn.Dropout(0.5, deterministic=False)
    other = nn.Dropout(0.5, deterministic=False)
    one, states = bridge.linen(Pair(drop, drop), X, key=0)
    two, _ = bridge.linen(Pair(drop, other), X, key=0)
    again, _ = bridge.linen(Pair(other, other), X, key=0)
    assert jax.tree.structure(one) != jax.tree.structure(two)
    assert jax.tree.structure(one) == jax.tree.structure(again)


def test_modules_in_lists_and_dictionaries():
    class Many(nn.Module):
        layers: list
        heads: dict

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            return {name: head(x) for name, head in self.heads.items()}

    module = Many([nn.Dense(4), nn.relu], {"a": nn.Dense(1), "b": nn.Dense(2)})
    net, states = bridge.linen(module, X[0], key=0)
    assert {".".join(p[:2]) for p, _ in states if p[0] == "params"} == {
        "params.layers_0",
        "params.heads_a",
        "params.heads_b",
    }
    out, _ = sm.vmap2(net)(states, X)
    close(out, module.apply(net.rebuild(states), X))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_small_floats(dtype):
    module = nn.Dense(4, param_dtype=dtype, dtype=dtype)
    net, states = bridge.linen(module, X, key=0)
    out, new = sm.vmap2(net)(states, X.astype(dtype))
    assert out.dtype == states["params.kernel"].dtype == dtype and new == states
    np.testing.assert_array_equal(out, module.apply(net.rebuild(states), X.astype(dtype)))


def test_spectral_norm_writes_its_statistics():
    class Spectral(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.SpectralNorm(nn.Dense(3))(x, update_stats=True)

    net, states = bridge.linen(Spectral(), X, key=0)
    out, new = net(states, X)
    y, variables = Spectral().apply(net.rebuild(states), X, mutable=["batch_stats"])
    close(out, y)
    close(net.rebuild(new)["batch_stats"], variables["batch_stats"])


def test_skeletons_and_shapes():
    shaped, states = bridge.linen(Net(), jax.ShapeDtypeStruct((8, 3), jnp.float32), key=0)
    assert states == make(key=0)[1]
    skeleton = jax.eval_shape(lambda key: make(key=key)[1], jr.key(0))
    assert jax.tree.structure(skeleton) == jax.tree.structure(states)
    out, after = jax.eval_shape(shaped, skeleton, X)
    assert out.shape == (8, 4) and jax.tree.structure(after) == jax.tree.structure(states)


@pytest.mark.leaks
def test_nothing_of_a_trace_stays():
    make = lambda *, key: bridge.linen(LIFTS["list"](), X, key=key)
    with jax.checking_leaks():
        net, states, axes = sm.vmap2_new_states(make, key=jr.key(0), axis_size=2)
        out, states = sm.vmap2(net, in_axes=None, state_in_axes=axes)(states, X)
    population = sm.Map(make, init_map_size=2, in_axes=None)
    population, states = population.init_all_states(key=jr.key(0))
    assert population(states, X)[0].shape == (2, 8, 3)
    _, states, _ = sm.pmap2_new_states(make, key=jr.key(0), axis_size=8)
    assert len(states) == 3 and states["rngs.params"].shape == (8,)


def test_an_optimiser_beside_the_model():
    """A member of a module, trained in its lane."""
    optimiser = optax.sgd(0.1)

    def make_both(*, key):
        net, states = bridge.linen(Net(rate=0.0), X, key=key)
        return net, states

    net, states, axes = sm.vmap2_new_states(make_both, key=jr.key(0), axis_size=3)

    def step(states, x):
        params, rest = states.partition(sm.ParamState, ...)
        loss = lambda params: (net(rest.merge(params), x)[0] ** 2).sum()
        value, grads = jax.value_and_grad(loss)(params)
        updates, _ = optimiser.update(grads, optimiser.init(params))
        return value, rest.merge(optax.apply_updates(params, updates))

    f = sm.vmap2(step, in_axes=None, state_in_axes=axes)
    first, states = f(states, X)
    second, states = f(states, X)
    assert (second < first).all()


def test_what_is_no_module():
    key = jr.key(0)
    with pytest.raises(TypeError, match="module of Flax Linen that is made(.|\n)*Right: "):
        bridge.linen(Net, X, key=key)
    with pytest.raises(TypeError, match=r"Those of Flax NNX `bridge.nnx` takes"):
        bridge.linen(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), X, key=key)
    bound = Net().bind(Net().init(key, X))
    with pytest.raises(TypeError, match=r"is bound to variables(.|\n)*unbind\(\)"):
        bridge.linen(bound, X, key=key)


def test_what_is_given_wrong():
    key = jr.key(0)
    with pytest.raises(TypeError, match="To initialise `Net` takes a key"):
        bridge.linen(Net(), X)
    with pytest.raises(ValueError, match=r"`bridge.linen` takes one key"):
        bridge.linen(Net(), X, key=jr.split(key))
    with pytest.raises(TypeError, match=r'`rngs` are names, such as \("dropout",\)'):
        bridge.linen(Net(), X, key=key, rngs="dropout")
    with pytest.raises(TypeError, match="`sown` are names"):
        bridge.linen(Net(), X, key=key, sown="intermediates")
    with pytest.raises(TypeError, match="`Dropout` holds no array to be a state"):
        bridge.linen(nn.Dropout(0.5, deterministic=True), X, key=key, rngs=())
    with pytest.raises(TypeError, match="`kinds` gave 'hidden' for `batch_stats.BatchNorm_0.mean`"):
        bridge.linen(Net(), X, key=key, kinds=lambda path, _: "hidden")
    with pytest.raises(ValueError, match="has a collection called `rngs`"):
        bridge.linen(Sown("rngs"), X, key=key)
    net, states = make(key=key)
    with pytest.raises(TypeError, match="takes the context first"):
        net(X)
    with pytest.raises(KeyError, match="what this handle of the model `Net:"):
        net(sm.States(v=sm.ParamState(1.0)), X)


def test_an_array_of_the_trace_in_a_field_is_refused():
    class Table(nn.Module):
        table: jax.Array

        def __call__(self, x):
            return x @ self.table

    module = Table(jnp.ones((3, 2)))
    net, states = bridge.linen(module, X, key=0)
    close(sm.vmap2(net)(states, X)[0], X @ jnp.ones((3, 2)))
    with pytest.raises(TypeError, match="an array that is being traced"):
        sm.vmap2_new_states(
            lambda *, key: bridge.linen(Table(jr.normal(key, (3, 2))), X, key=key),
            key=jr.key(0),
            axis_size=2,
        )


def test_what_apply_takes_is_no_argument_of_a_call():
    model, states = bridge.linen(nn.Dense(2), jnp.ones(3), key=0)
    for name in ("rngs", "mutable"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'") as caught:
            model(states, jnp.ones(3), **{name: {}})
        assert "Wrong:  model.apply(variables" in caught.value.__notes__[-1]
    with pytest.raises(AttributeError, match="Right:  out, states = model"):
        model.apply
