"""States, contexts and handles: what they hold, refuse and go through."""

import copy
import io
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jaxtyping import Array, Float

import statemap as sm

from .models import LIF, Nested


KINDS = [
    sm.State,
    sm.ParamState,
    sm.ShortTermState,
    sm.LongTermState,
    sm.HiddenState,
    sm.BatchState,
    sm.NonBatchState,
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_is_a_pytree_node_of_its_arrays(kind):
    state = kind({"a": jnp.ones(2), "b": (np.zeros(3), 1)}, name="n", tag="t")
    leaves, treedef = jax.tree.flatten(state)
    assert [type(x) for x in leaves] == [type(jnp.ones(1))] * 3
    again = jax.tree.unflatten(treedef, leaves)
    assert type(again) is kind and again.name == "n" and again.tag == "t"
    assert again == state
    assert eqx.tree_equal(jax.jit(lambda s: s)(state), state)


@pytest.mark.parametrize("value", [0, 0.0, True, 1j, np.float32(1), np.zeros(2), [1, 2.0]])
def test_scalars_become_strongly_typed_arrays(value):
    for leaf in jax.tree.leaves(sm.State(value)):
        assert isinstance(leaf, jax.Array)
        assert not leaf.weak_type


@pytest.mark.parametrize("value", ["text", None, {}, (), object(), np.array(["a"]), ["a"]])
def test_a_value_without_arrays_is_refused(value):
    with pytest.raises(TypeError, match=r"The value of a ParamState is a pytree of arrays"):
        sm.ParamState(value)


def test_state_shape_dtype_and_struct():
    state = sm.State(jnp.zeros((2, 3), jnp.int32))
    assert (state.shape, state.dtype, state.ndim) == ((2, 3), jnp.int32, 2)
    several = sm.State([jnp.zeros(1), jnp.zeros(2)])
    assert [s.shape for s in several.struct] == [(1,), (2,)]
    with pytest.raises(AttributeError, match="holds 2 arrays"):
        several.shape
    assert sm.RandomState(0).shape == ()
    assert sm.RandomState(jr.split(jr.key(0), 4)).shape == (4,)


def test_state_is_immutable_and_set_makes_another():
    state = sm.ShortTermState(jnp.zeros(3), tag="t")
    with pytest.raises(AttributeError, match="cannot assign|Cannot"):
        state.data = jnp.ones(3)
    new = state.set(jnp.ones(3))
    assert new.value.sum() == 3 and new.tag == "t" and state.value.sum() == 0
    with pytest.raises(ValueError, match=r"another shape: expected f32\[3\], got f32\[2\]"):
        state.set(jnp.ones(2))


def test_a_kind_of_ones_own_keeps_its_static_fields():
    class Rated(sm.ParamState):
        rate: float = eqx.field(static=True, default=0.1)

        def __init__(self, value, rate):
            super().__init__(value)
            self.rate = rate

    states = sm.States(w=Rated(jnp.ones(2), 0.5))
    [(_, state)] = states
    assert type(state) is Rated and state.rate == 0.5
    assert len(states.select(lambda path, s: getattr(s, "rate", 0) > 0.4)) == 1
    with pytest.raises(TypeError, match="static fields of a State must be hashable"):
        sm.States(w=Rated(jnp.ones(2), [0.5]))


def test_a_context_by_hand():
    states = sm.States(counter=sm.ShortTermState(jnp.zeros(3)))
    new = states.set("counter", jnp.ones(3))
    assert states["counter"].sum() == 0 and new["counter"].sum() == 3
    assert len(states) == 1 and "counter" in states and ("counter",) in states
    assert "other" not in states and 3 not in states
    assert [path for path, _ in states.items()] == [path for path, _ in states] == [("counter",)]
    assert "counter=ShortTermState(f32[3])" in repr(states)
    assert states == states.set("counter", jnp.zeros(3)) and states != new
    with pytest.raises(AttributeError, match="A context is immutable"):
        states.counter = 1
    with pytest.raises(TypeError, match="A context is immutable"):
        states["counter"] = 1


def test_contexts_of_nested_trees_names_and_order():
    a, b = sm.State(0.0, name="first"), sm.ParamState(1.0)
    states = sm.States({"net": {"b": [b, a]}}, z=sm.State(2.0))
    assert [p for p, _ in states] == [("net", "b", 0), ("net", "b", 1), ("z",)]
    assert states["first"] == states["net.b.1"] == states["net", "b", 1] == 0.0
    assert states[a] == 0.0  # a State with a name is found by it
    assert sm.States(a)["first"] == 0.0
    assert sm.States(b=b, a=a)._slots is sm.States(a=a, b=b)._slots
    ten = sm.States(layers=[sm.State(float(i)) for i in range(11)])
    assert [p[1] for p, _ in ten] == list(range(11))


def test_a_state_at_two_places_is_one_slot():
    shared = sm.ParamState(jnp.ones(2))
    states = sm.States(a=shared, b=shared)
    assert len(states) == 1
    assert states.set("b", jnp.zeros(2))["a"].sum() == 0
    assert len(states.select(sm.PathContains("b"))) == 1
    model, states = sm.make_with_states(Nested)(key=jr.key(0))
    assert len(states) == 6
    assert states[model.tied] is states[model.layers[0].weight] is states["tied"]


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: sm.States(v=jnp.zeros(3)), TypeError, "`v` is of type"),
        (lambda: sm.States(a=sm.State(0.0, name="n"), b=sm.State(0.0, name="n")), ValueError,
         "Two states have the name 'n': `a` and `b`"),
        (lambda: sm.States({"a": sm.State(0.0)}, a=sm.State(0.0)), ValueError, "the path `a`"),
        (lambda: sm.States(sm.State(0.0)), TypeError, "given alone needs a `name=`"),
        (lambda: sm.States(v=sm.make_with_states(LIF)(2, 2, key=jr.key(0))[0].v), TypeError,
         "`v` is a handle"),
    ],
)  # fmt: skip
def test_contexts_that_cannot_be_made(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_lookups_that_fail_name_what_is_near():
    model, states = sm.make_with_states(LIF)(2, 3, key=jr.key(0))
    other, others = sm.make_with_states(LIF)(2, 4, key=jr.key(0))
    nested, _ = sm.make_with_states(Nested)(key=jr.key(0))
    with pytest.raises(KeyError, match=r"No state `wieght`. Did you mean `weight`\?"):
        states["wieght"]
    with pytest.raises(sm.StateNotFoundError, match=r"It holds `rng`, `v`, `weight`"):
        states.set("zzz", 1.0)
    with pytest.raises(KeyError, match="The context holds no states"):
        sm.States()["v"]
    with pytest.raises(KeyError, match="No state `layers.0.v`, which is what this handle"):
        states[nested.layers[0].v]
    with pytest.raises(KeyError, match="The handle `v` is a ShortTermState of the model `LIF:"):
        others[model.v]
    assert model.v not in others and model.v in states
    with pytest.raises(TypeError, match="holds a value and has no name"):
        states[sm.ShortTermState(0.0)]
    with pytest.raises(TypeError, match="handle, a path or a name, not 3"):
        states[3]


def test_set_and_update_refuse_what_does_not_fit():
    states = sm.States(v=sm.State(jnp.zeros(3)), n=sm.State(0), d=sm.State({"a": 1.0}))
    with pytest.raises(ValueError, match=r"`v` was given a value of another shape: expected f32"):
        states.set("v", jnp.zeros(()))
    with pytest.raises(ValueError, match=r"`v` was given a value of another dtype: .*i32\[3\]"):
        states.set("v", jnp.zeros(3, jnp.int32))
    with pytest.raises(ValueError, match="`n` was given a value of another dtype"):
        states.set("n", 0.5)
    with pytest.raises(ValueError, match="`d` was given a value of another structure"):
        states.set("d", {"b": 1.0})
    with pytest.raises(ValueError, match="`n` holds arrays, and was given 'a'"):
        states.set("n", "a")
    with pytest.raises(ValueError, match="another shape"):  # nothing is half written
        states.update({"n": 4, "v": jnp.zeros(2)})
    assert states["n"] == 0
    new = states.update({"n": 4, "d": {"a": 2}})
    assert new["n"] == 4 and new["n"].dtype == jnp.int32 and not new["n"].weak_type
    assert new["d"]["a"].dtype == jnp.float32
    assert new["v"] is states["v"]
    np_set = states.set("v", np.ones(3, np.float32))
    assert isinstance(np_set["v"], jax.Array)


def test_handles():
    model, states = sm.make_with_states(LIF)(3, 4, key=jr.key(0))
    assert jax.tree.leaves(model) == []  # no copy of any value
    assert model.v.shape == (4,) and model.weight.dtype == jnp.float32 and model.rng.shape == ()
    assert model.v.is_handle and not sm.State(0.0).is_handle
    assert "handle of `v`" in repr(model)
    with pytest.raises(AttributeError, match=r"Right:  states\[self.v\]"):
        model.v.value
    with pytest.raises(ValueError, match=r"Right:  states = states.set\(self.v, value\)"):
        model.v.set(0.0)
    again, _ = sm.make_with_states(LIF)(3, 4, key=jr.key(1))
    assert again == model and hash(again.v) == hash(model.v)
    assert states.set(again.v, jnp.ones(4))[model.v].sum() == 4
    assert pickle.loads(pickle.dumps(model)) == model


def test_contexts_go_through_what_takes_pytrees():
    model, states = sm.make_with_states(LIF)(3, 4, key=jr.key(0))
    same = lambda s: s
    assert jax.jit(same)(states) == states
    assert eqx.filter_jit(same)(states) == states
    assert jax.tree.map(jnp.asarray, states) == states
    assert pickle.loads(pickle.dumps(states)) == states
    assert pickle.loads(pickle.dumps(states))._slots is states._slots
    assert copy.deepcopy(states) == states and copy.copy(states) == states
    carried, _ = jax.lax.scan(lambda s, _: (s.set(model.v, s[model.v] + 1), None), states, length=3)
    assert carried[model.v].tolist() == [3.0] * 4
    looped = jax.lax.while_loop(
        lambda s: s[model.v][0] < 5, lambda s: s.set(model.v, s[model.v] + 1), states
    )
    assert looped[model.v].tolist() == [5.0] * 4
    picked = jax.lax.cond(True, same, lambda s: s.set(model.v, s[model.v] + 1), states)
    assert picked == states
    batched = jax.vmap(lambda x: states.set(model.v, x))(jnp.ones((2, 4)))
    assert batched[model.v].shape == (2, 4)
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, states)
    file.seek(0)
    assert eqx.tree_deserialise_leaves(file, jax.tree.map(jnp.zeros_like, states)) == states
    names = [jax.tree_util.keystr(k) for k, _ in jax.tree_util.tree_flatten_with_path(states)[0]]
    assert names == ["['rng']", "['v']", "['weight']"]


