"""Functions as jaxprs, and over the shards of a mesh."""

import pickle

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from statemap.compat import environ, nn, ParamState, ShortTermState, State, transform


COUNT = State(jnp.zeros(2))


def count(x):
    COUNT.value = COUNT.value + x
    return COUNT.value.sum()


@pytest.fixture
def cells():
    return State(jnp.arange(2.0)), State(jnp.ones(3)), State(jnp.zeros(()))


@pytest.fixture
def function(cells):
    a, b, c = cells

    def fn(x, y, *, z=1.0):
        b.value = b.value * y
        out = a.value.sum() * x + z
        c.value = out
        return {"out": out}

    return fn


def test_the_jaxpr_takes_arguments_and_then_cells(function, cells):
    a, b, c = cells
    args = 2.0, jnp.ones(3)
    for only in (False, True):
        sf = transform.StatefulFunction(function, return_only_write=only)
        assert sf.make_jaxpr(*args, z=3.0) is sf
        key = sf.get_arg_cache_key(*args, z=3.0)
        jaxpr = sf.get_jaxpr_by_cache(key)
        assert sf.get_states_by_cache(key) == sf.get_states(*args, z=3.0)
        assert set(sf.get_states_by_cache(key)) == {a, b, c}
        assert [v.aval.shape for v in jaxpr.jaxpr.invars[:3]] == [(), (3,), ()]
        shapes = [c.value.shape for c in sf.get_states_by_cache(key)]
        assert [v.aval.shape for v in jaxpr.jaxpr.invars[3:]] == shapes
        assert len(jaxpr.jaxpr.outvars) == 3 if only else 4
        out, held = sf.get_out_shapes_by_cache(key)
        assert out["out"].shape == ()
        expected = [None if only and c is a else c.value.shape for c in sf.get_states_by_cache(key)]
        assert [h if h is None else h.shape for h in held] == expected
        assert sf.get_out_treedef_by_cache(key) == jax.tree.structure((out, held))
        assert set(sf.get_write_states_by_cache(key)) == {b, c}
        assert sf.get_read_states(*args, z=3.0) == (a,)
        trace = sf.get_state_trace_by_cache(key)
        assert tuple(trace.states) == sf.get_states_by_cache(key)
        assert [c for c, w in zip(trace.states, trace.been_writen) if w] == [
            c for c in trace.states if c is not a
        ]
        assert trace.get_state_values() is not None and sf.get_state_trace(*args, z=3.0) is trace
        new, out = sf.jaxpr_call(trace.get_state_values(), *args, z=3.0)
        by_cell = dict(zip(trace.states, new))
        assert out["out"] == 5 and by_cell[c] == 5 and c.value == 0
        assert by_cell[a] is None if only else by_cell[a].tolist() == [0, 1]
    assert key.static_args == () and key.static_kwargs == ()
    assert "f32[3]" in repr(key.dyn_args) and "z" in repr(key.dyn_kwargs)


def test_what_is_not_traced_is_refused(function, cells):
    sf = transform.StatefulFunction(function)
    with pytest.raises(ValueError, match=r"make_jaxpr\(\)[\s\S]*Requested key:[\s\S]*Available"):
        sf.get_jaxpr(1.0, jnp.ones(3), compile_if_miss=False)
    with pytest.raises(ValueError, match="State length mismatch: the function uses 3 cells"):
        sf.jaxpr_call([1.0], 1.0, jnp.ones(3))
    with pytest.raises(ValueError, match="contains None at index 0"):
        sf.jaxpr_call([None] * 3, 1.0, jnp.ones(3))
    with pytest.raises(
        ValueError, match="static_argnums contains index 3, and there is 1 argument"
    ):
        transform.StatefulFunction(lambda x: x, static_argnums=3)(1.0)
    with pytest.raises(ValueError, match="can't go in or out of a transform"):
        transform.StatefulFunction(lambda x: x)({"x": cells})
    with pytest.raises(ValueError, match="State length mismatch"):
        sf.debug_call([1.0], 1.0, jnp.ones(3))
    with pytest.raises(TypeError, match="hashable"):
        transform.StatefulFunction(lambda x: x, static_argnums=0)(jnp.ones(2))
    assert [c.value.shape for c in cells] == [(2,), (3,), ()]


