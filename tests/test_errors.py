"""Bad input gets a clear error before JAX's own."""

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

import statemap as sm

from .models import add, counter, LIF


X = jnp.arange(3.0)
SHORT = {0: sm.ShortTermState}


def call(fn, states, *args, **kwargs):
    options = {k: kwargs.pop(k) for k in list(kwargs) if k.startswith(("in_", "out_", "state_"))}
    options |= {k: kwargs.pop(k) for k in ("axis_size", "static_argnums") if k in kwargs}
    return sm.vmap2(fn, **options)(states, *args, **kwargs)


@pytest.mark.parametrize(
    "result, what",
    [(lambda s, x: x, "`.*Tracer`"), (lambda s, x: (x,), "a tuple of 1"),
     (lambda s, x: (x, x, s), "a tuple of 3"), (lambda s, x: None, "`NoneType`")],
)  # fmt: skip
def test_something_other_than_a_pair(result, what):
    with pytest.raises(TypeError, match=f"returns `\\(out, states\\)`, and `<lambda>` .* {what}"):
        call(result, counter(), X)


def test_states_in_the_wrong_order():
    with pytest.raises(ValueError, match="was given a context and returned f32.* the context last"):
        call(lambda s, x: (s, x), counter(), X)


def test_other_slots_than_went_in():
    more = sm.States(extra=sm.State(1.0))
    with pytest.raises(ValueError, match="other states than it was given. It has `extra` besides"):
        call(lambda s, x: (x, s.merge(more)), counter(), X)
    with pytest.raises(ValueError, match="It lacks `counter`"):
        call(lambda s, x: (x, sm.States()), counter(), X)
    with pytest.raises(ValueError, match="It lacks `counter`. It has `extra` besides"):
        call(lambda s, x: (x, more), counter(), X)
    with pytest.raises(ValueError, match="Their paths are the same, their kinds"):
        call(lambda s, x: (x, sm.States(counter=sm.State(x))), counter(), X)


def test_values_of_another_shape_dtype_or_structure():
    with pytest.raises(ValueError, match=r"`counter` was given a value of another shape"):
        call(lambda s, x: (x, s.set("counter", jnp.ones(2))), counter(), X)
    with pytest.raises(ValueError, match="`counter` was given a value of another dtype"):
        call(lambda s, x: (x, s.set("counter", X.astype(int))), counter(), X)
    with pytest.raises(ValueError, match="`counter` was given a value of another structure"):
        call(lambda s, x: (x, s.set("counter", [x])), counter(), X)
    with pytest.raises(ValueError, match="`counter` was given a value of another dtype"):
        call(lambda s, x: (x, jax.tree.map(lambda a: a.astype(int), s)), counter(), X)


def test_sizes_of_axes_that_change():
    with pytest.raises(ValueError, match="`counter` was given a value of another shape"):
        call(lambda s, x: (x, jax.tree.map(lambda a: jnp.concatenate([a, a]), s)), counter(), X)
    with pytest.raises(ValueError, match="has the name 'b', which is the path of another state"):
        sm.States(a=sm.State(0.0, name="b"), b=sm.State(0.0))


def test_a_state_without_the_axis():
    scalar = sm.States(counter=sm.ShortTermState(0.0))
    with pytest.raises(sm.BatchAxisError) as info:
        call(add, scalar, X, state_in_axes=SHORT, state_out_axes=SHORT)
    message = str(info.value)
    for part in ("`counter`", "shape ()", "axis 0", "jax.lax.scan", "ShortTermState"):
        assert part in message
    with pytest.raises(sm.BatchAxisError, match=r"`counter` .* has shape \(3,\) and no axis -2"):
        call(add, counter(), X, state_in_axes={-2: ...})
    rng = sm.States(rng=sm.RandomState(0))
    with pytest.raises(sm.BatchAxisError, match="one key a lane: `sm.RandomState"):
        call(lambda s, x: (x, s), rng, X, state_in_axes=...)
    with pytest.raises(sm.BatchAxisError, match=r"in a lane, and can't have the lanes on axis 3"):
        call(add, counter(), X, state_in_axes=SHORT, state_out_axes={3: ...})


def test_lane_counts_that_disagree_are_all_named():
    def f(states, x, y, *, z):
        return x, states

    with pytest.raises(ValueError) as info:
        call(f, counter(4), X, {"a": jnp.ones((1, 2))}, z=X, in_axes=(0, 1), state_in_axes=SHORT)
    message = str(info.value)
    for part in ("3  argument 0 (`x`)", "2  argument 1 (`y['a']`)", "3  argument `z`",
                 "4  state `counter` along axis 0"):  # fmt: skip
        assert part in message
    with pytest.raises(ValueError, match=r"(?s)The number of lanes differs.*5  `axis_size`"):
        call(add, counter(), X, axis_size=5)


