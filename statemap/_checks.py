"""Checks that Equinox makes while a program runs: `eqx.error_if`, `eqx.branched_error_if`, and what
is built on them, such as a solve of Diffrax that fails.

A failing check is an exception in a callback. What XLA and JAX make of it is long, and asks for
`eqx.filter_jit`, which waits for the program and raises Equinox's own error. So `eqx.filter_jit`
compiles and runs the programs that hold a check, and `jax.jit`, which is faster, all others.
"""

import weakref
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ._devices import Devices
from ._jaxpr import called_back, jaxprs_in, on_each_device, with_equations, with_jaxprs


def holds_check(jaxpr: Any) -> bool:
    """Whether a program calls back to Equinox."""
    return any(_is_check(eqn) or any(map(holds_check, jaxprs_in(eqn))) for eqn in jaxpr.eqns)


def _is_check(eqn: Any) -> bool:
    module = getattr(called_back(eqn), "__module__", None) or ""
    return module.partition(".")[0] == "equinox"


def fails_everywhere(jaxpr: Any, devices: Devices | None) -> Any:
    """A program whose checks fail on all devices, if they do.

    JAX (0.10, 0.12) calls back from the first device alone. If that fails, the others wait for
    what it should have sent them, and XLA ends the process.
    """
    if devices is None or devices.mesh.size == 1 or not holds_check(jaxpr):
        return jaxpr
    eqns = [
        on_each_device(eqn, devices.mesh)
        if _is_check(eqn)
        else with_jaxprs(eqn, lambda inner: fails_everywhere(inner, devices))
        for eqn in jaxpr.eqns
    ]
    return with_equations(jaxpr, eqns, jaxpr.outvars)


class Checked:
    """A function under `eqx.filter_jit`, called with pytrees of arrays and numbers.

    Equinox and JAX keep a function that was called so. It refers weakly to this object, and what
    was compiled of it is given up with this object.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        n_kept: int | None = None,
        trace: Callable[..., Any] | None = None,
        **options: Any,
    ):
        """**Arguments:**

        - `n_kept`: the memory of the arguments after so many is donated; of none by default.
        - `trace`: of the same function under `jax.jit`.
        - `options`: for `jax.jit`.
        """
        self._fn, self._n_kept, self.trace = fn, n_kept, trace
        this = weakref.ref(self)

        def call(kept: tuple, *donated: Any) -> Any:
            return this()._fn(*kept, *donated)  # pyright: ignore

        call.__name__ = call.__qualname__ = fn.__name__
        donate = "none" if n_kept is None else "warn-except-first"
        self._jitted: Callable[..., Any] = eqx.filter_jit(call, donate=donate, **options)
        # No documented attribute; tried with Equinox 0.13.8.
        clear = getattr(getattr(self._jitted, "_cached", None), "clear_cache", None)
        if clear is not None:
            weakref.finalize(self, clear).atexit = False

    def __call__(self, *args: Any) -> Any:
        args = jax.tree.map(_as_array, args)
        n_kept = len(args) if self._n_kept is None else self._n_kept
        return self._jitted(args[:n_kept], *args[n_kept:])


def _as_array(x: Any) -> Any:
    return x if eqx.is_array(x) else jnp.asarray(x)  # a number would be static