def test_the_cache_of_a_function(function):
    sf = transform.StatefulFunction(function)
    sf(1.0, jnp.ones(3))
    sf(2.0, jnp.ones(3))
    sf(2.0, jnp.ones(()))
    stats = sf.get_cache_stats()["compilation_cache"]
    assert stats["size"] == 2 and stats["misses"] == 2 and stats["hits"] >= 1
    assert stats["maxsize"] == 128 and 0 < stats["hit_rate"] < 100
    key = sf.get_arg_cache_key(1.0, jnp.ones(3))
    assert sf.validate_states(key) and list(sf.validate_all_states().values()) == [True, True]
    sf.clear_cache()
    assert sf.get_cache_stats()["compilation_cache"]["size"] == 0


def test_static_arguments_from_the_end():
    f = lambda x, n, flag=False: x * int(n) if flag is False else x
    for num in (1, -1):
        assert transform.StatefulFunction(f, static_argnums=num)(2.0, 3) == 6
        jaxpr, _ = transform.make_jaxpr(f, static_argnums=num)(2.0, 3)
        assert len(jaxpr.jaxpr.invars) == 1
        assert transform.checkpoint(f, static_argnums=num)(2.0, 3) == 6
    sf = transform.StatefulFunction(f, static_argnums=(1, 2))
    assert sf(2.0, 1, False) == 2 and sf(2.0, 1.0, False) == 2 and sf(2.0, 1, True) == 2
    assert sf.get_cache_stats()["compilation_cache"]["size"] == 3


def test_a_function_is_traced_again_for_cells_of_another_shape():
    cell = State(jnp.zeros(2))

    def double(x):
        assert cell.value.ndim == 1
        cell.value = cell.value * 2 + x
        return cell.value.shape

    sf = transform.StatefulFunction(lambda x: double(x) and cell.value.sum())
    assert sf(1.0) == 2
    cell.value = jnp.ones(3)
    key = sf.get_arg_cache_key(1.0)
    assert sf.get_jaxpr_by_cache(key).in_avals[1].shape == (2,)
    assert sf(1.0) == 9 and sf.get_jaxpr_by_cache(key).in_avals[1].shape == (3,)
    cell.value = jnp.ones(())
    with pytest.raises(AssertionError, match="ndim"):
        sf(1.0)
    with pytest.raises(ValueError, match="is not compiled"):
        sf.get_jaxpr_by_cache(key)


def test_values_are_seen_without_jit(function, cells):
    a, b, c = cells
    seen = []
    sf = transform.StatefulFunction(lambda x: seen.append(float(function(x, b.value)["out"])))
    checked = transform.StatefulFunction(lambda x: float(x) + float(a.value.sum()))
    with jax.disable_jit():
        sf(2.0)
        assert checked(1.0) == 2
    assert seen == [3] and c.value == 3
    sf = transform.StatefulFunction(function)
    values = [x.value + 1 for x in sf.get_states(2.0, 1.0)]
    with jax.disable_jit():
        new, out = sf.jaxpr_call(values, 2.0, 1.0)
    again, same = sf.jaxpr_call(values, 2.0, 1.0)
    assert out == same and [x is None for x in new] == [x is None for x in again]
    assert c.value == 3


def test_functions_are_pickled():
    again = pickle.loads(pickle.dumps(transform.StatefulFunction(count, name="n")))
    COUNT.value = jnp.zeros(2)
    assert again(1.0) == 2 and again.name == "n" and COUNT.value.tolist() == [1, 1]


def test_references_are_brainstates():
    with pytest.raises(NotImplementedError, match=r'install\(layers="brainstate"\)'):
        COUNT.to_state_ref()


# Shards.


@pytest.fixture
def mesh():
    return jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))


