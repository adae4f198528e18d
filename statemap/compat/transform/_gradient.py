"""`GradientTransform`: derivatives, with respect to arguments and to cells."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp

from .._frames import Frame, in_turn, is_cell, write_all
from .._lift import arrays_of, read_all, run
from ._arguments import counted


class _OfCells(eqx.Module):
    """One value for each cell. Of its own class, so that wherever derivatives with respect to the
    cells stand in a result, they are found.
    """

    values: Sequence[Any]


# What says where a NaN comes from: called with whether there is one, a function and its arguments.
explain: Callable[..., None] | None = None


class GradientTransform:
    """What [`statemap.compat.transform.grad`][] and its relatives return: a function with the
    arguments of `target`, as [brainstate's](https://brainstate.readthedocs.io). `transform` is such
    as `jax.grad`, and is called as `transform(function, argnums=, has_aux=, **transform_params)`.
    """

    def __init__(
        self, target: Callable, transform: Callable, grad_states: Any = None,
        argnums: int | Sequence[int] | None = None, return_value: bool = False,
        has_aux: bool = False, transform_params: dict[str, Any] | None = None,
        check_states: bool = True, debug_nan: bool = False,
    ):  # fmt: skip
        if not callable(target):
            raise TypeError(f"A derivative is of a function, and {target!r} can't be called.")
        if isinstance(grad_states, dict):
            grad_states = dict(grad_states)  # the gradients of a FlattedDict are a dictionary
        self.cells: list[Any] = jax.tree.leaves(grad_states, is_leaf=is_cell)
        if not all(map(is_cell, self.cells)):
            raise TypeError(f"`grad_states` is a State or a pytree of States, not {grad_states!r}.")
        nums: Any = argnums if isinstance(argnums, (tuple, list)) else (argnums,)
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
        pure, point, frames = self.at(args, kwargs)
        derive = self.transform(pure, argnums=self.positions, has_aux=True, **self.params)
        grads, (value, aux, new) = derive(*point)
        written = tuple(frames[-1].written)
        if self.debug_nan:
            self._check_finite(grads, derive, point)
        write_all(written, new)
        outs = (self.arrange(grads), *[value] * self.return_value, *[aux] * self.has_aux)
        return outs if len(outs) > 1 else outs[0]

    @property
    def positions(self) -> Any:
        """Which of the two arguments of `pure` the derivative is with respect to."""
        return 1 if not self.cells else 0 if self.argnums is None else (0, 1)

    def at(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Callable[..., Any], tuple[Any, ...], list[Frame]]:
        """A function `pure(values of cells, arguments)`, of those that the derivative is with
        respect to, which returns `(out, (out, aux, new values))`; these two, as they are now; and a
        list that gets the frame in which `pure` runs.
        """
        nums = self.argnums
        several: Any = () if nums is None else (nums,) if isinstance(nums, int) else tuple(nums)
        if several and max(several) >= len(args):
            raise ValueError(
                f"`argnums` holds {max(several)}, and there {counted(args)}, counted from 0. "
                "With respect to a keyword argument there is no derivative: give it by position."
            )
        own = list(dict.fromkeys(self.cells))
        frames: list[Frame] = []

        def pure(values: _OfCells, chosen: Any) -> tuple[Any, Any]:
            every = list(args)
            for i, value in zip(several, (chosen,) if isinstance(nums, int) else chosen):
                every[i] = value
            frames.append(Frame(own, values.values, open=True))
            out, new = run(self.target, frames[-1], *every, **kwargs)
            self._check_used(own, frames[-1])
            if not self.has_aux:
                return out, (out, None, new)
            if not isinstance(out, (tuple, list)) or len(out) != 2:
                raise TypeError(
                    f"With `has_aux=True` the function returns `(loss, aux)`, not {out}."
                )
            return out[0], (*out, new)

        for cell in own:
            arrays_of(cell)
        values = _OfCells([jax.tree.map(jnp.asarray, value) for value in read_all(own)])
        chosen = args[nums] if isinstance(nums, int) else tuple(args[i] for i in several)
        return pure, (values, chosen), frames

    def _check_used(self, own: list[Any], frame: Frame) -> None:
        unused = [c for c in own if c not in frame.read and c not in frame.written]
        if unused and self.check_states:
            paths = jax.tree_util.tree_flatten_with_path(self.grad_states, is_leaf=is_cell)[0]
            names = [f"`grad_states{jax.tree_util.keystr(p)}`" for p, c in paths if c in unused]
            raise ValueError(
                f"The function does not use {', '.join(names)}, a {unused[0].label}, which "
                "`grad_states` lists. For a derivative of zero: `check_states=False`."
            )

    def _check_finite(self, grads: Any, derive: Callable, point: tuple) -> None:
        def refuse(bad: Any) -> None:
            if bad:
                raise RuntimeError(f"The derivative of {self.target!r} is NaN or infinite.")

        arrays = [x for x in jax.tree.leaves(grads) if jnp.issubdtype(x.dtype, jnp.inexact)]
        bad = jnp.array([~jnp.isfinite(x).all() for x in arrays]).any()
        if explain is not None:
            name = getattr(self.transform, "__name__", type(self.transform).__name__)
            explain(bad, derive, *point, phase=name)
        elif isinstance(bad, jax.core.Tracer):  # jitted, where it can only be known later
            jax.debug.callback(refuse, bad)
        else:
            refuse(bad)

    def arrange(self, grads: Any) -> Any:
        """Derivatives as the user asked for them: where they are with respect to the cells, in a
        pytree like `grad_states`.
        """
        own = list(dict.fromkeys(self.cells))
        treedef = jax.tree.structure(self.grad_states, is_leaf=is_cell)

        def arranged(x: Any) -> Any:
            if not isinstance(x, _OfCells):
                return x
            by_cell = dict(zip(own, map(self.arrange, x.values)))  # of a Hessian, there are two
            return jax.tree.unflatten(treedef, [by_cell[cell] for cell in self.cells])

        return jax.tree.map(arranged, grads, is_leaf=lambda x: isinstance(x, _OfCells))

    def __repr__(self) -> str:
        name = getattr(self.target, "__name__", type(self.target).__name__)
        return f"{type(self).__name__}({name}, argnums={self.argnums}, grad_states={self.cells})"
