"""brainstate's modules, bridged, against what brainstate makes of them itself."""

import importlib
import pickle
import sys
import threading
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import statemap as sm
from statemap import bridge, compat


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own
    bs = pytest.importorskip("brainstate", "0.5.4")
import brainunit as u

from statemap.bridge import _brainstate_private as private


X = jr.normal(jr.key(1), (8, 3))
KEYS = jr.split(jr.key(0), 3)


@pytest.fixture(autouse=True)
def strict_promotion():
    """Not here: brainstate does not pass under strict promotion."""
    yield


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No tracer in brainstate's own stream, no setting, no level of its traces."""
    before = dict(vars(bs.random.DEFAULT))
    yield
    after = dict(vars(bs.random.DEFAULT))
    key = after.pop("_value")
    assert not isinstance(key, jax.core.Tracer) and key.shape in ((), (2,))
    assert {**after, "_been_writen": 0} == {
        **{k: v for k, v in before.items() if k != "_value"},
        "_been_writen": 0,
    }
    assert bs.environ.all() == {"precision": 32} and bs.State(0).stack_level == 0


class own_stream:
    """brainstate's own stream with a key, for what it is compared with."""

    def __init__(self, key):
        self.key = key

    def __enter__(self):
        self.before = dict(vars(bs.random.DEFAULT))
        bs.random.DEFAULT.set_key(self.key)

    def __exit__(self, *_):
        vars(bs.random.DEFAULT).update(self.before)


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), a, b)


def equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), a, b)


fit = lambda: bs.environ.context(fit=True)


class Net(bs.nn.Module):
    def __init__(self, axis_name=None):
        super().__init__()
        self.linear = bs.nn.Linear(3, 4)
        self.norm = bs.nn.BatchNorm0d((4,), axis_name=axis_name)
        self.dropout = bs.nn.Dropout(0.5)
        self.count = bs.LongTermState(0)

    def update(self, x):
        self.count.value = self.count.value + 1
        return self.dropout(jax.nn.relu(self.norm(self.linear(x))))

    def features(self, x, *, scale=1.0):
        return self.linear(x) * scale


def make(*, key):
    return bridge.brainstate(Net, key=key)


def values(module):
    return {".".join(map(str, p)): s.value for p, s in module.states().items()}


@pytest.fixture(scope="module")
def population():
    return sm.vmap2_new_states(make, key=jr.key(0), axis_size=3)


def test_members_are_a_loop_over_members(population):
    net, states, axes = population
    mapped = sm.vmap2(net, in_axes=None, state_in_axes=axes)
    with fit():
        y, one = mapped(states, X)
        y2, two = mapped(one, X)
    assert not np.array_equal(y, y2)
    for i, key in enumerate(KEYS):
        with own_stream(key), fit():
            member = Net()
            close(y[i], member(X))
            close(y2[i], member(X))
            stream = bs.random.DEFAULT.value
        for path, value in values(member).items():
            close(jax.tree.map(lambda x: x[i], two[path]), value)
        equal(jr.key_data(two["random.DEFAULT"][i]), jr.key_data(stream))


def test_lane_i_draws_the_same_in_any_number_of_lanes_chunks_and_devices(population):
    net, states, axes = population
    options = dict(in_axes=None, state_in_axes=axes)
    with fit():
        y, after = sm.vmap2(net, **options)(states, X)
        chunked, after_chunked = sm.vmap2(net, **options, chunk_size=2)(states, X)
        close([y, after], [chunked, after_chunked])
        one = sm.lane(states, axes, [1])
        close(sm.vmap2(net, **options)(one, X)[0][0], y[1])
        many = sm.pmap2_new_states(make, key=jr.key(0), axis_size=8)
        z, _ = sm.pmap2(net, in_axes=None, state_in_axes=many[2])(many[1], X)
        w, _ = sm.vmap2(net, in_axes=None, state_in_axes=many[2])(many[1], X)
        close(z, w)


@pytest.mark.leaks
def test_a_shared_model_gives_each_lane_numbers_of_its_own():
    dropout, states = bridge.brainstate(bs.nn.Dropout(0.5), key=jr.key(3))
    mapped = sm.vmap2(dropout)
    with fit():
        y, after = mapped(states, jnp.ones((4, 20)))
        y2, _ = mapped(after, jnp.ones((4, 20)))
        few, _ = mapped(states, jnp.ones((2, 20)))
        two = sm.vmap2(dropout, chunk_size=1)(states, jnp.ones((4, 20)))[0]
        devices = sm.pmap2(dropout)(states, jnp.ones((8, 20)))[0]
    assert len({tuple(row.tolist()) for row in (*y, *y2)}) == 8
    equal(two, y)
    equal(few, y[:2])
    equal(devices[:4], y)


def test_shared_statistics_over_the_batch():
    module = Net("batch")
    module.dropout.prob = 1.0
    net, states = bridge.brainstate(module)
    one = net.method(lambda net, x: net(x))
    with fit():
        y, states = sm.vmap2(one, axis_name="batch")(states, X)
        reference = Net()
        reference.dropout.prob = 1.0
        for path, state in module.states().items():
            reference.states()[path].value = state.value
        close(y, reference(X))
    for path, value in values(reference).items():
        close(states[path], value)


