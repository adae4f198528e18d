"""In the place of `jax.jit`, for most programs: traced as ever, and run operation by operation.

To compile a random program takes XLA a hundred times as long as to run it, and a fuzzer runs it
twice. Operations alone are compiled once for each shape, and shapes are few. Loops and branches
are Python's.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import statemap._program as engine


class Interpreted:
    """What `jax.jit(fn)` would be."""

    def __init__(self, fn: Any, **options: Any):
        self.jitted = jax.jit(fn, **options)

    def __call__(self, *args: Any) -> Any:
        leaves = jax.tree.leaves(args)
        if any(isinstance(x, jax.core.Tracer) for x in leaves):
            return self.jitted(*args)
        traced = self.jitted.trace(*args)
        closed = traced.jaxpr
        out = _run(closed.jaxpr, closed.consts, [jnp.asarray(x) for x in leaves])
        return jax.tree.unflatten(jax.tree.structure(traced.out_info), map(jnp.asarray, out))

    def trace(self, *args: Any) -> Any:
        return self.jitted.trace(*args)


class _Jax:
    """`jax`, as the engine's module sees it."""

    def __getattr__(self, name: str) -> Any:
        return Interpreted if name == "jit" else getattr(jax, name)


@contextlib.contextmanager
def interpreted(on: bool) -> Iterator[Any]:
    """Gives `jax.jit` or what stands for it, and makes the engine use that."""
    if not on:
        yield jax.jit
        return
    engine.jax = _Jax()
    try:
        yield Interpreted
    finally:
        engine.jax = jax


def _run(jaxpr: Any, consts: Any, args: Any) -> list[Any]:
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts)) | dict(zip(jaxpr.invars, args))
    read = lambda v: v.val if hasattr(v, "val") else env[v]
    for eqn in jaxpr.eqns:
        given = [read(v) for v in eqn.invars]
        rule = _RULES.get(eqn.primitive.name)
        if rule is not None:
            out = rule(eqn.params, given)
        else:
            out = eqn.primitive.bind(*given, **eqn.params)
            out = out if eqn.primitive.multiple_results else [out]
        env.update(zip(eqn.outvars, out))
    return [read(v) for v in jaxpr.outvars]


def _closed(name: str) -> Any:
    return lambda params, given: _run(params[name].jaxpr, params[name].consts, given)


def _scan(params: Any, given: list[Any]) -> list[Any]:
    n, m = params["num_consts"], params["num_carry"]
    consts, carry, xs = given[:n], given[n : n + m], given[n + m :]
    body, length = params["jaxpr"], params["length"]
    found: list[Any] = [None] * length
    for k in reversed(range(length)) if params["reverse"] else range(length):
        out = _run(body.jaxpr, body.consts, [*consts, *carry, *(x[k] for x in xs)])
        carry, found[k] = out[:m], out[m:]
    return [*carry, *(jnp.stack(ys) for ys in zip(*found))]


def _while(params: Any, given: list[Any]) -> list[Any]:
    n, m = params["cond_nconsts"], params["body_nconsts"]
    asks, does, carry = given[:n], given[n : n + m], given[n + m :]
    cond, body = params["cond_jaxpr"], params["body_jaxpr"]
    while np.all(_run(cond.jaxpr, cond.consts, [*asks, *carry])[0]):
        carry = _run(body.jaxpr, body.consts, [*does, *carry])
    return carry


def _cond(params: Any, given: list[Any]) -> list[Any]:
    last = len(params["branches"]) - 1
    branch = params["branches"][min(max(int(given[0]), 0), last)]
    return _run(branch.jaxpr, branch.consts, given[1:])


_RULES = {
    "jit": _closed("jaxpr"),
    "pjit": _closed("jaxpr"),
    "closed_call": _closed("call_jaxpr"),
    "custom_jvp_call": _closed("call_jaxpr"),
    "custom_vjp_call": _closed("call_jaxpr"),
    "checkpoint": lambda params, given: _run(params["jaxpr"], (), given),
    "remat2": lambda params, given: _run(params["jaxpr"], (), given),
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
