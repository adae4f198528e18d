"""What a lane merely passes on is as it was, whatever it is passed on through.

The law: of a function that writes `v` alone, through any transform, in chunks or not, and with any
`state_out_axes`, the plan says that `v` is written, and every other state is the same array.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

import statemap as sm


def add(states):
    return states.set("v", states["v"] + states["w"])


def carry(body, n, **kwargs):
    return lambda s: jax.lax.scan(lambda s, _: (body(s), None), s, None, length=n, **kwargs)[0]


def counted(f, until):
    """A `while_loop` of two rounds."""
    return lambda s: jax.lax.while_loop(
        lambda c: c[0] < until(c[1]), lambda c: (c[0] + 1, f(c[1])), (0.0, s)
    )[1]


def two(_):
    return 2.0


def two_by_lane(states):
    return 2 + 0 * states["v"]


def custom_jvp(f):
    @jax.custom_jvp
    def g(s):
        return f(s)

    g.defjvp(lambda primals, tangents: (g(*primals), *tangents))
    return g


def custom_vjp(f):
    @jax.custom_vjp
    def g(s):
        return f(s)

    g.defvjp(lambda s: (g(s), None), lambda _, cotangent: (cotangent,))
    return g


def custom_vmap(f):
    @jax.custom_batching.custom_vmap
    def g(s):
        return f(s)

    @g.def_vmap
    def rule(n, batched, s):
        axes = jax.tree.map(lambda b: 0 if b else None, batched[0])
        return jax.vmap(f, in_axes=(axes,))(s), jax.tree.map(lambda _: True, batched[0])

    return g


def grad_of_scan(f):
    def loss(x, s):
        s = carry(f, 2)(s)
        return s["v"] * x, s

    return lambda s: jax.grad(loss, has_aux=True)(1.0, s)[1]


def with_w_from_outside(f):
    def loss(w, s):
        return w * 2, jax.jit(f)(s.set("w", w)).set("w", s["w"])

    return lambda s: jax.grad(loss, has_aux=True)(s["w"], s)[1]


def partitioned(f):
    def g(s):
        params, rest = s.partition(sm.ParamState, ...)
        return f(rest.merge(params))

    return g


def checked(f):
    def g(s):
        s = f(s)
        return s.set("v", eqx.error_if(s["v"], s["v"] > 1e9, "large"))

    return g


reads = sm.vmap2(lambda s, x: (x + s["w"], s))
passes = sm.vmap2(lambda s, x: (x, s))
twice = jnp.ones(2)

WRAPPERS = {
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "filter_jit": eqx.filter_jit,
    "jit_checkpoint": lambda f: jax.jit(lambda s: jax.checkpoint(f)(s)),
    "scan": lambda f: carry(f, 2),
    "scan_unrolled": lambda f: carry(f, 4, unroll=2),
    "jit_scan_jit": lambda f: jax.jit(carry(jax.jit(f), 2)),
    "scan_cond": lambda f: carry(WRAPPERS["cond_lane"](f), 2),
    "while": lambda f: counted(f, two),
    "while_cond": lambda f: counted(WRAPPERS["cond_jit"](f), two_by_lane),
    "while_lane": lambda f: counted(f, two_by_lane),
    "while_jit": lambda f: counted(jax.jit(f), two_by_lane),
    "fori": lambda f: lambda s: jax.lax.fori_loop(0, 2, lambda i, s: f(s), s),
    "fori_dynamic": lambda f: (
        lambda s: jax.lax.fori_loop(0, s["w"].astype(int), lambda i, s: f(s), s)
    ),
    "cond": lambda f: lambda s: jax.lax.cond(s["w"] > 0, f, lambda s: s, s),
    "cond_lane": lambda f: lambda s: jax.lax.cond(s["v"] >= 0, f, lambda s: s, s),
    "cond_jit": lambda f: lambda s: jax.lax.cond(s["v"] >= 0, jax.jit(f), lambda s: s, s),
    "cond_checkpoint": lambda f: (
        lambda s: jax.lax.cond(s["v"] >= 0, jax.checkpoint(f), jax.jit(lambda s: s), s)
    ),
    "switch": lambda f: (
        lambda s: jax.lax.switch(s["v"].astype(int), [f, lambda s: s, jax.jit(f)], s)
    ),
    "custom_jvp": custom_jvp,
    "custom_jvp_scan": lambda f: carry(custom_jvp(f), 2),
    "custom_vjp": custom_vjp,
    "custom_vjp_grad": lambda f: (
        lambda s: jax.grad(lambda x: (x, custom_vjp(f)(s)), has_aux=True)(1.0)[1]
    ),
    "custom_vmap": custom_vmap,
    "grad": lambda f: lambda s: jax.grad(lambda w: (w * 2, f(s)), has_aux=True)(s["w"])[1],
    "grad_jit": with_w_from_outside,
    "grad_scan": grad_of_scan,
    "jvp": lambda f: lambda s: jax.jvp(lambda x: (x * 2, f(s)), (1.0,), (1.0,))[0][1],
    "vjp": lambda f: lambda s: jax.vjp(lambda x: (x * s["v"], f(s)), 1.0, has_aux=True)[2],
    "linearize": lambda f: (
        lambda s: jax.linearize(lambda x: (x * s["v"], f(s)), 1.0, has_aux=True)[2]
    ),
    "partition": partitioned,
    "tree_map": lambda f: lambda s: jax.tree.map(lambda x: x, f(s)),
    "error_if": checked,
    "map_after": lambda f: lambda s: passes(f(s), twice)[1],
    "map_before": lambda f: lambda s: f(reads(s, twice)[1]),
}
OUT = {
    "none": {},
    "all on 0": {0: ...},
    "several": {1: sm.LongTermState, None: sm.ParamState},
}


def context(n=4):
    return sm.States(
        v=sm.ShortTermState(jnp.zeros(n)),
        w=sm.ParamState(2.0),
        r=sm.RandomState(0),
        q=sm.RandomState(jax.random.split(jax.random.key(1), n), tag="q"),
        idle=sm.ShortTermState(jnp.ones((n, 2))),
        shared=sm.LongTermState({"a": jnp.ones(3), "b": jnp.arange(2)}),
    )


STATES, XS = context(), jnp.ones(4)  # jax compiles the same little programs for all of these
IN = {0: sm.Any(sm.ShortTermState, "q")}


def arrays_of(states):
    """The arrays of each state, keys as the data that is stored."""
    return {path: jax.tree.leaves(state.data) for path, state in states}


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_what_is_not_written_is_as_it_was(wrapper, chunk_size):
    f = wrapper(add)
    before = arrays_of(STATES)
    for name, out in OUT.items():
        mapped = sm.vmap2(
            lambda s, x: (x, f(s)), state_in_axes=IN, state_out_axes=out, chunk_size=chunk_size
        )
        plan = mapped.plan(STATES, XS)
        assert [row.path for row in plan if row.written] == ["v"], name
        assert [row.path for row in plan if row.drawn] == [], name
        _, new = mapped(STATES, XS)
        after = arrays_of(new)
        for path, arrays in before.items():
            same = [a is b for a, b in zip(arrays, after[path], strict=True)]
            assert all(same) if path != ("v",) else not any(same), (name, path)
        assert new["v"].tolist() in ([2.0] * 4, [4.0] * 4, [8.0] * 4), name


def test_there_are_thirty_of_them():
    assert len(WRAPPERS) >= 30


@pytest.mark.parametrize("name", ["jit", "scan", "while_lane", "cond_lane", "switch", "map_after"])
def test_over_devices(name):
    f = WRAPPERS[name](add)
    mapped = sm.pmap2(lambda s, x: (x, f(s)), state_in_axes=IN, state_out_axes={0: ...})
    states = context(8)
    assert [row.path for row in mapped.plan(states, jnp.ones(8)) if row.written] == ["v"]
    for _ in range(2):
        _, new = mapped(states, jnp.ones(8))
        assert states.set("v", new["v"]) == new  # to the bit; what goes in lies on the devices


@pytest.mark.parametrize("around", ["scan", "while", "fori_dynamic", "cond_lane", "jit_scan_jit"])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_a_stream_that_is_drawn_from_in_there_moves_on_once(around, chunk_size):
    def draw(states):
        x, states = sm.random.normal(states, "r")
        return states.set("v", states["v"] + x)

    f = WRAPPERS[around](draw)
    mapped = sm.vmap2(lambda s, x: (x, f(s)), state_in_axes=IN, chunk_size=chunk_size)
    plan = mapped.plan(STATES, XS)
    assert [row.path for row in plan if row.written] == ["r", "v"]
    _, new = mapped(STATES, XS)
    assert new["r"] == jax.random.split(STATES["r"], 5)[0]
    assert len(set(new["v"].tolist())) == 4
    assert arrays_of(new)[("q",)][0] is arrays_of(STATES)[("q",)][0]


def test_a_random_state_that_is_looked_up_and_put_back_is_passed_on():
    states = sm.States(rng=sm.RandomState(0), v=sm.ShortTermState(jnp.zeros(3)))

    def step(states, x):
        again = states.set("rng", states["rng"])
        return x, again.set("v", states["v"] + x)

    mapped = sm.vmap2(step, state_in_axes={0: sm.ShortTermState})
    row = mapped.plan(states, jnp.ones(3))["rng"]
    assert not row.drawn and not row.written
    _, new = mapped(states, jnp.ones(3))
    assert (jr.key_data(new["rng"]) == jr.key_data(states["rng"])).all()


def test_a_key_that_is_drawn_from_and_put_back_is_used():
    states = sm.States(rng=sm.RandomState(0))

    def step(states, x):
        return x + jr.normal(states["rng"]), states.set("rng", states["rng"])

    mapped = sm.vmap2(step)
    assert mapped.plan(states, jnp.ones(3))["rng"].drawn
