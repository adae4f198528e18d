"""What the predictable mistakes are told: the right type, the name, and what to write instead."""

import subprocess
import sys

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import pytest

import statemap as sm

from .models import LIF


X = jnp.ones(3)


def keep(states, x):
    return x, states


def mapped(**options):
    return sm.vmap2(keep, **options)


@pytest.fixture
def made():
    return sm.make_with_states(LIF)(3, 4, key=jr.key(0))


# Where the types of parameters say the same, the import hook of the tests says so first; without
# it, the message is ours.
UNCHECKED = """
import jax, jax.numpy as jnp, jax.random as jr, statemap as sm, equinox as eqx

class M(eqx.Module):
    v: sm.ShortTermState
    def __init__(self): self.v = sm.ShortTermState(jnp.zeros(2))

def keep(states, x): return x, states
states = sm.States(v=sm.ShortTermState(jnp.ones(3)))
make = lambda: {"v": sm.State(jnp.ones(3))}
for wrong in WRONG:
    try:
        eval(wrong)
        print(wrong, "# nothing")
    except Exception as error:
        print(wrong, "#", type(error).__name__, str(error).replace(chr(10), " | "))
"""
MISTAKES = {
    "sm.Reduce(3)": "TypeError `Reduce` takes a word or a function, and was given 3",
    "sm.lane(states, {sm.Restore: ...}, 0)": "ValueError `axes` holds the rule Restore",
    "sm.random.normal(jr.key(0), (3,))": "TypeError A draw takes the context first",
    "sm.random.normal(jr.key(0), 'rng', (3,))": "Right:  x, states = sm.random.normal(states, rng",
    "sm.random.normal(0, 'rng', (3,))": "TypeError A draw takes the context first",
    "sm.make_with_states(M())": "TypeError `make_with_states` takes what makes a model",
    "sm.vmap2_new_states(M(), axis_size=3)": "by a class or a function, not by M(",
    "sm.vmap2_new_states(3, axis_size=3)": "by a class or a function, not by 3",
    "sm.vmap2_new_states(M, [3], axis_size=3)": "`init_kwargs` is a dictionary",
    "sm.vmap2_new_states(make, axis_size=7.0)": "TypeError `axis_size` is an integer or None",
    "sm.vmap2_new_states(make, axis_size='7')": "TypeError `axis_size` is an integer or None",
    "sm.vmap2_new_states(make, axis_size=True)": "TypeError `axis_size` is an integer or None",
    "sm.vmap2_new_states(make, axis_size=-7)": "ValueError `axis_size` is the number of lanes",
    "sm.vmap2_new_states(make, axis_size=7)": "nothing",  # what was refused has left no trace
    "sm.Map(M, init_map_size=7.0)": "TypeError `axis_size` is an integer or None",
    "sm.vmap2(keep, axis_size=7.0)": "TypeError `axis_size` is an integer or None",
    "sm.OfType('X')": "TypeError `OfType` takes a kind of State, a class, not 'X'",
    "states.update([('v', 1)])": "TypeError `update` takes new values by state, not a list",
    "states.merge({'v': 1})": "TypeError `merge` takes another context, not a dict",
    "sm.vmap2(keep, state_in_axes={0: int})": "TypeError `int` is no kind of State",
    "sm.vmap2(keep, state_in_axes={0: M})": "TypeError `M` is no kind of State",
    "sm.vmap2(keep, state_in_axes={0: sm.make_with_states(M)()[0]})": "`M`, is no filter",
    "states.__delitem__('v')": "TypeError A context is immutable",
    "states.set('v', sm.ShortTermState(jnp.ones(3)))": "TypeError The state `v` was given a Sh",
    "sm.random.normal(states, (3,))": "TypeError A draw takes the random state second",
    "sm.pmap2(keep, devices=2)": "TypeError `devices` is a list of devices or a mesh, not 2",
    "sm.pmap2(keep, devices='cpu')": "TypeError `devices` is a list of devices or a mesh",
    "sm.pmap2(keep, devices=[1])": "TypeError `devices` holds 1, which is no device",
    "sm.pmap2(keep, devices=jax.devices()[:1] * 2)": "ValueError `devices` holds",
    "sm.lane(states, {0: ...}, 1.5)": "TypeError Members are taken by an integer",
    "sm.lane(states, {0: ...}, [0.0])": "TypeError Members are taken by an integer",
    "sm.lane(states, {0: ...}, [-9])": "IndexError There is no member -9",
    "states.labels('bias')": "mapping from filters to labels, or pairs of both, not 'bias'",
    "states.labels(3)": "mapping from filters to labels, or pairs of both, not 3",
    "states.labels(None)": "mapping from filters to labels, or pairs of both, not None",
    "states.labels([sm.ParamState])": "mapping from filters to labels, or pairs of both",
    "states.labels([(1, 2, 3)])": "mapping from filters to labels, or pairs of both",
    "states.labels({'adam': sm.ParamState})": "is no label, which is a string, a number or a",
    "sm.random.fold_axis(jr.key(0), 'rng', 'd')": "TypeError `fold_axis` takes the context first",
    "sm.random.fold_axis(states, 'v', 'd')": "TypeError `v` is a ShortTermState, and random num",
    "sm.lane({'v': sm.State(1.0)}, {0: ...}, 0)": "TypeError `sm.lane` takes contexts, and `sta",
    "sm.where([True], states, M(), {0: ...})": "TypeError `sm.where` takes contexts, and `old` is",
    "sm.put(states, {0: ...}, 0, 1.0)": "TypeError `sm.put` takes contexts, and `part` is",
    "sm.where(states, states, [True], {0: ...})": "sm.where(mask, new, old, axes)",
    "sm.lane({0: ...}, states, 0)": "sm.lane(states, axes, index)",
    "sm.reseed(jr.key(0), states)": "sm.reseed(states, key, axes)",
    "sm.concatenate(states, states, {0: ...})": "TypeError `sm.concatenate` takes a list of",
    "sm.stack(states, {0: ...})": "TypeError `sm.stack` takes a list of contexts, not one `States`",
    "sm.concatenate([M()], {0: ...})": "TypeError `sm.concatenate` takes contexts, and `pop",
    "sm.broadcast(states, {0: ...}, axis_size=None)": "TypeError `axis_size` is the number",
}


