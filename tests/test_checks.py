"""Checks that Equinox makes while a program runs, in a lane: the error that one sees is Equinox's
own, as under `eqx.filter_jit`, wherever there is one of Equinox's around.
"""

import functools
import gc
import os
import subprocess
import sys
import textwrap
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.experimental import checkify

import statemap as sm
from statemap._checks import Checked, holds_check


# Equinox makes the class only where it raises it, and names no other way to it.
EquinoxRuntimeError = eqx._jit.EquinoxRuntimeError  # pyright: ignore
GOOD, BAD = jnp.arange(1.0, 9.0), jnp.arange(1.0, 9.0).at[5].set(-1.0)
ALL = {"state_in_axes": {0: ...}}
both = pytest.mark.parametrize("donate", [False, True])
MAPS = {
    "vmap2": sm.vmap2,
    "chunks": functools.partial(sm.vmap2, chunk_size=3),
    "pmap2": sm.pmap2,
    "pmap2 on some": functools.partial(sm.pmap2, devices=jax.devices()[:4]),
}
every_map = pytest.mark.parametrize("name", MAPS)


def checked(states, x):
    x = eqx.error_if(x, x < 0, "it is negative!")
    return x, states.set("a", states["a"] + x)


def fresh():
    return sm.States(a=sm.State(jnp.zeros(8)), untouched=sm.State(jnp.ones(8)))


def fails(call, match="it is negative!"):
    """Whether a call raises Equinox's own error, with the message first and nothing of XLA's."""
    with pytest.raises(EquinoxRuntimeError, match=match) as info:
        jax.block_until_ready(call())
    text = str(info.value)
    assert "CpuCallback" not in text and "do not appear to be using" not in text
    assert info.value.__cause__ is None and info.value.__suppress_context__
    assert 'x = eqx.error_if(x, x < 0, "it is negative!")' in text or match != "it is negative!"


@both
@every_map
@pytest.mark.parametrize("calls_before", [0, 1, 3])
def test_the_error_is_that_of_equinox(name, donate, calls_before):
    mapping, states = MAPS[name](checked, donate=donate, **ALL), fresh()
    for _ in range(calls_before):
        _, states = mapping(states, GOOD)
    before = np.asarray(states["a"]) if not donate else None
    fails(lambda: mapping(states, BAD))
    if donate:  # marked, or as it was where its memory was copied to devices
        try:
            assert states["a"].tolist() == [0.0] * 8 and "pmap2" in name and not calls_before
        except sm.DonatedStatesError:
            pass
        states = fresh()
    else:
        assert before is not None
        np.testing.assert_array_equal(states["a"], before)
    old = states["a"] + 0
    for _ in range(2):
        out, new = mapping(states, GOOD)
        assert out.tolist() == GOOD.tolist()
        np.testing.assert_array_equal(new["a"], old + GOOD)
        states, old = new, new["a"] + 0
    fails(lambda: mapping(states, BAD))


def test_it_is_the_very_error_that_filter_jit_raises():
    def by_hand(a, x):
        x = eqx.error_if(x, x < 0, "it is negative!")
        return x, a + x

    mapping = sm.vmap2(checked, **ALL)
    ends = []
    for call in (lambda: eqx.filter_jit(eqx.filter_vmap(by_hand))(jnp.zeros(8), BAD),
                 lambda: mapping(fresh(), BAD)):  # fmt: skip
        with pytest.raises(RuntimeError, match="it is negative!") as info:
            call()
        ends.append((type(info.value), str(info.value).split("equinox.EquinoxRuntimeError")[1]))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("seed", range(5))
def test_it_fails_where_any_lane_does(seed):
    """As in a loop over the lanes, for each of these lanes alone and for some at once."""
    mapping = sm.vmap2(checked, **ALL)
    bad = jr.bernoulli(jr.key(seed), 0.2, (8,))
    x = jnp.where(bad, -GOOD, GOOD)
    if bad.any():
        fails(lambda: mapping(fresh(), x))
    else:
        assert mapping(fresh(), x)[0].tolist() == x.tolist()


