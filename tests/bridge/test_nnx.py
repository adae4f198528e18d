"""`bridge.nnx`: modules of Flax NNX as functions of states. The law: outputs and new states are
those of NNX itself.
"""

import copy
import dataclasses
import gc
import pickle
import threading
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import statemap as sm
from statemap import bridge

from .alike import close


nnx = pytest.importorskip("flax.nnx")

KEY = jr.key(0)
X = jr.normal(jr.key(1), (8, 3))


@pytest.fixture(autouse=True)
def strict_promotion():
    """Models of other libraries run as their users run them, without strict promotion."""


class Block(nnx.Module):
    def __init__(self, n_in, n_out, *, rngs, axis_name=None):
        self.linear = nnx.Linear(n_in, n_out, rngs=rngs)
        self.norm = nnx.BatchNorm(n_out, rngs=rngs, axis_name=axis_name)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.calls = nnx.Variable(jnp.array(0))

    def __call__(self, x, scale=None):
        self.calls[...] += 1
        out = self.dropout(nnx.relu(self.norm(self.linear(x))))
        return out if scale is None else out * scale

    def encode(self, x):
        return self.linear(x)


def block(seed=0, **kwargs):
    return Block(3, 4, rngs=nnx.Rngs(seed), **kwargs)


def make(*, key):
    return bridge.nnx(block(key))


@nnx.jit
def run(module, *args):
    return module(*args)


@pytest.fixture(scope="module")
def members():
    return sm.vmap2_new_states(make, key=KEY, axis_size=8)


def paths(states):
    return [".".join(map(str, path)) for path, _ in states]


def test_paths_kinds_and_tags():
    _, states = bridge.nnx(block())
    found = {".".join(map(str, p)): (type(s), s.tag) for p, s in states}
    assert found == {
        "calls": (sm.LongTermState, "Variable"),
        "dropout.rngs.count": (sm.LongTermState, "RngCount"),
        "dropout.rngs.key": (sm.RandomState, "RngKey"),
        "linear.bias": (sm.ParamState, "Param"),
        "linear.kernel": (sm.ParamState, "Param"),
        "norm.bias": (sm.ParamState, "Param"),
        "norm.mean": (sm.BatchState, "BatchStat"),
        "norm.scale": (sm.ParamState, "Param"),
        "norm.var": (sm.BatchState, "BatchStat"),
    }
    assert paths(states.select(sm.WithTag("BatchStat"))) == ["norm.mean", "norm.var"]


def test_members_are_a_loop(members):
    net, states, axes = members
    mapped = sm.vmap2(net, in_axes=None, state_in_axes=axes)
    first, new = mapped(states, X)
    second, new = mapped(new, X)
    assert not np.array_equal(first, second)
    for i, key in enumerate(jr.split(KEY, 8)):
        module = block(key)
        close(first[i], run(module, X))
        close(second[i], run(module, X))
        close(nnx.state(net.rebuild(sm.lane(new, axes, i))), nnx.state(module))
    close(sm.vmap2(net, in_axes=None, state_in_axes=axes, chunk_size=3)(states, X)[0], first)
    out, after = sm.pmap2(net, in_axes=None, state_in_axes=axes)(states, X)
    close(out, first)
    close(sm.vmap2(net, in_axes=None, state_in_axes=axes)(states, X)[1], after)
    whole = net.rebuild(new)
    assert whole.linear.kernel.shape == (8, 3, 4) and whole.calls[...].tolist() == [2] * 8


def test_batch_statistics_are_those_of_the_whole_batch():
    net, states = bridge.nnx(block(axis_name="batch"))
    out, new = sm.vmap2(net.method(lambda m, x: m(x[None])[0]), axis_name="batch")(states, X)
    module = block()
    module(X)
    close(new["norm.mean"], module.norm.mean[...])
    close(new["norm.var"], module.norm.var[...])
    assert new["calls"] == 1
    off = nnx.view(block(), deterministic=True)
    expected = off(X)
    quiet, _ = bridge.nnx(nnx.view(block(axis_name="batch"), deterministic=True))
    out, after = sm.vmap2(quiet.method(lambda m, x: m(x[None])[0]), axis_name="batch")(states, X)
    close(out, expected)
    assert after["dropout.rngs.key"] == states["dropout.rngs.key"]
    assert after["dropout.rngs.count"] == states["dropout.rngs.count"]


