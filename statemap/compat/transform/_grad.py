"""`grad` and its relatives. (After [brainstate](https://brainstate.readthedocs.io), which has the
same names, arguments and results.)
"""

import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._frames import Frame, in_turn, is_cell, streams, write_all
from .._lift import run
from ..random._keys import as_key
from ._arguments import left_out, MISSING
from ._gradient import GradientTransform


Nums = int | Sequence[int] | None
Flag = bool | None


def grad(
    fun: Any = MISSING, grad_states: Any = None, argnums: Nums = None,
    holomorphic: Flag = False, allow_int: Flag = False, has_aux: Flag = None,
    return_value: Flag = False, unit_aware: bool = False, check_states: bool = True,
    **kwargs: Any,
) -> Any:  # fmt: skip
    """[brainstate's `grad`](https://brainstate.readthedocs.io), of a function that uses cells."""
    return _derivative(_autodiff("grad", unit_aware), **locals())


def vector_grad(
    func: Any = MISSING, grad_states: Any = None, argnums: Nums = None, return_value: bool = False,
    has_aux: Flag = None, unit_aware: bool = False, check_states: bool = True, **kwargs: Any,
) -> Any:  # fmt: skip
    """[brainstate's `vector_grad`](https://brainstate.readthedocs.io), of the sum of all."""
    given = locals()
    if unit_aware or "brainunit" in sys.modules:  # which takes units off as well
        transform = functools.partial(_autodiff("vector_grad", True), unit_aware=unit_aware)
        return _derivative(transform, **given)
    return _derivative(_vector_grad, **given)


def fwd_grad(
    func: Any = MISSING, grad_states: Any = None, argnums: Nums = None, return_value: bool = False,
    has_aux: Flag = None, tangent_size: int | None = None,
    drct_der_clip: float | None = None, key: Any = None, **kwargs: Any,
) -> Any:  # fmt: skip
    """[brainstate's `fwd_grad`](https://brainstate.readthedocs.io), by random directions."""
    return _derivative(_fwd_grad, **locals())


def jacrev(
    fun: Any = MISSING, grad_states: Any = None, argnums: Nums = None, has_aux: Flag = None,
    return_value: bool = False, holomorphic: bool = False, allow_int: bool = False,
    unit_aware: bool = False, check_states: bool = True, **kwargs: Any,
) -> Any:  # fmt: skip
    """[brainstate's `jacrev`](https://brainstate.readthedocs.io), of any outputs by any cells."""
    return _derivative(_autodiff("jacrev", unit_aware), **locals())


jacobian = jacrev


def jacfwd(
    func: Any = MISSING, grad_states: Any = None, argnums: Nums = None, has_aux: Flag = None,
    return_value: bool = False, holomorphic: bool = False, unit_aware: bool = False,
    check_states: bool = True, **kwargs: Any,
) -> Any:  # fmt: skip
    """[brainstate's `jacfwd`](https://brainstate.readthedocs.io), of any outputs by any cells."""
    return _derivative(_autodiff("jacfwd", unit_aware), **locals())


def hessian(
    func: Any = MISSING, grad_states: Any = None, argnums: Nums = None, return_value: bool = False,
    holomorphic: bool = False, has_aux: Flag = None, unit_aware: bool = False,
    check_states: bool = True, **kwargs: Any,
) -> Any:  # fmt: skip
    """[brainstate's `hessian`](https://brainstate.readthedocs.io), by cells or by arguments."""
    if grad_states is not None and argnums is not None:
        raise NotImplementedError(
            "`hessian` is with respect to cells or to arguments. Make the arguments cells, or call "
            "it twice."
        )
    return _derivative(_autodiff("hessian", unit_aware), **locals())


def _derivative(
    transform: Callable, *, fun: Any = None, func: Any = None, grad_states: Any, argnums: Any,
    return_value: Any, has_aux: Any, kwargs: dict[str, Any], unit_aware: bool = False,
    check_states: bool = True, **params: Any,
) -> Any:  # fmt: skip
    """A GradientTransform; or, where the function is left out, what makes one of it. `params` are
    those of the transform.
    """
    options = {"return_value": bool(return_value), "has_aux": bool(has_aux), **kwargs}
    options.setdefault("check_states", check_states)
    make = lambda fun: GradientTransform(
        fun, transform, grad_states, argnums, transform_params=params, **options
    )
    fun = func if fun is None else fun
    return make if left_out(fun) else make(fun)


def _autodiff(name: str, unit_aware: bool) -> Callable:
    """JAX's transform of a name, or that of brainunit."""
    if not unit_aware:
        return getattr(jax, name)
    try:
        return getattr(importlib.import_module("brainunit").autograd, name)
    except ImportError:
        raise ImportError(
            "`unit_aware=True` is by brainunit: pip install brainunit. Without units it is not "
            "needed."
        ) from None


