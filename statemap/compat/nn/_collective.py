"""Calls a method of all modules in a module. (After `brainstate.nn.init_all_states` and others,
whose arguments [its pages](https://brainstate.readthedocs.io) document.) The modules may be the
shim's or brainstate's.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from ..._filters import Filter
from ..._values import dotted
from ..transform import vmap_new_states
from ..util.filter import to_predicate
from ._walk import is_module, nodes


F = TypeVar("F", bound=Callable[..., Any])
MAX_ORDER = 10


def call_order(level: int = 0, check_order_boundary: bool = True) -> Callable[[F], F]:
    """Marks a method such as `init_state`: it is called after those without a mark, and those
    with a lower `level`, from 0 to 9.
    """
    if check_order_boundary and not 0 <= level < MAX_ORDER:
        raise ValueError(f"`level` is an int from 0 to {MAX_ORDER - 1}, not {level}.")

    def mark(fn: F) -> F:
        fn.call_order = level  # pyright: ignore
        return fn

    return mark


def call_all_fns(
    target: Any, fn_name: str, args: Any = (), kwargs: Mapping[str, Any] | None = None,
    node_to_exclude: Filter = None, fn_if_not_exist: str = "raise",
) -> Any:  # fmt: skip
    """Calls a method of a module and of all modules in it, the innermost first, and returns the
    module. `args` that are no tuple are one argument. `fn_if_not_exist` says what to do about
    modules without the method: `"raise"`, `"warn"` or `"pass"`.
    """
    if fn_if_not_exist not in ("raise", "warn", "pass", "none"):
        raise ValueError(
            f"`fn_if_not_exist` is 'raise', 'warn', 'pass' or 'none', not {fn_if_not_exist!r}."
        )
    args = args if isinstance(args, tuple) else (args,)
    is_excluded = to_predicate(node_to_exclude)
    ordered = []
    for path, module in nodes(target).items():
        if not is_module(module) or is_excluded(path, module):
            continue
        method = getattr(module, fn_name, None)
        if method is None:
            at = f" at `{_dotted(path)}`" if path else ""
            message = f"The {type(module).__name__}{at} has no method `{fn_name}`."
            if fn_if_not_exist == "raise":
                raise AttributeError(message)
            if fn_if_not_exist == "warn":
                warnings.warn(message, UserWarning, stacklevel=2)
        elif not callable(method):
            raise TypeError(f"`{fn_name}` of a {type(module).__name__} is no method: {method!r}.")
        elif hasattr(method, "call_order"):
            ordered.append(method)
        else:
            method(*args, **(kwargs or {}))
    for method in sorted(ordered, key=lambda m: m.call_order):
        method(*args, **(kwargs or {}))
    return target


def init_all_states(
    target: Any, *init_args: Any, node_to_exclude: Filter = None, **init_kwargs: Any
) -> Any:
    """Calls `init_state` of a module and of all modules in it, and returns the module."""
    return call_all_fns(target, "init_state", init_args, init_kwargs, node_to_exclude)


def reset_all_states(
    target: Any, *reset_args: Any, node_to_exclude: Filter = None, **reset_kwargs: Any
) -> Any:
    """Calls `reset_state` of a module and of all modules in it, and returns the module."""
    return call_all_fns(target, "reset_state", reset_args, reset_kwargs, node_to_exclude)


def vmap_call_all_fns(
    target: Any, fn_name: str, args: Any = (), kwargs: Mapping[str, Any] | None = None,
    axis_size: int | None = None, node_to_exclude: Filter = None, state_tag: str | None = None,
    fn_if_not_exist: str = "raise", **new_states: Any,
) -> Any:  # fmt: skip
    """As `call_all_fns`, where each cell that is made gets `axis_size` lanes on axis 0, and each
    lane random numbers of its own. `new_states` are arguments of `transform.vmap_new_states`.
    """
    if axis_size is None or axis_size < 1:
        raise ValueError(f"`axis_size`, the number of lanes, is a positive int, not {axis_size}.")

    def call() -> None:
        call_all_fns(target, fn_name, args, kwargs, node_to_exclude, fn_if_not_exist)

    vmap_new_states(call, axis_size=axis_size, state_tag=state_tag, **new_states)()
    return target


def vmap_init_all_states(
    target: Any, *init_args: Any, axis_size: int | None = None, node_to_exclude: Filter = None,
    state_to_exclude: Filter = None, state_tag: str | None = None, in_states: Any = None,
    out_states: Any = None, **init_kwargs: Any,
) -> Any:  # fmt: skip
    """As `init_all_states`, where each cell that is made gets `axis_size` lanes on axis 0, and
    each lane random numbers of its own.
    """
    given = (target, "init_state", init_args, init_kwargs, axis_size, node_to_exclude, state_tag)
    states = {"in_states": in_states, "out_states": out_states}
    return vmap_call_all_fns(*given, state_to_exclude=state_to_exclude, **states)


def vmap_reset_all_states(
    target: Any, *reset_args: Any, axis_size: int | None = None, node_to_exclude: Filter = None,
    state_tag: str | None = None, **reset_kwargs: Any,
) -> Any:  # fmt: skip
    """As `reset_all_states`, for modules whose `reset_state` makes cells: each gets `axis_size`
    lanes on axis 0.
    """
    given = (target, "reset_state", reset_args, reset_kwargs, axis_size, node_to_exclude, state_tag)
    return vmap_call_all_fns(*given)


def assign_state_values(
    target: Any, *state_by_abs_path: Mapping[Any, Any]
) -> tuple[list[Any], list[Any]]:
    """Gives the cells of a module values by path, a tuple or a dotted string. Returns the paths
    that the module does not have, and those of its cells for which there is no value.
    """
    given = {_dotted(k): (k, v) for part in state_by_abs_path for k, v in part.items()}
    cells = {_dotted(k): (k, cell) for k, cell in target.states().items()}
    arrays = {k: jax.tree.map(jnp.asarray, given[k][1]) for k in given if k in cells}
    for name, value in arrays.items():
        cells[name][1].value = value
    unexpected = [given[k][0] for k in sorted(given.keys() - cells.keys())]
    missing = [cells[k][0] for k in sorted(cells.keys() - given.keys())]
    return unexpected, missing


def _dotted(path: Any) -> str:
    return dotted(path) if isinstance(path, tuple) else str(path)
