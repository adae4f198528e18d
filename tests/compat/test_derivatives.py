"""Derivatives with respect to cells: of several outputs, in every form, and what is refused."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from statemap.compat import nn, ParamState, State, transform


X = jnp.arange(1.0, 3.0)
JACOBIANS = ("jacrev", "jacfwd", "jacobian")
W = ParamState(X)  # of this module, so that what uses it can be pickled


def loss(x):
    return (W.value**2 * x).sum()


@pytest.fixture
def cells():
    return ParamState(X), ParamState({"u": X + 1, "v": jnp.ones(3)})


def several(a, b, x):
    """Several outputs, of several shapes, as a pure function."""
    return {"p": a * x, "q": [(b["u"] ** 2 * a).sum(), (b["v"].sum() * a[:1], x.sum())]}


@pytest.mark.parametrize("name", [*JACOBIANS, "vector_grad", "hessian"])
def test_all_outputs_are_differentiated(name, cells):
    a, b = cells
    pure = lambda cells, x: several(cells[0], cells[1], x)
    if name == "vector_grad":
        total = lambda *args: sum(x.sum() for x in jax.tree.leaves(pure(*args)))
        derive = lambda argnums: jax.grad(total, argnums)
    else:
        derive = lambda argnums: getattr(jax, "jacrev" if name == "jacobian" else name)(
            pure, argnums
        )
    make = getattr(transform, name)
    f = lambda x: several(a.value, b.value, x)
    values = [a.value, b.value]
    assert_equal(make(f, [a, b])(X), derive(0)(values, X))
    assert_equal(make(f)(X), derive(1)(values, X))
    if name != "hessian":
        assert_equal(make(f, [a, b], 0)(X), derive((0, 1))(values, X))
        both = jax.tree.map(lambda x: x, make(f, [a, b], (0,), return_value=True)(X))
        assert_equal(both[1], f(X))
    one = make(f, b)(X)
    expected = derive(0)(values, X)
    if name == "vector_grad":
        assert_equal(one, expected[1])
    else:
        assert_equal(one["q"][1][1], jax.tree.map(jnp.zeros_like, one["q"][1][1]))
        inner = expected["q"][0][1]
        part = jax.tree.map(lambda pair: pair[1], inner, is_leaf=lambda x: isinstance(x, list))
        assert_equal(one["q"][0], part if name == "hessian" else inner)


def assert_equal(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), got, expected)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.v = ParamState(X), ParamState(2 * X)

    def update(self):
        return (self.w.value * self.v.value).sum()


@pytest.mark.parametrize("name", ["grad", "vector_grad", "jacrev", "hessian"])
def test_the_cells_of_a_module_give_a_plain_dictionary(name):
    net = Net()
    params = net.states(ParamState)
    grads = getattr(transform, name)(net, params)()
    assert type(grads) is dict and list(grads) == [("v",), ("w",)]
    if name == "grad":
        new = jax.tree.map(lambda p, g: p - g, params.to_dict_values(), grads)
        assert new[("w",)].tolist() == (-X).tolist()
    if name == "hessian":
        assert type(grads[("v",)]) is dict
    assert type(transform.grad(net, [params])()[0]) is type(params)
    assert list(transform.grad(net, params.to_nest())()) == ["v", "w"]


@pytest.mark.parametrize("around", [lambda f: f, transform.jit])
def test_what_is_not_finite_is_an_error(around):
    w = State(jnp.zeros(2))
    root = lambda x: (setattr(w, "value", w.value + 1), jnp.sqrt(x))[1]
    step = around(transform.grad(root, debug_nan=True))
    assert step(4.0) == 0.25
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        step(0.0)
        jax.effects_barrier()
    assert w.value.tolist() == [1, 1]
    ints = transform.grad(
        lambda x: (w.value * x.astype(float)).sum(), allow_int=True, debug_nan=True
    )
    assert ints(jnp.arange(2)).dtype == jax.dtypes.float0


def test_gradients_are_pickled_with_their_cells():
    for make in (transform.grad, transform.vector_grad, transform.jacrev, transform.hessian):
        again = pickle.loads(pickle.dumps(make(loss, argnums=0)))
        assert_equal(again(X), make(loss, argnums=0)(X))
    gradient = transform.grad(Net(), has_aux=False, grad_states=None)
    assert pickle.loads(pickle.dumps(gradient)).argnums == 0
    net = Net()
    again = pickle.loads(pickle.dumps(transform.grad(net, net.states(ParamState))))
    assert again()[("w",)].tolist() == (2 * X).tolist()


@pytest.mark.parametrize("size", [None, 2000])
def test_forward_gradients(size, cells):
    a, b = cells
    f = lambda x: (jnp.sin(a.value) * b.value["u"] * x).sum()
    estimate = transform.fwd_grad(f, [a, b], 0, tangent_size=size, key=3, check_states=True)
    expected = transform.grad(f, [a, b], 0)(X)
    got = estimate(X)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    if size:
        off = jax.tree.map(lambda x, y: jnp.abs(x - y).max(), got, expected)
        assert max(jax.tree.leaves(off)) < 0.6
        clipped = transform.fwd_grad(f, a, tangent_size=size, drct_der_clip=0.0, key=3)
        assert clipped(X).tolist() == [0, 0]
    f = lambda x: (x.sum(), {"aux": x})
    grads, value, aux = transform.fwd_grad(f, has_aux=True, return_value=True)(X)
    assert grads.shape == X.shape and value == 3 and aux["aux"].tolist() == X.tolist()
    with pytest.raises(ValueError, match=r"a scalar.*vector_grad"):
        transform.fwd_grad(lambda x: x)(X)
    with pytest.raises(TypeError, match="int32"):
        transform.fwd_grad(lambda x: x.astype(float).sum())(jnp.arange(2))


def test_arguments_that_are_not_there():
    with pytest.raises(ValueError, match="`argnums` holds 1, and there is 1 argument"):
        transform.grad(lambda x: x, argnums=1)(1.0)
    with pytest.raises(ValueError, match="`argnums` holds 0, and there are 0 arguments"):
        transform.grad(lambda x: x)(x=1.0)


class Missing:
    """As brainstate's own sentinel is named."""


@pytest.mark.parametrize("name", [
    "grad", "vector_grad", "fwd_grad", "jacrev", "jacfwd", "hessian", "checkpoint",
])  # fmt: skip
def test_left_out_in_the_words_of_brainstate(name):
    make = getattr(transform, name)
    for missing in (make(), make(Missing()), make(Missing)):
        assert callable(missing(lambda x: x.sum()))