@pytest.mark.parametrize("index, message", [([0, 0, 2], "three"), ([0, 1, 0], "two")])
def test_which_of_several_messages(index, message):
    """That of the largest index, as under `eqx.filter_vmap`, also where that lane is right."""

    def f(states, x, i):
        messages = ["one", "two", "three"]
        x = eqx.branched_error_if(x, x < 0, i, messages)
        return x, states.set("a", states["a"] + x)

    states = sm.States(a=sm.State(jnp.zeros(3)))
    mapping, x, i = sm.vmap2(f, **ALL), jnp.array([-1.0, 1.0, 1.0]), jnp.array(index)
    for _ in range(2):
        fails(lambda: mapping(states, x, i), match=f"EquinoxRuntimeError: {message}")
    assert mapping(states, -x * x * 0 + 1, i)[0].tolist() == [1.0] * 3


def test_an_enumeration():
    class Results(eqx.Enumeration):
        good = "all is well"
        bad = "the solver gave up"

    def f(states, x):
        result = Results.where(x < 0, Results.bad, Results.good)
        x = result.error_if(x, result != Results.good)
        return (x, result), states.set("a", states["a"] + x)

    mapping = sm.vmap2(f, **ALL)
    for _ in range(3):
        (out, result), _ = mapping(fresh(), GOOD)
        assert out.tolist() == GOOD.tolist() and (result == Results.good).all()
    fails(lambda: mapping(fresh(), BAD), match="EquinoxRuntimeError: the solver gave up")


@every_map
def test_a_solve_of_diffrax_that_fails(name):
    diffrax = pytest.importorskip("diffrax")

    def solve(states, rate):
        term = diffrax.ODETerm(lambda t, y, args: -rate * y)
        solution = diffrax.diffeqsolve(
            term, diffrax.Tsit5(), 0.0, 1.0, 0.1, states["a"],
            stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-6), max_steps=16,
        )  # fmt: skip
        assert solution.ys is not None
        return solution.ts, states.set("a", solution.ys[-1])

    mapping = MAPS[name](solve, **ALL)
    start, rate = fresh().set("a", jnp.ones(8)), jnp.ones(8)
    _, states = mapping(start, rate)
    np.testing.assert_allclose(states["a"], jnp.exp(-rate), rtol=1e-2)
    _, states = mapping(states, rate)
    for _ in range(2):
        fails(lambda: mapping(states, rate.at[3].set(1e5)), match="maximum number of solver steps")
    _, states = mapping(states, rate)
    np.testing.assert_allclose(states["a"], jnp.exp(-3 * rate), rtol=1e-2)


class Layer(eqx.Module):
    w: sm.ParamState

    def __init__(self, scale, *, key):
        scale = eqx.error_if(scale, scale < 0, "no such scale!")
        self.w = sm.ParamState(scale * jr.normal(key, (2,)))

    def __call__(self, states, x):
        x = eqx.error_if(x, x < 0, "it is negative!")
        return states[self.w] * x, states


@pytest.mark.parametrize("new_states", [sm.vmap2_new_states, sm.pmap2_new_states])
def test_new_states(new_states):
    make = lambda scale: new_states(
        Layer, {"scale": scale}, key=jr.key(0), axis_size=8, in_axes={"scale": 0}
    )
    fails(lambda: make(BAD), match="no such scale!")
    _, states, _ = make(GOOD)
    draw = lambda scale, key: scale * jr.normal(key, (2,))
    expected = jax.jit(jax.vmap(draw))(GOOD, jr.split(jr.key(0), 8))
    np.testing.assert_allclose(states["w"], expected, rtol=1e-6)
    skeleton = jax.eval_shape(lambda: make(GOOD)[1])
    assert skeleton["w"].shape == (8, 2)


def test_map():
    population = sm.Map(Layer, init_map_size=8, in_axes=0)
    fails(
        lambda: population.init_all_states(scale=jnp.array(-1.0), key=jr.key(0)),
        match="no such scale!",
    )
    population, states = population.init_all_states(scale=jnp.array(1.0), key=jr.key(0))
    for _ in range(3):
        assert population(states, GOOD)[0].shape == (8, 2)
        fails(lambda: population(states, BAD))
    each = population.map(lambda model, states, x: model(states, x), in_axes=0)
    fails(lambda: each(states, BAD))


