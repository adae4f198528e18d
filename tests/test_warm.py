"""The warm call: what it costs, counted, and that it is the same call as the first."""

import gc
import os
import pickle
import sys
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import statemap as sm
from statemap._overlay import Overlay


def names(n):
    return [f"s{i:04d}" for i in range(n)]


def context(n, shape=(8,)):
    return sm.States(
        {k: sm.ShortTermState(jnp.full(shape, float(i))) for i, k in enumerate(names(n))}
    )


def all_of(states, x):
    return x, states.update({k: states[k] * 0.5 + x for k in names(len(states))})


def two_of(states, x):
    first, last = names(len(states))[0], names(len(states))[-1]
    new = states[first] + states[last] + x
    return new, states.set(first, new)


def calls_of(f) -> list[str]:
    """The functions of statemap that a call enters."""
    seen = []

    def note(frame, event, arg):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(ROOT) and code.co_name != "<lambda>":
            seen.append(code.co_name)

    sys.setprofile(note)
    try:
        f()
    finally:
        sys.setprofile(None)
    return seen


ROOT = os.path.dirname(sm.__file__)


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("f", [all_of, two_of])
def test_the_python_work_of_a_warm_call_does_not_grow(f, donate):
    entered = {}
    for n in (3, 10, 100):
        mapping = sm.vmap2(f, state_in_axes={0: ...}, donate=donate)
        states, x = context(n), jnp.ones(8)
        for _ in range(3):
            _, states = mapping(states, x)
        entered[n] = calls_of(lambda: mapping(states, x))  # noqa: B023
    assert entered[3] == entered[10] == entered[100]
    assert entered[3][:1] == ["__call__"] and len(entered[3]) <= 8, entered[3]


def test_a_warm_call_costs_nothing_of_what_it_does_not_touch():
    mapping = sm.vmap2(two_of, state_in_axes={0: ...})
    states = context(100)
    _, states = mapping(states, jnp.ones(8))
    _, states = mapping(states, jnp.ones(8))
    _, after = mapping(states, jnp.ones(8))
    assert isinstance(after._values, Overlay)
    assert after._values.base is states._values.base  # what is not touched is not even copied


def test_an_overlay_is_a_context_like_any():
    mapping = sm.vmap2(two_of, state_in_axes={0: ...})
    old = context(5)
    expected = old
    states, x = old, jnp.arange(8.0)
    for _ in range(3):
        _, states = mapping(states, x)
        _, expected = two_of(expected, x)
    assert isinstance(states._values, Overlay)
    assert states == expected and not eqx.tree_equal(states, old)
    assert old == context(5)
    assert [p for p, _ in states] == [p for p, _ in expected] and len(states) == 5
    for key in names(5):
        np.testing.assert_array_equal(states[key], expected[key])
    assert len(states._values) == 5 and states._values[-1] is states["s0004"]
    assert pickle.loads(pickle.dumps(states)) == expected
    assert jax.tree.map(lambda a: a * 1, states) == expected
    assert states.set("s0001", x)["s0001"] is x and states.select("none") == sm.States()
    assert states.partition(sm.ShortTermState)[0] == expected
    assert repr(states) == repr(expected)
    assert jax.jit(lambda s: s)(states) == expected
    doubled, _ = jax.lax.scan(lambda s, _: (s, None), states, None, length=1)
    assert doubled == expected


def test_mappings_take_turns():
    one = sm.vmap2(two_of, state_in_axes={0: ...})
    other = sm.vmap2(lambda s, x: (None, s.set("s0001", s["s0002"] * x)), state_in_axes={0: ...})
    whole = sm.vmap2(all_of, state_in_axes={0: ...})
    states = expected = context(4)
    x = jnp.arange(8.0)
    for _ in range(4):
        for mapping in (one, other, other, whole, one):
            _, states = mapping(states, x)
        _, expected = two_of(expected, x)
        for _ in range(2):
            expected = expected.set("s0001", expected["s0002"] * x)
        _, expected = all_of(expected, x)
        _, expected = two_of(expected, x)
    assert eqx.tree_equal(states, expected, rtol=1e-6)


def test_what_is_only_written():
    mapping = sm.vmap2(lambda s, x: (s["s0002"], s.set("s0001", x)), state_in_axes={0: ...})
    states, x = context(4), jnp.arange(8.0)
    for k in range(4):
        out, states = mapping(states, x + k)
        assert states["s0001"].tolist() == (x + k).tolist()
        assert out.tolist() == [2.0] * 8 and states["s0003"].tolist() == [3.0] * 8
    assert mapping.lower(states, x).in_tree.num_leaves == 2


def test_another_signature_writes_other_states():
    def f(states, x):
        key = "s0001" if x.ndim else "s0002"
        return None, states.set(key, states[key] + x.sum())

    mapping = sm.vmap2(f, state_in_axes={0: ...})
    states = context(4)
    small, large = jnp.ones(8), jnp.ones((8, 2))
    for x in (small, small, large, large, small, large, small):
        _, states = mapping(states, x)
    assert states["s0001"][0] == 1 + 3 * 2 and states["s0002"][0] == 2 + 4


