"""The shim's transforms in each other, against brainstate's: chosen programs and random ones."""

import warnings

import jax.numpy as jnp
import pytest
from hypothesis import given, settings

from statemap import compat
from tests.oracle.programs import programs
from tests.oracle.same import (
    arange,
    assert_same,
    brainstate,
    same,
    values,
)


def nest(bst, order):
    """A step wrapped in transforms, the innermost last."""
    cell, w, n = bst.ShortTermState(arange(3)), bst.ParamState(arange(3)), bst.State(jnp.asarray(0))
    t = bst.transform

    def step(x):
        cell.value = 0.5 * cell.value + jnp.sin(w.value * x).mean()
        n.value = n.value + 1
        return (cell.value * w.value).sum() * x

    def lane(f, x):
        v = bst.HiddenState(arange(4))
        axes = {0: v}

        def g(y):
            v.value = v.value * y + w.value.sum()
            return jnp.cos(v.value) * y

        return f(x) + t.vmap2(g, state_in_axes=axes, state_out_axes=axes)(x * arange(4)).sum()

    below = lambda c: c[0] < 3
    wrap = {
        "jit": lambda f: t.jit(f),
        "for": lambda f: lambda x: t.for_loop(f, x * arange(3)).sum(),
        "scan": lambda f: lambda x: t.scan(lambda c, y: (c + f(y), c), x, arange(3))[0],
        "cond": lambda f: lambda x: t.cond(x > 0.2, f, lambda y: 2.0 * f(y) + 1.0, x),
        "switch": lambda f: lambda x: t.switch((x > 0.2).astype(int), [f, lambda y: y, f], x),
        "while": lambda f: lambda x: t.while_loop(below, lambda c: (c[0] + 1, f(c[1])), (0, x))[1],
        "vmap": lambda f: lambda x: lane(f, x),
        "grad": lambda f: lambda x: sum(g.sum() for g in t.grad(f, [w, cell], argnums=0)(x)[0]),
        "value": lambda f: lambda x: t.grad(f, w, return_value=True)(x)[1] * 0.5,
        "jvp": lambda f: lambda x: sum(t.jvp(f, (x,), (1.0,))),
        "vjp": lambda f: lambda x: t.vjp(f, x)[1](1.0),
        "remat": lambda f: t.checkpoint(f),
    }  # fmt: skip
    f = step
    for name in reversed(order.split()):
        f = wrap[name](f)
    x = jnp.asarray(0.7)
    return f(x), f(x), values(cell, w, n)


ORDERS = [
    "jit for cond vmap", "jit scan switch vmap", "grad for", "for grad", "jit grad for cond",
    "for vmap grad", "grad vmap for", "cond grad scan", "jit while value", "grad jit for",
    "for jit cond", "scan remat grad", "grad scan remat jit", "jit jvp for", "vjp cond for",
    "while cond vmap", "grad grad for", "jit for grad cond remat", "vmap jit grad",
    "switch jit for",
]  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
@same
def test_nested(bst, order):
    return nest(bst, order)


@same
def test_a_map_of_gradients(bst):
    w = bst.ParamState(arange(3, 2))
    m = bst.ShortTermState(arange(3, 2))
    t = bst.transform

    def loss(x):
        m.value = 0.9 * m.value + x
        return jnp.sin(w.value * m.value).sum()

    axes = {0: [w, m]}
    mapped = t.vmap2(t.grad(loss, {"w": w}, argnums=0, return_value=True),
                     state_in_axes=axes, state_out_axes=axes)  # fmt: skip
    return (
        t.jit(mapped)(arange(3)),
        mapped(arange(3)),
        t.for_loop(lambda x: mapped(x)[1], arange(2, 3)),
        values(w, m),
    )


@settings(max_examples=settings().max_examples // 2)
@given(programs())
def test_random_programs(program):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = program.run(brainstate)
    assert_same(expected, program.run(compat))
