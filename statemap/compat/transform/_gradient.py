"""`GradientTransform`: derivatives, with respect to arguments and to cells."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._cells import State
from .._frames import Frame, in_turn, is_cell, peek, write_all
from .._lift import arrays_of, read_all, run


class GradientTransform:
    """What [`statemap.compat.transform.grad`][] and its relatives return: a function with the
    arguments of `target`. (After `brainstate.transform.GradientTransform`.)
    """

    def __init__(
        self,
        target: Callable,
        transform: Callable,
        grad_states: Any = None,
        argnums: int | Sequence[int] | None = None,
        return_value: bool = False,
        has_aux: bool = False,
        transform_params: dict[str, Any] | None = None,
        check_states: bool = True,
        debug_nan: bool = False,
    ):
        """**Arguments:**

        - `target`: the function.
        - `transform`: `transform(fun, argnums=, has_aux=, **transform_params)`, such as
            `jax.grad`.
        - The others are those of [`statemap.compat.transform.grad`][].
        """
        if not callable(target):
            raise TypeError(f"A derivative is of a function, and {target!r} can't be called.")
        cells, self._tree = jax.tree.flatten(grad_states, is_leaf=is_cell)
        self.cells: list[Any] = cells
        if not all(map(is_cell, self.cells)):
            raise TypeError(f"`grad_states` is a State or a pytree of States, not {grad_states!r}.")
        nums: Any = (argnums,) if not isinstance(argnums, (tuple, list)) else tuple(argnums)
        for num in nums:
            if num is not None and (isinstance(num, bool) or not hasattr(num, "__index__")):
                raise ValueError(f"`argnums` holds positions, which are integers, not {num!r}.")
            if num is not None and num < 0:
                raise ValueError(f"`argnums` counts from the first argument, and holds {num}.")
        self.target: Callable[..., Any] = target
        self.__wrapped__: Callable[..., Any] = target
        self.grad_states = grad_states
        self.argnums: Any = 0 if argnums is None and not self.cells else argnums
        self.transform = transform
        self.return_value = return_value
        self.has_aux = has_aux
        self.params: dict[str, Any] = transform_params or {}
        self.check_states = check_states
        self.debug_nan = debug_nan

    @in_turn
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own = [c for i, c in enumerate(self.cells) if c not in self.cells[:i]]
        written: tuple[State, ...] = ()

        def pure(values: list[Any], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            nonlocal written
            frame = Frame(own, values, open=True)
            out, new = run(self.target, frame, *args, **kwargs)
            written = tuple(frame.written)
            missing = [c for c in own if c not in frame.read and c not in frame.written]
            if missing and self.check_states:
                paths = jax.tree_util.tree_flatten_with_path(self.grad_states, is_leaf=is_cell)[0]
                names = [
                    f"`grad_states{jax.tree_util.keystr(p)}`" for p, c in paths if c in missing
                ]
                raise ValueError(
                    f"The function does not use {', '.join(names)}, a {missing[0].label}, which "
                    "`grad_states` lists. For a derivative of zero: `check_states=False`."
                )
            if not self.has_aux:
                return out, (out, None, new)
            if not isinstance(out, (tuple, list)) or len(out) != 2:
                raise TypeError(
                    f"With `has_aux=True` the function returns `(loss, aux)`, not {out}."
                )
            return out[0], (out[0], out[1], new)

        nums = self.argnums
        shifted: Any = () if nums is None else (nums,) if isinstance(nums, int) else tuple(nums)
        shifted = tuple(i + 1 for i in shifted)
        shifted = (0, *shifted) if own else shifted
        derive = self.transform(pure, argnums=shifted, has_aux=True, **self.params)
        for cell in own:
            arrays_of(cell)
        values = [jax.tree.map(jnp.asarray, value) for value in read_all(own)]
        grads, (value, aux, new) = derive(values, *args, **kwargs)
        if self.debug_nan:
            self._check(grads)
        grads = self._arrange(grads, own)
        write_all(written, new)
        if self.return_value:
            return (grads, value, aux) if self.has_aux else (grads, value)
        return (grads, aux) if self.has_aux else grads

    def _arrange(self, grads: Any, own: list[State]) -> Any:
        """From what the transform gives, a tuple by argument, to what the user asked for."""
        if not own:
            return grads[0] if isinstance(self.argnums, int) else grads
        of_cells = self._of_cells(grads[0], own)
        if self.argnums is None:
            return of_cells
        return of_cells, grads[1] if isinstance(self.argnums, int) else grads[1:]

    def _of_cells(self, grads: list[Any], own: list[State]) -> Any:
        return jax.tree.unflatten(self._tree, [grads[own.index(c)] for c in self.cells])

    def _check(self, grads: Any) -> None:
        def refuse(bad: Any) -> None:
            if bad:
                raise FloatingPointError(f"The derivative of {self.target!r} is NaN or infinite.")

        arrays = [x for x in jax.tree.leaves(grads) if jnp.issubdtype(x.dtype, jnp.inexact)]
        bad = [~jnp.isfinite(x).all() for x in arrays]
        jax.debug.callback(refuse, jnp.array(bad).any() if bad else False)

    def __repr__(self) -> str:
        name = getattr(self.target, "__name__", type(self.target).__name__)
        return f"{type(self).__name__}({name}, argnums={self.argnums}, grad_states={self.cells})"


class Hessian(GradientTransform):
    def _arrange(self, grads: Any, own: list[State]) -> Any:
        if own:  # each leaf of a value has, in a tuple by argument, a list by cell
            rows = []
            for cell, row in zip(own, grads[0]):
                structure = jax.tree.structure(peek(cell))
                leaves = [self._of_cells(x[0], own) for x in structure.flatten_up_to(row)]
                rows.append(jax.tree.unflatten(structure, leaves))
            return self._of_cells(rows, own)
        return grads[0][0] if isinstance(self.argnums, int) else grads