def test_other_calls_in_between():
    runs = []

    def f(states, x, scale=1.0):
        runs.append(1)
        return x * scale, states.set("s0000", states["s0000"] + x)

    mapping = sm.vmap2(f, state_in_axes={0: ...})
    states, x = context(2), jnp.ones(8)
    for _ in range(2):
        for args, kwargs in [((x,), {}), ((x, 2.0), {}), ((np.ones(8, np.float32),), {}),
                             ((x,), {"scale": jnp.ones(8)}), ((x, x), {})]:  # fmt: skip
            out, states = mapping(states, *args, **kwargs)
    assert states["s0000"].tolist() == [10.0] * 8
    assert len(runs) == 4  # an array of NumPy is like one of JAX
    grads = jax.grad(lambda x: mapping(states, x)[1]["s0000"].sum())(x)
    assert grads.tolist() == [1.0] * 8


def test_donation_in_warm_calls():
    mapping = sm.vmap2(two_of, state_in_axes={0: ...}, donate=True)
    states, x = context(4), jnp.ones(8)
    kept = states["s0001"]
    for _ in range(4):
        before, array = states, states["s0000"]
        _, states = mapping(states, x)
        assert array.is_deleted()
        with pytest.raises(sm.DonatedStatesError, match="reused its memory"):
            before["s0001"]
        with pytest.raises(sm.DonatedStatesError, match="reused its memory"):
            mapping(before, x)
    assert states["s0001"] is kept and not kept.is_deleted()
    with pytest.raises(ValueError, match="memory of state `s0000` is donated, and an argument"):
        mapping(states, states["s0000"])
    assert states["s0000"].tolist() == [16.0] * 8  # nothing was lost
    _, states = mapping(states, x)
    assert states["s0000"].tolist() == [20.0] * 8


def test_old_values_are_freed():
    mapping = sm.vmap2(two_of, state_in_axes={0: ...})
    states, x = context(3), jnp.ones(8)
    first = weakref.ref(states["s0000"])
    for _ in range(3):
        _, states = mapping(states, x)
    gc.collect()
    assert first() is None
    before = len(jax.live_arrays())
    for _ in range(1000):
        _, states = mapping(states, x)
    gc.collect()
    assert len(jax.live_arrays()) <= before  # fewer where garbage of other tests goes


@pytest.mark.parametrize("mapping", [sm.vmap2, sm.pmap2])
def test_a_warm_call_transfers_nothing(mapping):
    mapped = mapping(two_of, state_in_axes={0: ...})
    states, x = context(3), jnp.ones(8)
    for _ in range(2):
        x, states = mapped(states, x)
    with jax.transfer_guard("disallow"):
        for _ in range(3):
            x, states = mapped(states, x)


def test_pmap2_in_warm_calls():
    over, one = sm.pmap2(two_of, state_in_axes={0: ...}), sm.vmap2(two_of, state_in_axes={0: ...})
    states = others = context(3)
    for k in range(4):
        out, states = over(states, jnp.full(8, float(k)))  # not laid out: placed at each call
        same, others = one(others, jnp.full(8, float(k)))
        np.testing.assert_array_equal(out, same)
    assert len(states["s0000"].sharding.device_set) == 8
    for key in names(3):
        np.testing.assert_array_equal(states[key], others[key])
    moved = states.set("s0000", jnp.zeros(8))  # on one device
    out, again = over(moved, jnp.ones(8))
    assert len(again["s0000"].sharding.device_set) == 8


@pytest.mark.parametrize("donate", [(), (0,)])
def test_bytes_are_those_of_a_hand_written_program(donate):
    states, x = context(10), jnp.ones(8)
    given = {"donate": bool(donate), "state_in_axes": {0: ...}}

    def all_by_hand(values, x):
        return jax.vmap(lambda v, x: (x, {k: a * 0.5 + x for k, a in v.items()}))(values, x)

    def two_by_hand(a, b, x):
        return jax.vmap(lambda a, b, x: (a + b + x, a + b + x))(a, b, x)

    pairs = [
        (all_by_hand, ({k: states[k] for k in names(10)}, x), all_of),
        (two_by_hand, (states["s0000"], states["s0009"], x), two_of),
    ]
    for by_hand, args, f in pairs:
        expected = jax.jit(by_hand, donate_argnums=donate).lower(*args).compile()
        got = sm.vmap2(f, **given).lower(states, x).compile()
        for size in ("argument", "output", "temp", "alias"):
            name = f"{size}_size_in_bytes"
            sizes = getattr(got.memory_analysis(), name), getattr(expected.memory_analysis(), name)
            assert sizes[0] == sizes[1], (f, size)


def test_caches_are_bounded():
    mapping = sm.vmap2(lambda s, *xs: (len(xs), s))
    for k in range(200):
        mapping(sm.States(), *[jnp.ones(2)] * (k % 10 + 1))
    assert len(mapping._programs.made) == 10
    held = sm.States(v=sm.ShortTermState(jnp.ones(1000)))
    stepper = sm.vmap2(lambda s, x: (x, s.set("v", s["v"] + x)), axis_size=2, in_axes=None)
    array = weakref.ref(held["v"])
    for _ in range(3):
        _, held = stepper(held, jnp.ones(()))
    gc.collect()
    assert array() is None
