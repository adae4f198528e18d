"""Labels by filter, with optax: optimisers that treat states differently."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
import pytest
from hypothesis import given, strategies as st

import statemap as sm


class Affine(eqx.Module):
    weight: sm.ParamState
    bias: sm.ParamState
    count: sm.LongTermState
    rng: sm.RandomState

    def __init__(self, n_in, n_out, *, key):
        wkey, rkey = jr.split(key)
        self.weight = sm.ParamState({"w": jr.normal(wkey, (n_out, n_in)), "g": jnp.ones(n_out)})
        self.bias = sm.ParamState(jnp.ones(n_out), tag="bias")
        self.count = sm.LongTermState(jnp.zeros(()))
        self.rng = sm.RandomState(rkey)

    def __call__(self, states, x):
        w = states[self.weight]
        return w["g"] * (w["w"] @ x) + states[self.bias], states


@pytest.fixture(autouse=True)
def strict_promotion():
    """Of the same name as the one for all tests, in its place: optax promotes dtypes."""


@pytest.fixture
def affine():
    return sm.make_with_states(Affine)(3, 2, key=jr.key(0))


def _is(tree, label):
    return jax.tree.leaves(tree) == [label] * len(jax.tree.leaves(tree))


def test_first_match_wins(affine):
    model, states = affine
    labels = states.labels({"bias": "b", sm.ParamState: "p", ...: "rest"})
    assert jax.tree.structure(labels) == jax.tree.structure(states)
    assert labels["weight"] == {"w": "p", "g": "p"}
    assert labels["bias"] == "b" and labels["count"] == "rest"
    assert jax.tree.leaves(labels) == ["b", "rest", "rest", "p", "p"]


FILTERS = [sm.ParamState, "bias", sm.PathContains("weight"), sm.RandomState, ..., None, False]


@given(st.lists(st.tuples(st.sampled_from(FILTERS), st.integers(0, 9)), max_size=5))
def test_labels_agree_with_partition(pairs):
    _, states = sm.make_with_states(Affine)(3, 2, key=jr.key(0))
    labels = states.labels(pairs, default=-1)
    parts = states.partition(*(f for f, _ in pairs), ...)
    for part, label in zip(parts, [*(k for _, k in pairs), -1]):
        for path, _ in part:
            assert _is(labels.select(lambda p, s: p == path), label)


def test_default_and_missing(affine):
    model, states = affine
    labels = states.labels({sm.ParamState: "p"}, default="d")
    assert labels["count"] == "d" and labels["bias"] == "p"
    with pytest.raises(ValueError, match="No filter matches `count`, `rng`.*`default=`"):
        states.labels({sm.ParamState: "p"})
    assert not states.select(None).labels({})


def test_keys(affine):
    model, states = affine
    by_handle = states.labels({model.bias: 1, ...: 2})
    assert by_handle["bias"] == 1 and by_handle["count"] == 2
    pairs = states.labels([([model.bias, model.count], "x"), (..., "y")])
    assert (pairs["bias"], pairs["count"]) == ("x", "x") and _is(pairs["weight"], "y")
    assert states.labels(((f, n) for f, n in [(..., 0)])) == states.labels({...: 0})


@pytest.mark.parametrize("label", [sm.ParamState, ..., None, ("a", "b"), [1], {}, jnp.ones(2)])
def test_what_is_no_label(affine, label):
    with pytest.raises(TypeError, match=r"is no label.*\nWrong: .*\nRight: "):
        affine[1].labels({...: label})


def test_filter_that_is_none(affine):
    with pytest.raises(TypeError, match="3 is not a filter"):
        affine[1].labels({3: "adam"})


def _grads(model, params, rest, x):
    def loss(params):
        out, _ = model(rest.merge(params), x)
        return jnp.sum(out**2)

    return jax.grad(loss)(params)


@pytest.mark.parametrize("as_function", [False, True])
@pytest.mark.parametrize("jit", [False, True])
def test_multi_transform_is_each_alone(affine, as_function, jit):
    model, states = affine
    params, rest = states.partition(sm.ParamState, ...)
    spec = {"bias": "slow", ...: "fast"}
    label = (lambda p: p.labels(spec)) if as_function else params.labels(spec)
    optimiser = optax.multi_transform({"fast": optax.adam(0.1), "slow": optax.sgd(0.01)}, label)

    def train(optimiser, params):
        opt = optimiser.init(params)
        step = lambda params, opt: optimiser.update(_step_grads(params), opt, params)
        step = jax.jit(step) if jit else step
        for _ in range(3):
            updates, opt = step(params, opt)
            params = optax.apply_updates(params, updates)
        return params

    # Gradients that do not depend on other parameters, so that each can be trained alone.
    _step_grads = lambda params: jax.tree.map(lambda x: jnp.sin(x) + 0.5, params)
    together = train(optimiser, params)
    slow, fast = params.partition("bias", ...)
    assert eqx.tree_equal(
        together,
        train(optax.sgd(0.01), slow).merge(train(optax.adam(0.1), fast)),
        rtol=1e-5,
        atol=1e-5,
    )
    assert isinstance(together, sm.States)


def test_unknown_label_is_refused_by_optax(affine):
    params = affine[1].select(sm.ParamState)
    optimiser = optax.multi_transform({"fast": optax.sgd(1.0)}, params.labels({...: "quick"}))
    with pytest.raises(ValueError, match="no corresponding transformation"):
        optimiser.init(params)


@pytest.mark.parametrize("as_function", [False, True])
def test_masks(affine, as_function):
    params = affine[1].select(sm.ParamState)
    make = lambda p: p.labels({sm.PathContains("bias"): False, ...: True})
    mask = make if as_function else make(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    for optimiser in (
        optax.masked(optax.add_decayed_weights(0.5), mask),
        optax.add_decayed_weights(0.5, mask=mask),
        optax.adamw(0.1, weight_decay=0.5, mask=mask),
    ):
        updates, _ = jax.jit(optimiser.update)(zeros, optimiser.init(params), params)
        assert not updates["bias"].any() and updates["weight"]["w"].all()


def test_masked_inside_multi_transform(affine):
    """There, a label function is asked about a context with gaps."""
    params = affine[1].select(sm.ParamState)
    decay = optax.masked(
        optax.add_decayed_weights(0.5),
        lambda p: p.labels({sm.PathContains("weight"): True, ...: False}),
    )
    optimiser = optax.multi_transform(
        {"a": decay, "b": optax.set_to_zero()}, lambda p: p.labels({"bias": "b", ...: "a"})
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimiser.update(zeros, optimiser.init(params), params)
    assert updates["weight"]["g"].tolist() == [0.5, 0.5] and not updates["bias"].any()


def test_inject_hyperparams(affine):
    model, states = affine
    params, rest = states.partition(sm.ParamState, ...)

    @optax.inject_hyperparams
    def make(rate):
        labels = lambda p: p.labels({"bias": "none", ...: "sgd"})
        return optax.multi_transform({"none": optax.set_to_zero(), "sgd": optax.sgd(rate)}, labels)

    optimiser = make(rate=0.1)
    opt = optimiser.init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    opt.hyperparams["rate"] = jnp.asarray(0.25)
    updates, opt = jax.jit(optimiser.update)(grads, opt, params)
    assert updates["weight"]["g"].tolist() == [-0.25, -0.25] and not updates["bias"].any()


def test_population_is_trained_as_its_members():
    """All members at once under one optimiser, as each by itself."""
    model, states, axes = sm.vmap2_new_states(
        Affine, dict(n_in=3, n_out=2), key=jr.key(0), axis_size=4
    )
    spec = {"bias": "slow", ...: "fast"}
    optimiser = optax.multi_transform(
        {"fast": optax.adam(0.1), "slow": optax.sgd(0.01)}, lambda p: p.labels(spec)
    )
    xs = jr.normal(jr.key(1), (4, 3))

    def train(call, states, x):
        params, rest = states.partition(sm.ParamState, ...)
        opt = optimiser.init(params)

        def loss(params):
            out, _ = call(rest.merge(params), x)
            return jnp.sum(out**2)

        def step(carry, _):
            params, opt = carry
            updates, opt = optimiser.update(jax.grad(loss)(params), opt, params)
            return (optax.apply_updates(params, updates), opt), None

        (params, _), _ = jax.lax.scan(step, (params, opt), length=3)
        return rest.merge(params)

    mapped = sm.vmap2(model, state_in_axes=axes, state_out_axes=axes)
    together = jax.jit(lambda states: train(mapped, states, xs))(states)
    alone = [train(model, member, x) for member, x in zip(sm.unstack(states, axes), xs)]
    assert eqx.tree_equal(together, sm.stack(alone, axes), rtol=1e-4, atol=1e-5)


def test_labels_of_skeletons_and_under_jit(affine):
    _, states = affine
    spec = {sm.ParamState: "p", sm.LongTermState: "scalar", ...: "rest"}
    skeleton = jax.eval_shape(lambda: states)
    assert skeleton.labels(spec) == states.labels(spec)
    found = []
    jax.jit(lambda s: found.append(s.labels(spec)))(states)
    assert found == [states.labels(spec)]


def test_by_shape(affine):
    _, states = affine
    matrices = lambda path, state: any(x.ndim == 2 for x in jax.tree.leaves(state.struct))
    labels = states.labels({matrices: "m", ...: "v"})
    assert _is(labels["weight"], "m") and labels["bias"] == "v"
    assert jax.eval_shape(lambda: states).labels({matrices: "m", ...: "v"}) == labels


def test_a_label_for_nothing_is_a_warning(affine):
    _, states = affine
    with pytest.warns(UserWarning, match="`WithTag..weight..`, listed in `labels`, .*`sm.PathCo"):
        states.labels({"weight": "slow", ...: "fast"})
    with pytest.warns(UserWarning, match="wieght.*listed in `labels`.*Did you mean `weight`"):
        states.labels({sm.PathContains("wieght"): "slow", ...: "fast"})
    # None of these is a mistake: a kind that this model lacks, a name after all, no states.
    path = sm.PathContains("weight")
    states.labels({sm.HiddenState: "slow", sm.ParamState: "fast", path: "fast", ...: "fast"})
    sm.States().labels({path: "slow", ...: "fast"})