def test_a_reduction_that_checks():
    def mean(stacked, old):
        return eqx.error_if(stacked, (stacked < 0).any(), "it is negative!").mean(0)

    def f(states, x):
        return x, states.set("a", x)

    mapping = sm.vmap2(f, state_out_axes={sm.Reduce(mean): ...})
    states = sm.States(a=sm.State(0.0))
    for _ in range(3):
        assert mapping(states, GOOD)[1]["a"] == GOOD.mean()
        with pytest.raises(EquinoxRuntimeError, match="it is negative!"):
            mapping(states, BAD)


def test_arguments_by_keyword_and_numbers():
    runs = []

    def f(states, x, low=0.0):
        runs.append(1)
        x = eqx.error_if(x, x < low, "it is negative!")
        return x, states.set("a", states["a"] + x)

    mapping = sm.vmap2(f, in_axes=(0, None), **ALL)
    for low in (0.5, 0.25, 0.125):
        assert mapping(fresh(), GOOD, low)[0].tolist() == GOOD.tolist()
    (program,) = mapping._programs.made.items.values()  # for no value of the number
    assert type(program.jitted) is Checked and program.jitted._jitted._cached._cache_size() == 1
    assert mapping(fresh(), GOOD, np.float32(0.5))[0].tolist() == GOOD.tolist()
    assert len(runs) == 2  # a number of Python has a weak type
    with pytest.raises(EquinoxRuntimeError, match="it is negative!"):
        mapping(fresh(), GOOD, 3.0)
    named = sm.vmap2(checked, **ALL)
    for _ in range(2):
        assert named(fresh(), x=GOOD)[0].tolist() == GOOD.tolist()
        fails(lambda: named(fresh(), x=BAD))


def test_other_shapes_and_settings_in_turn():
    """Each asks the program of the other, which refuses to be traced."""
    runs = []

    def f(states, x):
        runs.append(1)
        return checked(states, x)

    mapping = sm.vmap2(f, **ALL)
    narrow = sm.States(a=sm.State(jnp.zeros(2)), untouched=sm.State(jnp.ones(2)))
    for _ in range(3):
        assert mapping(fresh(), GOOD)[1]["a"].tolist() == GOOD.tolist()
        assert mapping(narrow, GOOD[:2])[1]["a"].tolist() == [1.0, 2.0]
        with jax.default_matmul_precision("float32"):
            assert mapping(fresh(), GOOD)[1]["a"].tolist() == GOOD.tolist()
        fails(lambda: mapping(narrow, BAD[5:7]))
    assert len(runs) == 3


def test_under_an_outer_jit_the_outer_one_reports():
    mapping = sm.vmap2(checked, **ALL)
    outer = eqx.filter_jit(lambda states, x: mapping(states, x))
    for _ in range(2):
        assert outer(fresh(), GOOD)[1]["a"].tolist() == GOOD.tolist()
        fails(lambda: outer(fresh(), BAD))
    plain = jax.jit(lambda states, x: mapping(states, x))
    assert plain(fresh(), GOOD)[1]["a"].tolist() == GOOD.tolist()
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="it is negative!"):
        jax.block_until_ready(plain(fresh(), BAD))


@both
def test_derivatives(donate):
    mapping = sm.vmap2(checked, donate=donate, **ALL)

    def loss(x, states):
        _, states = mapping(states, x)
        return (states["a"] ** 2).sum()

    states = fresh()
    for _ in range(2):
        assert jax.grad(loss)(GOOD, states).tolist() == (2 * GOOD).tolist()
        fails(lambda: jax.grad(loss)(BAD, states))
        assert eqx.filter_jit(jax.grad(loss))(GOOD, states).tolist() == (2 * GOOD).tolist()
        fails(lambda: eqx.filter_jit(jax.grad(loss))(BAD, states))
        _, out = jax.jvp(lambda x: loss(x, states), (GOOD,), (jnp.ones(8),))
        assert out == (2 * GOOD).sum()
    assert states["a"].tolist() == [0.0] * 8


