"""The shim's derivatives, loops and branches against brainstate's, in less common uses."""

import jax
import jax.numpy as jnp
import pytest

from tests.oracle.same import arange, same, values


@pytest.mark.parametrize("name", ["jacrev", "jacfwd", "vector_grad", "hessian"])
@same
def test_several_outputs(bst, name):
    make = getattr(bst.transform, name)
    f = lambda x, y: {"p": x * y, "q": (x**3).sum() * y, "r": [x[:1]]}
    nums = [None, 1, (0, 1), (1,)]
    return [make(f, argnums=n)(arange(3), arange(1)[0]) for n in nums]


@pytest.mark.parametrize("name", ["grad", "vector_grad", "jacfwd", "hessian"])
@same
def test_the_cells_of_a_module(bst, name):
    class Net(bst.nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.v = bst.ParamState(arange(2)), bst.ParamState(arange(2) + 1)

    net = Net()
    f = lambda: (net.w.value**2 * net.v.value).sum()
    params = net.states(bst.ParamState)
    make = getattr(bst.transform, name)
    grads = make(f, params)()
    assert type(grads) is dict
    return dict(grads), make(f, params.to_nest())(), make(f, list(params.values()))()


@pytest.mark.parametrize("size", [None, 5])
@same
def test_forward_gradients(bst, size):
    bst.random.seed(3)
    a = bst.ParamState({"x": arange(2), "y": arange(3)})
    count = bst.State(0)

    def f(x):
        count.value = count.value + 1
        return (a.value["x"] * x).sum() + jnp.sin(a.value["y"]).sum()

    make = bst.transform.fwd_grad
    outs = [make(f, a, tangent_size=size)(arange(2)), make(f, tangent_size=size)(arange(2))]
    outs.append(make(f, a, tangent_size=size, key=7, drct_der_clip=0.1)(arange(2)))
    outs.append(make(f, tangent_size=size, key=jax.random.key(7), return_value=True)(arange(2)))
    return outs, count.value, bst.random.DEFAULT.value


@pytest.mark.parametrize("name", ["grad", "vector_grad", "jacrev", "jacfwd", "hessian"])
@same
def test_units(bst, name):
    u = pytest.importorskip("brainunit")
    w, make = bst.ParamState(arange(2) * u.mV), getattr(bst.transform, name)
    scalar = name in ("grad", "hessian")
    f = lambda x: (w.value**2 * x).sum() if scalar else w.value**2 * x
    x = arange(2) * u.ms
    outs = [make(f, unit_aware=True)(x), make(f, {"w": w}, unit_aware=True)(x)]
    if name != "hessian":
        outs.append(make(f, w, argnums=0, unit_aware=True, return_value=True)(x))
    plain = lambda x: (w.value.mantissa**2 * x).sum()
    outs.append(make(plain, [w])(arange(2)) if name != "hessian" else None)

    def step(c, x):
        w.value = w.value * 0.5 + x
        return c + x, w.value**2

    outs.append(bst.transform.scan(step, 1.0 * u.mV, arange(3) * u.mV))
    outs.append(bst.transform.cond(True, lambda x: w.value * x, lambda x: x * w.value, 2.0 * u.mV))
    return outs, values(w)
