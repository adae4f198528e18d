"""Values are owned: their containers are made anew on every way in and out, their arrays never."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import statemap as sm


XS = jnp.arange(3.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Box:
    a: Any
    b: Any


class Bag:
    """A mutable container with a pytree registration of its own."""

    def __init__(self, a, b):
        self.a, self.b = a, b


jax.tree_util.register_pytree_node(Bag, lambda t: ((t.a, t.b), None), lambda _, ab: Bag(*ab))


def write(value, x):
    """Adds `x` to the part `a` of a value, in place."""
    if isinstance(value, dict):
        value["a"] = value["a"] + x
    elif isinstance(value, list):
        value[0] = value[0] + x
    else:
        value.a = value.a + x
    return value


def part(value, name="a"):
    if isinstance(value, list):
        return value[0 if name == "a" else 1]
    return value[name] if isinstance(value, dict) else getattr(value, name)


MAKE = {
    "dict": lambda a, b: {"a": a, "b": b},
    "list": lambda a, b: [a, b],
    "dataclass": Box,
    "node": Bag,
}
every_container = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())


@every_container
@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}, {"donate": True}])
def test_a_write_in_place_comes_back(make, options):
    def f(states, x):
        d = write(states["d"], x)
        return x, states.set("d", d)

    mapping = sm.vmap2(f, state_in_axes={0: ...}, **options)
    states = sm.States(d=sm.State(make(jnp.zeros(3), jnp.ones(3))))
    assert mapping.plan(states, XS)["d"].written
    for k in range(1, 4):  # cold, and warm
        _, states = mapping(states, XS)
        np.testing.assert_array_equal(part(states["d"]), k * XS)
        np.testing.assert_array_equal(part(states["d"], "b"), np.ones(3))
        assert type(states["d"]) is type(make(0, 0))


@every_container
def test_a_context_is_what_it_was(make):
    a, b = jnp.zeros(3), jnp.ones(3)
    states = sm.States(d=sm.State(make(a, b)))
    write(states["d"], 1.0)
    assert part(states["d"]) is a and part(states["d"], "b") is b  # the arrays are not copied
    mapping = sm.vmap2(lambda s, x: (write(s["d"], x) and x, s), state_in_axes={0: ...})
    for _ in range(2):
        _, new = mapping(states, XS)
        assert part(new["d"]) is a and part(states["d"]) is a
    assert not mapping.plan(states, XS)["d"].written


@every_container
def test_what_is_given_is_not_held(make):
    given = make(jnp.zeros(3), jnp.ones(3))
    state = sm.State(given)
    states = sm.States(d=state)
    write(given, 1.0)
    assert part(state.value).tolist() == part(states["d"]).tolist() == [0.0] * 3
    write(state.value, 1.0)
    assert part(state.value).tolist() == part(states["d"]).tolist() == [0.0] * 3

    given = make(jnp.full(3, 2.0), jnp.ones(3))
    later, by_update, other = states.set("d", given), states.update({"d": given}), state.set(given)
    write(given, 1.0)
    for value in (later["d"], by_update["d"], other.value):
        assert part(value).tolist() == [2.0] * 3
    for _, one in (*later, *later.items()):
        write(one.value, 1.0)
    assert part(later["d"]).tolist() == [2.0] * 3


def test_parts_of_a_context_share_no_container():
    states = sm.States(d=sm.State({"a": jnp.zeros(3)}), e=sm.ParamState({"a": jnp.ones(3)}))
    for other in (
        states.select(sm.ParamState),
        states.partition(sm.ParamState, ...)[0],
        sm.States().merge(states),
        jax.tree.map(lambda x: x, states),
    ):
        other["e"]["a"] = 7.0
        assert other["e"]["a"].tolist() == states["e"]["a"].tolist() == [1.0] * 3


def test_a_nested_container_is_owned_too():
    inner = {"a": jnp.zeros(3)}
    states = sm.States(d=sm.State({"deep": [inner]}))
    inner["a"] = None
    states["d"]["deep"][0]["a"] = None
    states["d"]["deep"].append(1)
    assert states["d"]["deep"][0]["a"].tolist() == [0.0] * 3 and len(states["d"]["deep"]) == 1


def test_a_lane_that_writes_twice_and_reads_between():
    def f(states, x):
        d = states["d"]
        before = states["d"]["a"]
        d["a"] = d["a"] + x
        unset = states["d"]["a"]  # not given back yet
        states = states.set("d", d)
        d["a"] = d["a"] + 100.0  # after it was
        return (before, unset, states["d"]["a"]), states

    states = sm.States(d=sm.State({"a": jnp.ones(3)}))
    (before, unset, after), new = sm.vmap2(f, state_in_axes={0: ...})(states, XS)
    assert before.tolist() == unset.tolist() == [1.0] * 3
    assert after.tolist() == new["d"]["a"].tolist() == (1 + XS).tolist()
    assert states["d"]["a"].tolist() == [1.0] * 3


def test_a_write_to_one_leaf_leaves_the_others_as_they_are():
    states = sm.States(d=sm.State({"a": jnp.zeros(3), "b": jnp.ones(3)}))
    b = states["d"]["b"]

    def f(s, x):
        d = s["d"]
        d["a"] = d["a"] + x
        return x, s.set("d", d)

    _, new = sm.vmap2(f, state_in_axes={0: ...})(states, XS)
    np.testing.assert_array_equal(new["d"]["b"], b)
    assert not b.is_deleted()


class Counted(eqx.Module):
    index: eqx.nn.StateIndex

    def __init__(self):
        self.index = eqx.nn.StateIndex(jnp.zeros(()))

    def __call__(self, x, state):
        value = state.get(self.index) + x
        return value, state.set(self.index, value)


@pytest.mark.parametrize("mapped", [False, True])
def test_the_state_of_equinox_is_a_value(mapped):
    model, made = eqx.nn.make_with_state(Counted)()
    states = sm.States(st=sm.LongTermState(made))
    step = lambda s, x: (lambda y, new: (y, s.set("st", new)))(*model(x, s["st"]))
    if not mapped:
        for k in range(3):
            out, states = step(states, 1.0)
            assert out == k + 1
        assert states["st"].get(model.index) == 3.0
        return
    first = sm.vmap2(step, state_out_axes={0: ...})
    again = sm.vmap2(step, state_in_axes={0: ...})
    for _ in range(2):  # the context that was given can be given again
        out, new = first(states, XS)
        assert out.tolist() == [0.0, 1.0, 2.0]
    for k in range(2, 5):
        out, new = again(new, XS)
        assert out.tolist() == (k * XS).tolist()
    assert new["st"].get(model.index).tolist() == (4 * XS).tolist()


def test_in_new_states_and_under_transforms():
    made = {"a": jnp.zeros(2)}
    _, states, _ = sm.vmap2_new_states(lambda: {"d": sm.State(made)}, {}, axis_size=3)
    made["a"] = None
    states["d"]["a"] = None
    assert states["d"]["a"].shape == (3, 2)

    def body(states, x):
        d = states["d"]
        d["a"] = d["a"] + x
        return states.set("d", d), None

    for total in (
        jax.lax.scan(body, states, XS)[0],
        jax.jit(lambda s: jax.lax.scan(body, s, XS)[0])(states),
    ):
        assert total["d"]["a"].tolist() == [[3.0, 3.0]] * 3
    assert states["d"]["a"].tolist() == [[0.0, 0.0]] * 3