def _chosen(grads: tuple, argnums: Any) -> Any:
    return grads[argnums] if isinstance(argnums, int) else grads


def _vector_grad(fun: Callable, argnums: Any, has_aux: bool) -> Callable:
    assert has_aux

    def derive(*point: Any) -> tuple[Any, Any]:
        out, pull, aux = jax.vjp(fun, *point, has_aux=True)
        return _chosen(pull(jax.tree.map(jnp.ones_like, out)), argnums), aux

    return derive


def _fwd_grad(
    fun: Callable, argnums: Any, has_aux: bool, tangent_size: int | None,
    drct_der_clip: float | None, key: Any,
) -> Callable:  # fmt: skip
    assert has_aux

    def derive(*point: Any) -> tuple[Any, Any]:
        out, push, aux = jax.linearize(fun, *point, has_aux=True)
        if jnp.shape(out) != ():
            raise ValueError(
                f"`fwd_grad` is of a function that returns a scalar, not {out}. For more: "
                "`vector_grad`, `jacfwd`."
            )

        def estimate(tangent: Any) -> Any:
            slope = push(*tangent)
            if drct_der_clip is not None:
                slope = jnp.clip(slope, -drct_der_clip, drct_der_clip)
            return jax.tree.map(lambda x: x * slope.astype(x.dtype), tangent)

        leaves, treedef = jax.tree.flatten(point)
        start = streams[-1].split_key() if key is None else as_key(key)
        keys = jax.random.split(start, len(leaves))
        size = () if tangent_size is None else (tangent_size,)
        tangents = treedef.unflatten([_normal(k, size, x) for k, x in zip(keys, leaves)])
        if tangent_size is None:
            return _chosen(estimate(tangents), argnums), aux
        grads = jax.tree.map(lambda x: x.mean(0), jax.vmap(estimate)(tangents))
        return _chosen(grads, argnums), aux

    return derive


def _normal(key: jax.Array, size: tuple[int, ...], like: Any) -> jax.Array:
    dtype = jnp.result_type(like)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"`fwd_grad` is with respect to inexact (real or complex) numbers, not {dtype}."
        )
    return jax.random.normal(key, (*size, *jnp.shape(like)), dtype)


@in_turn
def vjp(
    fun: Callable, *primals: Any, grad_states: Any = None, argnums: Nums = 0, has_aux: bool = False
) -> tuple[Any, ...]:
    """[brainstate's `vjp`](https://brainstate.readthedocs.io)."""
    if argnums is None or not primals:
        nums: Any = None
    else:
        several = (argnums,) if isinstance(argnums, int) else tuple(argnums)
        for i in several:
            if not -len(primals) <= i < len(primals):
                n = len(primals)
                raise ValueError(f"`argnums` holds {i}, out of range for {n} arguments.")
        several = tuple(i % len(primals) for i in several)
        if len(set(several)) < len(several):
            raise ValueError(f"`argnums` names an argument twice: {argnums}.")
        nums = several[0] if isinstance(argnums, int) else several
    if nums in (None, ()) and not jax.tree.leaves(grad_states, is_leaf=is_cell):
        raise ValueError(
            "`vjp` has nothing to differentiate with respect to: give arguments (and `argnums`) or "
            "cells (`grad_states`)."
        )
    gradient = GradientTransform(fun, jax.vjp, grad_states, nums, has_aux=has_aux)
    pure, point, frames = gradient.at(primals, {})
    out, pull, (_, aux, new) = jax.vjp(pure, *point, has_aux=True)
    write_all(tuple(frames[-1].written), new)

    def vjp_fn(cotangent: Any) -> Any:
        return gradient.arrange(_chosen(pull(cotangent), gradient.positions))

    return (out, vjp_fn, aux) if has_aux else (out, vjp_fn)


@in_turn
def jvp(
    fun: Callable, primals: Sequence[Any], tangents: Sequence[Any], *, has_aux: bool = False
) -> tuple[Any, ...]:
    """[brainstate's `jvp`](https://brainstate.readthedocs.io). Cells are held constant."""
    for name, value in (("primals", primals), ("tangents", tangents)):
        if not isinstance(value, (tuple, list)):
            raise TypeError(f"`{name}` is a tuple with an entry for each argument, not {value!r}.")
    frames: list[Frame] = []

    def pure(*args: Any) -> tuple[Any, Any]:
        frames.append(Frame(open=True))
        out, new = run(fun, frames[-1], *args)
        return (out[0], (out[1], new)) if has_aux else (out, (None, new))

    out, tangent, (aux, new) = jax.jvp(pure, tuple(primals), tuple(tangents), has_aux=True)
    write_all(tuple(frames[-1].written), new)
    return (out, tangent, aux) if has_aux else (out, tangent)