def test_partition_merge_and_three_lines_of_grad():
    model, states = sm.make_with_states(LIF)(3, 4, key=jr.key(0))
    x = jnp.ones(3)

    def loss(states):
        return jnp.sum((states[model.weight] @ x) ** 2)

    params, rest = states.partition(sm.ParamState, ...)
    grads = jax.grad(lambda params: loss(rest.merge(params)))(params)
    assert [p for p, _ in grads] == [("weight",)]
    optimiser = optax.sgd(0.01, momentum=0.9)
    updates, _ = optimiser.update(grads, optimiser.init(params), params)
    merged = rest.merge(optax.apply_updates(params, updates))
    assert merged._slots is states._slots and loss(merged) < loss(states)
    assert params.merge(rest) == rest.merge(params) == states
    first, second, third = states.partition(sm.RandomState, sm.Not(sm.ParamState), ...)
    assert [len(first), len(second), len(third)] == [1, 1, 1]
    with pytest.raises(ValueError, match="No filter matches `rng`, `v`, which would be lost"):
        states.partition(sm.ParamState)
    with pytest.raises(ValueError, match="Both contexts have a state `v`, but not the same one"):
        states.merge(sm.States(v=sm.State(jnp.zeros(4))))
    with pytest.raises(ValueError, match="another shape"):
        states.merge(jax.tree.map(lambda a: jnp.stack([a, a]), states))
    both = states.merge(sm.States(extra=sm.State(1.0)))
    assert len(both) == 4 and both[model.v] is states[model.v]


