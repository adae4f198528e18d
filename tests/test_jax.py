"""What is only semi-public in JAX is there, and is what `_jax.py` and `_jaxpr.py` take it for. When
one of these fails, that name has gone or has changed.
"""

import jax
import jax.core
import jax.numpy as jnp
import pytest
from jax.interpreters import partial_eval

from statemap import _jax, _jaxpr


X = jnp.ones(())


def jaxpr(f, *args):
    return jax.make_jaxpr(f)(*args).jaxpr


def eqn(f, *args, name):
    found = [e for e in jaxpr(f, *args).eqns if e.primitive.name in name]
    assert len(found) == 1, f"none of {name} in {jaxpr(f, *args)}"
    return found[0]


def test_get_opaque_trace_state():
    outside = _jax.trace_state()
    assert outside == _jax.trace_state() and _jax.is_base_trace()
    inside = []
    jax.jit(lambda x: inside.append((_jax.trace_state(), _jax.is_base_trace())) or x)(X)
    assert inside[0][0] != outside and not inside[0][1]


def test_dce_jaxpr_and_eval_jaxpr():
    assert callable(partial_eval.dce_jaxpr) and callable(jax.core.eval_jaxpr)
    closed = jax.make_jaxpr(lambda a, b: (a + 1, b * 2))(X, X)
    small, used = _jaxpr.dce_jaxpr(closed.jaxpr, [False, True])
    assert used == [False, True] and len(small.eqns) == 1
    assert _jaxpr.dce_jaxpr(closed.jaxpr, [False, True], instantiate=True)[1] == [True, True]
    assert [float(x) for x in _jaxpr.eval_jaxpr(small, closed.consts, X)] == [2.0]


def test_make_jaxpr_with_axis_env():
    mean = lambda flat: [jax.lax.pmean(flat[0], "i")]
    closed = _jaxpr.make_jaxpr(mean, [jax.ShapeDtypeStruct((), jnp.float32)], [("i", 3)])
    assert _jaxpr.axis_names(closed.jaxpr) == {"i"}
    index = _jaxpr.make_jaxpr(lambda flat: [jax.lax.axis_index("i")], [], [("i", 3)])
    assert _jaxpr.axis_names(index.jaxpr) == {"i"}
    assert _jaxpr.axis_names(_jaxpr.make_jaxpr(lambda flat: flat, [X], None).jaxpr) == set()


def test_ordered_effects():
    show = lambda ordered: jaxpr(lambda x: jax.debug.print("{}", x, ordered=ordered), X)
    assert _jaxpr.ordered_effects(show(True)) and not _jaxpr.ordered_effects(show(False))


def test_shaped_array_update_and_named_sharding_update():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    spec = jax.sharding.PartitionSpec("d")
    x = jax.device_put(jnp.ones((8, 3)), jax.NamedSharding(mesh, spec))
    lane = _jax.without_axis(x, 0)
    assert isinstance(lane, jax.core.ShapedArray) and lane.shape == (3,)
    assert (
        tuple(lane.sharding.spec) == (None,) and lane.sharding.mesh == jax.typeof(x).sharding.mesh
    )
    lanes = _jax.lanes_sharding([x], [0])
    assert tuple(lanes.spec) == ("d",) and _jax.lanes_sharding([x], [1]) is None
    assert tuple(_jax.with_lanes(lane, 8, lanes).sharding.spec) == ("d", None)
    plain = _jax.without_axis(jnp.ones((2, 3)), 1)
    assert isinstance(plain, jax.ShapeDtypeStruct) and plain.shape == (2,)


def test_inline():
    if hasattr(jax, "Inline"):
        assert _jax.INLINE is jax.Inline.JAX_EARLY
    inlined = jax.make_jaxpr(lambda x: jax.jit(lambda x: x + 1, inline=_jax.INLINE)(x))(X)
    assert [e.primitive.name for e in inlined.jaxpr.eqns] == ["add"]


def test_make_user_context():
    runs = []
    f = jax.jit(lambda x: runs.append(1) or x)
    context = _jax.make_user_context(None)
    f(X), f(X)
    with context(object()):
        f(X)
    assert len(runs) == 2


