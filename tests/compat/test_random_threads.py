"""Streams under threads: every draw, and every call that uses a stream, has numbers of its own."""

import concurrent.futures
import threading

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from statemap import compat
from statemap.compat import _frames, random, ShortTermState, transform


THREADS, CALLS = 8, 12


def draw(_=None):
    return random.uniform(size=4)


def by_hand():
    """As a class of streams of its own would: it takes the value and leaves another."""
    keys = jr.split(random.DEFAULT.value)
    random.DEFAULT.value = keys[0]
    return jr.uniform(keys[1], (4,))


def wrapped():
    """By name, functions without arguments that draw from the global stream in one way each."""
    t = transform
    lanes = jnp.arange(3.0)
    x = jnp.asarray(1.0)
    function = t.StatefulFunction(draw)
    mapped = t.vmap2(draw)
    value = dict(has_aux=True, return_value=True)
    return {
        "plain": draw,
        "keys": lambda: jr.uniform(random.split_key(), (4,)),
        "jit": t.jit(draw),
        "vmap2": lambda: mapped(lanes),
        "vmap2 in jit": t.jit(lambda: mapped(lanes)),
        "jit in vmap2": (lambda f: lambda: f(lanes))(t.vmap2(t.jit(draw))),
        "scan": lambda: t.scan(lambda c, _: (c, draw()), 0, lanes)[1],
        "scan in jit": t.jit(lambda: t.for_loop(draw, lanes)),
        "while_loop": lambda: t.while_loop(
            lambda c: c[0] < 2, lambda c: (c[0] + 1, draw()), (0, jnp.zeros(4))
        )[1],
        "cond": lambda: t.cond(True, draw, lambda x: jnp.zeros(4), x),
        "grad": lambda: t.grad(lambda y: (y, draw()), **value)(x)[2],
        "by hand in grad": lambda: t.grad(lambda y: (y, by_hand()), **value)(x)[2],
        "by hand in jit": t.jit(by_hand),
        "jit in grad": lambda f=t.jit(draw): t.grad(lambda y: (y, f()), **value)(x)[2],
        "grad in jit": t.jit(lambda: t.grad(lambda y: (y, draw()), **value)(x)[2]),
        "jvp": lambda: t.jvp(lambda y: (y, draw()), (x,), (x,), has_aux=True)[2],
        "vjp": lambda: t.vjp(lambda y: (y, draw()), x, has_aux=True)[2],
        "checkpoint": lambda: t.checkpoint(draw)(x),
        "StatefulFunction": lambda: function(x),
    }


def in_threads(calls):
    """What the calls gave, made by all threads at once."""
    start = threading.Barrier(THREADS)

    def run(own):
        start.wait()
        return [call() for call in own]

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        outs = list(pool.map(run, [calls[i::THREADS] for i in range(THREADS)]))
    return [out for own in outs for out in own]


def rows(outs):
    return [tuple(row) for out in outs for row in np.asarray(out).reshape(-1, 4).tolist()]


NAMES = list(wrapped())
COMPILED = ["plain", "keys", *(name for name in NAMES if "jit" in name or "vmap2" in name)]


@pytest.mark.parametrize("name", NAMES)
def test_no_two_calls_draw_the_same(name):
    """The first calls of all threads; and calls of what is compiled."""
    call = wrapped()[name]
    random.seed(1)
    drawn = rows(in_threads([call] * THREADS * (CALLS if name in COMPILED else 2)))
    assert len(set(drawn)) == len(drawn)


def test_no_two_calls_of_many_kinds_draw_the_same():
    calls = list(wrapped().values()) * 2
    random.seed(2)
    drawn = rows(in_threads(calls))
    assert len(set(drawn)) == len(drawn)


def test_streams_of_ones_own():
    """Two streams that are used together in either order: nobody waits for ever."""
    a, b = random.RandomState(1), random.RandomState(2)
    first = transform.jit(lambda: jnp.concatenate([a.uniform(size=4), b.uniform(size=4)]))
    second = transform.jit(lambda: jnp.concatenate([b.uniform(size=4), a.uniform(size=4)]))
    drawn = rows(in_threads([first, second] * (THREADS * CALLS // 2)))
    assert len(set(drawn)) == len(drawn)


def test_the_numbers_are_those_of_one_thread():
    """In some order, the calls draw what as many calls draw one after the other."""
    calls = [transform.jit(draw), draw, transform.jit(lambda: draw())] * THREADS * 3
    random.seed(3)
    one = [call() for call in calls]
    keys = random.get_key_data()
    random.seed(3)
    many = in_threads(calls)
    assert (random.get_key_data() == keys).all()
    assert sorted(rows(many)) == sorted(rows(one))


def failing():
    def fail(_=None):
        draw()
        raise ZeroDivisionError("in the function")

    def fails_late():  # the cell refuses what comes out
        cell = ShortTermState(jnp.zeros(2))

        def step(c, _):
            cell.value = jnp.zeros(3) + draw().sum()
            return c, 0

        transform.scan(step, 0, jnp.arange(2))

    return {
        "jit": lambda: transform.jit(fail)(),
        "vmap2": lambda: transform.vmap2(fail)(jnp.arange(3.0)),
        "grad": lambda: transform.grad(fail)(1.0),
        "cond": lambda: transform.cond(True, fail, fail, 1.0),
        "scan": fails_late,
        "split_key": lambda: random.DEFAULT.split_key(backup=True),
    }


@pytest.mark.parametrize("name", failing())
def test_an_error_ends_the_turn(name):
    random.DEFAULT._backup = random.get_key()
    try:
        with pytest.raises((ZeroDivisionError, TypeError, ValueError), match="function|stay|kept"):
            failing()[name]()
    finally:
        random.DEFAULT._backup = None
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(draw).result(timeout=60).shape == (4,)


def test_what_only_looks_at_a_function_ends_its_turn():
    mapped, jitted, x = transform.vmap2(draw), transform.jit(draw), jnp.arange(3.0)
    mapped(x), jitted()
    mapped.plan(x), mapped.lower(x), mapped.get_arg_cache_key(x), jitted.lower(), jitted.trace()
    jitted.eval_shape(), transform.eval_shape(draw), transform.make_jaxpr(draw)(1.0)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(draw).result(timeout=60).shape == (4,)


class Counted:
    """A lock that counts how often it is taken."""

    def __init__(self):
        self.lock, self.count = threading.RLock(), 0

    def acquire(self):
        self.count += 1
        return self.lock.acquire()

    def release(self):
        self.lock.release()


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setattr(_frames, "LOCK", lock := Counted())
    return lock


def test_calls_that_use_no_stream_take_no_turn(counted):
    cell = ShortTermState(jnp.zeros(3))
    axes = {0: ShortTermState}

    def step(x=1.0):
        cell.value = cell.value + x

    mapped = transform.vmap2(step, state_in_axes=axes, state_out_axes=axes)
    for call in (
        transform.jit(step),
        lambda: mapped(jnp.ones(3)),
        lambda: transform.for_loop(step, jnp.ones(2)),
        lambda: transform.grad(lambda x: (cell.value * x).sum())(1.0),
    ):
        call(), call()
    assert counted.count == 0
    for k, call in enumerate(wrapped().values()):
        call()
        assert counted.count == k + 1  # once a call, whatever is drawn in it


def test_a_context_that_is_written_back_has_its_turn(counted):
    _, states = compat.to_functional(draw)
    assert counted.count == 0
    compat.from_functional(draw, states)
    assert counted.count == 1 and _frames.local.lock is None
