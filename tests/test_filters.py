"""Filters: what each form of them matches."""

import jax.numpy as jnp
import jax.random as jr
import pytest

import statemap as sm

from .models import LIF, Nested


@pytest.fixture
def states():
    return sm.States(
        layer1={"w": sm.ParamState(jnp.ones(2), tag="slow"), "v": sm.HiddenState(jnp.zeros(2))},
        layer2={"w": sm.ParamState(jnp.ones(2)), "rng": sm.RandomState(0, name="noise")},
    )


ALL = {"layer1.w", "layer1.v", "layer2.w", "layer2.rng"}


@pytest.mark.parametrize(
    "filter, expected",
    [
        (sm.OfType(sm.ParamState), {"layer1.w", "layer2.w"}),
        (sm.ParamState, {"layer1.w", "layer2.w"}),
        (sm.ShortTermState, {"layer1.v"}),  # subclasses match
        (sm.State, ALL),
        (sm.WithTag("slow"), {"layer1.w"}),
        ("slow", {"layer1.w"}),
        (sm.PathContains("layer1"), {"layer1.w", "layer1.v"}),
        (sm.PathContains("layer"), set()),  # keys, not parts of them
        (sm.Any(sm.RandomState, "slow"), {"layer1.w", "layer2.rng"}),
        ([sm.RandomState, "slow"], {"layer1.w", "layer2.rng"}),
        ((), set()),
        (sm.All(sm.ParamState, sm.PathContains("layer2")), {"layer2.w"}),
        (sm.Not(sm.ParamState), {"layer1.v", "layer2.rng"}),
        (sm.Everything(), ALL),
        (..., ALL),
        (True, ALL),
        (sm.Nothing(), set()),
        (None, set()),
        (False, set()),
        (lambda path, state: path[-1] == "w" and state.tag is None, {"layer2.w"}),
        (lambda path, state: state.value.shape == (), {"layer2.rng"}),
        (sm.RandomState(1, name="noise"), {"layer2.rng"}),
    ],
)
def test_select(states, filter, expected):
    assert {".".join(p) for p, _ in states.select(filter)} == expected


def test_handles_are_filters():
    model, states = sm.make_with_states(Nested)(key=jr.key(0))
    assert [p for p, _ in states.select(model.layers[0].v)] == [("layers", 0, "v")]
    several = states.select([model.layers[0].v, model.layers[1].v])
    assert [p for p, _ in several] == [("layers", 0, "v"), ("layers", 1, "v")]
    assert len(states.select(sm.PathContains(0))) == 3


def test_filters_are_equal_where_they_mean_the_same():
    assert sm.to_predicate([sm.ParamState, "a"]) == sm.Any(sm.OfType(sm.ParamState), "a")
    assert hash(sm.All("a", None)) == hash(sm.All(sm.WithTag("a"), sm.Nothing()))
    assert sm.Any("a") != sm.All("a") and sm.Not("a") != sm.Not("b")
    one, two = (sm.make_with_states(LIF)(1, 1, key=jr.key(i))[0] for i in range(2))
    assert sm.to_predicate(one.v) == sm.to_predicate(two.v)


def test_filters_print_as_they_are_written():
    assert repr(sm.Any(sm.ParamState, "slow")) == ("Any(OfType(ParamState), WithTag('slow'))")
    assert repr(sm.PathContains("a")) == "PathContains('a')"


@pytest.mark.parametrize("filter", [3, 1.5, {0: sm.ParamState}, object(), jnp.ones(1)])
def test_what_is_no_filter(states, filter):
    with pytest.raises(TypeError, match="is not a filter"):
        states.select(filter)


def test_mistakes_in_filters(states):
    with pytest.raises(TypeError, match=r"is a filter once called: `Everything\(...\)`"):
        states.select(sm.Everything)
    with pytest.raises(TypeError, match="can't be told from others like it"):
        states.select(sm.ParamState(0.0))
    with pytest.raises(TypeError, match="is not a filter"):
        sm.vmap2(lambda s, x: (x, s), state_in_axes={0: 7})