def test_nothing_to_tell_the_lanes_from():
    with pytest.raises(ValueError, match="The number of lanes can't be told.*`axis_size`"):
        call(add, counter(), X, in_axes=None)


def test_axes_out_of_range():
    with pytest.raises(ValueError, match=r"Argument 0 \(`x`\) has shape \(3,\) and no axis 1"):
        call(add, counter(), X, in_axes=1)
    with pytest.raises(ValueError, match=r"Argument `x` has shape \(\) and no axis 0"):
        call(add, counter(), x=jnp.array(1.0), axis_size=2)


def test_in_axes_of_another_length_or_structure():
    with pytest.raises(ValueError, match="has 2 entries for 1 positional arguments"):
        call(add, counter(), X, in_axes=(0, 0))
    with pytest.raises(ValueError, match="is no prefix of the structure it applies to"):
        call(add, counter(), {"a": X}, in_axes=({"b": 0},))
    with pytest.raises(TypeError, match="`in_axes` is an int, None, a callable, or a tuple"):
        call(add, counter(), X, in_axes={"x": 0})
    with pytest.raises(TypeError, match="`in_axes` holds '0'; an axis is an int"):
        call(add, counter(), X, in_axes=("0",))


def test_parameters_that_are_none():
    with pytest.raises(ValueError, match="is one of 'raise', 'warn', 'ignore', not 'auto'"):
        sm.vmap2(add, unexpected_out_state_mapping="auto")
    with pytest.raises(TypeError, match="is not a filter"):
        sm.vmap2(add, state_in_axes={0: 3.0})
    with pytest.raises(TypeError, match=r"Right:  \{0: sm.ParamState\}"):
        sm.vmap2(add, state_out_axes={sm.ParamState: 0})
    with pytest.raises(TypeError, match="is no axis"):
        sm.vmap2(add, state_out_axes={True: ...})
    with pytest.raises(TypeError, match="axis_size"):  # the import hook may be faster
        sm.vmap2(add, axis_size=2.5)
    with pytest.raises(ValueError, match="which -1 is not"):
        sm.vmap2(add, axis_size=-1)
    with pytest.raises(ValueError, match="`static_argnums` counts the arguments"):
        sm.vmap2(add, static_argnums=-1)
    with pytest.raises(TypeError, match="a function, and 3 can't be called|parameter 'fn'"):
        sm.vmap2(3)


def test_calls_without_states():
    with pytest.raises(TypeError, match=r"Right:  out, states = mapped\(states, x\)"):
        sm.vmap2(add)(X)
    with pytest.raises(TypeError, match="A mapping takes the states first"):
        sm.vmap2(add)()


def test_static_arguments_that_are_not_hashable():
    with pytest.raises(TypeError, match="is static, and it is not hashable"):
        call(lambda s, x, y: (x, s), counter(), X, {1, 2})


def test_random_draws_from_what_is_no_stream_or_many():
    model, states = sm.make_with_states(LIF)(2, 2, key=jr.key(0))
    with pytest.raises(TypeError, match="`v` is a ShortTermState, and random numbers come from"):
        sm.random.normal(states, "v")
    many = sm.States(rng=sm.RandomState(jr.split(jr.key(0), 3)))
    with pytest.raises(ValueError, match=r"`rng` holds keys of shape \(3,\), one a lane"):
        sm.random.normal(many, "rng")
    with pytest.raises(ValueError, match="holds keys of shape .3,., one a lane"):
        call(lambda s, x: sm.random.normal(s, "rng"), many, X)
    for bad in ("a", 1.5, True, None, jnp.ones(2)):
        with pytest.raises(TypeError, match="A RandomState takes a key"):
            sm.RandomState(bad)
    with pytest.raises(ValueError, match="holds a key of the implementation"):
        states.set(model.rng, jr.key(0, impl="rbg"))


def test_an_error_in_the_function_leaves_nothing_behind():
    boom = [True]

    def f(states, x):
        if boom[0]:
            raise RuntimeError("of the user's own")
        return add(states, x)

    mapping = sm.vmap2(f, state_in_axes=SHORT)
    states = counter()
    with jax.checking_leaks():
        for _ in range(2):
            with pytest.raises(RuntimeError, match="of the user's own"):
                mapping(states, X)
            with pytest.raises(RuntimeError, match="of the user's own"):
                jax.jit(lambda s: mapping(s, X))(states)
    boom[0] = False
    out, _ = mapping(states, X)
    assert out.tolist() == [0.0, 1.0, 2.0] and states["counter"].sum() == 0
