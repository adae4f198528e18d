"""The examples of the vmap2 page and of the vectorization tutorial, in functional form, with the
numbers that they print (random numbers: test_random.py).
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import statemap as sm


NONE = sm.States()
SHORT = {0: sm.OfType(sm.ShortTermState)}


def equal(actual, expected):
    np.testing.assert_array_equal(actual, np.asarray(expected, actual.dtype))


def stateless(fn):
    return lambda states, *args, **kwargs: (fn(*args, **kwargs), states)


def test_the_example_of_vmap2():
    def accumulate(states, x):
        total = states["counter"] + x
        return total, states.set("counter", total)

    mapped = sm.vmap2(in_axes=0, out_axes=0, state_in_axes=SHORT, state_out_axes=SHORT)(accumulate)
    with pytest.raises(sm.BatchAxisError, match=r"`counter` .* no axis 0.*(?s:.*)jax.lax.scan"):
        mapped(sm.States(counter=sm.ShortTermState(0.0)), jnp.arange(3.0))
    out, states = mapped(sm.States(counter=sm.ShortTermState(jnp.zeros(3))), jnp.arange(3.0))
    equal(out, [0, 1, 2])
    equal(states["counter"], [0, 1, 2])


def test_tutorial_1_1_in_axes():
    out, _ = sm.vmap2(stateless(lambda x: x**2), in_axes=0)(NONE, jnp.array([1.0, 2.0, 3.0, 4.0]))
    equal(out, [1, 4, 9, 16])
    weighted = sm.vmap2(stateless(lambda x, w: x * w), in_axes=(0, None))
    equal(weighted(NONE, jnp.array([1.0, 2.0, 3.0]), 2.0)[0], [2, 4, 6])
    matmul = sm.vmap2(stateless(lambda m, v: m @ v), in_axes=(0, 0))
    assert matmul(NONE, jnp.ones((4, 3, 2)), jnp.ones((4, 2)))[0].shape == (4, 3)


@pytest.mark.parametrize(
    "axis, expected", [(0, [[1, 2, 3], [2, 4, 6]]), (1, [[1, 2], [2, 4], [3, 6]])]
)
def test_tutorial_1_2_out_axes(axis, expected):
    create = stateless(lambda s: jnp.array([s, s * 2, s * 3]))
    equal(sm.vmap2(create, in_axes=0, out_axes=axis)(NONE, jnp.array([1.0, 2.0]))[0], expected)


def test_tutorial_1_3_axis_name_and_1_4_axis_size():
    normalise = stateless(lambda x: x - jax.lax.pmean(x, axis_name="batch"))
    out, _ = sm.vmap2(normalise, in_axes=0, axis_name="batch")(NONE, jnp.array([1.0, 2, 3, 4]))
    equal(out, [-1.5, -0.5, 0.5, 1.5])
    out, _ = sm.vmap2(stateless(lambda: jnp.arange(3)), in_axes=None, axis_size=5)(NONE)
    equal(out, [[0, 1, 2]] * 5)


class Counter(eqx.Module):
    count: sm.ShortTermState

    def __init__(self):
        self.count = sm.ShortTermState(jnp.zeros(4))

    def __call__(self, states, delta):
        count = states[self.count] + delta
        return count, states.set(self.count, count)


def test_tutorial_1_5_state_axes():
    counter, states = sm.make_with_states(Counter)()
    mapped = sm.vmap2(counter, in_axes=0, out_axes=0, state_in_axes=SHORT, state_out_axes=SHORT)
    counts, states = mapped(states, jnp.array([1.0, 2.0, 3.0, 4.0]))
    equal(counts, [1, 2, 3, 4])
    equal(states[counter.count], [1, 2, 3, 4])


class Linear(eqx.Module):
    weight: sm.ParamState
    bias: sm.ParamState

    def __init__(self, n_in, n_out):
        self.weight = sm.ParamState(jnp.ones((n_in, n_out)))
        self.bias = sm.ParamState(jnp.zeros((n_out,)))

    def __call__(self, states, x):
        return x @ states[self.weight] + states[self.bias], states


def test_tutorial_1_6_module_states_are_shared():
    layer, states = sm.make_with_states(Linear)(3, 2)
    out, same = sm.vmap2(layer, in_axes=0, out_axes=0)(states, jnp.ones((4, 3)))
    equal(out, [[3, 3]] * 4)
    assert same is states


def test_tutorial_1_7_policies():
    def update(states, x):
        temp = states["temp"] + x
        return temp, states.update({"temp": temp, "write": temp})

    states = sm.States(temp=sm.ShortTermState(jnp.zeros(3)), write=sm.LongTermState(0.0))
    mapped = sm.vmap2(
        update, state_in_axes=SHORT, state_out_axes=SHORT, unexpected_out_state_mapping="ignore"
    )
    equal(mapped(states, jnp.array([1.0, 2.0, 3.0]))[1]["write"], [1, 2, 3])
    states = sm.States(temp=sm.ShortTermState(0.0), write=sm.LongTermState(0.0))
    ignore = sm.vmap2(update, in_axes=0, unexpected_out_state_mapping="ignore")
    out, new = ignore(states, jnp.array([1.0, 2.0, 3.0]))
    equal(out, [1, 2, 3])
    equal(new["write"], [1, 2, 3])
    assert states["write"] == 0.0


def test_tutorial_2_2_keys_as_arguments():
    sample = stateless(lambda key, scale: jr.normal(key, ()) * scale)
    scales = jnp.array([1.0, 2.0, 3.0, 4.0])
    shared, _ = sm.vmap2(sample, in_axes=(None, 0))(NONE, jr.PRNGKey(0), scales)
    np.testing.assert_allclose(shared, [1.6226422, 3.2452843, 4.8679266, 6.4905686], rtol=1e-6)
    keys = jr.split(jr.PRNGKey(0), 4)
    unique, _ = sm.vmap2(sample, in_axes=(0, 0))(NONE, keys, scales)
    np.testing.assert_allclose(unique, [1.0040143, -4.8849115, 3.8869078, -2.4877744], rtol=1e-6)


def test_tutorial_3_1_architecture_and_3_2_caching(runs):
    def accumulate(states, x):
        total = states["accumulator"] + x
        return total, states.set("accumulator", total)

    mapped = sm.vmap2(accumulate, in_axes=0, out_axes=0, axis_size=4, state_in_axes=SHORT)
    assert type(mapped) is sm.StatefulMapping and mapped.origin_fun is accumulate
    assert (mapped.in_axes, mapped.out_axes, mapped.axis_name, mapped.axis_size) == (0, 0, None, 4)
    assert mapped.state_in_axes == SHORT and mapped.state_out_axes == {}
    counting = sm.vmap2(runs(stateless(lambda x: x * 2)), in_axes=0)
    assert runs.count == 0
    equal(counting(NONE, jnp.array([1.0, 2.0, 3.0]))[0], [2, 4, 6])
    assert runs.count == 1
    equal(counting(NONE, jnp.array([4.0, 5.0, 6.0]))[0], [8, 10, 12])
    assert runs.count == 1


def test_tutorial_3_3_state_axis_inference():
    def compute(states, x):
        temp = states["temp"] + x
        return temp * states["param"], states.set("temp", temp)

    states = sm.States(temp=sm.ShortTermState(jnp.zeros(3)), param=sm.ParamState(1.0))
    out, new = sm.vmap2(compute, state_in_axes=SHORT, state_out_axes=SHORT)(
        states, jnp.array([1.0, 2.0, 3.0])
    )
    equal(out, [1, 2, 3])
    equal(new["temp"], [1, 2, 3])
    assert new["param"] is states["param"]


def test_tutorial_3_4_direct_use_and_3_5_the_jaxpr():
    def increment(states, delta):
        count = states["counter"] + delta
        return count, states.set("counter", count)

    custom = sm.StatefulMapping(
        increment,
        in_axes=0,
        out_axes=0,
        state_in_axes=SHORT,
        state_out_axes=SHORT,
        name="custom_increment",
        mapping_fn=functools.partial(jax.vmap, spmd_axis_name=None),
    )
    states = sm.States(counter=sm.ShortTermState(jnp.zeros(3)))
    out, new = custom(states, jnp.array([1.0, 2.0, 3.0]))
    equal(out, [1, 2, 3])
    equal(new["counter"], [1, 2, 3])
    assert "custom_increment" in custom.lower(states, jnp.ones(3)).as_text()

    def simple(states, x):
        result = x + states["simple"]
        return result * 2, states.set("simple", result)

    mapped = sm.vmap2(simple, in_axes=0, state_out_axes={0: sm.OfType(sm.State)})
    states, x = sm.States(simple=sm.State(1.0)), jnp.array([1.0, 2.0])
    out, new = mapped(states, x)
    equal(out, [4, 6])
    equal(new["simple"], [2, 3])
    jaxpr = mapped.get_jaxpr_by_cache(mapped.get_arg_cache_key(states, x))
    assert sorted(str(e.primitive) for e in jaxpr.eqns) == ["add", "mul"]


def test_tutorial_4_nesting_and_other_transforms():
    rows = sm.vmap2(stateless(lambda x, y: x * y), in_axes=(0, 0))
    matrix = sm.vmap2(rows, in_axes=(0, 0))
    b = jnp.arange(12.0).reshape(3, 4)
    equal(matrix(NONE, jnp.ones((3, 4)), b)[0], b)

    def loss(x, target):
        return jnp.sum((x**2 - target) ** 2)

    batched = sm.vmap2(stateless(jax.grad(loss)), in_axes=(0, 0))
    gradients, _ = jax.jit(batched)(NONE, jnp.array([1.0, 2.0, 3.0]), jnp.array([2.0, 4.0, 6.0]))
    equal(gradients, [-4, 0, 36])
