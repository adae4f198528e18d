"""`grad` and its relatives."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ._gradient import GradientTransform, Hessian
from ._jit import is_missing, MISSING


def grad(
    fun: Callable = MISSING,
    grad_states: Any = None,
    argnums: int | Sequence[int] | None = None,
    holomorphic: bool | None = False,
    allow_int: bool | None = False,
    has_aux: bool | None = None,
    return_value: bool | None = False,
    unit_aware: bool = False,
    check_states: bool = True,
    **kwargs: Any,
) -> Any:
    """The gradient of a function that uses cells.

    ```python
    import jax.numpy as jnp
    from statemap.compat import ParamState, transform

    w = ParamState(jnp.array([1.0, 2.0]))
    grads, loss = transform.grad(lambda: (w.value ** 2).sum(), w, return_value=True)()
    assert grads.tolist() == [2.0, 4.0] and loss == 5
    ```

    **Arguments:**

    - `fun`: the function, which returns a number. Left out, a decorator is returned.
    - `grad_states`: a cell, or a pytree of cells, to differentiate with respect to.
    - `argnums`: arguments to differentiate with respect to; by default the first, if there are
        no `grad_states`.
    - `holomorphic`, `allow_int`: as for `jax.grad`.
    - `has_aux`: whether `fun` returns `(loss, aux)`.
    - `return_value`: whether to return the loss as well.
    - `unit_aware`: not supported; brainunit is not part of the shim.
    - `check_states`: whether a cell in `grad_states` that `fun` does not use is an error.
    - `debug_nan`: whether a derivative that is NaN or infinite is an error.

    **Returns:**

    A function that returns the gradients: of the cells, in a pytree like `grad_states`; of the
    arguments; or `(of cells, of arguments)`. With `return_value` and `has_aux` it is followed by
    these: `(grads, loss, aux)`.
    """
    _refuse_units(unit_aware)
    params = {"holomorphic": holomorphic, "allow_int": allow_int}
    options = (grad_states, argnums, bool(return_value), bool(has_aux), params, check_states)
    return _make(GradientTransform, fun, jax.grad, *options, **kwargs)


def vector_grad(
    func: Callable = MISSING,
    grad_states: Any = None,
    argnums: int | Sequence[int] | None = None,
    return_value: bool = False,
    has_aux: bool | None = None,
    unit_aware: bool = False,
    check_states: bool = True,
    **kwargs: Any,
) -> Any:
    """The gradient of the sum of what a function returns, of any shape.

    **Arguments:**

    Those of [`statemap.compat.transform.grad`][].
    """
    _refuse_units(unit_aware)
    options = (grad_states, argnums, return_value, bool(has_aux), {}, check_states)
    return _make(GradientTransform, func, _vector_grad, *options, **kwargs)


def jacrev(
    fun: Callable = MISSING,
    grad_states: Any = None,
    argnums: int | Sequence[int] | None = None,
    has_aux: bool | None = None,
    return_value: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    unit_aware: bool = False,
    check_states: bool = True,
    **kwargs: Any,
) -> Any:
    """The Jacobian, in reverse mode.

    **Arguments:**

    Those of [`statemap.compat.transform.grad`][].
    """
    _refuse_units(unit_aware)
    params = {"holomorphic": holomorphic, "allow_int": allow_int}
    options = (grad_states, argnums, return_value, bool(has_aux), params, check_states)
    return _make(GradientTransform, fun, jax.jacrev, *options, **kwargs)


jacobian = jacrev


def jacfwd(
    func: Callable = MISSING,
    grad_states: Any = None,
    argnums: int | Sequence[int] | None = None,
    has_aux: bool | None = None,
    return_value: bool = False,
    holomorphic: bool = False,
    unit_aware: bool = False,
    check_states: bool = True,
    **kwargs: Any,
) -> Any:
    """The Jacobian, in forward mode.

    **Arguments:**

    Those of [`statemap.compat.transform.grad`][].
    """
    _refuse_units(unit_aware)
    params = {"holomorphic": holomorphic}
    options = (grad_states, argnums, return_value, bool(has_aux), params, check_states)
    return _make(GradientTransform, func, jax.jacfwd, *options, **kwargs)


def hessian(
    func: Callable = MISSING,
    grad_states: Any = None,
    argnums: int | Sequence[int] | None = None,
    return_value: bool = False,
    holomorphic: bool = False,
    has_aux: bool | None = None,
    unit_aware: bool = False,
    check_states: bool = True,
    **kwargs: Any,
) -> Any:
    """The matrix of second derivatives, with respect to cells or to arguments.

    **Arguments:**

    Those of [`statemap.compat.transform.grad`][], of `grad_states` and `argnums` only one.

    **Returns:**

    A function that returns, for each cell, a pytree like `grad_states`.
    """
    _refuse_units(unit_aware)
    if grad_states is not None and argnums is not None:
        raise NotImplementedError(
            "`hessian` is with respect to cells or to arguments. Make the arguments cells, or call "
            "it twice."
        )
    params = {"holomorphic": holomorphic}
    options = (grad_states, argnums, return_value, bool(has_aux), params, check_states)
    return _make(Hessian, func, jax.hessian, *options, **kwargs)


def _make(cls: type, fun: Any, transform: Callable, *options: Any, **kwargs: Any) -> Any:
    if is_missing(fun):
        return lambda fun: cls(fun, transform, *options, **kwargs)
    return cls(fun, transform, *options, **kwargs)


def _refuse_units(unit_aware: bool) -> None:
    if unit_aware:
        raise NotImplementedError(
            "Units are not part of the shim. Strip them before, and put them back after."
        )


def _vector_grad(fun: Callable, argnums: tuple[int, ...], has_aux: bool) -> Callable:
    assert has_aux

    def derive(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        def of(*own: Any) -> Any:
            every = list(args)
            for i, x in zip(argnums, own):
                every[i] = x
            return fun(*every, **kwargs)

        out, pull, aux = jax.vjp(of, *(args[i] for i in argnums), has_aux=True)
        return pull(jax.tree.map(jnp.ones_like, out)), aux

    return derive
