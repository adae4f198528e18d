"""Names of axes are one in the fields of a model and in a call that jaxtyping checks."""

import os
import pathlib
import pickle
import subprocess
import sys
import textwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from beartype import beartype
from jaxtyping import Array, Float, Int, jaxtyped, TypeCheckError

import statemap as sm


checks = jaxtyped(typechecker=beartype)


class Layer(eqx.Module):
    n_in: int
    n_out: int
    weight: sm.ParamState[Float[Array, "out in"]] = sm.field(
        lambda self, key: jr.normal(key, (self.n_out, self.n_in))
    )
    v: sm.ShortTermState[Float[Array, " out"]] = sm.field(lambda self: jnp.zeros(self.n_out))

    @checks
    def __call__(
        self, states: sm.States, x: Float[Array, " in"]
    ) -> tuple[Float[Array, " out"], sm.States]:
        v = 0.9 * states[self.v] + states[self.weight] @ x
        return v, states.set(self.v, v)

    def unchecked(self, states, x):
        return states[self.weight] @ x, states

    @checks
    def add(self, states, scale: Float[Array, ""], y: Float[Array, " out"]):
        return states[self.weight].sum() * scale + y, states

    @checks
    def wrong_result(self, states, x) -> tuple[Float[Array, " out"], sm.States]:
        return states[self.weight].T[:, 0], states

    @checks
    def only_result(self, states, x) -> tuple[Float[Array, " out"], sm.States]:
        _ = states[self.weight]
        return jnp.zeros(self.n_out + 1), states

    @checks
    def second(self, states, x: Float[Array, " out"], y: Float[Array, " in"]):
        return states[self.weight] @ y + x, states


class Net(eqx.Module):
    layers: list[Layer]

    @checks
    def __call__(self, states: sm.States, x: Float[Array, " in"]) -> tuple[Array, sm.States]:
        for layer in self.layers:
            x, states = layer(states, x)
        return x, states

    @checks
    def norm(self, states, x):
        return sum(jnp.sum(states[layer.weight]) for layer in self.layers), states


def one():
    return sm.make_with_states(Layer)(3, 4, key=jr.key(0))


def deep():
    return sm.make_with_states(lambda: Net([Layer(3, 4), Layer(4, 5)]))(key=jr.key(0))


clash = (
    r"`Layer.weight` is annotated `Float\[Array, \"out in\"\]` and has in=3, and the argument `x` "
    "has in=5."
)
WRAPS = dict(
    plain=lambda f: f,
    jit=eqx.filter_jit,
    vmap2=lambda f: sm.vmap2(f, in_axes=None, axis_size=2),
    chunks=lambda f: sm.vmap2(f, in_axes=None, axis_size=4, chunk_size=2),
    pmap2=lambda f: sm.pmap2(f, in_axes=None, axis_size=8),
)


@pytest.mark.parametrize("wrap", WRAPS)
def test_an_argument_that_does_not_fit(wrap):
    model, states = one()
    with pytest.raises(TypeError, match=clash):
        WRAPS[wrap](model)(states, jnp.ones(5))


def test_in_a_population():
    model, states, axes = sm.vmap2_new_states(
        Layer, dict(n_in=3, n_out=4), key=jr.key(0), axis_size=6
    )
    step = sm.vmap2(model, state_in_axes=axes, state_out_axes=axes)
    assert step(states, jnp.ones((6, 3)))[0].shape == (6, 4)
    with pytest.raises(TypeError, match=clash):
        step(states, jnp.ones((6, 5)))


@pytest.mark.parametrize("make", [one, deep])
def test_what_fits_is_as_it_was(make):
    model, states = make()
    x = jnp.arange(3.0)
    out, new = model(states, x)
    assert out.shape == ((4,) if make is one else (5,))
    grads = jax.grad(lambda states: jnp.sum(model(states, x)[0]))(states)
    assert jnp.isfinite(grads[(model if make is one else model.layers[0]).weight]).all()
    _, outs = jax.lax.scan(lambda s, x: model(s, x)[::-1], states, jnp.ones((2, 3)))
    assert outs.shape == (2, *out.shape)
    skeleton = eqx.filter_eval_shape(model, states, x)
    assert skeleton[0].shape == out.shape


def test_layers_of_other_sizes_do_not_clash():
    model, states = deep()
    assert model.norm(states, jnp.ones(2))[0].shape == ()
    with pytest.raises(TypeError, match=r"has in=3, and the argument `x` has in=4"):
        model(states, jnp.ones(4))


def test_fields_of_one_model_are_bound_together():
    model, states = one()
    with pytest.raises(
        TypeError, match=r"`Layer.weight` .* has out=4, and the argument `y` has out=2"
    ):
        model.add(states, jnp.array(1.0), jnp.ones(2))
    with pytest.raises(TypeError, match=r"out=4, in=3, and the argument `x` has out=3, the arg"):
        model.second(states, jnp.ones(3), jnp.ones(4))

    class Parts(eqx.Module):
        a: sm.ParamState[Float[Array, " n"]] = sm.field(lambda: jnp.zeros(3))
        b: sm.ParamState[Float[Array, " n"]] = sm.field(lambda: jnp.zeros(3))

        @checks
        def __call__(self, states):
            return states[self.a] + states[self.b], states

    parts, states = sm.make_with_states(Parts)()
    assert parts(states)[0].shape == (3,)


def test_a_result_that_does_not_fit():
    model, states = one()
    for method in (model.wrong_result, model.only_result):
        with pytest.raises(TypeCheckError, match="(?s)checking the return value.*out=4"):
            method(states, jnp.ones(3))


