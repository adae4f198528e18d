"""`Map`: a module mapped over a population. (After `brainstate.nn.Map`.)"""

import functools
import operator
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar

import jax

from ..._errors import near
from ..._filters import Filter
from .._cells import State
from ..transform import pmap2, pmap2_new_states, vmap2, vmap2_new_states
from ..util.filter import All, Any as AnyOf, IsCell, Not, Predicate, to_predicate
from ._module import Module
from ._sequential import shown
from ._walk import Kept


Axis = int | None
_KEPT = 64  # callers


class Map(Module):
    """A module mapped over a population, whose members have cells of their own.

    ```python
    import jax.numpy as jnp
    from statemap.compat import nn, ParamState

    class Scale(nn.Module):
        def init_state(self, size):
            self.weight = ParamState(jnp.ones(size))

        def update(self, x):
            return x @ self.weight.value

        def total(self, offset):
            return self.weight.value.sum() + offset

    population = nn.Map(Scale(), init_map_size=10)
    population.init_all_states(size=(5,))
    assert population(jnp.ones((10, 5))).shape == (10,)
    assert population.map("total", in_axes=None)(1.0).shape == (10,)
    ```
    """

    graph_invisible_attrs: ClassVar[tuple[str, ...]] = ("dict_vmap_states", "_kept")

    def __init__(
        self,
        module: Any,
        init_map_size: Any,
        init_state_axes: Any = None,
        state_tag: str | None = None,
        in_axes: Any = 0,
        out_axes: Any = 0,
        axis_name: Hashable = None,
        spmd_axis_name: Any = None,
        call_state_axes: Any = None,
        behavior: Any = "vmap",
    ):
        """**Arguments:**

        - `module`: the module, which makes its cells in `init_state`.
        - `init_map_size`: the number of members.
        - `init_state_axes`: on which axes the members of the cells lie, a dictionary from axes to
            filters; by default 0. A `NonBatchState` has no members.
        - `state_tag`: a tag for the cells that are made.
        - `in_axes`, `out_axes`: of calls, as for `transform.vmap2`.
        - `axis_name`, `spmd_axis_name`: names for the members' axis, in initialisation, calls
            and `map`.
        - `call_state_axes`: axes of cells in calls, for those that these filters match; the others
            are on the axes that they were made on.
        - `behavior`: `"vmap"`, or `"pmap"` to lay the members over devices.

        **Raises:**

        `ValueError` for another `behavior` or a size below 1, `TypeError` for what is no module or
        no size.
        """
        super().__init__()
        if not isinstance(module, Module):
            raise TypeError(f"`module` is a module, not {shown(module)}.")
        if isinstance(init_map_size, bool) or not hasattr(init_map_size, "__index__"):
            raise TypeError(f"`init_map_size`, a number of members, is an int: {init_map_size!r}.")
        if operator.index(init_map_size) < 1:
            raise ValueError(f"`init_map_size` is at least 1, not {init_map_size}.")
        if behavior not in ("vmap", "pmap"):
            raise ValueError(f"`behavior` is 'vmap' or 'pmap', not {behavior!r}.")
        self.init_map_size: int = operator.index(init_map_size)
        self.module: Any = module
        self.state_tag = state_tag
        self.in_axes = in_axes
        self.out_axes = out_axes
        self.axis_name = axis_name
        self.spmd_axis_name = spmd_axis_name
        self.call_state_axes = call_state_axes
        self.init_state_axes = init_state_axes
        self.behavior = behavior
        # The cells of the members by their axis, once there are some.
        self.dict_vmap_states: dict[Axis, list[State]] | None = None
        self._kept = Kept()

    def init_all_states(self, **kwargs: Any) -> None:  # pyright: ignore
        """Makes the cells of all members.

        **Arguments:**

        - `**kwargs`: of `module.init_all_states`, the same for all members.
        """
        options: dict[str, Any] = dict(
            state_tag=self.state_tag,
            axis_size=self.init_map_size,
            state_out_axes=self.init_state_axes,
            axis_name=self.axis_name,
        )
        if self.behavior == "pmap":
            made = pmap2_new_states(self.module, kwargs, **options)
        else:
            options["spmd_axis_name"] = self.spmd_axis_name
            made = vmap2_new_states(self.module, kwargs, **options)
        self.dict_vmap_states = made

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the module for every member.

        **Raises:**

        `ValueError` before `init_all_states`.
        """
        self._initialised("update")
        caller = self._caller(self.module, self.module, self.in_axes, self.out_axes, None, None)
        return caller(*args, **kwargs)

    def map(
        self,
        fn: str | Callable[..., Any],
        in_axes: Any = 0,
        out_axes: Any = 0,
        axis_name: Hashable = None,
        state_axes: Any = None,
    ) -> Callable[..., Any]:
        """Another function of the module, mapped over the members.

        **Arguments:**

        - `fn`: the name of a method; or a function, which is given the module first.
        - `in_axes`, `out_axes`: as for `transform.vmap2`.
        - `axis_name`: by default that of the `Map`.
        - `state_axes`: a dictionary from axes to filters, for the cells that these match; the
            others are on the axes of calls.

        **Returns:**

        A function of the other arguments.

        **Raises:**

        `ValueError` before `init_all_states`, `AttributeError` if the module has no such method.
        """
        if isinstance(fn, str):
            fn = self._method(fn)
        elif not callable(fn):
            raise TypeError(f"`fn` is the name of a method or a function, not {fn!r}.")
        bound = fn is self.module or getattr(fn, "__self__", None) is self.module
        call = fn if bound else functools.partial(fn, self.module)
        self._initialised("map")
        return self._caller(fn, call, in_axes, out_axes, axis_name, state_axes)

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

    def _caller(
        self,
        fn: Any,
        call: Callable[..., Any],
        in_axes: Any,
        out_axes: Any,
        axis_name: Hashable,
        state_axes: Any,
    ) -> Callable[..., Any]:
        """The caller of these, which keeps what was compiled for it. `call` goes with `fn`."""
        if axis_name is None:
            axis_name = self.axis_name
        given = [*_entries(state_axes), *_entries(self.call_state_axes)]
        new = MapCaller(self, call, in_axes, out_axes, axis_name, given)
        try:
            leaves, treedef = jax.tree.flatten((in_axes, out_axes), is_leaf=lambda x: x is None)
            key = (fn, *leaves, treedef, axis_name, self.spmd_axis_name, *given)
            kept = self._kept.entries
            found = kept.setdefault(key, new)
        except TypeError:  # something in it has no hash
            return new
        if len(kept) > _KEPT:
            kept.pop(next(iter(kept)), None)
        return found

    def _initialised(self, what: str) -> None:
        if self.dict_vmap_states is None:
            raise ValueError(
                f"`Map.{what}` comes after `init_all_states`, which makes the cells of the members."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": Kept()}  # copies have cells of their own


class MapCaller:
    """What `Map.map` returns: a function of the members, mapped."""

    def __init__(
        self,
        owner: Map,
        fn: Callable[..., Any],
        in_axes: Any,
        out_axes: Any,
        axis_name: Hashable,
        given: list[tuple[Axis, Predicate]],
    ):
        self.in_axes = in_axes
        self.out_axes = out_axes
        self.axis_name = axis_name
        self.behavior = owner.behavior
        self._owner = owner
        self._fn = fn
        self._given = given
        self._mapping: Any = None
        self._made: Any = None

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return self._fn

    @property
    def state_axes(self) -> dict[Axis, Predicate]:
        """The axes of the cells."""
        return _merged(self._given, self._owner.dict_vmap_states or {})

    @property
    def map_fn(self) -> Any:
        """The mapping: what `transform.vmap2` or `pmap2` returns."""
        made = self._owner.dict_vmap_states
        if self._made is not made:  # the first time, or `init_all_states` has made other cells
            axes = self.state_axes
            options: dict[str, Any] = dict(
                in_axes=self.in_axes,
                out_axes=self.out_axes,
                axis_name=self.axis_name,
                state_in_axes=axes,
                state_out_axes=axes,
            )
            if self.behavior == "pmap":
                n = self._owner.init_map_size
                devices = jax.devices()[:n] if n < jax.device_count() else None
                self._mapping = pmap2(self._fn, devices=devices, **options)
            else:
                options["spmd_axis_name"] = self._owner.spmd_axis_name
                self._mapping = vmap2(self._fn, **options)
            self._made = made
        return self._mapping

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.map_fn(*args, **kwargs)

    def __repr__(self) -> str:
        inner = self._fn.func if isinstance(self._fn, functools.partial) else self._fn
        name = getattr(inner, "__name__", type(inner).__name__)
        return (
            f"MapCaller({name}, in_axes={self.in_axes!r}, out_axes={self.out_axes!r}, "
            f"axis_name={self.axis_name!r}, behavior={self.behavior!r})"
        )


def _entries(state_axes: Any) -> list[tuple[Axis, Predicate]]:
    """A dictionary from axes to filters, or a filter for axis 0, as a list."""
    if state_axes is None:
        return []
    spec: Mapping[Axis, Filter] = state_axes if isinstance(state_axes, Mapping) else {0: state_axes}
    return [(axis, to_predicate(filter)) for axis, filter in spec.items()]


def _merged(
    given: list[tuple[Axis, Predicate]], made: dict[Axis, list[State]]
) -> dict[Axis, Predicate]:
    """What is given, in its order, and for what that does not match the axes of `made`.

    An axis can be a key but once, so that the order is told by the filters.
    """
    terms = defaultdict(list)
    before: list[Predicate] = []
    for axis, matches in given:
        terms[axis].append(All(matches, Not(before)) if before else matches)
        before = [*before, matches]
    for axis, cells in made.items():
        theirs = IsCell(cells)
        terms[axis].append(All(theirs, Not(before)) if before else theirs)
    return {axis: each[0] if len(each) == 1 else AnyOf(*each) for axis, each in terms.items()}
