"""The shim's transforms against brainstate's, one by one."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from statemap import compat
from tests.oracle.same import (
    arange,
    same,
    values,
)


# Compilation.


@same
def test_jit(bst):
    bst.random.seed(2)
    a, b, unused = bst.State(jnp.arange(3)), bst.ParamState(arange(3)), bst.State(arange(2))

    @bst.transform.jit(static_argnums=1, static_argnames="name")
    def step(x, n, *, name="y", scale=1.0):
        a.value = a.value + x  # an int state that becomes a float one
        noise = [bst.random.normal(size=2) for _ in range(n)]
        return {name: a.value * b.value * scale}, noise

    outs = [step(1, 1), values(a), step(0.5, 1), values(a), step(0.5, 2, name="z", scale=3.0)]
    b.value = b.value * 2
    outs += [step(0.5, 2, name="z", scale=3.0), step(jnp.ones(3), 0), step(1, 1)]
    a.value = jnp.ones((2, 1))
    outs += [step(1, 1), step(2.0, 1)]
    return outs, values(a, b, unused), bst.random.DEFAULT.value


@same
def test_stateful_function_of_jit(bst):
    total = bst.State(jnp.array(0.0))

    @bst.transform.jit(static_argnums=1)
    def add(x, n):
        total.value = total.value + x * n

    add(1.0, 2)
    function = add.stateful_fun
    function.make_jaxpr(1.0, 3)
    states, jaxpr = function.get_states(1.0, 3), function.get_jaxpr(1.0, 3)
    assert len(states) == 1 and states[0] is total and add.stateful_fun is function
    return total.value, len(jaxpr.jaxpr.invars), [function.static_argnums]


@same
def test_jit_of_states_made_anew(bst):
    class Net(bst.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = bst.ParamState(arange(3))

        def init_state(self):
            self.s = bst.ShortTermState(jnp.zeros(3))

        def update(self, x):
            self.s.value = self.s.value + self.w.value * x
            return self.s.value

    net, outs = Net(), []
    net.init_all_states()
    # brainstate goes on with the cells that are gone; what it does without `jit` is compared.
    step = bst.transform.jit(lambda x: net(x)) if bst is compat else net
    for _ in range(3):
        outs += [step(1.0), step(2.0), net.s.value]
        net.init_all_states()
        outs.append(net.s.value)
    return outs


# Derivatives.


FORMS = {
    "none": lambda a, b: None,
    "one": lambda a, b: a,
    "list": lambda a, b: [a, b],
    "dict": lambda a, b: {"z": a, "b": b},
    "nested": lambda a, b: {"z": {"b": b}, "a": [{"a": a}]},
}
FLAGS = list(itertools.product([False, True], [False, True]))


def derivative(bst, name, form, argnums, has_aux, return_value):
    a, b = bst.ParamState(arange(2)), bst.ShortTermState({"w": arange(3), "v": arange(2)})
    if name == "hessian":  # brainstate's is of states that hold an array
        b = bst.ShortTermState(arange(2))
    count = bst.State(jnp.zeros((), int))

    def f(x, y, *, z=1.0):
        count.value = count.value + 1
        v, *w = jax.tree.leaves(b.value)
        out = jnp.sin(a.value * x) * z + y**2 * v + sum(w[0] ** 3 if w else v)
        if name in ("grad", "hessian"):
            out = out.sum()
        b.value = jax.tree.map(lambda v: v * 2, b.value)
        return (out, {"aux": (out + 1, x)}) if has_aux else out

    transform = getattr(bst.transform, name)
    derived = transform(f, FORMS[form](a, b), argnums, has_aux=has_aux, return_value=return_value)
    return derived(arange(2), 0.5, z=2.0), values(a, b, count)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["grad", "vector_grad", "jacrev", "jacfwd"])
@same
def test_derivatives(bst, name, form):
    out = []
    for argnums in (None, 0, (0, 1)):
        flags = FLAGS if name == "grad" and argnums != 0 else [(True, True)]
        out += [derivative(bst, name, form, argnums, *flag) for flag in flags]
    return out


@pytest.mark.parametrize("form", FORMS)
@same
def test_hessians(bst, form):
    nums = (0, (0, 1)) if form == "none" else (None,)
    return [derivative(bst, "hessian", form, n, *flag) for n in nums for flag in FLAGS[1:]]


@same
def test_derivatives_of_nothing_and_of_ints(bst):
    a, b, w = bst.ParamState(arange(2)), bst.ParamState(arange(3)), bst.State(arange(2))
    loss = lambda: (a.value**2).sum()
    grads = bst.transform.grad(loss, [a, b], check_states=False)()
    again = bst.transform.grad(lambda x: (a.value * x).sum(), allow_int=True)(jnp.arange(2))
    twice = bst.transform.grad(
        lambda: a.value.sum() * w.value.sum(), {"a": a, "again": a, "w": w}
    )()
    return grads, again.shape, twice


@pytest.mark.parametrize("has_aux", [False, True])
@pytest.mark.parametrize("form", ["none", "one", "dict"])
@same
def test_vjp(bst, form, has_aux):
    a, b, out = bst.ParamState(arange(2)), bst.State(arange(2)), []

    def f(x, y):
        b.value = b.value + x
        out = a.value * jnp.sin(x) + y * b.value
        return (out, out + 1) if has_aux else out

    for argnums in (0, 1, (0, 1), None)[: 3 if form == "none" else 4]:
        states = FORMS[form](a, b)
        value, pull, *aux = bst.transform.vjp(
            f, arange(2), 3.0, grad_states=states, argnums=argnums, has_aux=has_aux
        )
        out.append((value, pull(jnp.ones(2)), aux, values(a, b)))
    return out


@pytest.mark.parametrize("has_aux", [False, True])
@same
def test_jvp(bst, has_aux):
    a, b = bst.ParamState(arange(2)), bst.State(arange(2))

    def f(x, y):
        b.value = b.value + x
        out = a.value * jnp.sin(x) + y * b.value
        return (out, b.value) if has_aux else out

    tangents = jnp.ones(2), 1.0
    return bst.transform.jvp(f, (arange(2), 3.0), tangents, has_aux=has_aux), values(a, b)


# Loops and branches.


LOOPS = {
    "for_loop": {},
    "for_loop reversed": {"reverse": True},
    "for_loop unrolled": {"unroll": 2},
    "checkpointed_for_loop": {"base": 2},
}


@pytest.mark.parametrize("name", LOOPS)
@same
def test_for_loops(bst, name):
    bst.random.seed(1)
    a, b = bst.State({"n": jnp.asarray(0), "x": arange(2)}), bst.ParamState(arange(2))
    made = []

    def step(x, y):
        made.append(bst.ShortTermState(x * 2))
        a.value = {"n": a.value["n"] + 1, "x": a.value["x"] * y["y"] + b.value}
        return a.value["x"], made[-1].value + bst.random.normal(size=2)

    loop = getattr(bst.transform, name.split()[0])
    out = loop(step, arange(5), {"y": arange(5)}, **LOOPS[name])
    return out, values(a, b), bst.random.DEFAULT.value


@pytest.mark.parametrize("name, options", [
    ("scan", {}), ("scan", {"reverse": True}), ("checkpointed_scan", {"base": 3}),
    ("checkpointed_scan", {"base": 16}),
])  # fmt: skip
@same
def test_scans(bst, name, options):
    a, b = bst.State(jnp.asarray(1.0)), bst.ParamState(jnp.asarray(2.0))

    def step(carry, x):
        a.value = a.value * 0.5 + x + carry["c"]
        return {"c": carry["c"] + b.value}, (a.value, None)

    def run():
        out = getattr(bst.transform, name)(step, {"c": 0.0}, arange(11), **options)
        return a.value + out[0]["c"], out

    return bst.transform.grad(run, [a, b], has_aux=True, return_value=True)(), values(a, b)


@same
def test_while_loops(bst):
    bst.random.seed(4)
    a, limit, outs = bst.State(jnp.asarray(1.0)), bst.ParamState(jnp.asarray(20.0)), []

    def body(x):
        a.value = a.value * 1.5
        return {"n": x["n"] + 1, "y": x["y"] + bst.random.uniform()}

    start = {"n": 0, "y": 0.0}
    going = lambda x: a.value < limit.value
    outs.append((bst.transform.while_loop(going, body, start), a.value))
    for most in (3, 50):
        a.value = jnp.asarray(1.0)
        out = bst.transform.bounded_while_loop(going, body, start, max_steps=most, base=4)
        outs.append((out, a.value))

    def run(x):
        a.value = x
        grow = lambda y: y * a.value + x
        return bst.transform.bounded_while_loop(lambda y: y < 30, grow, x, max_steps=9, base=2)

    return outs, bst.transform.grad(run, return_value=True)(1.7), bst.random.DEFAULT.value


@pytest.mark.parametrize("jit", [False, True])
@same
def test_branches(bst, jit):
    bst.random.seed(6)
    a, b, c = bst.State(arange(2)), bst.State({"x": jnp.asarray(1)}), bst.State(arange(3))

    def one(x, y):
        a.value = a.value + x
        return {"z": a.value * y}

    def two(x, y):
        b.value = {"x": b.value["x"] * 2}
        a.value = a.value * c.value[0] + bst.random.normal(size=2)
        return {"z": a.value + x}

    def three(x, y):
        return {"z": jnp.zeros(2) + c.value.sum()}

    def run(i, x):
        outs = [
            bst.transform.cond(i == 0, one, two, x, 2.0),
            bst.transform.cond(i, two, three, x, 3.0),
        ]
        outs.append(bst.transform.switch(i, [one, two, three], x, 4.0))
        outs.append(bst.transform.switch(i + 7, (one, three), x, 5.0))
        flags = [i == 0, i == 1, i >= 2]
        outs.append(bst.transform.ifelse(flags, [one, two, three], x, 6.0))
        return outs, values(a, b, c)

    run = bst.transform.jit(run) if jit else run
    return [run(i, 0.5) for i in (0, 1, 2, 5)], values(a, b, c), bst.random.DEFAULT.value


@same
def test_checkpoint(bst):
    bst.random.seed(8)
    w, n = bst.ParamState(arange(2)), bst.State(0)

    @bst.transform.checkpoint(static_argnums=(1,))
    def layer(x, m):
        n.value = n.value + m
        return jnp.sin(w.value * x) * bst.random.uniform()

    def loss(x):
        return (layer(x, 2) + bst.transform.remat(lambda y: y * w.value)(x)).sum()

    both = bst.transform.grad(loss, w, argnums=0, return_value=True)(2.0)
    return both, layer(jnp.ones(2), 3), values(w, n), bst.random.DEFAULT.value


# Functions as jaxprs.


@same
def test_eval_shape(bst):
    class Net(bst.nn.Module):
        def __init__(self, n):
            super().__init__()
            self.w = bst.ParamState(jnp.zeros((n, 2)))
            self.n = n

    shapes = lambda tree: [(x.shape, str(x.dtype)) for x in jax.tree.leaves(tree)]
    cell = bst.State(arange(3))

    def f(x, *, y):
        cell.value = cell.value * y
        return {"a": x @ cell.value, "b": jnp.arange(3)}

    net = bst.transform.eval_shape(lambda: Net(4))
    held, _ = bst.transform.eval_shape(f, arange(5, 3), y=2.0, return_state_shapes=True)
    out = bst.transform.eval_shape(f, jax.ShapeDtypeStruct((5, 3), jnp.float32), y=2.0)
    return shapes(out), shapes(held[cell]), shapes(net.w.value), net.n, cell.value


@same
def test_stateful_functions(bst):
    a, b, unused = bst.State(arange(3)), bst.ParamState(arange(3)), bst.State(0)
    names = {id(a): "a", id(b): "b", id(unused): "unused"}
    named = lambda cells: sorted(names[id(c)] for c in cells)

    def f(x, n, y=1.0):
        a.value = a.value * n + b.value * x
        return {"out": a.value.sum() * y}

    args, outs = (2.0, 3), []
    for only in (False, True):
        sf = bst.transform.StatefulFunction(f, static_argnums=1, return_only_write=only)
        sf.make_jaxpr(*args)
        cells = sf.get_states(*args)
        by_name = {names[id(c)]: c.value for c in cells}
        new, out = sf.jaxpr_call([by_name[names[id(c)]] for c in cells], *args)
        outs.append((out, {names[id(c)]: v for c, v in zip(cells, new) if v is not None}))
        outs += [named(cells), named(sf.get_write_states(*args)), named(sf.get_read_states(*args))]
        outs += [sf.get_out_shapes(*args)[0]["out"].shape, sf.jaxpr_call_auto(*args), a.value]
    jaxpr, cells = bst.transform.make_jaxpr(f, static_argnums=1)(*args)
    *_, shape = bst.transform.make_jaxpr(f, static_argnums=1, return_shape=True)(*args)
    muls = [str(e.primitive) for e in jaxpr.jaxpr.eqns].count("mul")
    return outs, named(cells), muls, values(a, b)