def test_members_and_batch():
    def make(*, key):
        return bridge.brainstate(lambda: Net("batch"), key=key)

    net, states, axes = sm.vmap2_new_states(make, key=jr.key(0), axis_size=3)
    with bs.environ.context(fit=True):
        batch = sm.vmap2(net, axis_name="batch")
        y, states = sm.vmap2(batch, in_axes=None, state_in_axes=axes)(states, X)
    assert y.shape == (3, 8, 4)
    for i, key in enumerate(KEYS):
        with own_stream(key), fit():
            member = Net()
            member(X)
        close(states["norm.running_mean"][i], member.norm.running_mean.value)


def test_training_is_brainstates_own():
    module, other = bs.nn.Linear(3, 1), bs.nn.Linear(3, 1)
    other.weight.value = module.weight.value
    model, states = bridge.brainstate(module)
    adam = optax.adam(0.1)
    params, rest = states.partition(sm.ParamState, ...)
    moments = adam.init(params)

    @jax.jit
    def step(params, moments):
        loss = lambda p: (sm.vmap2(model)(rest.merge(p), X)[0] ** 2).mean()
        value, grads = jax.value_and_grad(loss)(params)
        updates, moments = adam.update(grads, moments)
        return value, optax.apply_updates(params, updates), moments

    weights = {"w": other.weight}
    grad = bs.transform.grad(lambda: (other(X) ** 2).mean(), weights, return_value=True)
    theirs = adam.init({"w": other.weight.value})
    for _ in range(3):
        value, params, moments = step(params, moments)
        grads, expected = grad()
        updates, theirs = adam.update(grads, theirs)
        other.weight.value = optax.apply_updates({"w": other.weight.value}, updates)["w"]
        close(value, expected)
    close(params["weight"], other.weight.value)
    model.write_back(rest.merge(params))
    close(module.weight.value, other.weight.value)


def recurrent(cls):
    return bs.nn.init_all_states(cls(3, 4))


@pytest.mark.parametrize("cls", [bs.nn.GRUCell, bs.nn.LSTMCell])
def test_recurrent_cells_in_a_scan(cls):
    cell = recurrent(cls)
    model, states = bridge.brainstate(cell)
    hidden = {0: sm.HiddenState}
    states, axes = sm.broadcast(states, hidden, axis_size=5)
    step = sm.vmap2(model, state_in_axes=axes)
    xs = jr.normal(jr.key(2), (6, 5, 3))
    after, ys = jax.lax.scan(lambda s, x: step(s, x)[::-1], states, xs)
    ys2, again = sm.scan(step)(states, xs)
    equal(again, after)
    cell.init_state(batch_size=5)
    theirs = jnp.stack([cell(x) for x in xs])
    close(ys, theirs)
    close(ys2, theirs)
    close(after["h"], cell.h.value)


def test_brainstates_own_maps_give_the_same():
    cell = recurrent(bs.nn.GRUCell)
    model, states = bridge.brainstate(cell)
    x = X[:5]
    own = bs.nn.GRUCell(3, 4)
    bs.nn.vmap_init_all_states(own, axis_size=5, state_tag="new")
    own.Wh.weight.value, own.Wrz.weight.value = cell.Wh.weight.value, cell.Wrz.weight.value
    theirs = bs.transform.vmap2(
        own, state_in_axes={0: bs.HiddenState}, state_out_axes={0: bs.HiddenState}
    )
    states, axes = sm.broadcast(states, {0: sm.HiddenState}, axis_size=5)
    step = sm.vmap2(model, state_in_axes=axes)
    for _ in range(2):
        y, states = step(states, x)
        close(y, theirs(x))
    close(states["h"], own.h.value)


def test_nothing_of_the_module_changes():
    module = recurrent(bs.nn.GRUCell)
    before = {k: dict(vars(s)) for k, s in module.states().items()}
    model, states = bridge.brainstate(module)
    sm.vmap2(model, unexpected_out_state_mapping="ignore")(states, X)
    with pytest.raises(ZeroDivisionError, match="here"):

        def fail(cell, x):
            cell(x)
            bs.random.rand()
            raise ZeroDivisionError("here")

        sm.vmap2(model.method(fail))(states, X)
    assert {k: dict(vars(s)) for k, s in module.states().items()} == before


def test_written_back_and_rebuilt(population):
    net, states, axes = population
    module = Net()
    model, own = bridge.brainstate(module)
    with fit():
        _, own = model(own, X)
    built = model.rebuild(own)
    assert type(built) is Net and built.linear is not module.linear
    equal(values(built), {p: own[p] for p in values(built)})
    with fit(), own_stream(own["random.DEFAULT"]):
        expected = built(X)
    with fit():
        y, _ = model(own, X)
    close(y, expected)
    equal(model.read(own, built)["count"], 2)
    with own_stream(jr.key(0)):
        model.write_back(own)
        equal(jr.key_data(bs.random.DEFAULT.value), jr.key_data(own["random.DEFAULT"]))
    equal(values(module), {p: own[p] for p in values(module)})
    module.dropout.prob = 0.9  # which is no matter
    with own_stream(jr.key(0)):
        model.write_back(own)
    with pytest.raises(ValueError, match="write one member back"):
        model.write_back(states)
    equal(values(module), {p: own[p] for p in values(module)})
    everyone = net.rebuild(states)
    assert everyone.linear.weight.value["weight"].shape == (3, 3, 4)
    with pytest.raises(ReferenceError, match="gone"):
        net.write_back(sm.lane(states, axes, 0))


