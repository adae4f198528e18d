"""`draw`: what all distributions have in common, so that each says only what is its own.

A distribution is a method with the signature that its users see. By the time its body runs, every
parameter is a number or an array, `size` is a shape, `dtype` is a dtype, and `key` is the key to
draw from.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, SupportsIndex, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ._keys import as_key


P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="Source")
Param = Any  # a number, an array, or a list or tuple of them
Size = Any  # None, an int, or a sequence of ints
DType = Any


class Source:
    """What distributions draw from."""

    def split_key(self, n: SupportsIndex | None = None, backup: bool = False) -> jax.Array:
        raise NotImplementedError


def float_dtype() -> DType:
    """The dtype of real draws: `environ.dftype()`."""
    from .. import environ  # at call: it is a setting, and `environ` may import this package

    return environ.dftype()


def int_dtype() -> DType:
    """The dtype of whole-number draws: `environ.ditype()`."""
    from .. import environ

    return environ.ditype()


_DTYPES: dict[type | None, Callable[[], DType]] = {float: float_dtype, int: int_dtype}


@dataclasses.dataclass(frozen=True)
class Require:
    """A condition on the values of some parameters."""

    names: tuple[str, ...]
    fails: Callable[..., Any]
    text: str

    def __call__(self, fn: str, given: dict[str, Any]) -> None:
        values = [given[name] for name in self.names]
        if any(isinstance(value, jax.core.Tracer) for value in values):
            return
        if np.any(self.fails(*map(np.asarray, values))):
            came = ", ".join(f"{name}={value}" for name, value in zip(self.names, values))
            raise ValueError(f"`{fn}` requires {self.text}. This came: {came}.")


def draw(
    kind: type | None = None, *requirements: Require, keys: int | None = None, sized: bool = True
) -> Callable[[Callable[Concatenate[S, P], R]], Callable[Concatenate[S, P], R]]:
    """Makes a method draw from the random state that it is a method of.

    **Arguments:**

    - `kind`: `float` or `int`, the kind of dtype by default.
    - `*requirements`: what must hold for the parameters, unless `check_valid` is false. The values
        of tracers are not known when it is time to raise, and are not looked at: a check at run
        time would put a call to the host into every compiled draw.
    - `keys`: into how many keys `key` is split.
    - `sized`: whether `size` is by default the shape that the parameters broadcast to.
    """

    def decorate(sample: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
        signature = inspect.signature(sample)
        own = [
            name
            for name, parameter in signature.parameters.items()
            if name not in ("self", "size", "key", "dtype", "check_valid")
            and parameter.kind is not parameter.VAR_POSITIONAL
        ]

        @functools.wraps(sample)
        def drawn(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments
            for name in own:
                given[name] = _number(name, given[name])
            if given.get("check_valid", True):
                for require in requirements:
                    require(sample.__name__, given)
            if "size" in given:
                if given["size"] is not None:
                    given["size"] = _shape(given["size"])
                elif sized:
                    given["size"] = broadcast(*(given[name] for name in own))
            if kind is not None and given["dtype"] is None:
                given["dtype"] = _DTYPES[kind]()
            if given["key"] is None:
                given["key"] = self.split_key(keys)
            else:
                key = as_key(given["key"])
                given["key"] = key if keys is None else jr.split(key, keys)
            return sample(*bound.args, **bound.kwargs)

        drawn.__doc__ = _document(sample, signature, requirements, kind, sized)
        return drawn

    return decorate


def cast(param: Param, dtype: DType) -> Any:
    """A parameter in the dtype of what is drawn. What is NumPy's stays so: where NumPy divides by
    a number, JAX multiplies by its reciprocal, and brainstate leaves it to either likewise.
    """
    asarray = np.asarray if isinstance(param, (np.ndarray, np.generic)) else jnp.asarray
    return asarray(param, dtype)


def broadcast(*params: Param) -> tuple[int, ...]:
    """The shape that these parameters broadcast to; those that are None have none."""
    return jnp.broadcast_shapes(*(jnp.shape(p) for p in params if p is not None))


def fits(fn: str, size: tuple[int, ...], *shapes: tuple[int, ...]) -> None:
    """Refuses a size that the parameters do not broadcast to."""
    try:
        full = jnp.broadcast_shapes(size, *shapes)
    except ValueError:
        full = None
    if full != size:
        raise ValueError(
            f"`{fn}` has parameters of shapes {', '.join(map(str, shapes))}, which do not "
            f"broadcast to `size={size}`. Leave `size` out to have the shape they broadcast to."
        )


def _shape(size: Size) -> tuple[int, ...]:
    return tuple(size) if isinstance(size, (tuple, list)) else (size,)


def _number(name: str, value: Param) -> Param:
    """A parameter with sequences made arrays, and refused if it has a unit."""
    leaves = jax.tree.leaves(value) if isinstance(value, (list, tuple)) else [value]
    for leaf in leaves:
        if hasattr(leaf, "unit"):
            raise TypeError(
                f"`{name}` has the unit {leaf.unit}, and `statemap.compat` knows no units. Give "
                "the plain number, and multiply what is drawn by the unit."
            )
    if not isinstance(value, (list, tuple)):
        return value
    # A sequence of NumPy's values, or of strings, is left to NumPy, which keeps their precision.
    plain = all(type(leaf) in (bool, int, float, complex) for leaf in leaves)
    known = plain or any(isinstance(leaf, jax.Array) for leaf in leaves)
    return jnp.asarray(value) if known else np.asarray(value)


def _document(
    sample: Callable[..., Any],
    signature: inspect.Signature,
    requirements: tuple[Require, ...],
    kind: type | None,
    sized: bool,
) -> str:
    """The docstring of a distribution, with the part that all of them share."""
    doc = inspect.cleandoc(sample.__doc__ or "")
    names = signature.parameters
    lines = [] if "**Arguments:**" in doc else ["**Arguments:**", ""]
    if "size" in names and "`size`" not in doc:
        by_default = "that which the parameters broadcast to" if sized else "`()`"
        lines.append(f"- `size`: the shape of what is drawn, an int or ints; {by_default}.")
    lines.append("- `key`: a key or seed to draw from, instead of the random state's stream.")
    if "dtype" in names and "`dtype`" not in doc:
        default = {float: "`environ.dftype()`", int: "`environ.ditype()`"}.get(kind, "None")
        lines.append(f"- `dtype`: the dtype of what is drawn; {default} by default.")
    if "check_valid" in names:
        lines.append("- `check_valid`: whether the parameters' values are looked at.")
    if requirements:
        needs = "; ".join(require.text for require in requirements)
        lines += ["", "**Raises:**", "", f"`ValueError` without {needs}. Values that are"]
        lines[-1] += " traced (under `jax.jit`, `jax.vmap`, ...) are not looked at."
    return "\n".join([doc, *([""] if lines[0].startswith("**") else []), *lines])