def test_members_by_batch():
    make = lambda *, key: bridge.nnx(block(key, axis_name="batch"))
    net, states, axes = sm.vmap2_new_states(make, key=KEY, axis_size=2)
    inner = sm.vmap2(net.method(lambda m, x: m(x[None])[0]), axis_name="batch")
    mapped = sm.vmap2(inner, in_axes=None, state_in_axes=axes)
    out, new = mapped(states, X)
    for i, key in enumerate(jr.split(KEY, 2)):
        module = block(key)
        run(module, X)
        close(new["norm.mean"][i], module.norm.mean[...])
        kept = nnx.relu(nnx.view(module, use_running_average=False).norm(module.linear(X)))
        np.testing.assert_allclose(out[i], np.where(out[i] == 0, 0, 2 * kept), atol=1e-4)
    assert len(np.unique(out == 0, axis=1)) > 1


def test_streams():
    """Lane i's numbers are the same whatever is mapped beside it."""
    net, states = bridge.nnx(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    mapped = sm.vmap2(net)
    ones = jnp.ones((8, 50))
    out, new = mapped(states, ones)
    assert len(np.unique(out, axis=0)) == 8
    assert not np.array_equal(mapped(new, ones)[0], out)
    close(mapped(states, ones[:3])[0], out[:3])
    close(sm.vmap2(net, chunk_size=3)(states, ones)[0], out)
    close(sm.pmap2(net)(states, ones)[0], out)
    first, *lanes = jr.split(states["rngs.key"], 9)
    close(new["rngs.key"], first)
    for i in (0, 5):
        close(net(states.set("rngs.key", lanes[i]), ones[i])[0], out[i])


class Noisy(nnx.Module):
    def __init__(self, rngs):
        self.rngs = rngs
        self.a = nnx.Dropout(0.5)
        self.b = nnx.Dropout(0.5)

    def __call__(self, x):
        x = self.a(x, rngs=self.rngs) + self.b(x, rngs=self.rngs)
        return x + self.rngs.noise.normal(x.shape)

    def sometimes(self, x):
        return nnx.cond(x > 0, lambda m: m.rngs.noise.normal(()), lambda m: jnp.zeros(()), self)


def test_several_streams_and_shared_ones():
    net, states = bridge.nnx(Noisy(nnx.Rngs(params=0, noise=1, dropout=2)))
    assert [p for p in paths(states) if p.endswith("key")] == [
        f"rngs.{name}.key" for name in ("dropout", "noise", "params")
    ]
    mapped = sm.vmap2(net)
    out, new = mapped(states, X)
    assert new["rngs.dropout.count"] == 2 and new["rngs.noise.count"] == 1
    rows = {name: mapped.plan(states, X)[f"rngs.{name}.key"] for name in ("noise", "params")}
    assert rows["noise"].drawn and not rows["params"].drawn and not rows["params"].written
    close(new["rngs.params.key"], states["rngs.params.key"])
    module = Noisy(nnx.Rngs(params=0, noise=1, dropout=2))
    close(net(states, X)[0], module(X))


def test_a_count_that_differs_between_lanes():
    net, states = bridge.nnx(Noisy(nnx.Rngs(noise=1)))
    x = jnp.array([-1.0, 1.0, -1.0, 1.0])
    with pytest.raises(sm.BatchAxisError, match="`rngs.noise.count` is shared by all lanes"):
        sm.vmap2(net.sometimes)(states, x)
    net, states, axes = sm.vmap2_new_states(
        lambda *, key: bridge.nnx(Noisy(nnx.Rngs(noise=key))), key=KEY, axis_size=4
    )
    out, new = sm.vmap2(net.sometimes, state_in_axes=axes)(states, x)
    assert new["rngs.noise.count"].tolist() == [0, 1, 0, 1]
    for i, key in enumerate(jr.split(KEY, 4)):
        close(out[i], Noisy(nnx.Rngs(noise=key)).sometimes(x[i]))


def test_training_is_that_of_nnx():
    module = block()
    net, states = bridge.nnx(block())
    optimiser = nnx.Optimizer(module, optax.adam(0.1), wrt=nnx.Param)
    adam = optax.adam(0.1)
    opt = adam.init(states.select(sm.ParamState))

    @nnx.jit
    def their_step(module, optimiser):
        value, grads = nnx.value_and_grad(lambda m: (m(X) ** 2).mean())(module)
        optimiser.update(module, grads)
        return value

    @jax.jit
    def our_step(states, opt):
        params, rest = states.partition(sm.ParamState, ...)

        def loss(params):
            out, new = net(rest.merge(params), X)
            return (out**2).mean(), new

        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt = adam.update(grads, opt)
        return value, new.merge(optax.apply_updates(params, updates)), opt

    for _ in range(3):
        value, states, opt = our_step(states, opt)
        close(value, their_step(module, optimiser))
    close(nnx.state(net.rebuild(states)), nnx.state(module), 1e-4)


def test_an_optimiser_of_nnx():
    module = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    both = nnx.ModelAndOptimizer(module, optax.adam(0.1), wrt=nnx.Param)
    net, states = bridge.nnx(both)
    assert "model.kernel" in states and "opt_state.0.mu.kernel" in states

    def step(both, x):
        both.update(nnx.grad(lambda m: (m(x) ** 2).mean())(both.model))

    _, new = jax.jit(net.method(step))(states, X)
    step(both, X)
    close(new["model.kernel"], module.kernel[...])
    assert new["step"] == 1
    _, states = bridge.nnx(nnx.Optimizer(module, optax.adam(0.1), wrt=nnx.Param))
    assert not states.select(sm.ParamState)


def test_scan(members):
    net, states, axes = members
    mapped = sm.vmap2(net, in_axes=None, state_in_axes=axes)
    step = lambda s, _: mapped(s, X)[::-1]
    new, out = jax.jit(lambda s: jax.lax.scan(step, s, length=3))(states)
    assert new["calls"].tolist() == [3] * 8
    _, again = sm.scan(mapped)(states, jnp.stack([X] * 3))
    close(again, new)


TRACES = []


def traced(module, x):
    TRACES.append(None)
    return module(x)


def test_models_made_alike_share_what_is_compiled(runs):
    del TRACES[:]
    for seed in range(3):
        net, _ = bridge.nnx(block(seed))
        _, states = bridge.nnx(block(seed + 1))
        sm.vmap2(net.method(traced), in_axes=None, axis_size=2)(states, X)
    assert len(TRACES) == 1

    @jax.jit
    @runs
    def call(net, states, x):
        return net(states, x)

    for seed in range(3):
        call(*bridge.nnx(block(seed)), X)
    assert runs.count == 1
    one, two = (jax.tree.structure(bridge.nnx(block(i))[0]) for i in range(2))
    assert one == two and hash(one) == hash(two)
    assert jax.tree.structure(bridge.nnx(nnx.view(block(), deterministic=True))[0]) != one


def test_threads():
    net, states = bridge.nnx(block())
    mapped = sm.vmap2(net, in_axes=None, axis_size=2)
    expected, found = mapped(states, X), [None] * 4

    def work(i):
        found[i] = mapped(states, X)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for each in found:
        close(each, expected)


def test_write_back_and_read():
    module = block()
    net, states = bridge.nnx(module)
    _, new = net(states, X)
    assert module.calls[...] == 0  # the module is as it was
    built = net.rebuild(new)
    assert isinstance(built, Block) and built is not module
    built(X)
    assert net.read(new, built) == net(new, X)[1]
    net.write_back(new)
    close(nnx.state(module), nnx.state(net.rebuild(new)))
    module.eval()
    net.write_back(states)  # a mode is none of its business
    assert module.calls[...] == 0 and module.dropout.deterministic


def test_write_back_writes_nothing_on_an_error(members):
    module = block()
    net, states = bridge.nnx(module)
    before = jax.tree.map(jnp.array, nnx.state(module))
    new = net(states, X)[1]

    def refused(states, error, match):
        with pytest.raises(error, match=match) as info:
            net.write_back(states)
        return info.value

    many, population, axes = members
    error = refused(population, ValueError, r"`calls` was given .* shape: .*i32\[\], got")
    assert "sm.lane(states, axes, 0)" in error.__notes__[0]
    trace = jax.jit(lambda states: refused(states, ValueError, "Values of a trace would be") and 0)
    trace(states)
    close(nnx.state(module), before)
    net.write_back(sm.lane(population, axes, 1))
    net.write_back(states)
    module.extra = nnx.Param(jnp.ones(2))
    refused(new, ValueError, "`Block` that the model was made of is another now: it has `extra`")
    del module.extra
    linear, module.linear = module.linear, None
    refused(new, ValueError, "it lacks `linear.bias`, `linear.kernel`")
    module.linear = nnx.data(linear)
    module.norm.var = nnx.BatchStat(jnp.ones(5))
    refused(new, ValueError, "`norm.var` was given a value of another shape")
    module.norm.var = nnx.BatchStat(jnp.ones(4))
    close(nnx.state(module), before)
    del module, linear, error  # whose traceback holds it
    gc.collect()
    refused(new, ReferenceError, "The `Block` that the model was made of is gone")
    with pytest.raises(ReferenceError, match="that of a population never was"):
        many.write_back(population)


class Writes(nnx.Module):
    """What a call may not do."""

    def __init__(self):
        self.w = nnx.Param(jnp.ones(3))
        self.n = 0
        self.none = nnx.Variable(None)
        self.tree = nnx.Variable({"a": jnp.ones(2), "b": (jnp.zeros(1),)})
        self.part = nnx.Dict(k=nnx.Linear(3, 3, rngs=nnx.Rngs(0)))

    def attribute(self, x):
        self.n += 1

    def flag(self, x):
        self.n = 0.0

    def added(self, x):
        self.part.k.more = 3

    def deleted(self, x):
        del self.n

    def metadata(self, x):
        self.w.set_metadata("axis", 1)

    def new(self, x):
        self.z = nnx.Param(x)

    def gone(self, x):
        del self.w

    def dtype(self, x):
        self.w.set_value(self.w[...].astype(jnp.float16))

    def shape(self, x):
        self.w.set_value(x)

    def kind(self, x):
        self.w = nnx.BatchStat(self.w[...])

    def filled(self, x):
        self.none.set_value(x)

    def emptied(self, x):
        self.w.set_value(None)

    def sown(self, x):
        self.sow(nnx.Intermediate, "y", x)
        return x


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("attribute", "`n` was changed from 0 to 1, which is static in a call of `Writes`"),
        ("flag", "`n` was changed from 0 to 0.0, which is static"),
        ("added", "`part.k.more` was added, which is static"),
        ("deleted", "`n` was taken away, which is static"),
        ("metadata", "metadata"),
        ("new", "A call of `Writes` made `z`, for which the context has no place"),
        ("gone", "A call of `Writes` took `w` away"),
        ("dtype", r"`w` was given a value of another dtype: expected f32\[3\], got f16"),
        ("shape", r"`w` was given a value of another shape: expected f32\[3\], got f32\[8,3\]"),
        ("kind", "`w` of `Writes` was `Param` and was changed to `BatchStat`"),
        ("filled", r"`none` of `Writes` was nothing and was changed to an array"),
        ("emptied", "`w` was given a value of another structure"),
    ],
)
def test_what_a_call_may_not_do(method, message):
    net, states = bridge.nnx(Writes())
    with pytest.raises(ValueError, match=message):
        net.method(method)(states, X)
    with pytest.raises(ValueError, match=message):
        jax.jit(net.method(method))(states, X)
    # Nothing of it stays.
    out, same = net.method(lambda m, x: m.none.get_value())(states, X)
    assert out is None and same == states