def test_a_write_back_that_fails_writes_nothing():
    class Fussy(bs.State):
        def _write_value(self, v):
            raise RuntimeError("not now")

    module = Net()
    module.late = Fussy(jnp.ones(()))
    before = values(module)
    model, states = bridge.brainstate(module)
    with pytest.raises(RuntimeError, match="not now"):
        model.write_back(jax.tree.map(lambda x: x + 1, states))
    equal(values(module), before)


def test_models_made_alike_share_what_is_compiled():
    runs = []

    class Counted(bs.nn.Module):
        def __init__(self, prob):
            super().__init__()
            self.layers = [bs.nn.Linear(3, 3), bs.nn.Dropout(prob)]
            self.scale = np.ones(3)

        def update(self, x):
            runs.append(0)
            return self.layers[0](x) * self.scale

    (a, one), (b, two) = (bridge.brainstate(Counted(0.5)) for _ in range(2))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    sm.vmap2(a)(one, X)
    sm.vmap2(b)(two, X)
    y, _ = sm.vmap2(a)(two, X)
    assert len(runs) == 1
    equal(y, sm.vmap2(b)(two, X)[0])
    c, three = bridge.brainstate(Counted(0.25))
    sm.vmap2(c)(three, X)
    assert len(runs) == 2 and jax.tree.structure(a) != jax.tree.structure(c)


def test_checkpoints(tmp_path, population):
    net, states, axes = population
    eqx.tree_serialise_leaves(tmp_path / "s.eqx", states)
    like = jax.tree.map(jnp.zeros_like, states)
    equal(eqx.tree_deserialise_leaves(tmp_path / "s.eqx", like), states)
    equal(pickle.loads(pickle.dumps(states)), states)
    _, again, _ = sm.vmap2_new_states(make, key=jr.key(5), axis_size=3)
    loaded, _ = again.load(states)
    equal(loaded, states)