@pytest.mark.parametrize("jit", [False, True])
def test_shard_map(mesh, jit, cells):
    w, total = State(jnp.asarray(3.0)), State(jnp.zeros(8))
    mean = State(jnp.zeros(()))

    def fn(x, y, *, scale):
        total.value = total.value + x
        mean.value = jax.lax.pmean(x.mean(), "x")
        return x * w.value * y, x.sum()[None] * scale

    f = transform.shard_map(
        fn, mesh, (P("x"), P()), (P("x"), P("x")),
        state_in_specs={total: P("x")}, state_out_specs={total: P("x")},
    )  # fmt: skip
    x = jnp.arange(8.0)
    for k in (1, 2):
        out, sums = (transform.jit(f) if jit else f)(x, 2.0, scale=10.0)
        assert out.tolist() == (x * 6).tolist() and sums.tolist() == [10, 50, 90, 130]
        assert total.value.tolist() == (k * x).tolist() and mean.value == 3.5
    assert total.value.sharding.is_equivalent_to(NamedSharding(mesh, P("x")), 1)
    grads = transform.grad(lambda: f(x, 2.0, scale=1.0)[0].sum(), w)()
    assert grads == 2 * x.sum()


def test_shard_map_refuses(mesh):
    buffer = State(jnp.zeros(8))
    f = transform.shard_map(lambda x: x + buffer.value, mesh, P("x"), P("x"))
    with pytest.raises(TypeError, match="add got incompatible shapes") as caught:
        f(jnp.ones(8))
    assert "state_in_specs={cell: P('x')}" in "".join(caught.value.__notes__)
    assert buffer.value.tolist() == [0] * 8
    with pytest.raises(ValueError, match="`in_specs` has 2 entries, and there is 1 argument"):
        transform.shard_map(lambda x: x, mesh, (P("x"), P()), P("x"))(jnp.ones(8))
    same = transform.shard_map(lambda x: x * 2, mesh, P("x"), P("x"), state_in_specs=P())
    assert same(jnp.ones(8)).tolist() == [2] * 8


def test_what_was_traced_is_for_the_settings_that_were_read():
    environ.set(dt=0.1)
    try:
        function = transform.StatefulFunction(lambda x: x * environ.get("dt"))
        assert float(function(jnp.ones(()))) == pytest.approx(0.1)
        environ.set(dt=0.5)
        assert float(function(jnp.ones(()))) == 0.5
        with environ.context(dt=2.0):
            assert float(function.jaxpr_call((), jnp.ones(()))[1]) == 2
        environ.set(unread=1)
        misses = function.get_cache_stats()["compilation_cache"]["misses"]
        assert float(function(jnp.ones(()))) == 0.5
        assert function.get_cache_stats()["compilation_cache"]["misses"] == misses + 1
        function(jnp.ones(()))
        assert function.get_cache_stats()["compilation_cache"]["misses"] == misses + 1
    finally:
        environ.reset()


def test_a_model_of_shapes_is_traced():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = ParamState(jnp.ones((3, 2)))
            self.seen = ShortTermState(jnp.zeros(2))

        def update(self, x):
            self.seen.value = self.seen.value + x @ self.weight.value
            return self.seen.value

    model, x = transform.eval_shape(Model), jnp.ones(3)
    assert transform.eval_shape(lambda: model.weight.value).shape == (3, 2)
    assert transform.eval_shape(model, x).shape == (2,)
    jitted = transform.jit(model)
    assert jitted.eval_shape(x).shape == (2,)
    assert jitted.lower(x).compile() is not None
    assert isinstance(model.seen.value, jax.ShapeDtypeStruct)
    with pytest.raises(TypeError, match="holds ShapeDtypeStruct"):
        transform.jit(model)(x)
    model.weight.value, model.seen.value = jnp.ones((3, 2)), jnp.zeros(2)
    assert jitted(x).tolist() == [3.0, 3.0]


def test_what_is_jitted_can_be_looked_into(cells, function):
    jitted = transform.jit(function)
    out = jitted(1.0, 2.0)
    found = jitted.stateful_fun.get_states(1.0, 2.0)
    assert set(found) == set(cells)
    values = [cell.value for cell in found]
    assert jitted.stateful_fun.jaxpr_call(values, 1.0, 2.0)[1] == out
    made = transform.make_jaxpr(count)
    assert made.__name__ == made.__qualname__ == "make_jaxpr(count)"