def test_intermediates():
    net, states = bridge.nnx(Writes())

    def popped(module, x):
        return module.sown(x), nnx.pop(module, nnx.Intermediate)["y"][0]

    with pytest.warns(DeprecationWarning, match="outside of 'nnx.capture"):
        with pytest.raises(ValueError, match="made `y`, for which the context"):
            net.sown(states, X)
        (_, found), same = sm.vmap2(net.method(popped))(states, X)
    close(found, X)
    assert same == states
    capture = lambda m, x: nnx.capture(Writes.sown, nnx.Intermediate)(m, x)[1]["y"][0]
    found, _ = net.method(capture)(states, X)
    close(found, X)


def test_variables_that_hold_trees_or_nothing():
    net, states = bridge.nnx(Writes())
    assert "none" not in states and states["tree"]["b"][0].shape == (1,)

    def step(module, x):
        old = module.tree.get_value()
        module.tree.set_value({"a": old["a"] + x, "b": old["b"]})

    _, new = sm.vmap2(net.method(step), state_out_axes={0: sm.WithTag("Variable")})(
        states, jnp.arange(3.0)
    )
    assert new["tree"]["a"].tolist() == [[1, 1], [2, 2], [3, 3]]


def test_variables_that_are_references():
    class Counter(nnx.Module):
        def __init__(self, **kwargs):
            self.n = nnx.Variable(jnp.array(0), **kwargs)

        def __call__(self, x):
            self.n[...] += 1
            return x

    for setting in ("ref", "hijax"):
        module = Counter(**{setting: True})
        with pytest.raises(TypeError, match=rf"`n` of `Counter` is mutable by itself \(`{setting}"):
            bridge.nnx(module)
        net, states = bridge.nnx(nnx.with_vars(module, ref=False, hijax=False))  # as it says
        assert net(states, X)[1]["n"] == 1


