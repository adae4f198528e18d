"""Refs of JAX, which are written in place: as under `jax.vmap`, each write once."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

import statemap as sm


STATES = sm.States(v=sm.ShortTermState(jnp.zeros(())))
X = jnp.arange(8.0)


def write(ref, x):
    ref[...] = 2 * ref[...] + x
    return 3 * x + ref[...]


def add_in_a_loop(ref, x):
    def body(i, total):
        ref[...] = ref[...] + x
        return total + ref[...]

    return jax.lax.fori_loop(0, 3, body, x)


def inner_jit(ref, x):
    @jax.jit
    def inner(ref, x):
        ref[...] = ref[...] + x

    inner(ref, x)
    return x


def own(ref, x):
    mine = jax.new_ref(x)
    mine[...] = mine[...] + ref[...]
    return mine[...]


def read(ref, x):
    return ref[...] * x


def nothing(ref, x):
    return x


FUNCTIONS = [write, add_in_a_loop, inner_jit, own, read, nothing]
HOWS = {
    "vmap2": sm.vmap2,
    "even chunks": functools.partial(sm.vmap2, chunk_size=4),
    "odd chunks": functools.partial(sm.vmap2, chunk_size=3),
    "pmap2": sm.pmap2,
    "a name": functools.partial(sm.vmap2, axis_name="i"),
    "donated": functools.partial(sm.pmap2, donate_argnums=0),
}


def with_states(f):
    return lambda states, ref, x: (f(ref, x), states.set("v", states["v"] + 1))


@pytest.mark.parametrize("f", FUNCTIONS)
@pytest.mark.parametrize("how", HOWS)
def test_as_under_vmap(f, how):
    mapped = HOWS[how](with_states(f))
    mine, theirs = jax.new_ref(X), jax.new_ref(X)
    states = STATES
    for k in range(3):
        x = X + k
        out, states = mapped(states, mine, x)
        expected = jax.vmap(f)(theirs, x)
        assert out.tolist() == expected.tolist()
        assert mine[...].tolist() == theirs[...].tolist()
    assert states["v"] == 3


@pytest.mark.parametrize("f", FUNCTIONS)
def test_under_jit_scan_and_vmap(f):
    mapped = sm.vmap2(with_states(f))
    mine, theirs = jax.new_ref(X), jax.new_ref(X)

    def in_scan(mapped):
        return lambda ref, x: jax.lax.scan(
            lambda c, x: (c, mapped(ref, x)), 0, x[None] + X[:, None]
        )

    call = lambda ref, x: mapped(STATES, ref, x)[0]
    for around in (jax.jit, lambda g: jax.jit(in_scan(g)), in_scan):
        out, expected = around(call)(mine, X), around(jax.vmap(f))(theirs, X)
        for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(expected), strict=True):
            assert jnp.array_equal(a, b)
        assert mine[...].tolist() == theirs[...].tolist()
    many, others = jax.new_ref(jnp.stack([X, 2 * X])), jax.new_ref(jnp.stack([X, 2 * X]))
    out = jax.vmap(call)(many, jnp.stack([X, X]))
    assert out.tolist() == jax.vmap(jax.vmap(f))(others, jnp.stack([X, X])).tolist()
    assert many[...].tolist() == others[...].tolist()


def test_each_write_happens_once():
    ref = jax.new_ref(jnp.zeros(8))

    def count(states, ref):
        ref[...] = ref[...] + 1
        return None, states

    for k, how in enumerate(HOWS.values()):
        how(count)(STATES, ref)
        assert ref[...].tolist() == [k + 1.0] * 8


def test_a_lane_of_a_lane():
    @sm.vmap2
    @sm.vmap2
    def f(states, ref, x):
        ref[...] = ref[...] + x
        return x, states

    ref = jax.new_ref(jnp.zeros((2, 3)))
    f(STATES, ref, jnp.ones((2, 3)))
    f(STATES, ref, jnp.ones((2, 3)))
    assert ref[...].tolist() == [[2.0] * 3] * 2


def test_axes_pytrees_and_keywords():
    def f(states, tree, *, other):
        tree["a"][...] = tree["a"][...] + tree["x"]
        other[...] = other[...] * 2
        return tree["x"], states

    a, other = jax.new_ref(jnp.zeros((2, 3))), jax.new_ref(jnp.ones(3))
    mapped = sm.vmap2(f, in_axes=({"a": 1, "x": 0},))
    for _ in range(2):
        mapped(STATES, {"a": a, "x": jnp.arange(3.0)}, other=other)
    assert a[...].tolist() == [[0.0, 2.0, 4.0]] * 2 and other[...].tolist() == [4.0] * 3


@pytest.mark.parametrize("value", [jr.split(jr.key(0), 4), jnp.arange(4), jnp.ones(4, bool)])
def test_other_dtypes(value):
    def f(states, ref):
        old = ref[...]
        is_key = jnp.issubdtype(old.dtype, jax.dtypes.prng_key)
        ref[...] = jr.fold_in(old, 1) if is_key else ~old
        return old, states

    ref = jax.new_ref(value)
    out, _ = sm.vmap2(f)(STATES, ref)
    assert (out == value).all()
    is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    assert (ref[...] == (jax.vmap(lambda k: jr.fold_in(k, 1))(value) if is_key else ~value)).all()


def test_the_plan_and_what_is_lowered():
    mapped = sm.vmap2(with_states(write))
    ref = jax.new_ref(X)
    assert "v" in str(mapped.plan(STATES, ref, X))
    mapped.lower(STATES, ref, X).compile()
    key = mapped.get_arg_cache_key(STATES, ref, X)
    assert mapped.get_jaxpr_by_cache(key) is not None
    assert ref[...].tolist() == X.tolist()


def test_a_branch_that_depends_on_the_lane():
    def f(ref, x):
        return jax.lax.cond(x > 2, lambda: ref.__setitem__(..., x), lambda: None)

    with pytest.raises(NotImplementedError, match="vmap-of-cond"):
        jax.vmap(f)(jax.new_ref(X), X)
    with pytest.raises(NotImplementedError, match="vmap-of-cond"):
        sm.vmap2(with_states(f))(STATES, jax.new_ref(X), X)


def test_gradients():
    def f(ref, x):
        ref[...] = ref[...] * 2
        return x * ref[...]

    ref = jax.new_ref(X)
    mapped = sm.vmap2(with_states(f))
    with pytest.raises(Exception, match="differentiated value") as error:
        jax.grad(lambda x: mapped(STATES, ref, x)[0].sum())(X)
    assert "Make it inside" in error.value.__notes__[0] and ref[...].tolist() == X.tolist()
    only_read = sm.vmap2(with_states(read))
    g = jax.grad(lambda x: only_read(STATES, ref, x)[0].sum())(X)
    assert g.tolist() == X.tolist()

    def inside(x, map_it):
        ref = jax.new_ref(x)
        return (map_it(ref, x) + ref[...]).sum()

    g = jax.grad(inside)(X, lambda ref, x: sm.vmap2(with_states(write))(STATES, ref, x)[0])
    assert g.tolist() == jax.grad(inside)(X, jax.vmap(write)).tolist()


def test_a_ref_that_is_shared_is_read_but_not_written():
    ref = jax.new_ref(jnp.ones(3))
    mapped = sm.vmap2(lambda states, ref, x: (ref[...] * x, states), in_axes=(None, 0))
    for k in range(2):
        out, _ = mapped(STATES, ref, X)
        assert out.tolist() == (ref[...] * X[:, None]).tolist()
        ref[...] = jnp.full(3, k + 5.0)
    for value in (jnp.ones(3), lambda x: x):

        def f(states, shared, x):
            shared[...] = value(x) * jnp.ones(3) if callable(value) else value
            return x, states

        with pytest.raises(TypeError, match=r"writes to argument 0 \(`shared`\), a Ref of shape"):
            sm.vmap2(f, in_axes=(None, 0))(STATES, ref, X)
        assert ref[...].tolist() == [6.0] * 3


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_a_ref_closed_over_is_read_as_it_is_now(chunk_size):
    ref = jax.new_ref(jnp.ones(3))

    def f(states, x):
        return ref[...] * x, states.set("v", states["v"] + ref[...].sum())

    mapped = sm.vmap2(f, chunk_size=chunk_size)
    for k in range(3):
        out, states = mapped(STATES, X)
        assert out.tolist() == (ref[...] * X[:, None]).tolist()
        assert states["v"] == ref[...].sum()
        assert jax.jit(lambda x: mapped(STATES, x)[0])(X).tolist() == out.tolist()
        ref[...] = jnp.full(3, k + 5.0)
    with pytest.raises(TypeError, match=r"(?s)reads the Ref `ref`.*not on all the devices.*Right"):
        sm.pmap2(f)(STATES, X)
    given = sm.pmap2(lambda states, ref, x: (ref[...] * x, states), in_axes=(None, 0))
    assert given(STATES, ref, X)[0].tolist() == (ref[...] * X[:, None]).tolist()


@pytest.mark.parametrize("how", HOWS)
def test_a_ref_closed_over_is_not_written(how):
    ref = jax.new_ref(jnp.zeros(()))

    def f(states, x):
        ref[...] = 1.0
        return x, states

    def added(states, x):
        jax.jit(lambda: ref.__setitem__(..., x))()
        return x, states

    for g in (f, added):
        with pytest.raises(TypeError, match=r"(?s)writes to the Ref `ref` of shape \(\).*Right: "):
            HOWS[how](g)(STATES, X)
    assert ref[...] == 0.0

    def make(key):
        ref[...] = 1.0
        return {"w": sm.ParamState(jnp.ones(3))}

    with pytest.raises(TypeError, match="writes to the Ref `ref`"):
        sm.vmap2_new_states(make, key=jr.key(0), axis_size=3)
    assert ref[...] == 0.0


def test_one_ref_is_given_once():
    ref = jax.new_ref(X)
    f = sm.vmap2(lambda states, a, b: (a[...] + b[...], states))
    with pytest.raises(ValueError, match=r"One Ref is argument 1 \(`b`\) and argument 0 \(`a`\)"):
        f(STATES, ref, ref)
    g = sm.vmap2(lambda states, a: (a[...] + ref[...].sum(), states))
    with pytest.raises(ValueError, match=r"argument 0 \(`a`\) and what the function closes over"):
        g(STATES, ref)
    assert g(STATES, X)[0].shape == (8,)


def test_where_a_ref_has_no_place():
    ref = jax.new_ref(X)
    with pytest.raises(TypeError, match=r"The output`? ?.*is a Ref, which can't leave a lane"):
        sm.vmap2(lambda states, ref: ([ref], states))(STATES, ref)
    with pytest.raises(TypeError, match="holds a Ref"):
        sm.ParamState(ref)
    with pytest.raises(ValueError, match="a Ref: give what is in it"):
        sm.States(v=sm.ShortTermState(X)).set("v", ref)

    def f(states, ref):
        return None, states.set("v", ref)

    with pytest.raises(ValueError, match="`v` holds arrays, and was given a Ref"):
        sm.vmap2(f)(STATES, ref)
    with pytest.raises(TypeError, match="container of the states holds a Ref, at `a`"):
        sm.vmap2(f)({"a": ref, "v": sm.ShortTermState(X)}, X)

    @jax.jit
    def traced(ref):
        with pytest.raises(TypeError, match="holds a Ref"):
            sm.ParamState(ref)
        with pytest.raises(TypeError, match="container of the states holds a Ref"):
            sm.vmap2(f)({"a": ref, "v": sm.ShortTermState(X)}, X)
        return 0

    traced(ref)
    with pytest.raises(TypeError, match="argument `gain` is a Ref"):
        sm.vmap2_new_states(lambda gain: {"w": sm.ParamState(gain[...])}, dict(gain=ref),
                            in_axes={"gain": 0})  # fmt: skip


def test_nothing_is_written_on_an_error():
    ref = jax.new_ref(X)

    def f(states, ref, x):
        ref[...] = ref[...] + 1
        raise RuntimeError("my own")

    with pytest.raises(RuntimeError, match="my own"):
        sm.vmap2(f)(STATES, ref, X)

    def g(states, ref, x):
        ref[...] = ref[...] + 1
        return x, states.set("v", x)

    with pytest.raises(sm.BatchAxisError, match="`v`"):
        sm.vmap2(g)(STATES, ref, X)
    assert ref[...].tolist() == X.tolist()


def test_in_a_scan():
    ref = jax.new_ref(jnp.zeros(()))

    def step(states, x):
        ref[...] = ref[...] + x
        return x, states

    sm.scan(step)(STATES, X)
    sm.scan(step)(STATES, X)
    assert ref[...] == 2 * X.sum()


def test_in_a_module_and_a_partial():
    ref = jax.new_ref(jnp.ones(()))

    def f(ref, states, x):
        return ref[...] * x, states

    for bound in (functools.partial(f, ref), jax.tree_util.Partial(f, ref)):
        mapped = sm.vmap2(bound)
        ref[...] = 1.0
        assert mapped(STATES, X)[0].tolist() == X.tolist()
        ref[...] = 2.0
        assert mapped(STATES, X)[0].tolist() == (2 * X).tolist()

    @jax.jit
    def outer(ref, x):
        return sm.vmap2(jax.tree_util.Partial(f, ref))(STATES, x)[0]

    assert outer(ref, X).tolist() == (2 * X).tolist()
