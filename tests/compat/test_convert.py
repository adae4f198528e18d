"""From cells to contexts and back."""

import warnings

import jax
import jax.numpy as jnp
import pytest

import statemap as sm
from statemap import compat
from statemap.compat import nn, ParamState, random, ShortTermState, transform
from statemap.compat.random import RandomState


class Layer(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = ParamState(jnp.full(n, 2.0), tag="slow")
        self.total = ShortTermState({"sum": jnp.zeros(n)}, name="total")

    def update(self, x):
        noise = random.normal(size=x.shape)
        new = self.total.value["sum"] + self.weight.value * x + noise
        self.total.value = {"sum": new}
        return new


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [Layer(3), Layer(3)]
        self.shared = self.layers[0].weight

    def update(self, x):
        for layer in self.layers:
            x = layer(x)
        return x * self.shared.value


@pytest.fixture
def net():
    random.seed(1)
    return Net()


def test_the_context_has_every_cell_once(net):
    _, states = compat.to_functional(net)
    kinds = {".".join(map(str, path)): type(state) for path, state in states}
    assert kinds == {
        "layers.0.weight": sm.ParamState,
        "layers.0.total": sm.ShortTermState,
        "layers.1.weight": sm.ParamState,
        "layers.1.total": sm.ShortTermState,
        "random.DEFAULT": sm.RandomState,
    }
    tags = {state.tag for _, state in states if isinstance(state, sm.ParamState)}
    assert tags == {"slow"}  # the name `total` is that of two cells, and is left out


def test_the_same_numbers_either_way(net):
    step, states = compat.to_functional(net)
    x = jnp.arange(3.0)
    out, states = jax.jit(step)(states, x)
    assert net.layers[0].total.value["sum"].sum() == 0  # nothing is written
    expected = transform.jit(net)(x)
    assert jnp.allclose(out, expected)
    compat.from_functional(net, states)
    assert jnp.allclose(states["layers", 1, "total"]["sum"], net.layers[1].total.value["sum"])
    out, states = step(states, x)
    assert jnp.allclose(out, net(x))


def test_jaxs_own_transforms_and_the_core(net):
    step, states = compat.to_functional(net)
    params, rest = states.partition(sm.ParamState, ...)

    def loss(params, x):
        return step(rest.merge(params), x)[0].sum()

    grads = jax.grad(loss)(params, jnp.ones(3))
    cells = {"layers.0.weight": net.layers[0].weight, "layers.1.weight": net.layers[1].weight}
    expected = transform.grad(lambda x: net(x).sum(), cells)(jnp.ones(3))
    for path, value in expected.items():
        assert jnp.allclose(grads[path], value)
    mapped = sm.vmap2(step, state_out_axes={0: sm.ShortTermState})
    out, lanes = mapped(states, jnp.ones((4, 3)))
    assert out.shape == (4, 3) and lanes["layers.0.total"]["sum"].shape == (4, 3)
    carried, outs = jax.lax.scan(lambda s, x: step(s, x)[::-1], states, jnp.ones((5, 3)))
    assert outs.shape == (5, 3)


def test_cells_with_a_function_of_ones_own():
    count = ShortTermState(jnp.zeros(()))
    rng = RandomState(3)
    run, states = compat.to_functional({"count": count, "rng": rng})

    def add(x):
        count.value = count.value + x
        return rng.normal()

    draw, states = jax.jit(run, static_argnums=1)(states, add, 2.0)
    assert states["count"] == 2 and count.value == 0
    compat.from_functional({"count": count, "rng": rng}, states)
    assert count.value == 2
    assert draw == RandomState(3).normal() and rng.normal() != draw


def test_what_can_not_be_converted(net):
    step, states = compat.to_functional([net.layers[0]])
    with pytest.raises(compat.TraceContextError, match="uses a ShortTermState `total` that is not"):
        step(states, net, jnp.ones(3))
    with pytest.raises(TypeError, match="takes the context first, not a `Net`"):
        step(net, jnp.ones(3))
    with pytest.raises(ValueError, match="has `0.total`, for which there is no cell. There"):
        compat.from_functional(net, states)
    net.shared.add_tag("fast")
    with pytest.raises(ValueError, match=r"has the tags \['fast', 'slow'\]"):
        compat.to_functional(net)


def test_what_brainstate_itself_has_made_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own
        brainstate = pytest.importorskip("brainstate")

    class Counter(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.count = brainstate.ShortTermState(jnp.zeros(3))

        def update(self, x):
            self.count.value = self.count.value + x
            return self.count.value

    counter, own = Counter(), ShortTermState(jnp.zeros(3))

    def uses(x):
        return counter.count.value + own.value + x

    right = r"(?s)no cells of the shim.*Wrong:.*net, states = bridge\.brainstate"
    for target, name in [(counter, "module"), ([counter.count], "module"), (uses, "counter")]:
        with pytest.raises(TypeError, match=rf"{right}\({name}\)"):
            compat.to_functional(target)
    step, states = compat.to_functional(lambda x: own.value + x)  # the shim's are not foreign
    assert sm.vmap2(step)(states, jnp.ones((2, 3)))[0].tolist() == [[1.0] * 3] * 2