@pytest.mark.parametrize("graph", [False, True])
def test_graph_modes(graph):
    with nnx.set_graph_mode(graph):
        net, states = bridge.nnx(block())
        assert sm.vmap2(net, in_axes=None, axis_size=2)(states, X)[1]["calls"] == 1


def test_tied_variables_and_a_layer_used_twice():
    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = (nnx.Linear(3, 3, rngs=rngs) for _ in range(2))
            self.b.kernel = self.a.kernel
            self.c = self.a

        def __call__(self, x):
            return self.c(self.b(self.a(x)))

    with nnx.set_graph_mode(True):
        module = Tied(nnx.Rngs(0))
        net, states = bridge.nnx(module)
        assert paths(states) == ["a.bias", "a.kernel", "b.bias"]
        built = net.rebuild(states)
        assert built.b.kernel is built.a.kernel and built.c is built.a
        close(sm.vmap2(net)(states, X)[0], module(X))
        grad = jax.grad(lambda s: net(s, X)[0].sum())(states)
        expected = nnx.grad(lambda m: m(X).sum())(module)
        close(grad["a.kernel"], expected["a"]["kernel"][...])


def test_layers_of_nnx():
    """Cells, attention with a cache, adapters, norms, metrics: each as NNX has it."""
    rngs = nnx.Rngs(0)
    sequence = jr.normal(KEY, (2, 5, 3))
    for cell in (nnx.GRUCell(3, 4, rngs=rngs), nnx.LSTMCell(3, 4, rngs=rngs)):
        rnn = nnx.RNN(cell)
        net, states = bridge.nnx(rnn)
        close(sm.vmap2(net)(states, sequence)[0], run(rnn, sequence))
        carry = cell.initialize_carry((3,), nnx.Rngs(0))
        net, states = bridge.nnx(cell)
        close(jax.jit(net)(states, carry, X[0])[0], run(cell, carry, X[0]))

    attention = nnx.MultiHeadAttention(2, 8, 8, decode=True, rngs=rngs)
    attention.init_cache((2, 5, 8))
    net, states = bridge.nnx(attention, kinds={nnx.Cache: sm.ShortTermState})
    assert len(states.select(sm.ShortTermState)) == 3
    step = jax.jit(net)
    for token in jr.normal(KEY, (3, 2, 1, 8)):
        out, states = step(states, token)
        close(out, run(attention, token))
    assert states["cache_index"] == 3
    close(nnx.state(net.rebuild(states)), nnx.state(attention))

    adapter = nnx.LoRA(3, 2, 3, rngs=rngs)
    net, states = bridge.nnx(adapter)
    assert paths(states.select(sm.ParamState)) == ["lora_a", "lora_b"]

    norm = nnx.SpectralNorm(nnx.Linear(3, 3, rngs=rngs), rngs=rngs)
    net, states = bridge.nnx(norm)
    assert "batch_stats.kernel.u" in states
    out, states = net(states, X, update_stats=True)
    close(out, norm(X, update_stats=True))
    close(nnx.state(net.rebuild(states)), nnx.state(norm))

    metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"), acc=nnx.metrics.Accuracy())
    net, states = bridge.nnx(metrics)
    given = dict(loss=jnp.arange(3.0), logits=jnp.eye(3), labels=jnp.array([0, 1, 1]))
    _, states = net.update(states, **given)
    metrics.update(**given)
    close(net.compute(states)[0], metrics.compute())


