"""A call that fails: the error arrives as it is, and a context is alive or marked, never dead."""

import random
import sys
import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import statemap as sm


XS = jnp.arange(3.0)
ALL = {"state_in_axes": {0: ...}}
both = pytest.mark.parametrize("donate", [False, True])
cold_and_warm = pytest.mark.parametrize("warm", [0, 1, 3])


def accumulate(states, x):
    return x, states.set("a", states["a"] + x)


def fresh():
    return sm.States(a=sm.State(jnp.zeros(3)))


def fate(states):
    """Whether a context is alive or marked. Dead without a mark is an error of JAX's."""
    try:
        return "alive" if np.isfinite(states["a"] + 0).all() else "other"
    except sm.DonatedStatesError:
        return "marked"


@both
@cold_and_warm
def test_nans_are_found(donate, warm):
    def f(states, x):
        return x, states.set("a", states["a"] + jnp.log(x))

    mapping = sm.vmap2(f, donate=donate, **ALL)
    states = fresh()
    with jax.debug_nans(True):
        for _ in range(warm):
            _, states = mapping(states, jnp.ones(3))
        with pytest.raises(FloatingPointError, match=r"invalid value \(nan\) encountered in log"):
            mapping(states, jnp.array([-1.0, 1.0, 1.0]))
        assert fate(states) == "alive" or donate and fate(states) == "marked"
        _, new = mapping(fresh(), jnp.ones(3))  # nothing is left behind
        assert new["a"].tolist() == [0.0] * 3
    assert jnp.isnan(mapping(fresh(), jnp.array([-1.0, 1.0, 1.0]))[1]["a"][0])


@both
@cold_and_warm
@pytest.mark.filterwarnings("ignore:.*error_if")
def test_an_error_of_equinox_is_raised_once(donate, warm):
    ran = []

    def count(x):
        ran.append(1)
        return x

    def f(states, x):
        x = jax.pure_callback(count, x, x, vmap_method="expand_dims")
        x = eqx.error_if(x, x < 0, "it is negative!")
        return x, states.set("a", states["a"] + x)

    mapping = sm.vmap2(f, donate=donate, **ALL)
    states = fresh()
    for _ in range(warm):
        _, states = jax.block_until_ready(mapping(states, jnp.ones(3)))
    ran.clear()
    with pytest.raises((RuntimeError, ValueError), match="it is negative!"):
        jax.block_until_ready(mapping(states, jnp.array([-1.0, 1.0, 1.0])))
    assert len(ran) == 1
    assert fate(states) == ("marked" if donate else "alive")
    _, new = mapping(fresh(), jnp.ones(3))
    assert new["a"].tolist() == [1.0] * 3


@both
def test_an_error_in_the_function_leaves_the_context(donate):
    def f(states, x):
        if x.ndim:
            raise RuntimeError("of the user's")
        return accumulate(states, x)

    mapping, states = sm.vmap2(f, donate=donate, **ALL), fresh()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="^of the user's"):
            mapping(states, jnp.ones((3, 2)))
        assert fate(states) == "alive"
        _, new = mapping(states if not donate else fresh(), XS)
        assert new["a"].tolist() == XS.tolist()


def entered(call):
    """The number of such moments in a call."""
    seen = []
    sys.setprofile(lambda frame, event, arg: seen.append(event))
    try:
        call()
    finally:
        sys.setprofile(None)
    return sum(event != "c_call" for event in seen)


def interrupted(call, after):
    """Raises KeyboardInterrupt in a call, after so many entries and exits of functions, where
    Python itself may raise it; and tells whether the call went so far.
    """
    seen = 0

    def note(frame, event, arg):
        nonlocal seen
        seen += event != "c_call"  # Python raises no interrupt before a lock is let go
        if seen == after:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(note)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("way", ["warm", "general"])
def test_an_interrupt_at_any_moment_of_a_donated_call(way):
    mapping = sm.vmap2(accumulate, donate=True, **ALL)
    plain = sm.vmap2(lambda s, x: (x, s.set("a", s["a"] + x)), donate=True, **ALL)
    _, warmed = mapping(fresh(), XS)
    _, warmed = mapping(warmed, XS)
    call = {
        "warm": lambda s: mapping(s, XS),
        "general": lambda s: plain(s, x=XS),
    }[way]
    call(fresh())
    states = fresh()
    span = entered(lambda: call(states))
    moments = random.Random(0)
    fates = set()
    for _ in range(500):
        states = fresh()
        fates.add((interrupted(lambda: call(states), moments.randint(1, span)), fate(states)))
    # One that comes after the end hits nobody.
    assert {(True, "alive"), (True, "marked")} <= fates
    assert fates <= {(True, "alive"), (True, "marked"), (False, "marked")}
    states = fresh()
    _, new = call(states)  # as before
    assert new["a"].tolist() == XS.tolist() and fate(states) == "marked"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_in_a_first_call():
    moments = random.Random(1)
    states = fresh()
    for _ in range(15):
        mapping = sm.vmap2(lambda s, x: (x, s.set("a", s["a"] + x)), donate=True, **ALL)
        if interrupted(lambda: mapping(states, XS), moments.randrange(1, 3000)):
            assert fate(states) in ("alive", "marked")
        states = states if fate(states) == "alive" else fresh()
        _, new = mapping(states, XS)
        assert new["a"].tolist() == XS.tolist()
        states = fresh()


