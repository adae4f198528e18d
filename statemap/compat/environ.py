"""Settings of a run, such as the time step `dt`: of a thread, or of a `with` block. (After
`brainstate.environ`, whose arguments [its page](https://brainstate.readthedocs.io) documents.)
"""

import contextlib
import os
import re
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._settings import note, register


I, T, DT, FIT, JIT_ERROR_CHECK = "i", "t", "dt", "fit", "jit_error_check"
PRECISION, PLATFORM, HOST_DEVICE_COUNT = "precision", "platform", "host_device_count"

DEFAULT_PRECISION = 32
SUPPORTED_PLATFORMS = ("cpu", "gpu", "tpu")
SUPPORTED_PRECISIONS = (8, 16, 32, 64, "bf16")


_MISSING: Any = object()
_COUNT_FLAG = "--xla_force_host_platform_device_count"


class _Local(threading.local):
    """The settings of this thread."""

    def __init__(self) -> None:
        self.settings: dict[Hashable, Any] = {}
        self.contexts: list[dict[str, Any]] = []  # the innermost last
        self.behaviours: dict[str, Callable[[Any], Any]] = {}


_local = _Local()


def get(key: Hashable, default: Any = _MISSING, desc: str | None = None) -> Any:
    """A setting: that of the innermost `context` that has it, or what was `set`."""
    if key == PLATFORM:
        return get_platform()
    if key == HOST_DEVICE_COUNT:
        return get_host_device_count()
    note(_settings, key)
    settings = _settings()
    if key in settings:
        return settings[key]
    if default is not _MISSING:
        return default
    known = ", ".join(f"`{k}`" for k in settings)
    raise KeyError(
        f"`{key}`{f' ({desc})' if desc else ''} is not set in this thread; {known} "
        f"{'are' if ',' in known else 'is'}. Set it with `environ.set({key}=...)`, or for a block "
        f"with `with environ.context({key}=...):`."
    )


def get_dt() -> Any:
    """The time step."""
    return get(DT)


def all() -> dict[Hashable, Any]:
    """All settings."""
    note(_settings, ...)
    return _settings()


def set(
    platform: str | None = None, host_device_count: int | None = None,
    precision: int | str | None = None, dt: Any = None, **kwargs: Any,
) -> None:  # fmt: skip
    """Sets settings, for this thread. `dt` is a number, which may have a unit."""
    is_number = hasattr(dt, "__float__") or hasattr(dt, "ndim")
    if dt is not None and not (is_number and np.ndim(dt) == 0):
        raise TypeError(f"`dt` is a number, not {dt!r}.")
    if precision is not None:
        set_precision(precision)
    if platform is not None:
        set_platform(platform)
    if host_device_count is not None:
        set_host_device_count(host_device_count)
    new = kwargs if dt is None else {**kwargs, DT: dt}
    _local.settings.update(new)
    for key, value in new.items():
        _behave(key, value)


def pop(key: Hashable, default: Any = _MISSING) -> Any:
    """Takes a setting back, and gives its value. Not within a `context` that has it."""
    if any(key in frame for frame in _local.contexts):
        raise ValueError(f"`{key}` is set by a `context` that is still open; it ends with that.")
    value = _local.settings.pop(key, default)
    if value is _MISSING:
        known = ", ".join(f"`{k}`" for k in _local.settings)
        raise KeyError(f"`{key}` is not set in this thread" + (f"; {known} is." if known else "."))
    return value


def reset() -> None:
    """Takes all settings and behaviours of this thread back."""
    if PRECISION in _local.settings:
        jax.config.update("jax_enable_x64", False)
    _local.settings.clear()
    _local.contexts.clear()
    _local.behaviours.clear()


@contextlib.contextmanager
def context(**kwargs: Any) -> Iterator[dict[Hashable, Any]]:
    """Sets settings for a `with` block, and gives all of them."""
    for key in (PLATFORM, HOST_DEVICE_COUNT):
        if key in kwargs:
            raise ValueError(f"`{key}` can't change for a block; use `environ.set_{key}(...)`.")
    with contextlib.ExitStack() as stack:
        if PRECISION in kwargs:
            # of this thread alone, unlike the configuration that `set_precision` changes
            stack.enter_context(jax.enable_x64(_bits(kwargs[PRECISION]) == 64))
        _local.contexts.append(kwargs)
        try:
            for key, value in kwargs.items():
                _behave(key, value)
            yield _settings()
        finally:
            # not `pop`: generators may leave their contexts in any order
            _local.contexts[:] = [c for c in _local.contexts if c is not kwargs]
            for key in _local.behaviours.keys() & kwargs.keys():
                before = get(key, None)
                if before is not None:
                    _behave(key, before)