def test_where_nothing_is_checked():
    model, states = one()
    with pytest.raises(TypeError, match="dot_general"):
        model.unchecked(states, jnp.ones(5))

    @checks
    def free(model, states, x: Float[Array, " in"]):
        return states[model.weight].sum() + x.sum()

    assert free(model, states, jnp.ones(5)).shape == ()  # no method of the model

    class Several(eqx.Module):
        layer: Layer
        tree: sm.State[dict[str, Float[Array, " n"]]] = sm.field({"a": jnp.zeros(2)})
        bare: sm.State = sm.field(1.0)
        text: "sm.State[Float[Array, ' n']]" = sm.field(lambda: jnp.zeros(3))

        @checks
        def __call__(self, states, x: Float[Array, " n"]):
            return states[self.tree]["a"].sum() + states[self.bare], states

        @checks
        def strings(self, states, x: "Float[Array, ' n']"):
            return states[self.text], states

        @checks
        def population(self, states):
            return states[self.layer.weight], states

    several, states = sm.make_with_states(lambda: Several(Layer(2, 3)))(key=0)
    assert several(states, jnp.ones(3))[0].shape == ()
    assert several.strings(states, jnp.ones(3))[0].shape == (3,)
    with pytest.raises(TypeError, match="`Several.text` .*n=3, and the argument `x` has n=2"):
        several.strings(states, jnp.ones(2))


def test_a_whole_population_is_not_checked():
    class Whole(eqx.Module):
        v: sm.ShortTermState[Float[Array, " n"]] = sm.field(lambda: jnp.zeros(3))

        @checks
        def all(self, states, x: Float[Array, " n"]):
            return states[self.v].sum() + x, states

    model, states, axes = sm.vmap2_new_states(Whole, axis_size=2)
    assert model.all(states, jnp.ones(5))[0].shape == (5,)  # the lanes are not an axis of `v`


def test_axes_that_are_no_names():
    class Odd(eqx.Module):
        v: sm.ShortTermState[Float[Array, "*batch n"]] = sm.field(lambda: jnp.zeros((2, 3)))

        @checks
        def __call__(self, states, x: Float[Array, "*batch n"], i: Int[Array, ""]):
            return states[self.v] + x, states

    model, states = sm.make_with_states(Odd)()
    assert model(states, jnp.zeros((2, 3)), jnp.array(0))[0].shape == (2, 3)
    with pytest.raises(TypeError, match=r"`Odd.v` .*shape \(2, 3\), which does not fit .*n=4"):
        model(states, jnp.zeros((2, 4)), jnp.array(0))


def test_a_model_that_was_pickled():
    model, states = one()
    again = pickle.loads(pickle.dumps(model))
    with pytest.raises(TypeError, match=clash):
        again(states, jnp.ones(5))


MODULE = """
import equinox as eqx, jax.numpy as jnp, jax.random as jr
import statemap as sm
from jaxtyping import Array, Float


class Layer(eqx.Module):
    n_in: int
    n_out: int
    weight: sm.ParamState[Float[Array, "out in"]] = sm.field(
        lambda self, key: jr.normal(key, (self.n_out, self.n_in))
    )
    rng: sm.RandomState = sm.field()
    maybe: sm.ParamState | None = sm.field(lambda: None)

    def __call__(
        self, states: sm.States, x: Float[Array, "in"]
    ) -> tuple[Float[Array, "out"], sm.States]:
        return states[self.weight] @ x, states


class ByHand(eqx.Module):
    weight: sm.ParamState[Float[Array, "out in"]]

    def __init__(self, n_in: int, n_out: int):
        self.weight = sm.ParamState(jnp.ones((n_out, n_in)))

    def __call__(
        self, states: sm.States, x: Float[Array, "in"]
    ) -> tuple[Float[Array, "out"], sm.States]:
        return states[self.weight] @ x, states


class Net(eqx.Module):
    layers: list[Layer]

    def __call__(self, states: sm.States, x: Float[Array, "in"]):
        for layer in self.layers:
            x, states = layer(states, x)
        return x, states
"""
PROGRAM = """
import jax.numpy as jnp, jax.random as jr
from jaxtyping import install_import_hook

with install_import_hook("hooked", "beartype.beartype"):
    import hooked
import statemap as sm


def fails(call, x):
    try:
        call(states, x)
    except TypeError as error:
        print(type(error).__name__, str(error).splitlines()[0])


for name, make, key in [
    ("layer", lambda: hooked.Layer(3, 4), 0),
    ("by hand", lambda: hooked.ByHand(3, 4), None),
    ("net", lambda: hooked.Net([hooked.Layer(3, 4), hooked.Layer(4, 5)]), 0),
]:
    model, states = sm.make_with_states(make)(key=key)
    mapped = sm.vmap2(model)
    print(name, model(states, jnp.ones(3))[0].shape, mapped(states, jnp.ones((2, 3)))[0].shape)
    fails(model, jnp.ones(5))
    fails(sm.vmap2(model), jnp.ones((2, 5)))
"""


def test_under_the_import_hook(tmp_path):
    (tmp_path / "hooked.py").write_text(MODULE)
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    root = str(pathlib.Path(__file__).parents[1])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert result.returncode == 0, result.stderr
    says = (
        'TypeError `{}.weight` is annotated `Float[Array, "out in"]` and has in=3, '
        "and the argument `x` has in=5."
    )
    assert result.stdout.splitlines() == [
        "layer (4,) (2, 4)",
        *[says.format("Layer")] * 2,
        "by hand (4,) (2, 4)",
        *[says.format("ByHand")] * 2,
        "net (5,) (2, 5)",
        *[says.format("Layer")] * 2,
    ]
