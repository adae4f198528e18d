"""`vjp` and `jvp`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from .._cells import State
from .._frames import Frame, in_turn, is_cell, write_all
from .._lift import run
from ._gradient import GradientTransform


def vjp(
    fun: Callable,
    *primals: Any,
    grad_states: Any = None,
    argnums: int | Sequence[int] | None = 0,
    has_aux: bool = False,
) -> tuple[Any, ...]:
    """`jax.vjp` of a function that uses cells.

    **Arguments:**

    - `primals`: the arguments.
    - `grad_states`: a cell, or a pytree of cells, to differentiate with respect to.
    - `argnums`: the arguments to differentiate with respect to, or None.
    - `has_aux`: whether `fun` returns `(out, aux)`.

    **Returns:**

    `(out, vjp_fn)`, and `aux` if there is. `vjp_fn` returns the cotangents of the cells, of the
    arguments, or of both.
    """
    nums = () if argnums is None or not primals else argnums
    nums = (nums,) if isinstance(nums, int) else tuple(nums)
    for i in nums:
        if not -len(primals) <= i < len(primals):
            raise ValueError(f"`argnums` holds {i}, and there are {len(primals)} arguments.")
    nums = tuple(i % len(primals) for i in nums)
    if len(set(nums)) < len(nums):
        raise ValueError(f"`argnums` names an argument twice: {argnums}.")
    outcome: dict[str, Any] = {}

    def transform(pure: Callable, argnums: tuple[int, ...], has_aux: bool) -> Callable:
        def derive(*args: Any) -> tuple[Any, Any]:
            def of(*own: Any) -> Any:
                every = list(args)
                for i, x in zip(argnums, own):
                    every[i] = x
                return pure(*every)

            own = [args[i] for i in argnums]
            out, outcome["pull"], aux = jax.vjp(of, *own, has_aux=True)
            return out, aux

        return derive

    class _Vjp(GradientTransform):
        def _arrange(self, grads: Any, own: list[State]) -> Any:
            outcome["own"] = own
            return grads

    if not nums and not jax.tree.leaves(grad_states, is_leaf=is_cell):
        raise ValueError(
            "`vjp` needs something to differentiate with respect to: arguments (`argnums`) or "
            "cells (`grad_states`)."
        )
    made = _Vjp(fun, transform, grad_states, nums, False, has_aux)
    result = made(*primals)
    own, pull = outcome["own"], outcome["pull"]

    def vjp_fn(cotangent: Any) -> Any:
        grads = pull(cotangent)
        of_args = grads[1:] if own else grads
        of_args = of_args[0] if isinstance(argnums, int) and nums else of_args
        if not own:
            return of_args
        of_cells = made._of_cells(grads[0], own)
        return (of_cells, of_args) if nums else of_cells

    return (result[0], vjp_fn, result[1]) if has_aux else (result, vjp_fn)


@in_turn
def jvp(
    fun: Callable, primals: Sequence[Any], tangents: Sequence[Any], *, has_aux: bool = False
) -> tuple[Any, ...]:
    """`jax.jvp` of a function that uses cells, which are held constant.

    **Arguments:**

    - `fun`: the function.
    - `primals`, `tangents`: its arguments and their tangents, a tuple each.
    - `has_aux`: whether `fun` returns `(out, aux)`.

    **Returns:**

    `(out, tangent)`, and `aux` if `has_aux`.
    """
    for name, value in (("primals", primals), ("tangents", tangents)):
        if not isinstance(value, (tuple, list)):
            raise TypeError(f"`{name}` is a tuple with an entry for each argument, not {value!r}.")
    written: tuple[State, ...] = ()

    def pure(*args: Any) -> tuple[Any, Any]:
        nonlocal written
        frame = Frame(open=True)
        out, new = run(fun, frame, *args)
        written = tuple(frame.written)
        return (out[0], (out[1], new)) if has_aux else (out, (None, new))

    out, tangent, (aux, new) = jax.jvp(pure, tuple(primals), tuple(tangents), has_aux=True)
    write_all(written, new)
    return (out, tangent, aux) if has_aux else (out, tangent)
