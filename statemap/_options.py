"""The parameters of a mapping, normalised once: hashable, and equal where they mean the same."""

import functools
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Literal, TYPE_CHECKING

import equinox as eqx
import jax
import numpy as np

from ._axes import AxisSpec, is_axis_leaf
from ._devices import Devices
from ._exact import by_identity
from ._filters import filter_key
from ._rules import rule_key
from ._state_axes import StateAxes, StateAxisSpec


POLICIES = ("raise", "warn", "ignore")

if TYPE_CHECKING:
    Policy = Literal["raise", "warn", "ignore"]
    Behavior = Literal["vmap", "pmap"]
else:  # any string gets as far as the message that names the choices
    Policy = Behavior = str


class Options:
    """See [`statemap.StatefulMapping`][] for what each parameter means."""

    def __init__(
        self,
        *,
        in_axes: AxisSpec,
        out_axes: AxisSpec,
        state_in_axes: StateAxisSpec,
        state_out_axes: StateAxisSpec,
        unexpected_out_state_mapping: Policy,
        axis_name: Hashable,
        axis_size: int | None,
        mapping_fn: Callable,
        static_argnums: int | Iterable[int] | None,
        static_argnames: str | Iterable[str] | None,
        donate: bool,
        donate_argnums: int | Iterable[int] | None = (),
        devices: Devices | None = None,
        chunk_size: int | None = None,
    ):
        if unexpected_out_state_mapping not in POLICIES:
            raise ValueError(
                f"`unexpected_out_state_mapping` is one of {', '.join(map(repr, POLICIES))}, "
                f"not {unexpected_out_state_mapping!r}."
            )
        if chunk_size is not None and (
            isinstance(chunk_size, bool)
            or not isinstance(chunk_size, (int, np.integer))
            or chunk_size < 1
        ):
            raise ValueError(f"`chunk_size` is a positive number of lanes, not {chunk_size!r}.")
        self.in_axes = in_axes
        self.out_axes = out_axes
        self.state_in = StateAxes.parse(state_in_axes, "state_in_axes")
        self.state_out = StateAxes.parse(state_out_axes, "state_out_axes", rules=True)
        self.policy = unexpected_out_state_mapping
        self.axis_name = axis_name
        self.axis_size = check_axis_size(axis_size)
        self.chunk_size = None if chunk_size is None else int(chunk_size)
        self.mapping_fn = mapping_fn
        self.static_argnums = _positions(static_argnums, "static_argnums")
        self.donate_argnums = _positions(donate_argnums, "donate_argnums")
        if both := self.static_argnums & self.donate_argnums:
            raise ValueError(f"Argument {min(both)} is static, and has no memory to donate.")
        names = (static_argnames,) if isinstance(static_argnames, str) else static_argnames
        self.static_argnames = frozenset(names or ())
        self.donate = donate
        self.devices = devices
        self._key = self.key()  # what is wrong with it shows now

    def key(self, on_death: Callable[[Any], None] | None = None) -> Hashable:
        """What equal options share. Callables are referred to weakly, so that a cache keeps no
        closure alive; `on_death` is called when one of them goes.

        **Raises:**

        `TypeError` if one of the parameters is not hashable.
        """
        key = (
            _frozen(self.in_axes, on_death),
            _frozen(self.out_axes, on_death),
            _entries(self.state_in, on_death),
            _entries(self.state_out, on_death),
            self.policy,
            self.axis_name,
            self.axis_size,
            function_key(self.mapping_fn, on_death),
            self.static_argnums,
            self.static_argnames,
            self.donate_argnums,
            self.donate,
            self.devices,
            self.chunk_size,
        )
        try:
            hash(key)
        except TypeError as error:
            raise TypeError(
                "The parameters of a mapping key what is compiled, and one of them is not "
                f"hashable: {error}. A filter of your own needs a `__hash__` if it has an `__eq__`."
            ) from None
        return key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Options) and (self is other or self._key == other._key)

    def __hash__(self) -> int:
        return hash(self._key)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_key"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._key = self.key()

    @property
    def is_ours(self) -> bool:
        """Whether no mapping function of the user's is held by what is compiled."""
        fn = self.mapping_fn
        while isinstance(fn, functools.partial):
            fn = fn.func
        return fn is eqx.filter_vmap or fn is jax.vmap

    def mapping(self, devices: Devices | None) -> Callable[..., Any]:
        """What maps a lane's program: a function with the parameters of `jax.vmap`."""
        given: dict[str, Any] = {"axis_name": self.axis_name}
        if devices is not None and not devices.is_explicit:
            given["spmd_axis_name"] = devices.axis
        return functools.partial(self.mapping_fn, **given)

    @property
    def has_static(self) -> bool:
        return bool(self.static_argnums or self.static_argnames)


def check_axis_size(axis_size: Any) -> int | None:
    """A number of lanes, or None."""
    if axis_size is None:
        return None
    if isinstance(axis_size, bool) or not isinstance(axis_size, (int, np.integer)):
        raise TypeError(f"`axis_size` is an integer or None, not {axis_size!r}.")
    if axis_size < 0:
        raise ValueError(f"`axis_size` is the number of lanes, which {axis_size} is not.")
    return int(axis_size)


def function_key(fn: Any, on_death: Callable[[Any], None] | None = None) -> Hashable:
    """What a function, perhaps with arguments bound by `functools.partial`, is equal by."""
    if isinstance(fn, functools.partial):
        keywords = sorted(fn.keywords.items())
        given = tuple((k, function_key(v, on_death)) for k, v in keywords)
        return function_key(fn.func, on_death), fn.args, given
    return by_identity(fn, on_death)


def _entries(axes: StateAxes, on_death: Callable[[Any], None] | None) -> Hashable:
    return tuple(
        (axis, filter_key(predicate, on_death), rule_key(rule, on_death))
        for axis, predicate, rule in axes.entries
    )


def _positions(nums: int | Iterable[int] | None, parameter: str) -> frozenset[int]:
    nums = frozenset((nums,) if isinstance(nums, int) else nums or ())
    if any(not isinstance(n, int) for n in nums):
        raise TypeError(f"`{parameter}` holds positions, which are integers, not {set(nums)}.")
    if any(n < 0 for n in nums):
        raise ValueError(
            f"`{parameter}` counts the arguments after the states from 0, and holds {min(nums)}."
        )
    return nums


def _frozen(axes: AxisSpec, on_death: Callable[[Any], None] | None) -> Hashable:
    leaves, treedef = jax.tree.flatten(axes, is_leaf=is_axis_leaf)
    return tuple(by_identity(x, on_death) for x in leaves), treedef


class Specs:
    """The axes that a `Map` was given, as static data: hashable, equal where they mean the same."""

    def __init__(self, in_axes: Any, out_axes: Any, init_state_axes: Any, call_state_axes: Any):
        self.in_axes, self.out_axes = in_axes, out_axes
        self.init_state_axes, self.call_state_axes = init_state_axes, call_state_axes
        leaves, treedef = jax.tree.flatten([in_axes, out_axes], is_leaf=lambda x: x is None)
        self._key = (
            tuple(leaves),
            treedef,
            StateAxes.parse(init_state_axes, "init_state_axes"),
            StateAxes.parse(call_state_axes, "call_state_axes", rules=True),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Specs) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)