class Block(bs.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = bs.nn.Conv2d((4, 4, 2), 2, 3)
        self.norm = bs.nn.BatchNorm2d((4, 4, 2))

    def update(self, x):
        return x + jax.nn.relu(self.norm(self.conv(x)))


def test_a_small_resnet():
    def resnet():
        return bs.nn.Sequential(*[Block() for _ in range(2)], bs.nn.Flatten(), bs.nn.Linear(160, 2))

    images = jr.normal(jr.key(2), (5, 4, 4, 2))
    make = lambda *, key: bridge.brainstate(resnet, key=key)
    net, states, axes = sm.vmap2_new_states(make, key=jr.key(0), axis_size=2)
    mapped = sm.vmap2(net.method(lambda net, x: net(x)), in_axes=None, state_in_axes=axes)
    with fit():
        y, after = mapped(states, images)
        assert "layers.1.norm.running_var" in [row.path for row in mapped.plan(states, images).rows]
        with own_stream(jr.split(jr.key(0), 2)[1]):
            member = resnet()
            close(y[1], bs.transform.jit(member)(images))
            for path, value in values(member).items():
                close(jax.tree.map(lambda x: x[1], after[path]), value)


class Attention(bs.nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.qkv = bs.nn.Linear(dim, 3 * dim)
        self.out = bs.nn.Linear(dim, dim)
        self.norm = bs.nn.LayerNorm((dim,))
        self.mlp = [bs.nn.Linear(dim, 2 * dim), bs.nn.Linear(2 * dim, dim)]

    def update(self, x):
        q, k, v = jnp.split(self.qkv(self.norm(x)), 3, -1)
        x = x + self.out(jax.nn.softmax(q @ k.T / q.shape[-1] ** 0.5) @ v)
        return x + self.mlp[1](jax.nn.gelu(self.mlp[0](self.norm(x))))


def test_a_small_transformer_over_the_batch_and_as_population():
    module = bs.nn.Sequential(*[Attention(8) for _ in range(2)])
    net, states = bridge.brainstate(module)
    words = jr.normal(jr.key(2), (5, 6, 8))
    y, _ = sm.vmap2(net)(states, words)
    close(y, jax.jit(jax.vmap(module))(words))
    many, axes = sm.broadcast(states, {0: sm.ParamState}, axis_size=2)
    z, _ = sm.vmap2(sm.vmap2(net), in_axes=None, state_in_axes=axes)(many, words)
    close(z[1], y)


# The settings of `environ`.


class Leak(bs.nn.Module):
    def __init__(self):
        super().__init__()
        self.v = bs.HiddenState(jnp.ones(()))
        self.runs = [0]

    def update(self, x):
        RUNS.append(0)
        self.v.value = self.v.value + x * bs.environ.get_dt()
        return self.v.value


RUNS = []


def euler(x, dt, v=1.0):
    return v + np.asarray(x) * dt


def at(dt, fn, *args):
    with bs.environ.context(dt=dt):
        return fn(*args)


@pytest.mark.parametrize("how", ["model", "closure", "nested", "keyword"])
def test_a_setting_that_changes_is_never_read_stale(how):
    model, states = bridge.brainstate(Leak())
    x = jnp.arange(4.0)
    one = model if how == "model" else (lambda s, x: model(s, x))
    mapped = sm.vmap2(one, unexpected_out_state_mapping="ignore")
    call = lambda: mapped(states, x)[0]
    if how == "nested":
        outer = sm.vmap2(
            lambda s, x: (sm.vmap2(one, in_axes=None, axis_size=1)(s, x)[0][0], s),
            unexpected_out_state_mapping="ignore",
        )
        inner = sm.vmap2(lambda s, x: (mapped(s, x)[0], s))
        call = lambda: inner(states, x[:, None])[0][:, 0]
        del outer
    if how == "keyword":
        mapped = sm.vmap2(lambda s, *, x: model(s, x), unexpected_out_state_mapping="ignore")
        call = lambda: mapped(states, x=x)[0]
    with pytest.raises(KeyError, match="dt"):
        call()
    RUNS.clear()
    for dt in (0.1, 0.1, 0.2, 0.1, 0.2, 0.3, 0.3):
        close(at(dt, call), euler(x, dt))
    assert len(RUNS) == 3
    with pytest.raises(KeyError, match="dt"):
        call()
    close(at(0.2, call), euler(x, 0.2))


def test_equal_quantities_are_one_setting_and_those_that_are_not_read_none():
    model, states = bridge.brainstate(Leak())
    mapped = sm.vmap2(model, unexpected_out_state_mapping="ignore")
    RUNS.clear()
    for i in range(3):
        with bs.environ.context(dt=jnp.asarray(0.1), t=i * 0.1, i=i):
            mapped(states, X[:, 0])
    assert len(RUNS) == 1


@pytest.mark.leaks
def test_dropout_under_fit_and_not():
    model, states = bridge.brainstate(bs.nn.Dropout(0.5), key=jr.key(0))
    mapped = sm.vmap2(model)
    x = jnp.ones((4, 50))
    for is_fit in (True, False, True, False):
        with bs.environ.context(fit=is_fit):
            y, after = mapped(states, x)
            assert mapped.plan(states, x)["random.DEFAULT"].drawn == is_fit
        assert bool((y == 0).any()) == is_fit
        moved = jr.key_data(after["random.DEFAULT"]) != jr.key_data(states["random.DEFAULT"])
        assert bool(moved.any()) == is_fit


def test_settings_of_the_function_itself_are_no_ones_business():
    model, states = bridge.brainstate(Leak())
    RUNS.clear()

    def step(leak, x, dt):
        with bs.environ.context(dt=dt):
            return leak(x)

    mapped = sm.vmap2(model.method(step), in_axes=(0, None), unexpected_out_state_mapping="ignore")
    for dt in (0.1, 0.2, 0.1):
        y, _ = mapped(states, X[:, 0], dt)
        close(y, euler(X[:, 0], dt))
    assert len(RUNS) == 1

    def around(s, x, dt):
        with bs.environ.context(dt=dt):
            return model(s, x)

    mapped = sm.vmap2(around, in_axes=(0, None), unexpected_out_state_mapping="ignore")
    for dt in (0.1, 0.2, 0.1):
        close(mapped(states, X[:, 0], dt)[0], euler(X[:, 0], dt))
    assert len(RUNS) == 2


def test_what_jax_caches_inside_a_module_is_for_its_settings():
    class Jitted(bs.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = bs.ParamState(jnp.ones(()))

        def update(self, x):
            return SCALE(x) * self.w.value

    SCALE = jax.jit(lambda x: x * bs.environ.get_dt())
    model, states = bridge.brainstate(Jitted())
    for dt in (2.0, 3.0, 2.0):
        close(at(dt, sm.vmap2(lambda s, x: model(s, x)), states, X)[0], X * dt)


def test_settings_are_those_of_a_thread():
    model, states = bridge.brainstate(Leak())
    mapped = sm.vmap2(model, unexpected_out_state_mapping="ignore")
    found = {}

    def run(dt):
        for _ in range(3):
            found.setdefault(dt, []).append(at(dt, mapped, states, X[:, 0])[0])

    threads = [threading.Thread(target=run, args=(dt,)) for dt in (0.1, 0.2, 0.3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for dt, ys in found.items():
        for y in ys:
            close(y, euler(X[:, 0], dt))


# Streams.


class Noisy(bs.nn.Module):
    def __init__(self, rng=None):
        super().__init__()
        self.w = bs.ParamState(jnp.zeros(()))
        self.rng = rng

    def update(self, x):
        draw = bs.random if self.rng is None else self.rng
        return x + self.w.value + draw.rand()


def test_a_stream_of_the_modules_own():
    module = Noisy(bs.random.RandomState(7))
    model, states = bridge.brainstate(module)
    assert states["rng"] == jr.key(7)
    own = sm.vmap2(model)
    y, after = own(states, jnp.zeros(4))
    assert len(set(y.tolist())) == 4
    plan = own.plan(states, jnp.zeros(4))
    assert plan["rng"].drawn and not plan["random.DEFAULT"].drawn
    one, _ = model(states, 0.0)
    close(one, module(0.0))


def test_a_module_that_holds_the_default_stream_draws_from_it():
    module = Noisy(bs.random.DEFAULT)
    model, states = bridge.brainstate(module, key=jr.key(3))
    assert "rng" not in states
    y, after = model(states, 0.0)
    z, _ = model(after, 0.0)
    with own_stream(jr.key(3)):
        close([y, z], [module(0.0), module(0.0)])
        model.write_back(after)
        equal(jr.key_data(bs.random.DEFAULT.value), jr.key_data(after["random.DEFAULT"]))


def test_an_attribute_called_random():
    class Named(bs.nn.Module):
        def __init__(self):
            super().__init__()
            self.random = bs.random.RandomState(0)

        def update(self, x):
            return x + self.random.rand() + bs.random.rand()

    model, states = bridge.brainstate(Named(), key=jr.key(1))
    y, after = model(states, 0.0)
    assert states["random"] != after["random"]
    assert states["random.DEFAULT"] != after["random.DEFAULT"]


def test_a_stream_that_was_not_looked_at_is_first_looked_at_in_a_trace():
    with own_stream(jr.key(0)):
        np.random.seed(0)
        bs.random.DEFAULT.seed()
        module = Noisy(bs.random.RandomState())

        def bridged(states, x):
            return x + bridge.brainstate(module)[0](states, x)[0], states

        for value in (vars(bs.random.DEFAULT)["_value"], vars(module.rng)["_value"]):
            assert isinstance(value, np.ndarray)
        _, states = jax.eval_shape(lambda: bridge.brainstate(module))
        _, states = bridge.brainstate(module)
        sm.vmap2(bridged)(states, jnp.zeros(2))
        assert not isinstance(bs.random.rand(), jax.core.Tracer)
        assert not isinstance(module.rng.value, jax.core.Tracer)


def test_a_seed_inside_gives_all_lanes_the_same():
    def seeded(net, x):
        bs.random.seed(0)
        return net(x)

    model, states = bridge.brainstate(Noisy())
    before = np.random.get_state()
    y, _ = sm.vmap2(model.method(seeded))(states, jnp.zeros(3))
    np.random.set_state(before)
    with own_stream(jr.key(0)):
        close(y, jnp.full(3, bs.random.rand()))


def test_a_key_laid_aside():
    model, states = bridge.brainstate(Noisy())
    with pytest.raises(ValueError, match="`brainstate.random.DEFAULT` aside"):
        model.method(lambda net, x: bs.random.split_key(backup=True))(states, 0.0)

    def aside(net, x):
        y = bs.random.rand(key=bs.random.split_key(backup=True))
        bs.random.restore_key()
        return y

    _, after = model.method(aside)(states, 0.0)
    equal(jr.key_data(after["random.DEFAULT"]), jr.key_data(states["random.DEFAULT"]))
    module = Noisy(bs.random.RandomState(0))
    module.rng.backup_key()
    with pytest.raises(ValueError, match="`rng` has laid a key aside"):
        bridge.brainstate(module)


def test_other_threads_draw_arrays():
    """While a trace has a tracer in brainstate's own stream, another thread waits to draw."""
    model, states = bridge.brainstate(Noisy())
    inside, found = threading.Event(), []

    def slow(net, x):
        y = net(x)
        inside.set()
        thread.join(0.5)  # which would draw now
        return y + bs.random.rand()

    def draw():
        inside.wait()
        found.append(bs.random.rand())

    thread = threading.Thread(target=draw)
    with own_stream(jr.key(9)):
        bs.random.rand()  # so that the next is fast
        thread.start()
        y, _ = sm.vmap2(model.method(slow))(states, jnp.zeros(2))
        thread.join()
        assert isinstance(found[0], jax.Array) and not isinstance(found[0], jax.core.Tracer)
        assert float(found[0]) >= 0
        equal(y, sm.vmap2(model.method(slow))(states, jnp.zeros(2))[0])


# Kinds, units, delays, transforms.


def test_kinds_and_tags():
    class Mine(bs.ShortTermState):
        pass

    class All(bs.nn.Module):
        def __init__(self):
            super().__init__()
            self.p = bs.ParamState(jnp.ones(2))
            self.h = bs.HiddenState(jnp.ones(2))
            self.s = bs.ShortTermState(jnp.ones(2))
            self.l = bs.LongTermState(jnp.ones(2))
            self.b = bs.BatchState(jnp.ones(2))
            self.n = private.NonBatchState(jnp.ones(2))
            self.o = bs.State({"a": jnp.ones(2), "b": 1.0})
            self.d = bs.DelayState(jnp.ones(2))
            self.m = Mine(jnp.ones(2))
            self.none = bs.ShortTermState(None)
            self.array = jnp.ones(2)

        def update(self):
            return self.o.value["b"] + self.array

    module = All()
    model, states = bridge.brainstate(module, kinds={Mine: sm.BatchState})
    kinds = {path[0]: (type(s), s.tag) for path, s in states.items()}
    assert kinds == {
        "p": (sm.ParamState, "ParamState"),
        "h": (sm.HiddenState, "HiddenState"),
        "s": (sm.ShortTermState, "ShortTermState"),
        "l": (sm.LongTermState, "LongTermState"),
        "b": (sm.BatchState, "BatchState"),
        "n": (sm.NonBatchState, "NonBatchState"),
        "o": (sm.LongTermState, "State"),
        "d": (sm.ShortTermState, "DelayState"),
        "m": (sm.BatchState, "Mine"),
        "array": (sm.LongTermState, "Attribute"),
        "random": (sm.RandomState, "RandomState"),
    }
    close(model(states)[0], [2.0, 2.0])
    by_function = lambda path, node: sm.ParamState if node.type is Mine else None
    _, states = bridge.brainstate(module, kinds=by_function)
    assert type(dict(states.items())["m",]) is sm.ParamState
    model, states = bridge.brainstate(module)
    with pytest.raises(ValueError, match="`none` of `All` was"):
        model.method(lambda net: setattr(net.none, "value", jnp.ones(2)))(states)


def test_units():
    class LIF(bs.nn.Dynamics):
        def __init__(self, n):
            super().__init__(n)
            self.tau, self.th = 10.0 * u.ms, 1.0 * u.mV
            self.bias = jnp.ones(n) * u.mV

        def init_state(self, *_):
            self.V = bs.HiddenState(jnp.zeros(self.varshape) * u.mV)

        def update(self, x):
            dv = (-self.V.value + self.bias + x) / self.tau
            v = self.V.value + dv * bs.environ.get_dt()
            spike = v > self.th
            self.V.value = u.math.where(spike, 0.0 * u.mV, v)
            return spike

    lif = bs.nn.init_all_states(LIF(3))
    model, states = bridge.brainstate(lif)
    assert u.get_unit(states["V"]) == u.mV and u.get_unit(states["bias"]) == u.mV
    states, axes = sm.broadcast(states, {0: sm.HiddenState}, axis_size=4)
    step = sm.vmap2(model, state_in_axes=axes)
    xs = jr.uniform(jr.key(0), (30, 4, 3)) * 20 * u.mV
    members = [bs.nn.init_all_states(LIF(3)) for _ in range(4)]
    for dt in (0.5 * u.ms, 0.1 * u.ms):
        with bs.environ.context(dt=dt):
            for x in xs[:15]:
                y, states = step(states, x)
                equal(y, jnp.stack([m(x[i]) for i, m in enumerate(members)]))
    close(states["V"].mantissa, jnp.stack([m.V.value.mantissa for m in members]))

    with pytest.raises(ValueError, match="`V`"):
        model.method(lambda m: setattr(m.V, "value", jnp.ones(3) * u.volt))(
            bridge.brainstate(lif)[1]
        )


def test_delays():
    class Late(bs.nn.Module):
        def __init__(self):
            super().__init__()
            self.delay = bs.nn.Delay(jnp.zeros(2), time=0.3, entries={"a": 0.2})

        def update(self, x):
            self.delay.update(x)
            return self.delay.at("a")

    xs = jnp.arange(24.0).reshape(6, 2, 2)
    with bs.environ.context(dt=0.1):
        members = [bs.nn.init_all_states(Late()) for _ in range(2)]
        model, states = bridge.brainstate(bs.nn.init_all_states(Late()))
        other, _ = bridge.brainstate(bs.nn.init_all_states(Late()))
        assert jax.tree.structure(model) == jax.tree.structure(other)  # but for its locks
        states, axes = sm.broadcast(states, {0: "DelayState"}, axis_size=2)
        ys, states = sm.scan(sm.vmap2(model, state_in_axes=axes))(states, xs)
        for i, member in enumerate(members):
            close(ys[:, i], jnp.stack([member(x[i]) for x in xs]))
        make = lambda *, key: bridge.brainstate(lambda: bs.nn.init_all_states(Late()), key=key)
        late, states, axes = sm.vmap2_new_states(make, key=jr.key(0), axis_size=2)
        zs, _ = sm.scan(sm.vmap2(late, state_in_axes=axes))(states, xs)
        close(zs, ys)


def loop(cell, x):
    return bs.transform.for_loop(cell, jnp.stack([x, 2 * x, 3 * x]))


def branch(cell, x):
    return bs.transform.cond(x.sum() > 0, lambda: cell(x), lambda: cell.h.value * 2)


def inner_jit(cell, x):
    return bs.transform.jit(lambda x: cell(x) + cell(x))(x)


def inner_grad(cell, x):
    return bs.transform.grad(lambda: cell(x).sum(), cell.states(bs.ParamState))()


def inner_vmap(cell, x):
    mapped = bs.transform.vmap2(cell, state_in_axes={0: bs.HiddenState})
    cell.h.value = jnp.stack([cell.h.value] * 2)
    out = mapped(jnp.stack([x, 2 * x]))
    cell.h.value = cell.h.value.sum(0)
    return out


def drawn(cell, x):
    return bs.transform.for_loop(lambda _: cell(x) + bs.random.rand(4), jnp.arange(3))


# No leak check: alone, brainstate's transforms do not pass it.
@pytest.mark.parametrize("fn", [loop, branch, inner_jit, inner_grad, inner_vmap, drawn])
def test_brainstates_transforms_inside(fn):
    cell = recurrent(bs.nn.GRUCell)
    model, states = bridge.brainstate(cell, key=jr.key(4))
    states, axes = sm.broadcast(states, {0: "HiddenState", None: sm.ParamState}, axis_size=3)
    mapped = sm.vmap2(model.method(fn), state_in_axes={0: "HiddenState"})
    y, after = mapped(states, X[:3])
    keys = jr.split(jr.key(4), 4)
    for i, x in enumerate(X[:3]):
        cell.init_state()
        with own_stream(keys[i + 1]):
            own = fn(cell, x)
        close([z[i] for z in jax.tree.leaves(y)], jax.tree.leaves(own))
        close(after["h"][i], cell.h.value)
    if fn is drawn:
        assert after["random.DEFAULT"] == keys[0]


def test_inside_brainstates_own_transforms():
    cell = recurrent(bs.nn.GRUCell)
    noisy, states = bridge.brainstate(Noisy(), key=jr.key(2))
    model, others = bridge.brainstate(cell)
    count = bs.ShortTermState(jnp.zeros(()))

    @bs.transform.jit
    def step(states, x):
        count.value = count.value + 1
        y, states = sm.vmap2(noisy)(states, x)
        return y + bs.random.rand() * 0 + model(others, X[0])[0].sum() * 0, states

    with own_stream(jr.key(6)):
        y, after = step(states, jnp.zeros(3))
        y, after = step(after, jnp.zeros(3))
        moved = bs.random.DEFAULT.value
    expected, once = sm.vmap2(noisy)(states, jnp.zeros(3))
    expected, twice = sm.vmap2(noisy)(once, jnp.zeros(3))
    close(y, expected)
    assert after["random.DEFAULT"] == twice["random.DEFAULT"] and count.value == 2
    with own_stream(jr.key(6)):
        bs.random.rand(), bs.random.rand()
        equal(jr.key_data(moved), jr.key_data(bs.random.DEFAULT.value))


# Structure.


def test_tied_states_and_layers_used_twice():
    class Tied(bs.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = bs.nn.Linear(3, 3)
            self.b = self.a
            self.c = bs.nn.Linear(3, 3)
            self.c.weight = self.a.weight
            self.parts = {"x": [self.a, bs.nn.Linear(3, 3)], "y": (bs.nn.ReLU(),)}

        def update(self, x):
            self.c.weight.value = jax.tree.map(lambda w: w * 2, self.c.weight.value)
            return self.parts["y"][0](self.b(self.a(x)) + self.parts["x"][1](x))

    module = Tied()
    model, states = bridge.brainstate(module)
    assert sum(issubclass(type(s), sm.ParamState) for _, s in states.items()) == 2
    y, states = sm.vmap2(model)(states, X)
    close(y, module(X))
    close(states["a.weight"], module.a.weight.value)


def test_a_module_without_parameters_and_one_that_is_no_function():
    model, states = bridge.brainstate(bs.nn.ReLU())
    assert [path for path, _ in states] == [("random", "DEFAULT")] or len(states) == 1
    equal(sm.vmap2(model)(states, X)[0], jax.nn.relu(X))

    class Store(bs.graph.Node):
        def __init__(self):
            self.x = bs.State(jnp.ones(2))

        def double(self):
            self.x.value = self.x.value * 2
            return {"x": self.x.value, "n": 2}

    model, states = bridge.brainstate(Store())
    with pytest.raises(TypeError, match="can't be called. Name what is called"):
        model(states)
    out, states = model.double(states)
    close(out["x"], [2.0, 2.0])
    close(states["x"], [2.0, 2.0])


def test_methods_and_keywords():
    net, states = bridge.brainstate(Net())
    y, _ = sm.vmap2(lambda s, x: net.features(s, x, scale=2.0))(states, X)
    z, _ = sm.vmap2(net.method(lambda n, x: 2 * n.linear(x)))(states, X)
    close(y, z)
    with pytest.raises(AttributeError, match="no method `nothing`"):
        net.nothing


def test_low_precision():
    module = bs.nn.Linear(3, 4)
    module.weight.value = jax.tree.map(lambda w: w.astype(jnp.bfloat16), module.weight.value)
    model, states = bridge.brainstate(module)
    x = X.astype(jnp.bfloat16)
    y, _ = sm.vmap2(model)(states, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(float), module(x).astype(float), rtol=0.05, atol=0.05)


def test_invisible_attributes_and_numpy_arrays_stay():
    class Hides(bs.nn.Module):
        graph_invisible_attrs = ("hidden",)

        def __init__(self):
            super().__init__()
            self.hidden = {"scale": 2.0}
            self.picks = np.array([True, False, True])
            self.inner = bs.nn.Linear(3, 3)

        def update(self, x):
            return self.inner(x)[self.picks] * self.hidden["scale"]

    module = Hides()
    model, states = bridge.brainstate(module)
    close(sm.vmap2(model)(states, X)[0], jnp.stack([module(x) for x in X]))


def test_params_with_transforms():
    class Positive(bs.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = bs.nn.Param(jnp.ones(3), t=bs.nn.SoftplusT(0.0))
            self.c = bs.nn.Param(jnp.ones(3), fit=False)

        def update(self, x):
            return x * self.w.value() + self.c.value()

    module = Positive()
    model, states = bridge.brainstate(module)
    close(sm.vmap2(model)(states, X)[0], module(X))
    assert states["c.val"].shape == (3,)
    module.w.cache()
    with pytest.raises(ValueError, match=r"`w` has cached its value.*clear_cache"):
        bridge.brainstate(module)


def test_hooks_run_in_lanes():
    module = Leak()
    module.v.register_hook(
        "write_before", lambda ctx: setattr(ctx, "transformed_value", ctx.value * 0 + 5)
    )
    model, states = bridge.brainstate(module)
    y, after = at(0.1, model, states, 0.3)
    expected = at(0.1, module, 0.3)
    close([y, after["v"]], [expected, module.v.value])
    close(y, 5)


def test_init_state_in_a_call_resets():
    cell = recurrent(bs.nn.GRUCell)
    model, states = bridge.brainstate(cell)
    _, after = model(states, X[0])

    def reset(cell):
        cell.init_state()

    _, again = model.method(reset)(after)
    equal(again["h"], states["h"])


# What is refused.


def test_states_that_are_not_made_yet():
    model, states = bridge.brainstate(bs.nn.GRUCell(3, 4))
    with pytest.raises(AttributeError, match="h") as info:
        sm.vmap2(model)(states, X)
    assert "init_all_states" in "".join(info.value.__notes__)
    with pytest.raises(ValueError, match="made `h`, for which the context has no place"):
        model.method(lambda cell: cell.init_state())(states)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda n: setattr(n.dropout, "prob", 0.9), r"`dropout.prob` was changed from 0.5 to 0.9"),
        (lambda n: setattr(n, "extra", 1), r"was changed from .* static in a call of `Net`"),
        (lambda n: setattr(n, "extra", jnp.ones(2)), "made `extra`"),
        (lambda n: setattr(n, "linear", n.dropout), "took `linear.weight` away"),
        (lambda n: setattr(n.count, "value", jnp.ones(3)), "`count`"),
        (lambda n: setattr(n.count, "value", 0.5), "`count`"),
        (lambda n: delattr(n, "dropout"), "was changed"),
    ],
)
def test_changes_that_would_be_lost(change, message):
    module = Net()
    before = {k: id(v) for k, v in vars(module).items()}
    net, states = bridge.brainstate(module)
    with pytest.raises(ValueError, match=message):
        sm.vmap2(net.method(lambda n, x: (change(n), x)[1]))(states, X)
    assert {k: id(v) for k, v in vars(module).items()} == before and module.dropout.prob == 0.5


def test_states_that_are_not_the_modules():
    outside = bs.ShortTermState(jnp.zeros(()))

    class Uses(bs.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = bs.ParamState(jnp.ones(()))
            self.bound = self.add

        def add(self, x):
            self.w.value = self.w.value + x
            return self.w.value

        def update(self, x):
            outside.value = outside.value + x
            return x

    module = Uses()
    model, states = bridge.brainstate(module)
    with pytest.raises(ValueError, match="uses a `ShortTermState` that is none of its own"):
        sm.vmap2(model)(states, X[:, 0])
    with pytest.raises(ValueError, match="`ParamState` that is `w` of the module that it was made"):
        sm.vmap2(model.method(lambda m, x: m.bound(x)))(states, X[:, 0])
    assert outside.value == 0 and module.w.value == 1
    vmapped = bs.nn.Vmap(bs.nn.Linear(3, 4), in_axes=0)
    model, states = bridge.brainstate(vmapped)
    with pytest.raises(ValueError, match="Instead of `nn.Vmap` and `nn.Map`"):
        model(states, X)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (bs.nn.Linear, r"Right:  bridge.brainstate\(Net\(\)\)"),
        (lambda x: x, "A function has no states of its own"),
        (compat.nn.Module(), "compat.to_functional"),
        (3, "takes a module of brainstate that is made, and was given 3"),
    ],
)
def test_what_is_no_module(wrong, message):
    with pytest.raises(TypeError, match=message):
        bridge.brainstate(wrong)


def test_wrong_keys_and_contexts():
    with pytest.raises(TypeError, match="takes a module of brainstate"):
        bridge.brainstate(lambda: 3, key=jr.key(0))
    with pytest.raises(ValueError, match="one key"):
        bridge.brainstate(Net, key=KEYS)
    net, states = bridge.brainstate(Net())
    with pytest.raises(TypeError, match="takes the context first"):
        net(X)
    _, others = bridge.brainstate(recurrent(bs.nn.GRUCell))
    with pytest.raises((KeyError, ValueError), match="linear.weight|norm|count"):
        net(others, X)


@pytest.mark.leaks
def test_no_tracer_stays():
    make = lambda *, key: bridge.brainstate(lambda: recurrent(bs.nn.GRUCell), key=key)
    model, states, axes = sm.vmap2_new_states(make, key=jr.key(0), axis_size=2)
    _, states = sm.vmap2(model, in_axes=None, state_in_axes=axes)(states, X[0])
    cell = recurrent(bs.nn.GRUCell)
    model, states = bridge.brainstate(cell)
    grads = jax.jit(jax.grad(lambda s: model(s, X[0])[0].sum(), allow_int=True))(states)
    assert grads["h"].shape == (4,)
    assert not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(values(cell)))


def test_the_shim_in_its_place(monkeypatch):
    monkeypatch.setitem(sys.modules, "brainstate", compat)
    monkeypatch.delitem(sys.modules, "statemap.bridge._brainstate_private")
    with pytest.raises(ImportError, match="is the shim here"):
        importlib.import_module("statemap.bridge._brainstate_private")


def test_brainstates_private_parts_are_there():
    assert isinstance(bs.random._state._KEY_RMW_LOCK, type(threading.RLock()))
    assert private.LOCK is bs.random._state._KEY_RMW_LOCK
    state = bs.random.RandomState(0)
    known = private._OF_A_TRACE | private._OF_ONE_STATE | {"_name", "tag"}
    assert set(vars(state)) == known
    assert set(vars(bs.ParamState(jnp.ones(2)))) == known - {"_backup"}
    assert vars(state)["_level"] == state.stack_level == 0
    assert bs.nn.Param(jnp.ones(2))._cache_valid is False
    with private.running(jr.key(0)):  # and what is around them goes through them
        from statemap._settings import reads

        with reads() as found:
            bs.environ.context(dt=1)
            bs.environ.dftype()
            bs.environ.get("dt", None)
            bs.environ.all()
    assert {name for _, name in found} == {"precision", "dt", ...}
    from statemap.bridge._brainstate_parts import View

    module = Net()
    paths = bs.graph.flatten(module)[1].to_flat()
    assert set(paths) == set(View(module).states)


def test_a_module_that_is_made_in_lanes_without_a_key():
    make = lambda *, key: bridge.brainstate(bs.nn.Linear(2, 3))
    with pytest.raises(Exception, match="tracer being written into this RandomState") as caught:
        sm.vmap2_new_states(make, key=jax.random.key(0), axis_size=2)
    assert any("Right:  bridge.brainstate(lambda: Net(), key" in x for x in caught.value.__notes__)
