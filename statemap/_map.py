"""`Map`: a model mapped over a population, with its states made and called by one object."""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, Concatenate, Generic, overload, ParamSpec, TypeVar

import equinox as eqx
import jax
from jax.sharding import Mesh

from ._axes import AxisSpec
from ._devices import DeviceSpec
from ._errors import near
from ._foreign import refuse_foreign
from ._init import vmap2_new_states
from ._make import is_made
from ._mapping import StatefulMapping
from ._members import MemberAxes
from ._options import Behavior, check_axis_size, Policy, Specs
from ._pmap import pmap2, pmap2_new_states
from ._state import Handle, read, State, with_fields
from ._state_axes import Axis, StateAxes, StateAxisSpec
from ._states import States
from ._treescope import show_map
from ._values import Struct
from ._vmap import vmap2


P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")
M = TypeVar("M", covariant=True)


class Map(eqx.Module, Generic[M]):
    """A model mapped over a population. (After `brainstate.nn.Map`.)

    ```python
    import equinox as eqx, jax.numpy as jnp, jax.random as jr
    import statemap as sm

    class Scale(eqx.Module):
        size: int
        weight: sm.ParamState = sm.field(lambda self, key: jr.normal(key, (self.size,)))

        def __call__(self, states, x):
            return states[self.weight] * x, states

        def total(self, states, offset):
            return states[self.weight].sum() + offset, states

    population = sm.Map(Scale, init_map_size=10)
    population, states = population.init_all_states(size=3, key=jr.key(0))
    out, states = population(states, jnp.ones((10, 3)))
    assert out.shape == (10, 3)

    totals, states = population.map("total", in_axes=None)(states, 1.0)
    assert totals.shape == (10,)
    ```

    It is an `equinox.Module`, with the model as its child: `init_all_states` returns another
    `Map`, and the context.
    """

    _make: Callable[..., Any] = eqx.field(static=True)
    _specs: Specs = eqx.field(static=True)
    init_map_size: int | None = eqx.field(static=True)
    state_tag: str | None = eqx.field(static=True)
    axis_name: Hashable = eqx.field(static=True)
    spmd_axis_name: Hashable = eqx.field(static=True)
    behavior: Behavior = eqx.field(static=True)
    devices: Any = eqx.field(static=True)
    unexpected_out_state_mapping: Policy = eqx.field(static=True)
    _axes: MemberAxes | None = eqx.field(static=True)
    _handles: tuple[tuple[Axis, tuple[State, ...]], ...] = eqx.field(static=True)
    _mapping: StatefulMapping | None  # of calls; the model is its child

    @overload
    def __init__(
        self,
        module: Callable[..., tuple[M, States, *tuple[Any, ...]]],
        init_map_size: int | None,
        init_state_axes: StateAxisSpec = None,
        state_tag: str | None = None,
        in_axes: AxisSpec = 0,
        out_axes: AxisSpec = 0,
        axis_name: Hashable = None,
        spmd_axis_name: Hashable | tuple[Hashable, ...] | None = None,
        call_state_axes: StateAxisSpec = None,
        behavior: Behavior = "vmap",
        *,
        devices: DeviceSpec = None,
        unexpected_out_state_mapping: Policy = "raise",
    ): ...

    @overload
    def __init__(
        self,
        module: Callable[..., M],
        init_map_size: int | None,
        init_state_axes: StateAxisSpec = None,
        state_tag: str | None = None,
        in_axes: AxisSpec = 0,
        out_axes: AxisSpec = 0,
        axis_name: Hashable = None,
        spmd_axis_name: Hashable | tuple[Hashable, ...] | None = None,
        call_state_axes: StateAxisSpec = None,
        behavior: Behavior = "vmap",
        *,
        devices: DeviceSpec = None,
        unexpected_out_state_mapping: Policy = "raise",
    ): ...

    def __init__(
        self,
        module: Callable[..., Any],
        init_map_size: int | None,
        init_state_axes: StateAxisSpec = None,
        state_tag: str | None = None,
        in_axes: AxisSpec = 0,
        out_axes: AxisSpec = 0,
        axis_name: Hashable = None,
        spmd_axis_name: Hashable | tuple[Hashable, ...] | None = None,
        call_state_axes: StateAxisSpec = None,
        behavior: Behavior = "vmap",
        *,
        devices: DeviceSpec = None,
        unexpected_out_state_mapping: Policy = "raise",
    ):
        """**Arguments:**

        - `module`: what makes the model, a class or a function.
        - `init_map_size`: the number of members.
        - `init_state_axes`: on which axes the states are made; as `state_out_axes` of
            [`statemap.vmap2_new_states`][].
        - `state_tag`: a tag for every state.
        - `in_axes`, `out_axes`: of calls, as for [`statemap.vmap2`][].
        - `axis_name`, `spmd_axis_name`: names for the members' axis, in initialisation, calls
            and `map`.
        - `call_state_axes`: axes of states in calls, where they are not those that the states
            were made with; also `statemap.Reduce` and `statemap.Restore`, for how states come out.
        - `behavior`: `"vmap"`, or `"pmap"` to lay the members over devices.
        - `devices`: the devices, with `"pmap"`; as for [`statemap.pmap2`][].
        - `unexpected_out_state_mapping`: as for [`statemap.vmap2`][].

        **Raises:**

        `ValueError` for another `behavior`, `TypeError` for a model that is made already.
        """
        if behavior not in ("vmap", "pmap"):
            raise ValueError(f"`behavior` is 'vmap' or 'pmap', not {behavior!r}.")
        if behavior == "pmap" and spmd_axis_name is not None:
            raise ValueError(
                "With `behavior='pmap'` the members lie on the axis of the mesh: leave "
                "`spmd_axis_name` out, and give an existing mesh as `devices`."
            )
        if behavior == "vmap" and devices is not None:
            raise ValueError("`devices` is for `behavior='pmap'`.")
        refuse_foreign(module, "`Map` was given", "sm.Map(module, 10)")
        if is_made(module) or not callable(module):
            raise TypeError(
                "`Map` makes the model itself, once, for all members.\n"
                "Wrong:  sm.Map(LIF(3, 4), init_map_size=10)\n"
                "Right:  sm.Map(LIF, init_map_size=10).init_all_states(n_in=3, n_out=4)"
            )
        self._make = module
        self._specs = Specs(in_axes, out_axes, init_state_axes, call_state_axes)
        self.init_map_size = check_axis_size(init_map_size)
        self.state_tag = state_tag
        self.axis_name = axis_name
        self.spmd_axis_name = spmd_axis_name
        self.behavior = behavior
        self.devices = devices if devices is None or isinstance(devices, Mesh) else tuple(devices)
        self.unexpected_out_state_mapping = unexpected_out_state_mapping
        self._axes = None
        self._handles = ()
        self._mapping = None

    in_axes: ClassVar[property] = property(lambda self: self._specs.in_axes)
    out_axes: ClassVar[property] = property(lambda self: self._specs.out_axes)
    init_state_axes: ClassVar[property] = property(lambda self: self._specs.init_state_axes)
    call_state_axes: ClassVar[property] = property(lambda self: self._specs.call_state_axes)
    __treescope_repr__ = show_map

    @property
    def module(self) -> M:
        """The model, once the states are made; until then, what makes it."""
        if self._mapping is None:
            return self._make  # pyright: ignore
        fn: Any = self._mapping.origin_fun
        is_update = isinstance(fn, jax.tree_util.Partial) and fn.func is _update
        return fn.args[0] if is_update else fn  # pyright: ignore

    @property
    def axes(self) -> MemberAxes:
        """The axes that the states were made with."""
        self._initialised("axes")
        return self._axes  # pyright: ignore

    @property
    def dict_vmap_states(self) -> dict[Axis, list[State]] | None:
        """The handles of the population's states, by the axis they were made with; `None` until
        they are made.
        """
        return None if self._axes is None else {a: list(states) for a, states in self._handles}

    def init_all_states(self, *, key: Any = None, **kwargs: Any) -> tuple["Map[M]", States]:
        """Makes the model and the states of all members.

        **Arguments:**

        - `key`: a key or seed; each member's constructor gets a key of its own.
        - `**kwargs`: the arguments of the constructor, the same for all members.

        **Returns:**

        `(population, states)`: a `Map` that can be called, and its context.

        **Raises:**

        What [`statemap.vmap2_new_states`][] raises.
        """
        options: dict[str, Any] = dict(
            key=key,
            state_tag=self.state_tag,
            axis_size=self.init_map_size,
            state_out_axes=self.init_state_axes,
            axis_name=self.axis_name,
        )
        if self.behavior == "pmap":
            made = pmap2_new_states(self._make, kwargs, devices=self.devices, **options)
        else:
            spmd = self.spmd_axis_name
            made = vmap2_new_states(self._make, kwargs, spmd_axis_name=spmd, **options)
        model, states, axes = made
        by_axis: dict[Axis, list[State]] = {axis: [] for axis in axes}
        for slot, spec, value in zip(states._slots.entries, states._slots.specs, states._values):
            handle = Handle(slot.path, slot.model, Struct(read(spec, value)))
            by_axis[axes._by_path[slot.path]].append(with_fields(spec, handle=handle))
        handles = tuple((axis, tuple(found)) for axis, found in by_axis.items())
        fn = model if callable(model) else jax.tree_util.Partial(_update, model)
        mapping = self._map(fn, axes, self.in_axes, self.out_axes, self.axis_name, None)
        return _replace(self, _axes=axes, _handles=handles, _mapping=mapping), states

    @overload
    def __call__(
        self: "Map[Callable[Concatenate[C, P], R]]", states: C, /, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...

    @overload
    def __call__(self, states: C, /, *args: Any, **kwargs: Any) -> tuple[Any, C]: ...

    def __call__(self: Any, states: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls the model for every member.

        **Arguments:**

        - `states`: the context.
        - `*args`, `**kwargs`: of the model, with members on the axes that `in_axes` names.

        **Returns:**

        `(out, states)`.

        **Raises:**

        `ValueError` if the states have not been made.
        """
        self._initialised("update")
        return self._mapping(states, *args, **kwargs)

    update = __call__

    @overload
    def map(
        self,
        fn: Callable[Concatenate[M, P], R],
        in_axes: AxisSpec = 0,
        out_axes: AxisSpec = 0,
        axis_name: Hashable = None,
        state_axes: StateAxisSpec = None,
    ) -> StatefulMapping[P, R]: ...

    @overload
    def map(
        self,
        fn: str,
        in_axes: AxisSpec = 0,
        out_axes: AxisSpec = 0,
        axis_name: Hashable = None,
        state_axes: StateAxisSpec = None,
    ) -> StatefulMapping[..., tuple[Any, States]]: ...

    def map(
        self,
        fn: str | Callable[..., Any],
        in_axes: AxisSpec = 0,
        out_axes: AxisSpec = 0,
        axis_name: Hashable = None,
        state_axes: StateAxisSpec = None,
    ) -> StatefulMapping:
        """Another function of the model, mapped over the members.

        **Arguments:**

        - `fn`: the name of a method, `method(states, *args) -> (out, states)`; or a function that
            is given the model first, `fn(model, states, *args) -> (out, states)`.
        - `in_axes`, `out_axes`: as for [`statemap.vmap2`][].
        - `axis_name`: by default that of the `Map`.
        - `state_axes`: axes, or rules, for the states that these filters match; the others keep
            those that they were made with.

        **Returns:**

        A [`statemap.StatefulMapping`][].

        **Raises:**

        `ValueError` if the states have not been made, `AttributeError` if the model has no such
        method.
        """
        self._initialised("map")
        module = self.module
        bound = _method(module, fn) if isinstance(fn, str) else jax.tree_util.Partial(fn, module)
        axis_name = self.axis_name if axis_name is None else axis_name
        return self._map(bound, self.axes, in_axes, out_axes, axis_name, state_axes)

    def __repr__(self) -> str:
        name = getattr(self._make, "__name__", repr(self._make))
        made = "no states yet" if self._axes is None else repr(self._axes)
        return f"Map({name}, {self.init_map_size} members, {self.behavior!r}, {made})"

    def _map(
        self,
        fn: Callable[..., Any],
        axes_made: MemberAxes,
        in_axes: AxisSpec,
        out_axes: AxisSpec,
        axis_name: Hashable,
        state_axes: StateAxisSpec,
    ) -> StatefulMapping:
        made = StateAxes.parse(axes_made, "axes")
        own = StateAxes.parse(state_axes, "state_axes", rules=True)
        own = own.over(StateAxes.parse(self.call_state_axes, "call_state_axes", rules=True))
        # What becomes of a write to a state that was made without lanes, the policy tells.
        mapped = StateAxes(tuple(e for e in made.entries if e.axis is not None), "axes")
        options: dict[str, Any] = dict(
            in_axes=in_axes,
            out_axes=out_axes,
            axis_name=axis_name,
            state_in_axes=own.without_rules.over(made),
            state_out_axes=own.over(mapped),
            unexpected_out_state_mapping=self.unexpected_out_state_mapping,
        )
        if self.behavior == "pmap":
            return pmap2(fn, devices=self.devices, **options)
        return vmap2(fn, spmd_axis_name=self.spmd_axis_name, **options)

    def _initialised(self, what: str) -> None:
        if self._axes is None:
            raise ValueError(
                f"`Map.{what}` comes after `init_all_states`, which returns another `Map`.\n"
                "Wrong:  population.init_all_states(...); population(states, x)\n"
                "Right:  population, states = population.init_all_states(...)"
            )


def _replace(population: Map, **changed: Any) -> Map:
    """A copy of a `Map` with some fields replaced, past `__init__`."""
    new = object.__new__(Map)
    for field in dataclasses.fields(population):
        value = changed.get(field.name, getattr(population, field.name))
        object.__setattr__(new, field.name, value)
    return new


def _update(module: Any, states: Any, *args: Any, **kwargs: Any) -> Any:
    """What a call of a population maps, of a model that is not callable itself."""
    return _method(module, "update")(states, *args, **kwargs)


def _method(module: Any, name: str) -> Callable[..., Any]:
    method = getattr(module, name, None)
    if not callable(method):
        public = [n for n in dir(module) if not n.startswith("_")]
        known = [n for n in public if callable(getattr(module, n, None))]
        raise AttributeError(
            f"`{type(module).__name__}` has no method `{name}`."
            + near(name, known, "It has no public methods.", "It has")
        )
    return method
