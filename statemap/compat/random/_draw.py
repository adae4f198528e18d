"""`draw`: makes a distribution of its signature and its sampler."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .. import environ
from ._keys import as_key
from ._state import DEFAULT, RandomState


class Require(NamedTuple):
    """A condition on the values of some parameters."""

    names: str
    fails: Callable[..., Any]
    text: str

    def check(self, fn: str, given: dict[str, Any]) -> None:
        values = {name: given[name] for name in self.names.split()}
        # A check of what is traced would put a call to the host into every compiled draw.
        if any(isinstance(value, jax.core.Tracer) for value in values.values()):
            return
        if np.any(self.fails(*map(np.asarray, values.values()))):
            came = ", ".join(f"{name}={value}" for name, value in values.items())
            raise ValueError(f"`{fn}` requires {self.text}. This came: {came}.")


def draw(
    parameters: str, sampler: Callable[..., Any], *requirements: Require,
    kind: type | None = float, keys: int | None = None, sized: bool = True,
    function: str | None = None,
) -> Callable[..., jax.Array]:  # fmt: skip
    """A distribution: a function that draws from `DEFAULT`, and a method of `RandomState`.

    **Arguments:**

    - `parameters`: as in a `def`; `...` stands for `size=None, key=None, dtype=None`.
    - `sampler`: called with the key, the distribution's own parameters, and then the shape and
        the dtype, if it has them.
    - `requirements`: what must hold, unless `check_valid` is false.
    - `kind`: `float` or `int`, the kind of dtype by default.
    - `keys`: into how many keys the key is split.
    - `sized`: whether the shape is by default the one that the parameters broadcast to.
    - `function`: the parameters of the function, where they are not those of the method.
    """

    def drawn(rng: RandomState, bound: inspect.BoundArguments) -> Any:
        bound.apply_defaults()
        given: dict[str, Any] = bound.arguments
        own = {k: _number(k, v) for k, v in given.items() if k not in _COMMON}
        if given.get("check_valid", True):
            for requirement in requirements:
                requirement.check(call.__name__, own)
        rest: list[Any] = []
        if "dn" in given:
            rest.append(given["dn"])
        elif "size" in given:
            rest.append(_shape(given["size"], own if sized else None))
        if "dtype" in given:
            dtype = given["dtype"]
            if dtype is None and kind is not None:
                dtype = environ.dftype() if kind is float else environ.ditype()
            rest.append(dtype)
        if given["key"] is None:
            key = rng.split_key(keys)
        else:
            key = as_key(given["key"])
            key = key if keys is None else jr.split(key, keys)
        return sampler(key, *own.values(), *rest)

    of_method, of_function = _signature(parameters), _signature(function or parameters)

    def method(self: RandomState, *args: Any, **kwargs: Any) -> Any:
        return drawn(self, of_method.bind(*args, **kwargs))

    def call(*args: Any, **kwargs: Any) -> Any:
        return drawn(DEFAULT, of_function.bind(*args, **kwargs))

    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    with_self = [first, *of_method.parameters.values()]
    vars(method)["__signature__"] = of_method.replace(parameters=with_self)
    vars(call)["__signature__"] = of_function
    call.__doc__ = "".join(f"\n\nRaises a `ValueError` without {r.text}." for r in requirements)
    vars(call)["method"] = method
    return call


def publish(table: dict[str, Callable[..., Any]]) -> None:
    """Gives distributions their names, and `RandomState` its methods."""
    for name, call in table.items():
        method = vars(call).pop("method")
        page = f"[`brainstate.random.{name}`](https://brainstate.readthedocs.io)"
        doc = f"As {page}." + (call.__doc__ or "")
        for fn, path in ((call, name), (method, f"RandomState.{name}")):
            fn.__name__, fn.__qualname__, fn.__module__ = name, path, __package__ or ""
            fn.__doc__ = doc
        setattr(RandomState, name, method)


_COMMON = ("dn", "size", "key", "dtype", "check_valid")


def _signature(parameters: str) -> inspect.Signature:
    parameters = parameters.replace("...", "size=None, key=None, dtype=None")
    made = inspect.signature(eval(f"lambda {parameters}: None"))
    return made.replace(return_annotation=jax.Array)


def _shape(size: Any, params: dict[str, Any] | None) -> tuple[int, ...] | None:
    """A size as a shape; that of the parameters if there is none."""
    if size is None:
        given = () if params is None else [p for p in params.values() if p is not None]
        return None if params is None else jnp.broadcast_shapes(*map(jnp.shape, given))
    return tuple(size) if isinstance(size, (tuple, list)) else (size,)


def _number(name: str, value: Any) -> Any:
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