class Layer(eqx.Module):
    weight: sm.ParamState[Float[Array, "out in"]]
    bias: sm.ParamState[Float[Array, "out"]]

    def __init__(self, weight, bias):
        self.weight = sm.ParamState(weight)
        self.bias = sm.ParamState(bias)


def test_make_with_states_checks_the_annotations_of_fields():
    make = sm.make_with_states(lambda *shapes: [Layer(*map(jnp.ones, shapes))])
    make((2, 3), (2,))
    with pytest.raises(TypeError, match=r"`Layer.weight` is annotated `ParamState\[Float\[Array"):
        make((3,), (2,))
    with pytest.raises(TypeError, match=r"`Layer.bias` .* holds ParamState\(f32\[3\]\)"):
        make((2, 3), (3,))  # `out` is 2 and 3


def test_the_import_hook_checks_fields_and_names_them():
    from beartype import beartype
    from jaxtyping import jaxtyped, TypeCheckError

    @jaxtyped(typechecker=beartype)
    class Plain(eqx.Module):
        weight: sm.ParamState[Float[Array, "out in"]]
        bias: sm.ParamState[Float[Array, "out"]]

    def make(*shapes):
        return Plain(*(sm.ParamState(jnp.ones(s)) for s in shapes))

    make((2, 3), (2,))
    with pytest.raises(TypeCheckError, match="typechecking parameter 'weight'"):
        make((3,), (2,))
    with pytest.raises(TypeCheckError, match="typechecking parameter 'bias'"):
        make((2, 3), (3,))


