"""Reductions over the lanes: the arithmetic of `Reduce`."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from ._jaxpr import eval_jaxpr, make_jaxpr
from ._rules import Reduce
from ._state import read, State, write
from ._values import fit


class Combination:
    """A reduction by a function of the user's: its program, on the arrays of one state."""

    def __init__(
        self,
        rule: Reduce,
        path: str,
        spec: State,
        treedef: Any,
        stacked: Sequence[Any],
        old: Sequence[Any],
        lane: Sequence[Any],
    ):
        """Runs the function once, abstractly.

        **Arguments:**

        - `path`, `spec`, `treedef`: of the state.
        - `stacked`, `old`: the types of what the lanes gave, and of what came in.
        - `lane`: the types of what one lane gave, which are those of the result.
        """

        how: Any = rule.how

        def run(flat: list[Any]) -> list[Any]:
            values = flat[: len(stacked)], flat[len(stacked) :]
            given = [read(spec, jax.tree.unflatten(treedef, leaves)) for leaves in values]
            expected = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in lane]
            try:
                new = write(spec, how(*given), path)
                new = fit(jax.tree.unflatten(treedef, expected), new, path)
            except Exception as error:
                error.add_note(
                    f"(Of {rule!r} in `state_out_axes`, for the state `{path}`. The function is "
                    "called with `(stacked, old)`, the lanes' values with the lanes on axis 0 and "
                    "the value that came in, and returns one value, such as "
                    "`sm.Reduce(lambda stacked, old: stacked.mean(0))`.)"
                )
                raise
            return jax.tree.leaves(new)

        closed = make_jaxpr(run, [*stacked, *old], None)
        self.jaxpr, self.consts = closed.jaxpr, closed.consts

    @property
    def holds_tracer(self) -> bool:
        return any(isinstance(x, jax.core.Tracer) for x in self.consts)

    def __call__(self, stacked: Sequence[Any], old: Sequence[Any]) -> list[Any]:
        return eval_jaxpr(self.jaxpr, self.consts, *stacked, *old)


class Reduction:
    """The reduction of one array over lanes, all at once or some after others."""

    def __init__(self, how: str, old: jax.Array | None, lanes: int, dtype: Any):
        """**Arguments:**

        - `how`: a word of `Reduce`.
        - `old`: with `"changes"`, what the array was before.
        - `lanes`: the number of all lanes.
        - `dtype`: of the array.
        """
        self.how, self.old, self.lanes, self.dtype = how, old, lanes, dtype
        # Sums of few bits lose what they gain, chunk by chunk; of int4 JAX (0.10, 0.12) has none.
        self._dtype = dtype
        if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
            self._dtype = jnp.dtype("float32")
        elif jnp.issubdtype(dtype, jnp.integer) and jnp.iinfo(dtype).bits < 8:
            self._dtype = jnp.dtype("int32")

    def empty(self, shape: tuple[int, ...]) -> jax.Array:
        """What no lanes amount to."""
        return jnp.full(shape, self._neutral(), self._dtype)

    def part(self, lanes: jax.Array, counted: jax.Array | None = None) -> jax.Array:
        """What some lanes amount to.

        **Arguments:**

        - `lanes`: the array, with the lanes on axis 0.
        - `counted`: which of them count; all by default.
        """
        lanes = lanes.astype(self._dtype)
        if self.old is not None:
            lanes = lanes - self.old.astype(self._dtype)
        if counted is not None:
            mask = counted.reshape(-1, *[1] * (lanes.ndim - 1))
            neutral = jnp.asarray(self._neutral(), self._dtype)
            lanes = jnp.where(mask, lanes, neutral)
        if lanes.shape[0] == 0:
            return self.empty(lanes.shape[1:])
        whole = _OVER[self.how](lanes, axis=0).astype(self._dtype)
        if self.how in ("min", "max") and jnp.issubdtype(self._dtype, jnp.floating):
            # XLA (jax 0.10, 0.12) has NaN of one device lost where devices take a minimum.
            is_nan = jnp.isnan(lanes).any(axis=0)
            whole = jnp.where(is_nan, jnp.asarray(jnp.nan, self._dtype), whole)
        return whole

    def join(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """What the lanes of two parts amount to."""
        return _TWO[self.how](a, b)

    def end(self, whole: jax.Array) -> jax.Array:
        """The new value, from what all lanes amount to."""
        if self.how == "mean":
            whole = whole / jnp.asarray(self.lanes, self._dtype)
        if self.old is not None:
            whole = self.old.astype(self._dtype) + whole
        return whole.astype(self.dtype)

    def _neutral(self) -> Any:
        if self.how in ("any", "all"):
            return self.how == "all"
        if self.how not in ("min", "max"):
            return 0
        low = self.how == "max"
        if self._dtype == jnp.bool_:
            return not low
        if jnp.issubdtype(self._dtype, jnp.integer):
            info = jnp.iinfo(self._dtype)
            return info.min if low else info.max
        return -jnp.inf if low else jnp.inf


_OVER: dict[str, Any] = {
    **dict.fromkeys(("mean", "sum", "changes"), jnp.sum),
    **{"min": jnp.min, "max": jnp.max, "any": jnp.any, "all": jnp.all},
}
_TWO: dict[str, Any] = {
    **dict.fromkeys(("mean", "sum", "changes"), jnp.add),
    **{"min": jnp.minimum, "max": jnp.maximum, "any": jnp.logical_or, "all": jnp.logical_and},
}