def test_mistakes_without_checked_types():
    script = f"WRONG = {list(MISTAKES)!r}\n{UNCHECKED}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    said = dict(line.split(" # ", 1) for line in done.stdout.splitlines())
    for wrong, expected in MISTAKES.items():
        assert expected in said[wrong], wrong


def test_states_and_handles_are_immutable(made):
    model, _ = made
    state = sm.State(X)

    def add():
        model.v.value += 1.0

    for wrong in (
        lambda: setattr(model.v, "value", X),
        lambda: setattr(state, "value", X),
    ):
        with pytest.raises(AttributeError, match=r"immutable.\n.*\nRight:  states = states.set"):
            wrong()
    with pytest.raises(AttributeError, match=r"Right:  states\[self.v\]"):
        add()
    with pytest.raises(AttributeError, match="cannot assign to field 'tag'"):
        state.tag = "x"
    assert (state.value == X).all()


def test_states_and_handles_are_no_arrays(made):
    model, states = made
    with pytest.raises(AttributeError, match=r"no attribute `v`.\nWrong:  states.v\n"):
        states.v
    with pytest.raises(AttributeError, match="no attribute `weigth`. Did you mean `weight`"):
        states.weigth
    for wrong in (
        lambda: model.v + 1,
        lambda: 1.0 - model.v,
        lambda: X @ model.v,
        lambda: model.v > 0,
        lambda: -model.v,
    ):
        with pytest.raises(TypeError, match=r"is no array.*\n.*\n.*states\[self.v\]"):
            wrong()
    with pytest.raises(TypeError, match="self.v.value"):
        sm.State(X) + 1
    assert bool(model.v) and hash(model.v) == hash(model.v)


def test_filters_that_match_nothing():
    states = sm.States(speed=sm.ShortTermState(X, tag="slow"))
    for spec, said in [
        ({0: "slwo"}, r"WithTag\('slwo'\)`, listed under 0 in `state_in_axes`.*mean `slow`"),
        ({0: "speed"}, r"A string is a tag; .*`sm.PathContains\('speed'\)`"),
        ({0: sm.PathContains("sped")}, r"PathContains\('sped'\).*mean `speed`"),
    ]:
        with pytest.warns(UserWarning, match=said):
            mapped(state_in_axes=spec)(states, X)
    with pytest.warns(UserWarning, match="in `state_out_axes`"):
        mapped(state_out_axes={1: "x"})(states, X)
    mapped(state_in_axes={0: sm.ParamState})(states, X)  # a kind is asked for in general
    mapped(state_in_axes={0: "slow"})(sm.States(), X)


