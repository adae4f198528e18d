"""The shim's settings."""

import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from statemap._settings import now, reads
from statemap.compat import environ


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.setattr(environ, "_local", environ._Local())


def test_set_and_get():
    environ.set(dt=0.1, fit=True)
    assert environ.get("dt") == environ.get_dt() == 0.1 and environ.get("fit") is True
    assert environ.all() == {"precision": 32, "dt": 0.1, "fit": True}
    environ.set(dt=0.2)
    assert environ.get_dt() == 0.2
    assert environ.pop("dt") == 0.2 and environ.pop("dt", None) is None
    assert environ.get("dt", None) is None
    environ.set(dt=jnp.asarray(0.1))
    assert environ.get_dt() == jnp.asarray(0.1)


def test_what_is_not_set():
    with pytest.raises(KeyError, match=r"`dt` is not set in this thread; `precision` is\."):
        environ.get_dt()
    environ.set(fit=True)
    with pytest.raises(KeyError, match=r"`t` \(the time\) is not set.*`precision`, `fit` are"):
        environ.get("t", desc="the time")
    with pytest.raises(KeyError, match="`dt` is not set in this thread; `fit` is"):
        environ.pop("dt")


@pytest.mark.parametrize("dt", [jnp.ones(3), [0.1], "0.1"])
def test_the_time_step_is_a_number(dt):
    with pytest.raises(TypeError, match="`dt` is a number, not"):
        environ.set(dt=dt)


def test_contexts_nest():
    environ.set(dt=0.1)
    with environ.context(dt=0.2, t=1.0) as settings:
        assert settings == {"precision": 32, "dt": 0.2, "t": 1.0}
        with environ.context(t=2.0):
            assert environ.get("t") == 2.0 and environ.get_dt() == 0.2
        assert environ.get("t") == 1.0
        environ.set(dt=0.3)  # below the context
        assert environ.get_dt() == 0.2
        with pytest.raises(ValueError, match="`dt` is set by a `context` that is still open"):
            environ.pop("dt")
    assert environ.get_dt() == 0.3 and environ.get("t", None) is None


def test_contexts_end_with_an_exception_and_in_any_order():
    with pytest.raises(RuntimeError, match="inside"), environ.context(dt=0.2):
        raise RuntimeError("inside")
    assert environ.get("dt", None) is None
    one, two = environ.context(dt=1.0), environ.context(dt=2.0)
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert environ.get_dt() == 2.0
    two.__exit__(None, None, None)
    assert environ.get("dt", None) is None


def test_what_a_context_can_not_set():
    for key in ("platform", "host_device_count"):
        with pytest.raises(ValueError, match=f"`{key}` can't change for a block"):
            with environ.context(**{key: 1}):
                pass


def test_settings_are_of_a_thread():
    environ.set(dt=0.1)
    seen = []

    def other():
        seen.append(environ.get("dt", None))
        with environ.context(dt=0.5):
            seen.append(environ.get_dt())

    with environ.context(dt=0.2):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert environ.get_dt() == 0.2
    assert seen == [None, 0.5]


def test_reset():
    environ.set(dt=0.1)
    with environ.context(t=1.0):
        environ.reset()
        assert environ.all() == {"precision": 32}
    assert environ.all() == {"precision": 32}


@pytest.mark.parametrize(
    "precision, bits, floats, ints, complexes, tolerance",
    [
        (64, 64, np.float64, np.int64, np.complex128, 1e-12),
        (32, 32, np.float32, np.int32, np.complex64, 1e-5),
        ("32", 32, np.float32, np.int32, np.complex64, 1e-5),
        (16, 16, np.float16, np.int16, np.complex64, 1e-2),
        ("bf16", 16, jnp.bfloat16, np.int16, np.complex64, 1e-2),
        (8, 8, jnp.float8_e5m2, np.int8, np.complex64, 1e-2),
    ],
)
def test_precision(precision, bits, floats, ints, complexes, tolerance):
    with environ.context(precision=precision):
        assert environ.get_precision() == bits
        assert environ.dftype() == floats and environ.ditype() == ints
        assert environ.dctype() == complexes
        assert np.dtype(environ.dutype()).itemsize == np.dtype(ints).itemsize
        np.testing.assert_allclose(environ.tolerance(), tolerance, rtol=1e-3)
        assert jax.config.jax_enable_x64 == (bits == 64)
    assert environ.get_precision() == 32 and not jax.config.jax_enable_x64


