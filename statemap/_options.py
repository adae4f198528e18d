"""The parameters of a mapping, normalised once: hashable, and equal where they mean the same."""

import functools
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import jax
import numpy as np

from ._axes import AxisSpec, is_axis_leaf, POLICIES, StateAxes, StateAxisSpec
from ._devices import Devices


class Options:
    """See [`statemap.StatefulMapping`][] for what each parameter means."""

    def __init__(
        self,
        *,
        in_axes: AxisSpec,
        out_axes: AxisSpec,
        state_in_axes: StateAxisSpec,
        state_out_axes: StateAxisSpec,
        unexpected_out_state_mapping: str,
        axis_name: Hashable,
        axis_size: int | None,
        mapping_fn: Callable,
        static_argnums: int | Iterable[int] | None,
        static_argnames: str | Iterable[str] | None,
        donate: bool,
        donate_argnums: int | Iterable[int] | None = (),
        devices: Devices | None = None,
    ):
        if unexpected_out_state_mapping not in POLICIES:
            raise ValueError(
                f"`unexpected_out_state_mapping` is one of {', '.join(map(repr, POLICIES))}, "
                f"not {unexpected_out_state_mapping!r}."
            )
        if isinstance(axis_size, bool) or not isinstance(axis_size, (int, np.integer, type(None))):
            raise TypeError(f"`axis_size` is an integer or None, not {axis_size!r}.")
        if axis_size is not None and axis_size < 0:
            raise ValueError(f"`axis_size` is the number of lanes, which {axis_size} is not.")
        self.in_axes = in_axes
        self.out_axes = out_axes
        self.state_in = StateAxes.parse(state_in_axes, "state_in_axes")
        self.state_out = StateAxes.parse(state_out_axes, "state_out_axes")
        self.policy = unexpected_out_state_mapping
        self.axis_name = axis_name
        self.axis_size = None if axis_size is None else int(axis_size)
        self.mapping_fn = mapping_fn
        self.static_argnums = _positions(static_argnums, "static_argnums")
        self.donate_argnums = _positions(donate_argnums, "donate_argnums")
        if both := self.static_argnums & self.donate_argnums:
            raise ValueError(f"Argument {min(both)} is static, and has no memory to donate.")
        names = (static_argnames,) if isinstance(static_argnames, str) else static_argnames
        self.static_argnames = frozenset(names or ())
        self.donate = donate
        self.devices = devices
        self.key = (
            _frozen(in_axes),
            _frozen(out_axes),
            self.state_in,
            self.state_out,
            self.policy,
            axis_name,
            self.axis_size,
            function_key(mapping_fn),
            self.static_argnums,
            self.static_argnames,
            self.donate_argnums,
            donate,
            devices,
        )
        try:
            self._hash = hash(self.key)
        except TypeError as error:
            raise TypeError(
                "The parameters of a mapping key what is compiled, and one of them is not "
                f"hashable: {error}. A filter of your own needs a `__hash__` if it has an `__eq__`."
            ) from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Options) and (self is other or self.key == other.key)

    def __hash__(self) -> int:
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_hash"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._hash = hash(self.key)  # of strings, which differs between processes

    @property
    def has_static(self) -> bool:
        return bool(self.static_argnums or self.static_argnames)


def function_key(fn: Any) -> Hashable:
    """What a function, perhaps with arguments bound by `functools.partial`, is equal by."""
    if isinstance(fn, functools.partial):
        keywords = sorted(fn.keywords.items())
        return function_key(fn.func), fn.args, tuple((k, function_key(v)) for k, v in keywords)
    return fn


def _positions(nums: int | Iterable[int] | None, parameter: str) -> frozenset[int]:
    nums = frozenset((nums,) if isinstance(nums, int) else nums or ())
    if any(not isinstance(n, int) for n in nums):
        raise TypeError(f"`{parameter}` holds positions, which are integers, not {set(nums)}.")
    if any(n < 0 for n in nums):
        raise ValueError(
            f"`{parameter}` counts the arguments after the states from 0, and holds {min(nums)}."
        )
    return nums


def _frozen(axes: AxisSpec) -> Hashable:
    leaves, treedef = jax.tree.flatten(axes, is_leaf=is_axis_leaf)
    return tuple(leaves), treedef