class Inside(nnx.Module):
    """NNX's own transforms inside a call."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def layers(rngs):
            return nnx.Linear(4, 4, rngs=rngs)

        self.first = block(1)
        self.layers = layers(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def scanned(layer, x):
            return nnx.tanh(layer(x))

        x = nnx.remat(lambda m, x: m.first(x))(self, x)
        return nnx.jit(scanned)(self.layers, x)


def test_transforms_inside():
    net, states = bridge.nnx(Inside(nnx.Rngs(0)))
    out, new = net(states, X)
    module = Inside(nnx.Rngs(0))
    close(out, module(X))
    close(nnx.state(net.rebuild(new)), nnx.state(module))
    out, new = sm.vmap2(net, in_axes=None, axis_size=2)(states, X)
    assert new["first.calls"] == 1 and not np.array_equal(out[0], out[1])


def test_an_ensemble_of_nnx():
    ensemble = nnx.split_rngs(splits=3)(
        nnx.vmap(lambda rngs: Block(3, 4, rngs=rngs), in_axes=0, out_axes=0)
    )
    module = ensemble(nnx.Rngs(0))
    net, states = bridge.nnx(module)
    graphdef, parts = nnx.split(module)
    member = lambda parts: bridge.nnx(nnx.merge(graphdef, parts))
    one, population, axes = sm.vmap2_new_states(member, dict(parts=parts), in_axes=dict(parts=0))
    out, new = sm.vmap2(net, in_axes=None, state_in_axes={0: ...})(states, X)
    again, other = sm.vmap2(one, in_axes=None, state_in_axes=axes)(population, X)
    all_of_it = nnx.StateAxes({...: 0})
    expected = nnx.vmap(lambda m, x: m(x), in_axes=(all_of_it, None))(module, X)
    close(out, expected)
    close(again, expected)
    close(nnx.state(net.rebuild(new)), nnx.state(module))
    close(nnx.state(one.rebuild(other)), nnx.state(module))
    net.write_back(states)
    assert module.calls[...].tolist() == [0, 0, 0]


def test_kinds_of_a_users_own():
    class Fast(nnx.Param):
        pass

    class Net(nnx.Module):
        def __init__(self):
            self.slow, self.fast = nnx.Param(jnp.ones(3)), Fast(jnp.ones(3))
            self.other = nnx.Variable(jnp.zeros(3))

        def __call__(self, x):
            return x * self.slow * self.fast

    _, states = bridge.nnx(Net())
    assert paths(states.select(sm.ParamState)) == ["fast", "slow"]  # what a class is below counts
    for kinds in (
        {Fast: sm.ShortTermState},
        {"fast": sm.ShortTermState},
        lambda path, variable: sm.ShortTermState if path == ("fast",) else None,
    ):
        net, states = bridge.nnx(Net(), kinds=kinds)
        assert paths(states.select(sm.ShortTermState)) == ["fast"]
        assert paths(states.select(sm.ParamState)) == ["slow"]
        assert net(states, X)[0].shape == X.shape
    with pytest.raises(TypeError, match=r"`kinds` gave 'slow' for `fast` of `Net`"):
        bridge.nnx(Net(), kinds=lambda path, variable: "slow")


def test_methods_and_keyword_arguments():
    net, states = bridge.nnx(block())
    close(net.encode(states, X)[0], block().linear(X))
    close(net.method("encode")(states, X)[0], net.encode(states, X)[0])
    mapped = sm.vmap2(net, in_axes=None, axis_size=8)
    out, _ = mapped(states, X)
    scaled, _ = mapped(states, X, scale=jnp.arange(8.0))
    close(scaled, out * jnp.arange(8.0)[:, None, None])
    assert sm.vmap2(net.encode).__name__ == "Block.encode"
    with pytest.raises(AttributeError, match="`Block`, bridged, has no method `decode`"):
        net.decode


def test_map():
    population = sm.Map(make, init_map_size=2, in_axes=None)
    population, states = population.init_all_states(key=KEY)
    out, states = population(states, X)
    assert out.shape == (2, 8, 4) and states["calls"].tolist() == [1, 1]
    out, _ = population.map("encode", in_axes=None)(states, X)
    assert out.shape == (2, 8, 4)


def test_checkpoints_and_copies(tmp_path, members):
    net, states, axes = members
    path = tmp_path / "c.eqx"
    eqx.tree_serialise_leaves(path, states)
    assert eqx.tree_deserialise_leaves(path, states) == states
    assert pickle.loads(pickle.dumps(states)) == states
    again = pickle.loads(pickle.dumps(net))
    assert jax.tree.structure(again) == jax.tree.structure(net)
    assert copy.deepcopy(net) is net
    one = sm.lane(states, axes, 3)
    close(again(one, X)[0], net(one, X)[0])
    loaded, _ = make(key=KEY)[1].load(one, strict=True)
    close(loaded, one)


def test_half_precision_lists_and_outputs():
    class Net(nnx.Module):
        def __init__(self, rngs):
            dtype = jnp.bfloat16
            self.layers = nnx.List(
                [nnx.Linear(3, 3, param_dtype=dtype, dtype=dtype, rngs=rngs) for _ in range(2)]
            )
            self.by_name = nnx.Dict(last=nnx.Linear(3, 2, rngs=rngs))

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            return {"x": x, "out": (self.by_name.last(x), None)}

    net, states = bridge.nnx(Net(nnx.Rngs(0)))
    assert states["layers.0.kernel"].dtype == jnp.bfloat16
    out, _ = sm.vmap2(net)(states, X)
    assert out["x"].dtype == jnp.bfloat16 and out["out"][1] is None
    close(out["out"][0], Net(nnx.Rngs(0))(X)["out"][0], 1e-2)


class Residual(nnx.Module):
    def __init__(self, *, rngs):
        self.convs = nnx.List([nnx.Conv(4, 4, (3, 3), rngs=rngs) for _ in range(3)])
        self.norms = nnx.List([nnx.BatchNorm(4, rngs=rngs) for _ in range(3)])

    def __call__(self, x):
        for conv, norm in zip(self.convs, self.norms):
            x = x + nnx.relu(norm(conv(x)))
        return x.mean((1, 2))


class Transformer(nnx.Module):
    def __init__(self, *, rngs):
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.attention = nnx.List(
            [nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs) for _ in range(2)]
        )
        self.norms = nnx.List([nnx.LayerNorm(8, rngs=rngs) for _ in range(2)])
        self.dense = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])

    def __call__(self, tokens):
        x = self.embed(tokens)
        mask = nnx.make_causal_mask(tokens)
        for attention, norm, dense in zip(self.attention, self.norms, self.dense):
            x = x + attention(norm(x), mask=mask)
            x = x + nnx.gelu(dense(x))
        return x


@pytest.mark.parametrize(
    ("cls", "shape", "path"),
    [(Residual, (4, 6, 6, 4), "norms.2.mean"), (Transformer, (3, 5), "attention.1.query.kernel")],
)
def test_larger_models(cls, shape, path):
    x = jr.normal(KEY, shape) if cls is Residual else jr.randint(KEY, shape, 0, 11)
    make = lambda *, key: bridge.nnx(cls(rngs=nnx.Rngs(key)))
    net, states, axes = sm.vmap2_new_states(make, key=KEY, axis_size=2)
    mapped = sm.vmap2(net, in_axes=None, state_in_axes=axes)
    assert path in str(mapped.plan(states, x))
    out, new = mapped(states, x)
    for i, key in enumerate(jr.split(KEY, 2)):
        module = cls(rngs=nnx.Rngs(key))
        close(out[i], run(module, x), 1e-4)
        close(nnx.state(net.rebuild(sm.lane(new, axes, i))), nnx.state(module), 1e-4)


def test_wrong_input():
    for wrong in (Block, None, {"a": X}, X):
        with pytest.raises(TypeError, match="takes a module of Flax NNX that is made(?s:.*)Wrong"):
            bridge.nnx(wrong)
    with pytest.raises(TypeError, match="`Dropout` holds no array to be a state"):
        bridge.nnx(nnx.Dropout(0.5))
    net, states = bridge.nnx(block())
    with pytest.raises(TypeError, match="`Block` takes the context first, not a `.*Array"):
        net(X)
    with pytest.raises(sm.StateNotFoundError, match="of the model `Block:"):
        net(bridge.nnx(Block(4, 4, rngs=nnx.Rngs(0)))[1], X)
    with pytest.raises(TypeError, match=r"can't be called. Name what is called"):
        net, states = bridge.nnx(nnx.Optimizer(block(), optax.sgd(0.1), wrt=nnx.Param))
        net(states)


@pytest.mark.leaks
def test_nothing_leaks():
    with jax.checking_leaks():
        net, states, axes = sm.vmap2_new_states(make, key=KEY, axis_size=2)
        sm.vmap2(net, in_axes=None, state_in_axes=axes)(states, X)


class Tables(nnx.Module):
    def __init__(self, rngs, make=lambda x: x):
        self.linear = nnx.Linear(3, 3, rngs=rngs)
        self.table = make(jnp.arange(3.0))

    def __call__(self, x):
        return self.linear(x) + self.table


def test_an_array_that_is_no_variable_is_a_state_of_members_too():
    make = lambda *, key: bridge.nnx(Tables(nnx.Rngs(key)))
    model, states, axes = sm.vmap2_new_states(make, key=jr.key(0), axis_size=2)
    assert states["table"].shape == (2, 3)
    out, _ = sm.vmap2(model, in_axes=None, state_in_axes=axes)(states, jnp.ones(3))
    for i, key in enumerate(jr.split(jr.key(0), 2)):
        np.testing.assert_allclose(out[i], Tables(nnx.Rngs(key))(jnp.ones(3)), rtol=1e-6)


def test_arrays_of_a_trace_that_are_static_are_refused():
    make = lambda *, key: bridge.nnx(Tables(nnx.Rngs(key), lambda x: (x, x)))
    with pytest.raises(TypeError, match="`table` of `Tables` is a tuple with arrays in it"):
        sm.vmap2_new_states(make, key=jr.key(0), axis_size=2)


class Logs(nnx.Module):
    def __init__(self, write):
        self.w, self.write = nnx.Param(jnp.ones(3)), write
        self.log, self.counts, self.seen = [], {"calls": 0}, {"a"}

    def __call__(self, x):
        self.write(self, x)
        return x * self.w * (1 + self.counts["calls"])


def append(module, x):
    module.log.append(x)


def count(module, x):
    module.counts["calls"] += 1


def add(module, x):
    module.seen.add("b")


@pytest.mark.parametrize("write, name", [(append, "log"), (count, "counts"), (add, "seen")])
def test_a_container_that_a_call_writes_to_in_place(write, name):
    """It is static in NNX, which hands it on as it is: the write would be lost, and leave a tracer
    in the module.
    """
    module = Logs(write)
    model, states = bridge.nnx(module)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"`{name}` was changed .* is static in a call"):
            sm.vmap2(model)(states, X)
    assert (module.log, module.counts, module.seen) == ([], {"calls": 0}, {"a"})


def test_containers_of_a_module_and_of_models_are_apart():
    module = Logs(lambda module, x: None)
    model, states = bridge.nnx(module)
    rebuilt = model.rebuild(states)
    for one in (module, rebuilt):
        one.log.append(1)
        one.counts["calls"] = 5
    assert model.rebuild(states).log == [] and rebuilt.counts == {"calls": 5}
    assert sm.vmap2(model)(states, X)[0].tolist() == X.tolist()


@dataclasses.dataclass
class _Settings:
    k: float = 0.0


class _Keeps(nnx.Module):
    """Static data that changes in place."""

    def __init__(self, data):
        self.weight = nnx.Param(jnp.ones(()))
        self.data = data

    def __call__(self, x):
        _, change = _KEPT[type(self.data)]
        change(self.data)
        return self.look(x)

    def look(self, x):
        get, _ = _KEPT[type(self.data)]
        return x * self.weight + get(self.data)


def _change_set(data):
    data.add(len(data))


_KEPT = {
    list: (lambda d: d[0], lambda d: d.__setitem__(0, d[0] + 1)),
    dict: (lambda d: d["k"], lambda d: d.__setitem__("k", d["k"] + 1)),
    tuple: (lambda d: d[0]["k"], lambda d: d[0].__setitem__("k", d[0]["k"] + 1)),
    set: (len, _change_set),
    _Settings: (lambda d: d.k, lambda d: setattr(d, "k", d.k + 1)),
    types.SimpleNamespace: (lambda d: d.k, lambda d: setattr(d, "k", d.k + 1)),
}


@pytest.fixture(params=_KEPT, ids=lambda cls: cls.__name__)
def kept(request):
    nested = {"k": 0.0}
    made = {list: [0.0], dict: nested, tuple: (nested,), set: set(), _Settings: _Settings()}
    return _Keeps(made.get(request.param, types.SimpleNamespace(k=0.0)))


def test_static_data_that_a_call_changes_in_place_is_refused(kept):
    net, states = bridge.nnx(kept)
    for call in (net, sm.vmap2(net), jax.jit(net)):
        with pytest.raises(ValueError, match="`data` was changed from .* is static in a call"):
            call(states, jnp.zeros(2))
    assert kept.look(0.0) == 0.0


def test_static_data_that_is_changed_later_is_that_of_when_it_was_bridged(kept):
    net, states = bridge.nnx(kept)
    mapped = sm.vmap2(net.look)
    assert mapped(states, jnp.zeros(2))[0].tolist() == [0.0, 0.0]
    kept(0.0)
    for call in (mapped, sm.vmap2(net.look), net.look):
        assert jnp.all(call(states, jnp.zeros(2))[0] == 0.0)
    again, _ = bridge.nnx(kept)
    assert sm.vmap2(again.look)(states, jnp.zeros(2))[0].tolist() == [1.0, 1.0]


def test_an_optimiser_with_arrays_of_its_own_is_made_in_lanes():
    tx = optax.inject_hyperparams(optax.adam)(1e-2)

    def make(*, key):
        net = nnx.Linear(3, 2, rngs=nnx.Rngs(key))
        return bridge.nnx(nnx.List([net, nnx.Optimizer(net, tx, wrt=nnx.Param)]))

    def step(parts, x):
        net, optimiser = parts
        loss, grads = nnx.value_and_grad(lambda net: jnp.mean(net(x) ** 2))(net)
        optimiser.update(net, grads)
        return loss

    model, states, axes = sm.vmap2_new_states(make, key=jr.key(0), axis_size=2)
    rates, x = jnp.array([1e-3, 1e-1]), jnp.ones((4, 3))
    states = states.set("1.opt_state.hyperparams.learning_rate", rates)
    steps = sm.vmap2(model.method(step), in_axes=None, state_in_axes=axes)
    for _ in range(2):
        losses, states = steps(states, x)
    for i, key in enumerate(jr.split(jr.key(0), 2)):
        net = nnx.Linear(3, 2, rngs=nnx.Rngs(key))
        own = optax.inject_hyperparams(optax.adam)(float(rates[i]))
        parts = net, nnx.Optimizer(net, own, wrt=nnx.Param)
        step(parts, x)
        np.testing.assert_allclose(losses[i], step(parts, x), rtol=1e-5)
        np.testing.assert_allclose(states["0.kernel"][i], net.kernel[...], rtol=1e-5)


def test_an_optimiser_as_a_part_is_made_in_lanes():
    class Learner(nnx.Module):
        def __init__(self, rngs):
            self.net = nnx.Linear(3, 2, rngs=rngs)
            self.optimiser = nnx.Optimizer(self.net, optax.adam(1e-2), wrt=nnx.Param)

    make = lambda *, key: bridge.nnx(Learner(nnx.Rngs(key)))
    _, states, _ = sm.vmap2_new_states(make, key=jr.key(0), axis_size=2)
    assert states["optimiser.opt_state.0.mu.kernel"].shape == (2, 3, 2)
