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


@pytest.mark.parametrize("only", [False, True])
@same
def test_the_jaxprs_of_functions(bst, only):
    a, b, c = bst.State(arange(2)), bst.State({"x": arange(3), "y": arange(1)}), bst.State(0)

    def f(x, y, n, *, z=1.0):
        out = a.value.sum() * x["u"] + z
        b.value = {"x": b.value["x"] * n, "y": y}
        c.value = c.value + 1
        return {"out": out}

    sf = bst.transform.StatefulFunction(f, static_argnums=2, return_only_write=only)
    args = {"u": arange(4)}, arange(1), 3
    key = sf.make_jaxpr(*args, z=2.0).get_arg_cache_key(*args, z=2.0)
    jaxpr = sf.get_jaxpr_by_cache(key).jaxpr
    shapes = [[v.aval.shape for v in jaxpr.invars], [v.aval.shape for v in jaxpr.outvars]]
    out_shapes = jax.tree.map(lambda x: x.shape, sf.get_out_shapes_by_cache(key))
    trace = sf.get_state_trace_by_cache(key)
    assert list(sf.get_states_by_cache(key)) == list(trace.states) == [a, b, c]
    assert len(key) == 4 and len(key.static_args) == 1
    new, out = sf.jaxpr_call(trace.get_state_values(), *args, z=2.0)
    return shapes, out_shapes, list(trace.been_writen), list(new), out, values(a, b, c)


@same
def test_shards(bst):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    P = jax.sharding.PartitionSpec
    w, rows = bst.State(jnp.asarray(3.0)), bst.State(arange(8))

    def f(x, y):
        rows.value = rows.value + x
        w.value = w.value + jax.lax.psum(x.sum(), "x")
        return x * y

    specs = {"state_in_specs": {rows: P("x")}, "state_out_specs": {rows: P("x")}}
    f = bst.transform.shard_map(f, mesh, (P("x"), P()), P("x"), **specs)
    return f(arange(8), 2.0), values(w, rows), f(arange(8), 1.0), values(w, rows)