def threaded(work, n):
    threads = [threading.Thread(target=work, args=(i,)) for i in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


def test_threads_that_make_the_first_call_trace_once():
    ran, results = [], []
    meet, together = threading.Barrier(2), threading.Barrier(2)

    def f(states, x):
        ran.append(1)
        try:
            together.wait(1.0)  # a second run would come here, too
        except threading.BrokenBarrierError:
            pass
        return accumulate(states, x)

    mapping, states = sm.vmap2(f, **ALL), fresh()

    def work(i):
        meet.wait()
        results.append(mapping(states, XS + i)[1]["a"].tolist())

    threaded(work, 2)
    assert len(ran) == 1 and sorted(results) == [XS.tolist(), (XS + 1).tolist()]


@pytest.mark.parametrize("warm", [False, True])
def test_eight_losers_of_a_donated_context(warm):
    mapping = sm.vmap2(accumulate, donate=True, **ALL)
    _, states = mapping(fresh(), XS)
    for _ in range(10):
        states = mapping(states, XS)[1] if warm else fresh()
        ends, start = [], threading.Barrier(9)

        def work(i):
            start.wait()
            try:
                ends.append(mapping(states, XS)[1])
            except Exception as error:
                ends.append(error)

        threaded(work, 9)
        errors = [e for e in ends if isinstance(e, Exception)]
        assert [type(e) for e in errors] == [sm.DonatedStatesError] * 8
        [states] = [e for e in ends if isinstance(e, sm.States)]


def test_a_context_from_outside_the_lane_is_refused():
    outside = sm.States(v=sm.State(jnp.zeros(3)), w=sm.State(jnp.zeros(2)))
    only_v = {"state_in_axes": {0: sm.PathContains("v")}}
    with pytest.raises(ValueError, match="`v` was given a value of another shape") as info:
        sm.vmap2(lambda s, x: (x, outside), **only_v)(outside, XS)
    assert "a context from outside the function" in info.value.__notes__[0]
    with pytest.raises(ValueError, match="`v` was given a value of another shape"):
        sm.vmap2(lambda s, x: (x, jax.tree.map(lambda a: a[None], s)), **only_v)(outside, XS)
    with pytest.raises(ValueError, match="`v` was given a value of another shape"):
        sm.vmap2(jax.jit(lambda s, x: (x, outside)), **only_v)(outside, XS)
    _, new = sm.vmap2(lambda s, x: (x, outside), in_axes=0)(outside, XS)  # of the same shape
    assert new["v"].tolist() == [0.0] * 3


INNER = sm.vmap2(lambda s, x: (x, s.set("w", s["w"] + x)), state_out_axes={0: ...})


@pytest.mark.parametrize(
    "around",
    [
        lambda f: f,
        jax.jit,
        lambda f: jax.jit(jax.checkpoint(f)),
        lambda f: lambda s, x: (lambda o, new: (o, new.set("v", new["v"] + 1)))(*f(s, x)),
        lambda f: lambda s, x: (lambda o, new: (o, jax.tree.map(lambda a: a * 1, new)))(*f(s, x)),
        lambda f: lambda s, x: (lambda o, new: (o, new.set("w", new["w"] * 1)))(*f(s, x)),
    ],
)
def test_what_a_mapping_inside_moved_is_accepted(around):
    f = around(INNER)
    mapping = sm.vmap2(lambda s, x: f(s, jnp.ones(4) * x), state_in_axes=
                       {0: sm.PathContains("v")}, state_out_axes={0: ...})  # fmt: skip
    states = sm.States(v=sm.State(jnp.zeros(3)), w=sm.State(0.0))
    for _ in range(2):
        _, new = mapping(states, XS)
        np.testing.assert_array_equal(new["w"], jnp.repeat(XS[:, None], 4, 1))
        assert new["v"].shape == (3,)


def test_only_what_was_moved_may_have_another_shape():
    def f(states, x):
        _, new = INNER(states, jnp.ones(4) * x)
        return x, jax.tree.map(lambda a: a[None], new)

    states = sm.States(v=sm.State(jnp.zeros(3)), w=sm.State(0.0))
    mapping = sm.vmap2(f, state_in_axes={0: sm.PathContains("v")}, state_out_axes={0: ...})
    with pytest.raises(ValueError, match="`v` was given a value of another shape"):
        mapping(states, XS)