def test_precision_is_of_jax_too():
    try:
        environ.set(precision=64)
        assert jnp.zeros(1).dtype == np.float64 and environ.get("precision") == 64
        environ.reset()
        assert jnp.zeros(1).dtype == np.float32
    finally:
        jax.config.update("jax_enable_x64", False)
    with jax.enable_x64(True):
        assert environ.get_precision() == 32  # brainstate's own, where it is not set
    with pytest.raises(ValueError, match=r"`precision` is one of \(8, 16, .*, not 24"):
        environ.set_precision(24)
    with pytest.raises(ValueError, match="`precision` is one of"):
        with environ.context(precision="half"):
            pass


def test_platform_and_devices(monkeypatch):
    assert environ.get("platform") == environ.get_platform() == "cpu"
    assert environ.get("host_device_count") == 8  # of tests/conftest.py
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_force_host_platform_device_count=8")
    environ.set(host_device_count=3, platform="cpu")
    assert environ.get_host_device_count() == 3
    assert sorted(os.environ["XLA_FLAGS"].split()) == [
        "--xla_a=1", "--xla_force_host_platform_device_count=3"
    ]  # fmt: skip
    monkeypatch.delenv("XLA_FLAGS")
    assert environ.get_host_device_count() == 1
    with pytest.raises(ValueError, match=r"`platform` is one of .*, not 'npu'"):
        environ.set_platform("npu")
    with pytest.raises(ValueError, match="a positive int, not 0"):
        environ.set_host_device_count(0)


def test_behaviours():
    seen = []
    environ.register_default_behavior("dt", seen.append)
    assert environ.list_registered_behaviors() == ["dt"]
    with pytest.raises(ValueError, match="`dt` has a behaviour"):
        environ.register_default_behavior("dt", seen.append)
    with pytest.raises(TypeError, match="Not the name of a setting and a function: 'dt', 3"):
        environ.register_default_behavior("dt", 3)
    environ.set(dt=0.1, other=1)
    with environ.context(dt=0.2):
        pass
    assert seen == [0.1, 0.2, 0.1]
    environ.register_default_behavior("dt", lambda dt: 1 / 0, replace_if_exist=True)
    with pytest.warns(RuntimeWarning, match="The behaviour of `dt` failed: division by zero"):
        environ.set(dt=0.5)
    assert environ.get_dt() == 0.5
    assert environ.unregister_default_behavior("dt")
    assert not environ.unregister_default_behavior("dt")


def names(read):
    return {name for _, name in read}


def test_what_is_noted_comes_from_outside():
    environ.set(dt=0.1)
    with environ.context(fit=True), reads() as seen:
        assert environ.get("t", None) is None
        with environ.context(i=3, fit=False):
            assert environ.get("i") == 3 and environ.get_dt() == 0.1 and not environ.get("fit")
    assert names(seen) == {"dt", "t"}
    with reads() as every:
        environ.all()
    assert names(every) == {...}
    assert holds(seen) and holds(every)
    with environ.context(t=0.0):
        assert not holds(seen)
    with environ.context(i=4):
        assert holds(seen) and not holds(every)
    environ.set(dt=0.2)
    assert not holds(seen)


def holds(read):
    return now(read) == tuple(read.values())


def test_settings_are_compared_by_value_and_type():
    with environ.context(t=jnp.asarray(1.0), dt=0.1), reads() as seen:
        environ.get("t"), environ.get("dt")
    with environ.context(t=jnp.asarray(1.0), dt=0.05 * 2):
        assert holds(seen)
    with environ.context(t=jnp.asarray(2.0), dt=0.1):
        assert not holds(seen)
    with environ.context(t=jnp.asarray(1.0), dt=np.float32(0.1)):
        assert not holds(seen)


def test_reads_within_reads():
    with environ.context(a=1), reads() as outer:
        with environ.context(b=2), reads() as inner:
            environ.get("a"), environ.get("b")
    assert names(outer) == {"a"} and names(inner) == {"a", "b"}


def test_settings_may_have_units():
    unit = pytest.importorskip("brainunit")
    dt = 0.1 * unit.ms
    environ.set(dt=dt)
    assert environ.get_dt() is dt
    with environ.context(dt=2 * dt, t=jnp.ones(2) * unit.second):
        assert environ.get_dt() == 0.2 * unit.ms and environ.get("t").shape == (2,)
    with pytest.raises(TypeError, match="`dt` is a number, not"):
        environ.set(dt=jnp.ones(2) * unit.ms)
