"""`vmap2_new_states`, the axes it returns, and members taken out and put together."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import statemap as sm

from .models import LIF, Nested


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def population(n=5, **kwargs):
    return sm.vmap2_new_states(LIF, dict(n_in=3, n_out=4), key=jr.key(0), axis_size=n, **kwargs)


class Mixed(eqx.Module):
    weight: sm.ParamState
    count: sm.ShortTermState
    shared: sm.NonBatchState

    def __init__(self, size=10):
        self.weight = sm.ParamState(jnp.zeros(size))
        self.count = sm.ShortTermState(0)
        self.shared = sm.NonBatchState(jnp.array([1, 2, 3]))


def test_the_examples_of_the_document():
    model, states, axes = sm.vmap2_new_states(
        Mixed, {"size": 10}, axis_size=5, state_out_axes={1: sm.ParamState, 0: sm.ShortTermState}
    )
    assert states[model.weight].shape == (10, 5)
    assert states[model.count].shape == (5,)
    assert states[model.shared].shape == (3,)
    assert {axis: list(paths) for axis, paths in axes.items()} == {
        0: [("count",)], 1: [("weight",)], None: [("shared",)]
    }  # fmt: skip
    assert repr(axes) == "MemberAxes({0: [count], 1: [weight], None: [shared]})"


def test_non_batch_states_stay_whatever_the_filters_say():
    _, states, axes = sm.vmap2_new_states(Mixed, axis_size=5, state_out_axes={0: ...})
    assert states["shared"].shape == (3,) and list(axes[None]) == [("shared",)]


def test_lanes_are_those_made_one_by_one_with_the_same_keys(runs):
    model, states, axes = sm.vmap2_new_states(
        runs(LIF), dict(n_in=3, n_out=4), key=jr.key(0), axis_size=5
    )
    assert runs.count == 1
    for i, key in enumerate(jr.split(jr.key(0), 5)):
        alone, expected = sm.make_with_states(LIF)(3, 4, key=key)
        same(sm.lane(states, axes, i)._values, expected._values)
        assert alone == model
    assert len({str(w) for w in states["weight"]}) == 5  # initialisers differ by lane
    few = population(3)[1]
    same(few._values, sm.lane(states, axes, slice(3))._values)


def test_axes_go_straight_into_a_mapping_and_into_plain_vmap():
    model, states, axes = population(state_out_axes={-1: sm.ParamState})
    assert states[model.weight].shape == (4, 3, 5)
    step = sm.vmap2(model, state_in_axes=axes, state_out_axes=axes)
    out, new = step(states, jnp.ones((5, 3)))
    assert out.shape == (5, 4) and new[model.weight] is states[model.weight]
    tree = axes.tree(states)
    plain = jax.vmap(model, in_axes=(tree, 0), out_axes=(0, tree))(states, jnp.ones((5, 3)))
    close(plain[1]._values, new._values)
    filtered = eqx.filter_vmap(model, in_axes=(tree, 0), out_axes=(0, tree))
    close(filtered(states, jnp.ones((5, 3)))[1]._values, new._values)
    part = states.select(sm.ShortTermState)
    assert axes.tree(part)._values == (0,)


def test_tags_land_on_every_new_state_and_on_the_handles():
    model, states, _ = population(state_tag="pop")
    assert len(states.select("pop")) == 3
    assert model.v.tag == "pop" and states[model.v].shape == (5, 4)


def test_mapped_arguments_give_the_number_of_lanes():
    def make(gain, bias, *, key):
        return {"w": sm.ParamState(gain * jr.normal(key, (2,)) + bias["b"])}

    _, states, _ = sm.vmap2_new_states(
        make, dict(gain=jnp.arange(4.0), bias={"b": jnp.ones((2, 4))}), key=0,
        in_axes={"gain": 0, "bias": 1},
    )  # fmt: skip
    keys = jr.split(jr.key(0), 4)
    same(states["w"], jnp.stack([i * jr.normal(k, (2,)) + 1 for i, k in enumerate(keys)]))


def test_a_constant_seed_gives_each_lane_a_stream_of_its_own():
    _, states, _ = sm.vmap2_new_states(lambda: {"rng": sm.RandomState(0)}, axis_size=3)
    same(jr.key_data(states["rng"]), jr.key_data(jr.split(jr.key(0), 4)[1:]))


def test_what_make_may_return():
    def with_states():
        return sm.make_with_states(lambda: {"v": sm.State(1.0)})()

    model, states, axes = sm.vmap2_new_states(with_states, axis_size=2)
    assert states[model["v"]].shape == (2,) and list(axes) == [0]
    shared = sm.ParamState(jnp.ones(2))
    model, states, _ = sm.vmap2_new_states(lambda: [shared, shared], axis_size=2)
    assert len(states) == 1
    model, states, _ = sm.vmap2_new_states(Nested, key=jr.key(0), axis_size=4)
    assert states[model.tied].shape == (4, 2, 2) and model.gain == 2.0


def test_a_population_of_populations():
    def inner(*, key):
        return sm.vmap2_new_states(LIF, dict(n_in=3, n_out=4), key=key, axis_size=3)

    model, states, axes = sm.vmap2_new_states(inner, key=jr.key(0), axis_size=2)
    assert states[model.weight].shape == (2, 3, 4, 3)
    level = sm.vmap2(model, state_in_axes={0: ...})
    out, _ = sm.vmap2(level, state_in_axes=axes)(states, jnp.ones((2, 3, 3)))
    assert out.shape == (2, 3, 4)


@pytest.mark.leaks
def test_under_jit_and_vmap():
    expected = population()[1]

    @jax.jit
    def make(key):
        return sm.vmap2_new_states(LIF, dict(n_in=3, n_out=4), key=key, axis_size=5)[1]

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        make(jr.key(0))._values,
        expected._values,
    )
    assert jax.vmap(make)(jr.split(jr.key(0), 2))["v"].shape == (2, 5, 4)


def test_errors():
    with pytest.raises(ValueError, match="The number of lanes can't be told: give `axis_size`"):
        sm.vmap2_new_states(Mixed)
    with pytest.raises(ValueError, match=r"gives the state `count` the axes 1 and 0"):
        sm.vmap2_new_states(
            Mixed, axis_size=2, state_out_axes={1: sm.ShortTermState, 0: sm.PathContains("count")}
        )
    _, states, _ = sm.vmap2_new_states(
        Mixed, axis_size=2, state_out_axes={1: sm.ParamState, 0: ...}
    )  # `...` takes the rest
    assert states["weight"].shape == (10, 2)
    with pytest.raises(sm.BatchAxisError, match=r"`count` has shape \(\) in a lane, and can't"):
        sm.vmap2_new_states(Mixed, axis_size=2, state_out_axes={1: sm.ShortTermState})
    with pytest.raises(ValueError, match="The array `layer.weight` of the model differs"):
        sm.vmap2_new_states(
            lambda *, key: {"layer": eqx.nn.Linear(2, 2, key=key)}, key=0, axis_size=2
        )
    with pytest.raises(sm.BatchAxisError, match="NonBatchState `s` has no lanes, and its initial"):
        sm.vmap2_new_states(
            lambda *, key: {"s": sm.NonBatchState(jr.normal(key))}, key=0, axis_size=2
        )
    with pytest.raises(ValueError, match="names `other`, which `init_kwargs` does not hold"):
        sm.vmap2_new_states(Mixed, axis_size=2, in_axes={"other": 0})
    with pytest.raises(ValueError, match=r"(?s)The number of lanes differs.*argument `size`"):
        sm.vmap2_new_states(Mixed, dict(size=jnp.ones(3)), axis_size=2, in_axes={"size": 0})


def test_unstack_then_stack_is_the_identity():
    _, states, axes = population(state_out_axes={1: sm.ParamState})
    states = states.merge(sm.States(t=sm.NonBatchState(1.0)))
    members = sm.unstack(states, axes)
    assert len(members) == 5 and members[2]["weight"].shape == (4, 3)
    again = sm.stack(members, axes)
    same(again._values, states._values)
    assert again._slots is states._slots and again["t"] is states["t"]
    assert sm.stack(members[::-1], axes)["v"].shape == (5, 4)


def test_lane_picks_and_drops():
    _, states, axes = population()
    w = states["weight"]
    same(sm.lane(states, axes, -1)["weight"], w[-1])
    same(sm.lane(states, axes, slice(1, 3))["weight"], w[1:3])
    same(sm.lane(states, axes, [3, 0])["weight"], w[jnp.array([3, 0])])
    mask = np.array([True, False, True, False, True])
    same(sm.lane(states, axes, mask)["weight"], w[mask])
    same(sm.lane(states, axes, jnp.asarray(mask))["weight"], w[mask])
    picked = jax.jit(lambda i: sm.lane(states, axes, i)["weight"])(3)
    same(picked, w[3])
    assert sm.lane(states, axes, [])["weight"].shape == (0, 4, 3)
    same(jr.key_data(sm.lane(states, axes, 1)["rng"]), jr.key_data(states["rng"][1]))
    for bad in (5, -6, [7]):
        with pytest.raises(IndexError, match="There is no member .*: the population has 5"):
            sm.lane(states, axes, bad)
    with pytest.raises(IndexError, match=r"A mask of shape \(2,\) is given for 5 members"):
        sm.lane(states, axes, np.array([True, False]))


def test_members_that_do_not_fit():
    _, states, axes = population()
    members = sm.unstack(states, axes)
    with pytest.raises(ValueError, match="at least one member"):
        sm.stack([], axes)
    with pytest.raises(
        ValueError, match=r"`members\[1\]` has other states .*: it lacks `rng`, `weight`"
    ):
        sm.stack([members[0], members[1].select(sm.ShortTermState)], axes)
    with pytest.raises(
        ValueError, match="The state `weight` .* is shared by all members, and .* different"
    ):
        sm.stack(members, {0: sm.Not(sm.ParamState)})
    with pytest.raises(ValueError, match="has no members"):
        sm.unstack(states, {})
    with pytest.raises(ValueError, match="The number of members differs: 5 in `rng`, 4 in `v`"):
        sm.unstack(states, {0: sm.RandomState, 1: sm.ShortTermState})
    with pytest.raises(ValueError, match=r"(?s)`v` differs in shape: \(4,\).*sm.concatenate"):
        sm.stack([members[0], jax.tree.map(lambda x: x[:1], members[1])], {0: ...})
    with pytest.raises(ValueError, match="and no axis 3, on which `axes` has its members"):
        sm.lane(states, {3: sm.ShortTermState}, 0)


def test_several_keys_are_refused():
    keys = jr.split(jr.key(0), 3)
    kwargs = dict(n_in=3, n_out=4)
    for make in (
        lambda key: sm.vmap2_new_states(LIF, kwargs, key=key, axis_size=3),
        lambda key: sm.vmap2_new_states(LIF, kwargs, key=key),
        lambda key: sm.Map(LIF, 3).init_all_states(key=key, **kwargs),
    ):
        for several in (keys, jr.key_data(keys)):
            with pytest.raises(ValueError, match="`key` is one key.* shape \\(3,\\)(.|\\n)*Right:"):
                make(several)

    class WithField(eqx.Module):
        w: sm.ParamState = sm.field(lambda key: jr.normal(key))

    with pytest.raises(ValueError, match="`key` is one key, and was given an array of keys"):
        sm.make_with_states(WithField)(key=keys)
    own = dict(key=keys)
    _, states, _ = sm.vmap2_new_states(WithField, own, in_axes={"key": 0})
    expected = [sm.make_with_states(WithField)(key=k)[1]["w"] for k in keys]
    np.testing.assert_allclose(states["w"], jnp.stack(expected), rtol=1e-6)
    with pytest.raises(ValueError, match="`key` is given twice, by itself and in `init_kwargs`"):
        sm.vmap2_new_states(WithField, own, in_axes={"key": 0}, key=jr.key(0))


@pytest.mark.parametrize("make_all", ["make_with_states", "vmap2_new_states"])
def test_contexts_of_parts_are_not_left_behind(make_all):
    from statemap import bridge

    part = lambda n: bridge.adopt({"w": jnp.zeros(n)})  # of different make, as two networks are
    make = lambda: {"actor": part(2), "critic": part(3)}
    whole = {
        "make_with_states": sm.make_with_states(make),
        "vmap2_new_states": lambda: sm.vmap2_new_states(make, axis_size=2),
    }[make_all]
    with pytest.raises(TypeError, match=r"holds a context, at `actor.1`[^$]*bridge.unbind\("):
        whole()