def get_platform() -> str:
    """The platform that JAX runs on: `"cpu"`, `"gpu"` or `"tpu"`."""
    return jax.devices()[0].platform


def set_platform(platform: str) -> None:
    """Chooses the platform. Before JAX is first used."""
    if platform not in SUPPORTED_PLATFORMS:
        raise ValueError(f"`platform` is one of {SUPPORTED_PLATFORMS}, not {platform!r}.")
    jax.config.update("jax_platform_name", platform)
    _behave(PLATFORM, platform)


def get_host_device_count() -> int:
    """How many devices the CPU is taken for."""
    found = re.search(rf"{_COUNT_FLAG}=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return int(found.group(1)) if found else 1


def set_host_device_count(n: int) -> None:
    """Has the CPU taken for several devices. Before JAX is first used."""
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"A number of devices is a positive int, not {n!r}.")
    flags = re.sub(rf"{_COUNT_FLAG}=\S+", "", os.environ.get("XLA_FLAGS", "")).split()
    os.environ["XLA_FLAGS"] = " ".join([f"{_COUNT_FLAG}={n}", *flags])
    _behave(HOST_DEVICE_COUNT, n)


def set_precision(precision: int | str) -> None:
    """Sets the number of bits of `dftype()` and the like. With 64 JAX has its 64-bit types, and
    without does not.
    """
    jax.config.update("jax_enable_x64", _bits(precision) == 64)
    _local.settings[PRECISION] = precision
    _behave(PRECISION, precision)


def get_precision() -> int:
    """The number of bits."""
    return _bits(get(PRECISION))


# By precision: of floating-point numbers, integers, integers that are not negative and complex
# numbers; and how far two numbers that should be equal may be apart.
_NUMBERS: dict[str, tuple[Any, Any, Any, Any, np.ndarray]] = {
    "8": (jnp.float8_e5m2, np.int8, np.uint8, np.complex64, np.asarray(1e-2, np.float16)),
    "16": (np.float16, np.int16, np.uint16, np.complex64, np.asarray(1e-2, np.float16)),
    "bf16": (jnp.bfloat16, np.int16, np.uint16, np.complex64, np.asarray(1e-2, np.float16)),
    "32": (np.float32, np.int32, np.uint32, np.complex64, np.asarray(1e-5, np.float32)),
    "64": (np.float64, np.int64, np.uint64, np.complex128, np.asarray(1e-12, np.float64)),
}


def dftype() -> Any:
    """The dtype of floating-point numbers."""
    return _NUMBERS[str(get(PRECISION))][0]


def ditype() -> Any:
    """The dtype of integers."""
    return _NUMBERS[str(get(PRECISION))][1]


def dutype() -> Any:
    """The dtype of integers that are not negative."""
    return _NUMBERS[str(get(PRECISION))][2]


def dctype() -> Any:
    """The dtype of complex numbers."""
    return _NUMBERS[str(get(PRECISION))][3]


def tolerance() -> np.ndarray:
    """How far two numbers that should be equal may be apart."""
    return _NUMBERS[str(get(PRECISION))][4]


def register_default_behavior(key: Any, behavior: Any, replace_if_exist: bool = False) -> None:
    """Has a function called with each new value of a setting."""
    if not isinstance(key, str) or not callable(behavior):
        raise TypeError(f"Not the name of a setting and a function: {key!r}, {behavior!r}.")
    if key in _local.behaviours and not replace_if_exist:
        raise ValueError(f"`{key}` has a behaviour; to replace it: `replace_if_exist=True`.")
    _local.behaviours[key] = behavior


def unregister_default_behavior(key: str) -> bool:
    """Takes it back. Gives whether there was one."""
    return _local.behaviours.pop(key, None) is not None


def list_registered_behaviors() -> list[str]:
    """The settings that have one."""
    return list(_local.behaviours)


def _settings() -> dict[Hashable, Any]:
    """All settings, as they are looked up: what is compiled is for those that it read."""
    merged: dict[Hashable, Any] = {PRECISION: DEFAULT_PRECISION, **_local.settings}
    for frame in _local.contexts:
        merged.update(frame)
    return merged


register(_settings)


def _behave(key: Hashable, value: Any) -> None:
    try:
        if key in _local.behaviours:
            _local.behaviours[key](value)  # pyright: ignore
    except Exception as error:
        warnings.warn(f"The behaviour of `{key}` failed: {error}", RuntimeWarning, stacklevel=3)


def _bits(precision: int | str) -> int:
    if str(precision) not in _NUMBERS:
        raise ValueError(f"`precision` is one of {SUPPORTED_PRECISIONS}, not {precision!r}.")
    return 16 if precision == "bf16" else int(precision)