def test_annotations_tell_kinds_and_values_apart():
    hint = sm.ParamState[Float[Array, "a b"]]
    assert isinstance(sm.ParamState(jnp.ones((1, 2))), hint)
    assert not isinstance(sm.ParamState(jnp.ones(2)), hint)
    assert not isinstance(sm.State(jnp.ones((1, 2))), hint)
    assert isinstance(sm.make_with_states(LIF)(1, 2, key=jr.key(0))[0].weight, hint)
    assert isinstance(sm.State({"a": 1.0}), sm.State[dict[str, Array]])
    assert not isinstance(sm.State([1.0]), sm.State[dict[str, Array]])
    assert issubclass(sm.ParamState, hint) and "ParamState" in repr(hint)

    class Mine(sm.ParamState[Float[Array, "a"]]):
        pass

    assert issubclass(Mine, sm.ParamState) and isinstance(Mine(jnp.ones(1)), sm.State)


def test_merge_tells_static_fields_apart_exactly():
    class Decaying(sm.State):
        decay: float = eqx.field(static=True, default=0.5)

        def __init__(self, value, decay):
            super().__init__(value)
            self.decay = decay

    make = lambda decay: sm.States(v=Decaying(0.0, decay))
    assert make(1.0).merge(make(1.0)) == make(1.0)
    for other in (1, True, 2.0):
        with pytest.raises(ValueError, match=f"`v`, but not .*Its `decay` is 1.0 .*{other} in the"):
            make(1.0).merge(make(other))
    with pytest.raises(
        ValueError, match="not the same one: .* Its `tag` is 'a' in one and None in"
    ):
        sm.States(v=sm.State(0.0, tag="a")).merge(sm.States(v=sm.State(0.0)))


def test_a_pair_of_an_iteration_is_no_key():
    states = sm.States(v=sm.ShortTermState(1.0))
    for key in states:
        with pytest.raises(TypeError, match="a pair of a path and a State"):
            states[key]
        with pytest.raises(TypeError, match="a pair of a path and a State"):
            states.set(key, 2.0)
