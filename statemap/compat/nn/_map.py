"""`Map`: a module mapped over a population. (After `brainstate.nn.Map`, whose arguments
[its page](https://brainstate.readthedocs.io) documents.)
"""

import functools
import operator
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from ..._cache import Cache
from ..._errors import near
from ..._values import dotted
from .._errors import BatchAxisError
from .._frames import peek
from ..transform import pmap2, pmap2_new_states, vmap2, vmap2_new_states
from ..transform._prepared import parse_axes
from ..util._flat import Path
from ..util.filter import Predicate
from ._module import Module
from ._walk import is_module, shown


_KEPT = 64  # callers


class MapBehaviour:
    """What a [`statemap.compat.nn.Map`][] does, over any class of modules that it is put before
    as a base: modules with `nodes`, `states`, `init_all_states` and a call.
    """

    # What a copy lacks that brainstate's graph makes: the cells that were made, and the callers.
    graph_invisible_attrs: ClassVar[tuple[str, ...]] = ("_made", "_kept")
    _made: dict[int | None, list[Any]] | None = None
    _kept: "Cache[MapCaller]"
    _made_on: tuple[tuple[Path, int | None], ...] = ()

    def __init__(
        self, module: Any, init_map_size: Any, init_state_axes: Any = None,
        state_tag: str | None = None, in_axes: Any = 0, out_axes: Any = 0,
        axis_name: Hashable = None, spmd_axis_name: Any = None, call_state_axes: Any = None,
        behavior: Any = "vmap",
    ):  # fmt: skip
        super().__init__()
        if not is_module(module):
            raise TypeError(f"`module` is a module, not {shown(module)}.")
        if isinstance(init_map_size, bool) or not hasattr(init_map_size, "__index__"):
            raise TypeError(f"`init_map_size`, a number of members, is an int: {init_map_size!r}.")
        if operator.index(init_map_size) < 1:
            raise ValueError(f"`init_map_size` is at least 1, not {init_map_size}.")
        if behavior not in ("vmap", "pmap"):
            raise ValueError(f"`behavior` is 'vmap' or 'pmap', not {behavior!r}.")
        self.init_map_size: int = operator.index(init_map_size)
        self.module: Any = module
        self.state_tag: str | None = state_tag
        self.behavior: str = behavior
        self.in_axes: Any = in_axes
        self.out_axes: Any = out_axes
        self.axis_name: Hashable = axis_name
        self.spmd_axis_name: Hashable = spmd_axis_name
        self.call_state_axes: Any = call_state_axes
        self.init_state_axes: Any = init_state_axes

    def init_all_states(self, **kwargs: Any) -> None:  # pyright: ignore
        """Makes the cells of all members, with these arguments of `module.init_all_states`."""
        options: dict[str, Any] = dict(
            state_tag=self.state_tag,
            axis_size=self.init_map_size,
            state_out_axes=self.init_state_axes,
            axis_name=self.axis_name,
        )
        make = pmap2_new_states
        if self.behavior == "vmap":
            make = functools.partial(vmap2_new_states, spmd_axis_name=self.spmd_axis_name)
        self._made, self._kept = make(self.module, kwargs, **options), Cache(_KEPT)
        axes = {cell: axis for axis, cells in self._made.items() for cell in cells}
        found = self.module.states().items()
        self._made_on = tuple((path, axes[cell]) for path, cell in found if cell in axes)

    @property
    def dict_vmap_states(self) -> dict[int | None, list[Any]] | None:
        """The cells of the members by their axis, once there are some."""
        if self._made is None and self._made_on:
            cells, made = self.module.states(), {}
            for path, axis in self._made_on:
                made.setdefault(axis, []).append(cells[path])
            self._made, self._kept = made, Cache(_KEPT)
        return self._made

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the module for every member. Comes after `init_all_states`."""
        return self.map(self.module, self.in_axes, self.out_axes)(*args, **kwargs)

    def map(
        self, fn: str | Callable[..., Any], in_axes: Any = 0, out_axes: Any = 0,
        axis_name: Hashable = None, state_axes: Any = None,
    ) -> Callable[..., Any]:  # fmt: skip
        """Another function of the module, mapped over the members: a method by its name, or a
        function that is given the module first. Comes after `init_all_states`.

        `state_axes` are for the cells that they match; the others are on the axes of calls.
        `axis_name` is that of the `Map`, if it is left out.
        """
        if isinstance(fn, str):
            fn = self._method(fn)
        elif not callable(fn):
            raise TypeError(f"`fn` is the name of a method or a function, not {fn!r}.")
        if self.dict_vmap_states is None:
            raise ValueError(
                "`Map.update` or `Map.map` comes after `init_all_states`, which makes the cells of "
                "the members."
            )
        name = self.axis_name if axis_name is None else axis_name
        given = _entries(state_axes=state_axes, call_state_axes=self.call_state_axes)
        options = (self, fn, in_axes, out_axes, name, given)
        leaves, treedef = jax.tree.flatten((in_axes, out_axes), is_leaf=lambda x: x is None)
        key = (fn, *leaves, treedef, name, self.spmd_axis_name, *given)
        try:
            return self._kept.get(key) or self._kept.add(key, MapCaller(*options))
        except TypeError:  # something in it has no hash
            return MapCaller(*options)

    def _method(self, name: str) -> Callable[..., Any]:
        try:
            method = getattr(self.module, name)
        except AttributeError:
            known = [n for n in dir(type(self.module)) if not n.startswith("_")]
            raise AttributeError(
                f"`{type(self.module).__name__}` has no method `{name}`.{near(name, known)}"
            ) from None
        if not callable(method):
            raise TypeError(f"`{name}` of {type(self.module).__name__} is no method: {method!r}.")
        return method


class Map(MapBehaviour, Module):
    """A module mapped over a population, whose members have cells of their own."""

    graph_invisible_attrs: ClassVar[tuple[str, ...]] = ("_made", "_kept", "_made_on")


class MapCaller:
    """What `Map.map` returns: a function of the members, mapped."""

    def __init__(
        self, owner: Any, fn: Callable[..., Any], in_axes: Any, out_axes: Any,
        axis_name: Hashable, given: "list[Entry]",
    ):  # fmt: skip
        bound = fn is owner.module or getattr(fn, "__self__", None) is owner.module
        self.__wrapped__ = fn if bound else functools.partial(fn, owner.module)
        self.__name__ = getattr(fn, "__name__", type(fn).__name__)
        self.in_axes, self.out_axes, self.axis_name = in_axes, out_axes, axis_name
        self.behavior = owner.behavior
        self._owner, self._given = owner, given
        self._map()

    def _map(self) -> None:
        """Makes the mapping, with the axes of the cells that there are."""
        self._made = made = self._owner.dict_vmap_states
        axis_of = {cell: axis for axis, cells in made.items() for cell in cells}
        axes = dict.fromkeys([*(entry.axis for entry in self._given), *made])
        n = self._owner.init_map_size
        self.state_axes = {axis: OnAxis(axis, self._given, axis_of, n) for axis in axes}
        options: dict[str, Any] = dict(
            in_axes=self.in_axes,
            out_axes=self.out_axes,
            axis_name=self.axis_name,
            state_in_axes=self.state_axes,
            state_out_axes=self.state_axes,
        )
        if self.behavior == "vmap":
            spmd = self._owner.spmd_axis_name
            self.map_fn = vmap2(self.__wrapped__, spmd_axis_name=spmd, **options)
        else:
            devices = jax.devices()[:n] if n < jax.device_count() else None
            self.map_fn = pmap2(self.__wrapped__, devices=devices, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._made is not self._owner.dict_vmap_states:  # `init_all_states` has made others
            self._map()
        return self.map_fn(*args, **kwargs)

    def __repr__(self) -> str:
        return (
            f"MapCaller({self.__name__}, in_axes={self.in_axes!r}, out_axes={self.out_axes!r}, "
            f"axis_name={self.axis_name!r}, behavior={self.behavior!r})"
        )


class Entry(NamedTuple):
    """The axis of the cells that a filter matches, and whose argument says so."""

    axis: int | None
    matches: Predicate
    parameter: str


def _entries(**axes: Any) -> list[Entry]:
    parsed = {parameter: parse_axes(spec, parameter) for parameter, spec in axes.items()}
    return [Entry(axis, p, name) for name, spec in parsed.items() for axis, p in spec.items()]


class OnAxis:
    """Matches the cells that are mapped on an axis: those that the first entry that matches them
    gives it, and of the others those that were made on it.
    """

    def __init__(self, axis: int | None, given: list[Entry], made: dict[Any, Any], members: int):
        self.axis, self.given, self.made, self.members = axis, given, made, members

    def __call__(self, path: Any, cell: Any) -> bool:
        made_on = self.made.get(cell, ...)
        entry = next((e for e in self.given if e.matches(path, cell)), None)
        if entry is None:
            return made_on == self.axis
        if made_on not in (..., entry.axis) and entry.axis is not None:
            self._refuse_other(path, cell, made_on, entry)
        return entry.axis == self.axis

    def _refuse_other(self, path: Any, cell: Any, made_on: Any, entry: Entry) -> None:
        """Refuses another axis than that a cell was made on, unless it has been given a value with
        the members there.
        """
        axis: Any = entry.axis
        for shape in map(jnp.shape, jax.tree.leaves(peek(cell))):
            if self.members not in shape[axis : axis + 1 or None]:
                made = "without members" if made_on is None else f"with members on axis {made_on}"
                raise BatchAxisError(
                    f"The {type(cell).__name__} `{dotted(path)}` was made {made}, and "
                    f"`{entry.parameter}` takes them on axis {axis}, where its value of shape "
                    f"{shape} does not have {self.members}. Give both the same axis."
                )

    def __repr__(self) -> str:
        filters = [repr(e.matches) for e in self.given if e.axis == self.axis]
        return " | ".join([*filters, f"<made on axis {self.axis}>"])