@every_map
def test_in_a_mapping_and_in_steps(name):
    inner = sm.vmap2(checked, **ALL)
    outer = MAPS[name](lambda states, x: inner(states, x), state_in_axes={1: ...}, in_axes=1)
    states = jax.tree.map(lambda a: jnp.repeat(a[:, None], 8, 1), fresh())
    x, bad = jnp.ones((8, 8)), jnp.ones((8, 8)).at[3, 4].set(-1.0)
    for _ in range(3):
        _, states = outer(states, x)
        fails(lambda: outer(states, bad))
    assert (states["a"] == 3.0).all()

    steps = sm.vmap2(sm.scan(checked), in_axes=1, **ALL)
    for _ in range(2):
        assert steps(fresh(), x)[1]["a"].tolist() == [8.0] * 8
        fails(lambda: steps(fresh(), bad))
    several = eqx.filter_jit(lambda states, x: sm.scan(inner)(states, x))
    for _ in range(2):
        assert several(fresh(), x)[1]["a"].tolist() == [8.0] * 8
        fails(lambda: several(fresh(), bad))


def test_a_check_whose_result_nobody_uses_is_none():
    def f(states, x):
        eqx.error_if(x, x < 0, "it is negative!")
        return x, states

    mapping = sm.vmap2(f, **ALL)
    assert mapping(fresh(), BAD)[0].tolist() == BAD.tolist()
    (program,) = mapping._programs.made.items.values()
    assert type(program.jitted) is type(jax.jit(f))


@jax.custom_jvp
def identity(x):
    return eqx.error_if(x, x < 0, "it is negative!")


identity.defjvp(lambda primals, tangents: (primals[0], tangents[0]))


def inside(f, *args):
    return holds_check(jax.make_jaxpr(f)(*args).jaxpr)


def test_what_holds_a_check():
    check = lambda x: eqx.error_if(x, x < 0, "it is negative!")
    around = [
        lambda x: x + check(x),
        jax.jit(check),
        jax.checkpoint(check),
        jax.vmap(check),
        jax.grad(lambda x: check(x).sum()),
        lambda x: identity(x),
        lambda x: jax.lax.scan(lambda c, y: (check(c), y), x, x)[0],
        lambda x: jax.lax.cond(x[0] > 0, check, lambda x: x, x),
        lambda x: jax.lax.while_loop(lambda x: check(x)[0] < 9, lambda x: x + 1, x),
        lambda x: eqx.internal.while_loop(
            lambda x: x[0] < 9, lambda x: check(x), x, kind="checkpointed", max_steps=4
        ),
    ]
    for f in around:
        assert inside(f, GOOD)
    for how in ("nan", "off"):
        assert not inside(lambda x: eqx.error_if(x, x < 0, "no", on_error=how), GOOD)
    host = lambda x: jax.pure_callback(np.sin, x, x, vmap_method="expand_dims")
    assert not inside(host, GOOD) and not inside(jax.jit(jnp.sin), GOOD)


def test_without_a_check_nothing_is_different(monkeypatch):
    monkeypatch.setattr(Checked, "__init__", lambda *_, **__: pytest.fail("there is no check"))

    def f(states, x):
        x = x + jax.pure_callback(np.sin, x, x, vmap_method="expand_dims")
        return x, states.set("a", states["a"] + x)

    mapping = sm.vmap2(f, **ALL)
    for _ in range(3):
        mapping(fresh(), GOOD)
    (program,) = mapping._programs.made.items.values()
    assert type(program.jitted) is type(program.donating) is type(jax.jit(f))


@both
def test_what_is_lowered_is_the_plain_program(donate):
    mapping = sm.vmap2(checked, donate=donate, **ALL)
    lowered = mapping.lower(fresh(), GOOD)
    assert len(jax.tree.leaves(lowered.in_avals)) == len(jax.tree.leaves(lowered.out_info)) == 2
    closed = mapping.get_jaxpr_by_cache(mapping.get_arg_cache_key(fresh(), GOOD))
    assert holds_check(closed.jaxpr) and len(closed.jaxpr.outvars) == 2
    assert mapping.plan(fresh(), GOOD)["a"].written
    assert "jit_checked" in lowered.as_text()