def test_the_trace_context():
    """A number for settings, sizes of named axes, meshes and contexts of the user's, the same
    inside a trace and outside, and without a trace of itself in the program.
    """
    before = _jax.trace_context()
    assert before == _jax.trace_context()
    inside = []
    jax.jit(lambda x: inside.append(_jax.trace_context()) or x)(X)
    assert inside == [before]
    named = lambda n: jax.vmap(lambda x: _jax.trace_context() + 0 * x, axis_name="o")(jnp.ones(n))
    three, five = named(3)[0], named(5)[0]
    assert three != five and before not in (three, five) and named(3)[0] == three
    found = []
    for around in (
        jax.enable_x64(True),
        jax.default_matmul_precision("highest"),
        jax.set_mesh(jax.make_mesh((8,), ("d",))),
    ):
        with around:
            found.append(_jax.trace_context())
    assert len({before, *found}) == 4
    with jax.disable_jit():
        assert _jax.trace_context() == before
    assert not jax.make_jaxpr(lambda x: (_jax.trace_context(), x)[1])(X).jaxpr.eqns


def test_while():
    f = lambda x, y: jax.lax.while_loop(lambda c: c[0] < y, lambda c: (c[0] + x, c[1] * 2), (x, y))
    loop = _jaxpr.inside(eqn(f, X, X, name=("while",)))
    assert isinstance(loop, _jaxpr.Loop) and loop.condition is not None
    assert (loop.n_consts, loop.n_carry) == (1, 2)
    assert len(loop.body.inputs) == len(loop.body.jaxpr.invars) == 3


def test_scan():
    def f(x, y):
        body = lambda c, z: ((c[0] + z + y, c[1] * 2), c[1])
        return jax.lax.scan(body, (x, y), jnp.ones(3))

    loop = _jaxpr.inside(eqn(f, X, X, name=("scan",)))
    assert isinstance(loop, _jaxpr.Loop) and loop.condition is None
    assert (loop.n_consts, loop.n_carry) == (1, 2)


def test_cond():
    f = lambda x: jax.lax.cond(x > 0, jnp.sin, jnp.cos, x)
    branches = _jaxpr.inside(eqn(f, X, name=("cond",)))
    assert isinstance(branches, list) and [b.inputs for b in branches] == [[1], [1]]


def custom_jvp(x, y):
    f = jax.custom_jvp(lambda x, y: (jnp.sin(x), y))
    f.defjvp(lambda p, t: (f(*p), t))
    return f(x, y)


def custom_vjp(x, y):
    f = jax.custom_vjp(lambda x, y: (jnp.sin(x), y))
    f.defvjp(lambda x, y: (f(x, y), None), lambda _, ct: ct)
    return f(x, y)


def custom_vmap(x, y):
    f = jax.custom_batching.custom_vmap(lambda x, y: (jnp.sin(x), y))
    f.def_vmap(lambda n, batched, x, y: ((x, y), (True, True)))
    return f(x, y)


@pytest.mark.parametrize(
    "f",
    [
        jax.jit(lambda x, y: (jnp.sin(x), y)),
        jax.checkpoint(lambda x, y: (jnp.sin(x), y)),
        custom_jvp,
        custom_vjp,
        custom_vmap,
    ],
)
def test_calls(f):
    found = eqn(f, X, X, name=tuple(_jaxpr._CALLS))
    (part,) = _jaxpr.inside(found)
    assert part.inputs == [0, 1] and len(part.jaxpr.outvars) == 2


def test_what_is_called_back_and_by_each_device():
    seen = []

    def host(x):
        seen.append(1)
        return x

    call = lambda x: jax.pure_callback(host, x, x)
    back = eqn(call, X, name={"pure_callback"})
    assert _jaxpr.called_back(back) is host
    around = eqn(lambda x: jax.lax.cond(x > 0, call, lambda x: x, x), X, name={"cond"})
    assert _jaxpr.called_back(around) is None
    assert [len(j.eqns) for j in _jaxpr.jaxprs_in(around)] == [0, 1]
    bare = _jaxpr.with_jaxprs(around, lambda j: _jaxpr.with_equations(j, [], j.invars))
    assert [len(j.eqns) for j in _jaxpr.jaxprs_in(bare)] == [0, 0]

    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    each = _jaxpr.on_each_device(back, mesh)
    assert list(each.invars) == list(back.invars) and list(each.outvars) == list(back.outvars)
    closed = jax.make_jaxpr(call)(X).jaxpr
    eqns = [_jaxpr.on_each_device(closed.eqns[0], mesh)]
    program = _jaxpr.with_equations(closed, eqns, closed.outvars)
    assert jax.jit(lambda x: _jaxpr.eval_jaxpr(program, [], x))(X)[0] == X
    assert len(seen) == 8


def test_jit_is_that_of_jax():
    assert _jax.jit is jax.jit  # without `EQX_ON_ERROR=breakpoint`
    assert jax.jit.__globals__["__name__"].startswith("jax.")
