"""Functions that Haiku transforms as functions of states, against Haiku itself."""

import functools
import io
import pickle
import typing

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


hk = pytest.importorskip("haiku")


@pytest.fixture(autouse=True)
def strict_promotion():
    """Not here: layers of Haiku, such as `hk.dropout`, mix dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def forward(x, is_training=True, *, rate=0.5, axis=None):
    """Parameters, statistics, random numbers, and a state of its own."""
    count = hk.get_state("count", (), jnp.int32, init=jnp.zeros)
    hk.set_state("count", count + 1)
    x = hk.Linear(4)(x)
    x = hk.BatchNorm(True, True, 0.9, cross_replica_axis=axis)(x, is_training)
    return hk.dropout(hk.next_rng_key(), rate, x) if is_training and rate else x


net_hk = hk.transform_with_state(forward)
calm_hk = hk.transform_with_state(functools.partial(forward, rate=0.0))
batch_hk = hk.transform_with_state(functools.partial(forward, rate=0.0, axis="batch"))
X = jr.normal(jr.key(1), (8, 3))


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-5), a, b)


@functools.partial(jax.jit, static_argnums=(0, 4))
def own(net, built, key, x, is_training=True):
    """What Haiku itself does with the parameters and states of a member, and its stream."""
    carry, draw = jr.split(key)
    (params, state) = built
    out, state = net.apply(params, state, draw, x, *([] if is_training else [False]))
    return out, (params, state), carry


def make(*, key):
    return bridge.haiku(net_hk, X, key=key)


@pytest.fixture(scope="module")
def population():
    return sm.vmap2_new_states(make, key=jr.key(0), axis_size=8)


@pytest.mark.parametrize("way", WAYS)
def test_a_population_is_a_loop_over_haikus_own(population, way):
    net, states, axes = population
    members = [sm.lane(states, axes, i) for i in range(8)]
    members = [(net.rebuild(s), s["rng"]) for s in members]
    f = WAYS[way](net, in_axes=None, state_in_axes=axes)
    for train in (True, True, False):
        out, states = f(states, X, train)
        for i, (built, key) in enumerate(members):
            y, built, carry = own(net_hk, built, key, X, train)
            key = carry if train else key
            close(out[i], y)
            member = sm.lane(states, axes, i)
            close(net.rebuild(member), built)
            assert member["rng"] == key
            members[i] = built, key
    assert states["state.~.count"].tolist() == [3] * 8


def test_a_member_is_initialised_as_haiku_does_with_its_key():
    net, states = make(key=jr.key(3))
    close(net.rebuild(states), net_hk.init(jr.split(jr.key(3))[0], X))
    for key in (3, jr.PRNGKey(3), np.int32(3)):
        assert make(key=key)[1] == states
    kinds = {path[0]: type(state) for path, state in states}
    assert kinds == {"params": sm.ParamState, "state": sm.LongTermState, "rng": sm.RandomState}
    assert ("state", "batch_norm/~/mean_ema", "hidden") in states
    assert states["params.linear.w"].shape == (3, 4)


def over_batch(*, key):
    """Initialised without the axis, which is not there yet."""
    params, state = calm_hk.init(jr.key(key) if isinstance(key, int) else key, X)
    return bridge.haiku(batch_hk, params=params, state=state, key=key)


def test_statistics_over_a_batch_of_lanes_are_haikus_own():
    net, states = over_batch(key=0)
    f = sm.vmap2(net, axis_name="batch")
    built = net.rebuild(states)
    for train in (True, True, False):
        out, states = f(states, X[:, None], is_training=train)
        y, built, _ = own(calm_hk, built, jr.key(0), X, train)
        close(out[:, 0], y)
        close(net.rebuild(states), built)


def test_members_by_batch():
    net, states, axes = sm.vmap2_new_states(over_batch, key=jr.key(0), axis_size=3)
    batch = sm.vmap2(net, axis_name="batch")
    out, new = sm.vmap2(batch, in_axes=None, state_in_axes=axes)(states, X[:, None])
    for i in range(3):
        y, built, _ = own(calm_hk, net.rebuild(sm.lane(states, axes, i)), jr.key(0), X)
        close(out[i][:, 0], y)
        close(net.rebuild(sm.lane(new, axes, i)), built)


noise_hk = hk.transform(
    lambda x, train=True: jr.bits(hk.next_rng_key(), (2,)) if train else jnp.zeros(2, jnp.uint32)
)


def test_the_lanes_of_one_model_draw_by_the_law():
    net, states = bridge.haiku(noise_hk, 0.0, key=0)
    key = states["rng"]
    out, after = sm.vmap2(net)(states, jnp.ones(8))
    new, *lanes = jr.split(key, 9)
    for i in range(8):
        assert (out[i] == noise_hk.apply({}, jr.split(lanes[i])[1], 1.0)).all()
    assert after["rng"] == new
    assert (sm.vmap2(net)(states, jnp.ones(3))[0] == out[:3]).all()
    assert (sm.vmap2(net, chunk_size=3)(states, jnp.ones(8))[0] == out).all()
    assert (sm.pmap2(net)(states, jnp.ones(8))[0] == out).all()
    again, _ = sm.vmap2(net)(after, jnp.ones(8))
    assert len({tuple(row) for row in (*out.tolist(), *again.tolist())}) == 16


def test_a_stream_that_a_call_does_not_draw_from_is_not_used():
    net, states = bridge.haiku(noise_hk, 0.0, key=0)
    for f in (net, jax.jit(net, static_argnames="train"), sm.vmap2(net)):
        assert f(states, jnp.ones(2), train=False)[1] == states
    row = sm.vmap2(net).plan(states, jnp.ones(2), train=False)["rng"]
    assert not (row.drawn or row.read or row.written)


class Inner(hk.Module):
    def __init__(self, train, name=None):
        super().__init__(name)
        self.train = train

    def __call__(self, x):
        x = hk.Linear(3)(x)
        return hk.dropout(hk.next_rng_key(), 0.5, x) if self.train else x


class Setup(hk.Module):
    def __init__(self, train):
        super().__init__()
        self.noise = jr.normal(hk.next_rng_key(), (3,)) if train else jnp.zeros(3)

    def __call__(self, x):
        return x + self.noise


def cond(train, x):
    inner = Inner(train)
    if hk.running_init():
        return inner(x)
    return hk.cond(x.sum() > -1e9, inner, lambda x: x, x)


def scan(train, x):
    inner = Inner(train)
    return hk.scan(lambda c, _: (inner(c), None), x, None, length=3)[0]


def while_loop(train, x):
    inner = Inner(train)
    if hk.running_init():
        return inner(x)
    body = lambda c: (c[0] + 1, inner(c[1]))
    return hk.while_loop(lambda c: c[0] < 2, body, (0, x))[1]


def reserved(train, x):
    hk.reserve_rng_keys(2 * train)
    return Inner(train)(x)


def with_rng(train, x):
    if not train:
        return Inner(train)(x)
    with hk.with_rng(hk.next_rng_key()):
        return Inner(train)(x)


def stack(train, x):
    return hk.experimental.layer_stack(2)(lambda x: Inner(train)(x))(x)


def one_of(train, x):
    inner = Inner(train)
    if hk.running_init():
        return inner(x)
    return hk.switch(jnp.array(1), [lambda x: x, inner], x)


LIFTS = {
    "module": lambda train, x: Inner(train)(x),
    "function": lambda train, x: hk.dropout(hk.next_rng_key(), 0.5, x) if train else x,
    "last": lambda train, x: hk.Linear(3)(x) * (jr.normal(hk.next_rng_key()) if train else 1),
    "setup": lambda train, x: Setup(train)(x),
    "twice": lambda train, x: (f := Inner(train))(f(x)),
    "remat": lambda train, x: hk.remat(Inner(train))(x),
    "vmap": lambda train, x: hk.vmap(Inner(train), split_rng=not hk.running_init())(x),
    "grad": lambda train, x: hk.grad(lambda x, f: (f(x) ** 2).sum())(x, Inner(train)),
    "cond": cond,
    "switch": one_of,
    "scan": scan,
    "while": while_loop,
    "reserved": reserved,
    "with_rng": with_rng,
    "layer_stack": stack,
}


@pytest.mark.parametrize("lift", LIFTS)
def test_a_stream_moves_on_just_when_it_is_drawn_from_however_deep(lift):
    x = jnp.ones((2, 8, 3))
    parts = (functools.partial(LIFTS[lift], train) for train in (True, False))
    loud, quiet = map(hk.transform_with_state, parts)
    net, states = bridge.haiku(loud, x, key=0)
    call = jax.jit(net)
    for _ in range(2):
        key = states["rng"]
        out, states = call(states, x)
        close(out, own(loud, net.rebuild(states), key, x)[0])
        assert states["rng"] == jr.split(key)[0]
    assert (call(states, x)[0] != out).any()
    lanes, after = sm.vmap2(net, in_axes=None, axis_size=2)(states, x)
    assert after["rng"] == jr.split(states["rng"], 3)[0]
    assert (lanes[0] != lanes[1]).any()

    params, state = net.rebuild(states)
    still, states = bridge.haiku(quiet, params=params, state=state, key=0)
    row = sm.vmap2(still, in_axes=None, axis_size=2).plan(states, x)["rng"]
    assert not row.drawn and not row.written


def test_training_is_haikus_own():
    optimiser = optax.sgd(0.1, momentum=0.9)
    net, states = bridge.haiku(calm_hk, X, key=0)
    theirs, their_state = net.rebuild(states)
    params, rest = states.partition(sm.ParamState, ...)
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
    def their_step(params, state, opt):
        def loss(params):
            out, new = calm_hk.apply(params, state, None, X)
            return (out**2).sum(), new

        grads, state = jax.grad(loss, has_aux=True)(params)
        updates, opt = optimiser.update(grads, opt)
        return optax.apply_updates(params, updates), state, opt

    for _ in range(3):
        params, rest, opt = step(params, rest, opt)
        theirs, their_state, their_opt = their_step(theirs, their_state, their_opt)
    close(net.rebuild(rest.merge(params)), (theirs, their_state))


def test_a_context_is_carried_through_a_scan():
    net, states = make(key=0)
    xs = jnp.stack([X, 2 * X])
    outs, final = sm.scan(net)(states, xs)
    for x, out in zip(xs, outs):
        y, states = net(states, x)
        close(out, y)
    close(net.rebuild(final), net.rebuild(states))
    assert final["rng"] == states["rng"]


def test_checkpoints(population):
    net, states, axes = population
    assert pickle.loads(pickle.dumps(states)) == states
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, states)
    file.seek(0)
    fresh = jax.tree.map(jnp.zeros_like, states)
    assert eqx.tree_deserialise_leaves(file, fresh) == states
    assert fresh.load(states)[0] == states


def resnet(x, is_training=True):
    for _ in range(2):
        y = hk.Conv2D(8, 3, with_bias=False)(x)
        y = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(y, is_training))
        y = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(8, 3)(y), is_training)
        skip = x if x.shape[-1] == 8 else hk.Conv2D(8, 1, name="skip")(x)
        x = jax.nn.relu(skip + y)
    return hk.Linear(3)(x.mean((-3, -2)))


def transformer(tokens, is_training=True):
    """With embeddings that are tied."""
    embed = hk.Embed(11, 8)
    x = embed(tokens)
    rate = 0.1 if is_training else 0.0
    drop = lambda x: hk.dropout(hk.next_rng_key(), rate, x) if rate else x
    norm = lambda x: hk.LayerNorm(-1, True, True)(x)
    for _ in range(2):
        y = norm(x)
        attend = hk.MultiHeadAttention(2, 4, model_size=8, w_init=hk.initializers.RandomNormal())
        mask = jnp.tril(jnp.ones((1, 1, tokens.shape[-1], tokens.shape[-1]), bool))
        x = x + drop(attend(y, y, y, mask=mask if tokens.ndim == 2 else mask[0]))
        x = x + drop(hk.nets.MLP([16, 8])(norm(x)))
    return norm(x) @ embed.embeddings.T


IMAGES = jr.normal(jr.key(2), (4, 6, 6, 2))
TOKENS = jr.randint(jr.key(3), (4, 5), 0, 11)


@pytest.mark.parametrize(
    "fn, x", [(resnet, IMAGES), (transformer, TOKENS)], ids=["resnet", "transformer"]
)
def test_a_model_of_haikus_layers(fn, x):
    module = hk.transform_with_state(fn)
    numbers = np.random.default_rng(0)
    draw = lambda s: abs(numbers.normal(size=s.shape)).astype(s.dtype) / 2
    shapes = jax.eval_shape(module.init, jr.key(0), x)
    made = []
    for i in range(2):
        params, state = jax.tree.map(draw, shapes)
        made.append(bridge.haiku(module, params=params, state=state, key=i))
    (net, _), axes = made[0], {0: ...}
    states = sm.stack([states for _, states in made], axes)
    f = sm.vmap2(net, in_axes=None, state_in_axes=axes)
    parts = dict(zip(("params", "state"), shapes))
    paths = {f"{a}.{b}.{c}" for a, part in parts.items() for b in part for c in part[b]}
    assert {row.path for row in f.plan(states, x)} == paths | {"rng"}
    assert sum(p.size for p in jax.tree.leaves(shapes)) > 1200
    out, new = f(states, x)
    for i in range(2):
        member = sm.lane(states, axes, i)
        y, built, _ = own(module, net.rebuild(member), member["rng"], x)
        close(out[i], y)
        close(net.rebuild(sm.lane(new, axes, i)), built)
    member = sm.lane(states, axes, 0)
    one = lambda x: x[None] if fn is resnet else x
    evaluated, _ = sm.vmap2(lambda s, x: net(s, one(x), False))(member, x)
    expected = own(module, net.rebuild(member), jr.key(0), x, False)[0]
    close(evaluated.reshape(expected.shape), expected)


class Functions(typing.NamedTuple):
    encode: typing.Any
    decode: typing.Any


def parts(pack):
    def f():
        encoder, decoder = hk.Linear(2, name="encoder"), hk.Linear(3, name="decoder")
        decode = lambda z: hk.dropout(hk.next_rng_key(), 0.5, decoder(z))
        return lambda x: decoder(encoder(x)), pack(encoder, decode)

    return f


@pytest.mark.parametrize("multi", [hk.multi_transform, hk.multi_transform_with_state])
@pytest.mark.parametrize(
    "pack, names",
    [
        (Functions, ("encode", "decode")),
        (lambda e, d: {"encode": e, "decode": d}, ("encode", "decode")),
        (lambda e, d: (e, d), (0, 1)),
        (lambda e, d: {"all": [e, d]}, ("all.0", "all.1")),
    ],
    ids=["namedtuple", "dict", "tuple", "nested"],
)
def test_several_functions(multi, pack, names):
    transformed = multi(parts(pack))
    net, states = bridge.haiku(transformed, X, key=0)
    encode, decode = (net.method(name) for name in names)
    z, same = sm.vmap2(encode)(states, X)
    assert same == states
    w = states["params.encoder.w"]
    close(z, X @ w + states["params.encoder.b"])
    out, after = decode(states, z)
    assert out.shape == (8, 3) and after["rng"] == jr.split(states["rng"])[0]
    if names == ("encode", "decode"):
        close(net.encode(states, X)[0], z)
        assert net.decode.__name__ == "haiku.decode"
    with pytest.raises(TypeError, match="transformed: `.*`, `.*`. Name one"):
        net(states, X)
    with pytest.raises(TypeError, match="has the functions that were transformed"):
        net.method("other")(states, X)
    with pytest.raises(AttributeError, match="`haiku`, bridged, has no method `other`"):
        net.other


def test_one_function_alone():
    net, states = make(key=0)
    with pytest.raises(TypeError, match="here one alone"):
        net.method("encode")(states, X)
    with pytest.raises(TypeError, match="Wrong:  model.method"):
        net.method(lambda module, x: module(x))(states, X)


@pytest.mark.parametrize("transform", [hk.transform, hk.transform_with_state])
def test_without_a_stream(transform):
    plain = transform(lambda x: hk.Linear(2)(x))
    without = hk.without_apply_rng(plain)
    net, states = bridge.haiku(without, X, key=0)
    assert {path[0] for path, _ in states} == {"params"}
    out, new = sm.vmap2(net)(states, X)
    assert new == states
    with_key, more = bridge.haiku(plain, X, key=0)
    assert "rng" in {path[0] for path, _ in more}
    close(with_key(more, X)[0], out)
    multi = {hk.transform: hk.multi_transform}.get(transform, hk.multi_transform_with_state)
    several = hk.without_apply_rng(multi(lambda: ((l := hk.Linear(2)), {"go": l})))
    net, states = bridge.haiku(several, X, key=0)
    assert {path[0] for path, _ in states} == {"params"}
    close(net.go(states, X)[0], out)


@pytest.mark.parametrize("fn", [lambda x, rng: x * rng, lambda rng, x: x * rng])
def test_an_argument_that_is_called_rng(fn):
    # Haiku's own signature has one `rng` then, and so none where it is taken away.
    for transformed in (hk.transform(fn), hk.without_apply_rng(hk.transform_with_state(fn))):
        net, states = bridge.haiku(
            transformed, params={"a": {"w": 1.0}}, key=0, **more(transformed)
        )
        assert net(states, 2.0, 3.0)[0] == 6.0


def more(transformed):
    return {"state": {}} if isinstance(transformed, hk.TransformedWithState) else {}


def test_without_state():
    net, states = bridge.haiku(
        hk.without_state(hk.transform_with_state(lambda x: hk.Linear(2)(x))), X, key=0
    )
    params = net.rebuild(states)
    assert set(params) == {"linear"}
    zeros = jax.tree.map(jnp.zeros_like, params)
    assert not net.read(states, zeros)["params.linear.w"].any()
    net, states = bridge.haiku(
        hk.with_empty_state(hk.transform(lambda x: hk.Linear(2)(x))), X, key=0
    )
    assert net.rebuild(states)[1] == {}
    assert net(states, X)[1] == states


def test_a_trained_model():
    params, state = net_hk.init(jr.key(0), X)
    numpy = jax.tree.map(np.asarray, (params, state))
    frozen = tuple(hk.data_structures.to_immutable_dict(part) for part in numpy)
    for given in ((params, state), numpy, frozen):
        net, states = bridge.haiku(net_hk, params=given[0], state=given[1])
        assert "rng" not in {path[0] for path, _ in states}
        assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(states))
        close(net.rebuild(states), (params, state))
        close(net(states, X, False)[0], net_hk.apply(params, state, None, X, False)[0])
    with pytest.raises(ValueError, match="must pass a non-None PRNGKey"):
        net(states, X)
    net, states = bridge.haiku(net_hk, params=params, state=state, key=0)
    assert net(states, X)[1]["rng"] != states["rng"]


def test_what_is_read_back():
    net, states = make(key=0)
    params, state = net.rebuild(states)
    _, new = net_hk.apply(params, state, None, X, False)
    assert net.read(states, (params, new))["state.~.count"] == 1
    assert net.read(states, (params, new))["rng"] == states["rng"]
    with pytest.raises(TypeError, match=r"is a pair of dictionaries, `\(params, state\)`"):
        net.read(states, params)
    with pytest.raises(ValueError, match="took `state.~.count` away"):
        net.read(states, (params, {k: v for k, v in state.items() if k != "~"}))
    with pytest.raises(TypeError, match="`haiku` is immutable"):
        net.write_back(states)


def late(how, x):
    if how == "new" and not hk.running_init():
        hk.set_state("new", x)
    value = hk.get_state("v", (), init=jnp.zeros)
    if how == "shape":
        hk.set_state("v", jnp.zeros(3)) if not hk.running_init() else None
    elif how == "dtype" and not hk.running_init():
        hk.set_state("v", value.astype(jnp.int32))
    elif how == "tree" and not hk.running_init():
        hk.set_state("v", (value, value))
    return x


@pytest.mark.parametrize(
    "how, match",
    [
        ("new", "made `state.~.new`, for which the context has no place"),
        ("shape", "`state.~.v` was given a value of another shape"),
        ("dtype", "`state.~.v` was given a value of another dtype"),
        ("tree", r"made `state.~.v.0`, `state.~.v.1`(.|\n)* and took `state.~.v` away"),
    ],
)
def test_what_a_call_may_not_write(how, match):
    transformed = hk.transform_with_state(functools.partial(late, how))
    net, states = bridge.haiku(transformed, 1.0, key=0)
    for f in (net, sm.vmap2(net, in_axes=None, axis_size=2)):
        with pytest.raises(ValueError, match=match):
            f(states, 1.0)


def test_what_states_may_hold():
    def f(x):
        pair = hk.get_state("pair", (), init=lambda *_: (jnp.zeros(2), {"n": jnp.array(0)}))
        hk.set_state("pair", (pair[0] + 1, {"n": pair[1]["n"] + 1}))
        key = hk.get_state("key", (), init=lambda *_: jr.key(7))
        new, draw = jr.split(key)
        hk.set_state("key", new)
        return {"out": (x + jr.normal(draw), None)}

    net, states = bridge.haiku(hk.transform_with_state(f), 0.0, key=0)
    out, new = net(states, 1.0)
    assert new["state.~.pair.1.n"] == 1 and new["state.~.pair.0"].tolist() == [1, 1]
    assert new["state.~.key"] == jr.split(states["state.~.key"])[0]
    assert new["rng"] == states["rng"]
    lanes, new = sm.vmap2(net)(states.set("rng", jr.key(1)), jnp.zeros(3))
    assert len(set(lanes["out"][0].tolist())) == 3
    assert lanes["out"][1] is None


class Distribution:
    """An output that is no pytree."""

    def __init__(self, loc):
        self.loc = loc


def test_outputs_that_are_no_arrays():
    def f(x, name="a"):
        x = hk.dropout(hk.next_rng_key(), 0.5, x) if name == "drop" else x
        return {"x": x, "name": name, "n": 3, "np": np.ones(2)}

    net, states = bridge.haiku(hk.transform(f), X, key=0)
    out, _ = net(states, X, name="drop")
    assert out["name"] == "drop" and out["n"] == 3 and type(out["np"]) is np.ndarray

    def g(x):
        return Distribution(hk.dropout(hk.next_rng_key(), 0.5, x))

    net, states = bridge.haiku(hk.transform(g), X, key=0)

    def sample(states, x):
        dist, states = net(states, x)
        return dist.loc, states

    out, new = sm.vmap2(sample, in_axes=None, axis_size=2)(states, X)
    assert (out[0] != out[1]).any() and new["rng"] == jr.split(states["rng"], 3)[0]
    assert net(states, X)[0].loc.shape == X.shape


def test_models_of_one_transformed_function_share_what_is_compiled(runs):
    seen = runs(lambda: None)

    def f(x):
        seen()
        return hk.Linear(2)(x)

    transformed = hk.transform(f)
    jitted = jax.jit(lambda net, states: sm.vmap2(net)(states, X)[0])

    def call(transformed, key):
        net, states = bridge.haiku(transformed, X[0], key=key)
        before = runs.count
        jitted(net, states)
        return runs.count - before

    assert call(transformed, 0) == 1
    assert call(transformed, 1) == 0
    assert call(hk.transform(f), 0) == 1
    (one, states), (two, others) = (bridge.haiku(transformed, X, key=i) for i in range(2))
    close(one(others, X)[0], two(others, X)[0])
    assert jax.tree.structure(one) == jax.tree.structure(two)


def test_tied_weights_and_no_parameters():
    def tied(x):
        layer = hk.Linear(3)
        return layer(layer(x))

    net, states = bridge.haiku(hk.transform(tied), X, key=0)
    assert [".".join(path) for path, _ in states] == ["params.linear.b", "params.linear.w", "rng"]
    close(net(states, X)[0], hk.transform(tied).apply(net.rebuild(states), None, X))
    net, states = bridge.haiku(hk.transform(lambda x: x + 1), X, key=0)
    assert sm.vmap2(net)(states, X)[1] == states
    with pytest.raises(TypeError, match="`haiku` holds no array to be a state"):
        bridge.haiku(hk.without_apply_rng(hk.transform(lambda x: x + 1)), X, key=0)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_small_floats(dtype):
    transformed = hk.transform(lambda x: hk.Linear(4)(x))
    x = X.astype(dtype)
    net, states = bridge.haiku(transformed, x, key=0)
    out, new = sm.vmap2(net)(states, x)
    assert out.dtype == states["params.linear.w"].dtype == dtype and new == states
    expected = transformed.apply(net.rebuild(states), None, x)
    np.testing.assert_allclose(out.astype(float), expected.astype(float), rtol=1e-2)


def test_skeletons():
    net, states = make(key=0)
    skeleton = jax.eval_shape(lambda key: make(key=key)[1], jr.key(0))
    assert jax.tree.structure(skeleton) == jax.tree.structure(states)
    out, after = jax.eval_shape(net, skeleton, X)
    assert out.shape == (8, 4) and jax.tree.structure(after) == jax.tree.structure(states)


@pytest.mark.leaks
def test_nothing_of_a_trace_stays():
    transformed = hk.transform(lambda x: hk.dropout(hk.next_rng_key(), 0.5, hk.Linear(2)(x)))
    make = lambda *, key: bridge.haiku(transformed, X, key=key)
    with jax.checking_leaks():
        net, states, axes = sm.vmap2_new_states(make, key=jr.key(0), axis_size=2)
        out, states = sm.vmap2(net, in_axes=None, state_in_axes=axes)(states, X)
    population = sm.Map(make, init_map_size=2, in_axes=None)
    population, states = population.init_all_states(key=jr.key(0))
    assert population(states, X)[0].shape == (2, 8, 2)


def test_what_is_given_wrong():
    key = jr.key(0)
    with pytest.raises(TypeError, match="takes what Haiku has transformed(.|\n)*Right: "):
        bridge.haiku(forward, X, key=key)
    with pytest.raises(TypeError, match="To initialise a Haiku model takes a key"):
        bridge.haiku(net_hk, X)
    with pytest.raises(ValueError, match="`bridge.haiku` takes one key"):
        bridge.haiku(net_hk, X, key=jr.split(key))
    with pytest.raises(TypeError, match="`state` goes with `params`"):
        bridge.haiku(net_hk, X, key=key, state={})
    with pytest.raises(TypeError, match="has a state, too: `state=`"):
        bridge.haiku(net_hk, params={})
    with pytest.raises(TypeError, match="has no `state`"):
        bridge.haiku(noise_hk, params={}, state={})
    with pytest.raises(TypeError, match="is `params`, not"):
        bridge.haiku(noise_hk, params=jnp.ones(3))
    net, states = make(key=key)
    with pytest.raises(TypeError, match="takes the context first"):
        net(X)
    with pytest.raises(KeyError, match="what this handle of the model `haiku:"):
        net(sm.States(v=sm.ParamState(1.0)), X)


def test_what_apply_takes_is_no_argument_of_a_call():
    forward = hk.transform(lambda x: hk.dropout(hk.next_rng_key(), 0.1, hk.Linear(2)(x)))
    model, states = bridge.haiku(forward, jnp.ones(3), key=0)
    with pytest.raises(TypeError, match="multiple values for argument 'rng'") as caught:
        model(states, jnp.ones(3), rng=None)
    assert "Wrong:  model.apply(params" in caught.value.__notes__[-1]
    with pytest.raises(AttributeError, match="Right:  out, states = model"):
        model.apply