def test_the_arrays_go_with_the_mapping():
    """What Equinox and JAX keep of a function holds nothing of a mapping's."""

    class Held:
        pass

    def make():
        held, array = Held(), jnp.ones(1000)

        def f(states, x):
            assert held is not None
            return checked(states, x + array.sum())

        mapping = sm.vmap2(f, **ALL)
        for _ in range(3):
            mapping(fresh(), GOOD)
        fails(lambda: mapping(fresh(), -1000 * GOOD))
        return weakref.ref(held), weakref.ref(array), weakref.ref(f)

    refs = make()
    gc.collect()
    assert [r() for r in refs] == [None, None, None]

    def make_states():
        array = jnp.ones(1000)

        def layer(scale):
            return Layer(scale + array.sum(), key=jr.key(0))

        sm.vmap2_new_states(layer, {"scale": GOOD}, axis_size=8, in_axes={"scale": 0})
        return weakref.ref(array), weakref.ref(layer)

    refs = make_states()
    gc.collect()
    assert [r() for r in refs] == [None, None]


def test_one_program_for_all_warm_calls():
    mapping, states = sm.vmap2(lambda s, x: checked(s, x), **ALL), fresh()
    for _ in range(3):
        _, states = mapping(states, GOOD)
    fast = mapping._warm
    fails(lambda: mapping(states, BAD))
    _, states = mapping(states, GOOD)
    assert mapping._warm is fast and len(mapping._programs.made) == 1
    (program,) = mapping._programs.made.items.values()
    assert program.jitted._jitted._cached._cache_size() == 1


def test_random_streams_are_the_same_with_a_check():
    def f(states, x, check):
        noise, states = sm.random.normal(states, "rng", ())
        noise = eqx.error_if(noise, x < 0, "it is negative!") if check else noise
        return noise, states

    states = sm.States(rng=sm.RandomState(0))
    one = sm.vmap2(functools.partial(f, check=False))
    two = sm.vmap2(functools.partial(f, check=True))
    for _ in range(3):
        out, new = one(states, GOOD)
        out2, new2 = two(states, GOOD)
        np.testing.assert_allclose(out, out2, rtol=1e-6)
        assert (jr.key_data(new["rng"]) == jr.key_data(new2["rng"])).all()
        fails(lambda: two(states, BAD), match="it is negative!")
        states = new


@pytest.mark.parametrize("name", ["vmap2", "chunks"])
def test_checks_of_jax_are_left_alone(name):
    def f(states, x):
        checkify.check(x >= 0, "jax says it is negative!")
        return x, states.set("a", states["a"] + x)

    mapping = MAPS[name](f, **ALL)
    check = checkify.checkify(mapping)
    for _ in range(2):
        error, (_, new) = check(fresh(), GOOD)
        assert error.get() is None and new["a"].tolist() == GOOD.tolist()
        error, _ = check(fresh(), BAD)
        assert "jax says it is negative!" in error.get()


PROGRAM = """
    import jax, jax.numpy as jnp, equinox as eqx
    import statemap as sm

    def f(states, x, check):
        x = eqx.error_if(x, x < 0, "it is negative!") if check else x
        return x, states.set("a", states["a"] + x)

    states, x = sm.States(a=sm.State(jnp.zeros(2))), jnp.array([-1.0, 1.0])
    plain = sm.vmap2(lambda s, x: f(s, x, False), state_in_axes={0: ...})
    for call in (plain, plain, jax.jit(lambda s, x: plain(s, x))):
        assert call(states, x)[1]["a"].tolist() == [-1.0, 1.0]
    assert plain.lower(states, x).as_text()
    checked = sm.vmap2(lambda s, x: f(s, x, True), state_in_axes={0: ...})
"""
ENDS = {
    "nan": """
    for _ in range(3):
        out, new = checked(states, x)
        assert jnp.isnan(out).tolist() == jnp.isnan(new["a"]).tolist() == [True, True]
    """,
    "off": """
    for _ in range(3):
        assert checked(states, x)[0].tolist() == [-1.0, 1.0]
    """,
    "breakpoint": """
    by_hand = lambda x: eqx.error_if(x, x < 0, "it is negative!")
    ends = []
    for call in (lambda: checked(states, x), lambda: eqx.filter_jit(eqx.filter_vmap(by_hand))(x)):
        try:
            ends.append(call() and None)
        except NotImplementedError as error:  # Equinox (0.13.8) can't map its breakpoint
            ends.append(str(error).splitlines()[0])
    assert ends[0] == ends[1], ends
    """,
}


@pytest.mark.parametrize("how", ENDS)
def test_what_the_environment_says_instead(how):
    program = textwrap.dedent(PROGRAM) + textwrap.dedent(ENDS[how])
    env = {**os.environ, "EQX_ON_ERROR": how}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