def test_a_list_where_an_array_is_meant():
    with pytest.raises(TypeError, match=r"Argument 0 is a list of 2 numbers.*\nWrong:"):
        mapped()(sm.States(), [1.0, 2.0])
    both = sm.vmap2(lambda s, x, y: (y, s), in_axes=(None, 0))
    assert both(sm.States(), [1.0, 2.0], X)[0].shape == (3,)


def test_static_arguments_that_name_nothing():
    with pytest.raises(ValueError, match="`static_argnames` names `y`.*are: `x`"):
        mapped(static_argnames="y")
    with pytest.raises(ValueError, match="names argument 1, and the function has 1 after"):
        mapped(static_argnums=1)
    sm.vmap2(lambda s, *xs, **kw: (xs, s), static_argnums=5, static_argnames="anything")


def test_what_holds_itself_and_states_in_states():
    loop: list = []
    loop.append(loop)
    with pytest.raises(ValueError, match="The value of a State is a list that holds itself"):
        sm.State(loop)
    with pytest.raises(ValueError, match="The container of the states is a list that holds"):
        mapped()(loop, X)
    with pytest.raises(ValueError, match="Argument 0 is a list that holds itself"):
        mapped()(sm.States(), loop)
    for value in (sm.State(X), {"a": sm.State(X)}):
        with pytest.raises(TypeError, match="this one holds a State"):
            sm.ParamState(value)


def test_callables_that_raise_or_return_arrays():
    states = sm.States(v=sm.State(X))

    def broken(*_):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        mapped(state_in_axes={0: broken})(states, X)
    assert (
        "filter `broken` in `state_in_axes`, asked about the state `v`" in caught.value.__notes__[0]
    )
    with pytest.raises(KeyError, match="mine") as caught:
        mapped(in_axes=broken)(states, X)
    assert "callable in `in_axes`" in caught.value.__notes__[0]
    with pytest.raises(TypeError, match="in `state_in_axes` returned an array.*state `v`"):
        mapped(state_in_axes={0: lambda path, state: state.value > 0})(states, X)
    with pytest.raises(TypeError, match="`in_axes` holds an array"):
        mapped(in_axes=lambda x: x)(states, X)


def test_plans_and_messages_say_under_what_a_state_is_listed():
    make = lambda: {"v": sm.ShortTermState(jnp.zeros(2)), "w": sm.ParamState(jnp.zeros(2))}
    _, states, axes = sm.vmap2_new_states(make, axis_size=3)
    step = sm.vmap2(
        lambda s, x: (x, s.set("v", s["v"] + x)), state_in_axes=axes, state_out_axes=axes
    )
    assert step.plan(states, X)["v"].why == "listed under 0 in `state_out_axes`"
    shared = sm.vmap2(lambda s, x: (x, s), state_in_axes=axes, state_out_axes={None: ["v"]})
    with pytest.warns(UserWarning, match="WithTag"):
        shared.plan(states, X)
    wrong = sm.vmap2(
        lambda s, x: (x, s), state_in_axes=axes, state_out_axes={None: sm.PathContains("v")}
    )
    with pytest.raises(sm.BatchAxisError, match="`v` is listed under None in `state_out_axes`, so"):
        wrong.plan(states, X)


def test_the_policy_of_a_map_counts_for_its_own_states():
    class Model(eqx.Module):
        shared: sm.LongTermState

        def __init__(self):
            self.shared = sm.LongTermState(0.0)

        def __call__(self, states, x):
            return x, states.set(self.shared, x)

    def population(policy):
        options = {"init_state_axes": {None: ...}, "unexpected_out_state_mapping": policy}
        return sm.Map(Model, init_map_size=3, **options).init_all_states()

    made, states = population("raise")
    with pytest.raises(sm.BatchAxisError, match="`shared` is shared by all lanes"):
        made(states, X)
    made, states = population("ignore")
    assert made(states, X)[1]["shared"].tolist() == [1.0] * 3
    made, states = population("warn")
    with pytest.warns(UserWarning, match="`shared`"):
        made(states, X)
