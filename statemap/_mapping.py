"""`StatefulMapping`: the object that a mapping is, and how a call goes."""

import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Generic, ParamSpec, TypeVar

import equinox as eqx
import jax

from ._axes import along, argument_axes, Axis, AxisSpec, StateAxisSpec
from ._compiled import Aux, Cache, Compiled, is_base_trace, Spread
from ._container import AnyFrame, first_argument, pack, refuse_unhashable
from ._devices import Devices
from ._filters import Filter
from ._options import Options
from ._outcome import unfix
from ._plan import Plan
from ._signature import (
    abstract,
    CacheKey,
    exact,
    Function,
    Inputs,
    mark_static,
    split_leaves,
    static_arguments,
)
from ._slots import Slots
from ._states import make_states, mark_donated, States
from ._warm import as_overlay, chosen_of, is_plain, warm_call, WarmCall


P = ParamSpec("P")
R = TypeVar("R")

# What equal mappings share: by function and options, the compiled calls.
_shared: Cache[Cache[Compiled]] = Cache(512)
_CALLS = 128  # for one mapping: contexts of other slots, arguments of other structure


class StatefulMapping(Generic[P, R]):
    """A function mapped over lanes, its states threaded through: what [`statemap.vmap2`][]
    returns. Use it directly to map with a `mapping_fn` of your own.

    ```python
    import functools, jax, jax.numpy as jnp
    import statemap as sm

    def increment(states, delta):
        count = states["count"] + delta
        return count, states.set("count", count)

    mapped = sm.StatefulMapping(
        increment,
        state_in_axes={0: sm.ShortTermState},
        state_out_axes={0: sm.ShortTermState},
        mapping_fn=functools.partial(jax.vmap, spmd_axis_name=None),
    )
    states = sm.States(count=sm.ShortTermState(jnp.zeros(3)))
    out, states = mapped(states, jnp.array([1.0, 2.0, 3.0]))
    assert out.tolist() == states["count"].tolist() == [1.0, 2.0, 3.0]
    ```

    A mapping compiles by itself, once for each combination of shapes and dtypes, and runs the
    function only then. Under another transform (`jax.jit`, `grad`, `scan`, another mapping) it
    becomes part of what that transform traces. It is a pytree, with the function as its child.
    """

    _options: Options
    _fn: Callable[P, R]

    def __init__(
        self,
        fn: Callable[P, R],
        *,
        in_axes: AxisSpec = 0,
        out_axes: AxisSpec = 0,
        state_in_axes: StateAxisSpec = None,
        state_out_axes: StateAxisSpec = None,
        unexpected_out_state_mapping: str = "raise",
        axis_name: Hashable = None,
        axis_size: int | None = None,
        mapping_fn: Callable[..., Any] = eqx.filter_vmap,
        static_argnums: int | Iterable[int] | None = (),
        static_argnames: str | Iterable[str] | None = (),
        donate: bool = False,
        donate_argnums: int | Iterable[int] | None = (),
        devices: Any = None,
        name: str | None = None,
    ):
        """**Arguments:**

        - `fn`: `fn(states, *args, **kwargs) -> (out, states)`, or a module that is called so.
        - `mapping_fn`: what maps: called with a function and `in_axes`, `out_axes`, `axis_name`
            and `axis_size`, as `jax.vmap` is.
        - `donate_argnums`: arguments whose memory the compiled call may reuse, counted after the
            states.
        - `devices`: the devices that lanes are laid over, for [`statemap.pmap2`][].
        - `name`: what profiles and printed programs call the mapping.

        The others are those of [`statemap.vmap2`][].
        """
        if not callable(fn):
            raise TypeError(f"A mapping maps a function, and {fn!r} can't be called.")
        options = Options(
            in_axes=in_axes,
            out_axes=out_axes,
            state_in_axes=state_in_axes,
            state_out_axes=state_out_axes,
            unexpected_out_state_mapping=unexpected_out_state_mapping,
            axis_name=axis_name,
            axis_size=axis_size,
            mapping_fn=mapping_fn,
            static_argnums=static_argnums,
            static_argnames=static_argnames,
            donate=donate,
            donate_argnums=donate_argnums,
            devices=devices,
        )
        self._set(fn, options, name or getattr(fn, "__name__", type(fn).__name__))

    def _set(self, fn: Callable[P, R], options: Options, name: str) -> None:
        self._fn = self.__wrapped__ = fn
        self._options = options
        self._name = name
        self._function: Function | None = None
        self._calls: Cache[Compiled] | None = None
        self._warm: WarmCall | None = None
        self._static = static_arguments(fn, options.static_argnums, options.static_argnames)
        for attribute in ("__doc__", "__module__"):
            if isinstance(value := getattr(fn, attribute, None), str):
                setattr(self, attribute, value)
        self.__name__ = self.__qualname__ = name

    origin_fun = property(lambda self: self._fn, doc="The function that is mapped.")
    in_axes = property(lambda self: self._options.in_axes)
    out_axes = property(lambda self: self._options.out_axes)
    axis_name = property(lambda self: self._options.axis_name)
    axis_size = property(lambda self: self._options.axis_size)

    @property
    def state_in_axes(self) -> dict[Axis, Filter]:
        """The axes that states come in on, each with its filter."""
        return self._options.state_in.as_dict

    @property
    def state_out_axes(self) -> dict[Axis, Filter]:
        """The axes that states come out on, each with its filter."""
        return self._options.state_out.as_dict

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the mapped function.

        **Arguments:**

        - `states`: the context, or another pytree with States in it.
        - `*args`, `**kwargs`: the arguments, with lanes on the axes that `in_axes` names.

        **Returns:**

        `(out, states)`: the output with lanes on `out_axes`, and the updated container. What was
        not written in it is the same array as before.
        """
        warm = self._warm
        if warm is not None and not kwargs and (result := warm(args)) is not None:
            return result  # pyright: ignore
        container = first_argument(args)
        slots, values, frame, extra = pack(container)
        if self._options.donate and type(container) is not States:
            raise ValueError(
                "With `donate=True` the states are given as a context, `sm.States`, which can "
                f"tell that its memory is gone; this is a {type(container).__name__}."
            )
        compiled, call, values, arrays = self._prepare(
            slots, values, frame, extra, args[1:], kwargs
        )
        out, found = compiled(call, values, arrays)
        aux, new = found.popitem()
        out = self._finish(out, aux) if aux.special else out
        devices = self._options.devices
        chosen = None
        if is_plain(args, kwargs):
            chosen, n_inputs = chosen_of(compiled, aux)
            placed = None if devices is None else tuple(x.sharding for x in arrays)
            own = tuple(call[1].arrays)
            self._warm = warm_call(
                compiled, slots, args, own, chosen, n_inputs, placed, self._finish
            )
        if not aux.indices and devices is None:
            return out, container  # pyright: ignore
        values = list(values)
        for i, value in zip(aux.indices, new):
            values[i] = value
        if self._options.donate and is_base_trace():  # nothing is, when traced
            mark_donated(container)
        if chosen is not None and devices is not None:
            return out, make_states(slots, as_overlay(values, chosen))  # pyright: ignore
        return out, frame.fill(slots, tuple(values), extra)  # pyright: ignore

    def _run(self, *parts: Any) -> tuple[Any, Aux, tuple[Any, ...]]:
        """A call in terms of the values of states.

        **Arguments:**

        - `parts`: the slots, values, frame and other arrays of a container, `args`, `kwargs`. Of
            the values, only the touched ones are looked up, except for a trace.

        **Returns:**

        The output, what is known of the trace, and the new values.
        """
        compiled, call, values, arrays = self._prepare(*parts)
        out, found = compiled(call, values, arrays)
        return out, *found.popitem()

    def _finish(self, out: Any, aux: Aux) -> Any:
        """The output with what is no array in it; and the warning, where there is one."""
        if aux.info.unexpected:
            self._warn(aux.info.unexpected)
        return unfix(out) if aux.info.has_static else out

    def plan(self, *args: P.args, **kwargs: P.kwargs) -> Plan:
        """What a call with these arguments does with each state, without running it: which are
        read and written, on which axis they come in and go out, and why.

        **Arguments:**

        Those of a call; arrays may be `jax.ShapeDtypeStruct`s.

        **Returns:**

        A [`statemap.Plan`][], to print or to look rows up in.
        """
        return self._plan_of(self._trace(args, kwargs))

    def _plan_of(self, traced: jax.stages.Traced) -> Plan:
        _, found = traced.out_info
        info = next(iter(found)).info
        named = "" if self.axis_name is None else f", axis_name={self.axis_name!r}"
        return Plan(f"{self.__name__} ({info.lanes} lanes{named})", info.rows())

    def lower(self, *args: P.args, **kwargs: P.kwargs) -> jax.stages.Lowered:
        """The lowered program of a call with these arguments, as `jax.jit(f).lower` gives it.

        Its inputs are the values of the touched states, then the arrays of the arguments and of
        the function; its outputs are the function's and the values of the written states.
        """
        return self._trace(args, kwargs).lower()

    def get_arg_cache_key(self, *args: P.args, **kwargs: P.kwargs) -> Hashable:
        """What a call with these arguments is compiled for: structures, shapes and dtypes, and
        the values of static arguments. For [`statemap.StatefulMapping.get_jaxpr_by_cache`][].
        """
        container = first_argument(args)
        leaves, treedef = jax.tree.flatten((container, args[1:], kwargs))
        return CacheKey(treedef, tuple(abstract(x) for x in leaves))

    def get_jaxpr_by_cache(self, key: Hashable) -> Any:
        """The jaxpr that a call with this key runs.

        **Arguments:**

        - `key`: from `get_arg_cache_key`.

        **Returns:**

        A `ClosedJaxpr`.
        """
        if not isinstance(key, CacheKey):
            raise TypeError(
                f"{key!r} is no key of a mapping. "
                "It is made by `mapping.get_arg_cache_key(states, *args)`."
            )
        container, args, kwargs = jax.tree.unflatten(key.treedef, key.leaves)
        return self._trace((container, *args), kwargs).jaxpr

    def __reduce__(self) -> tuple:  # without what is compiled
        return _unflatten, ((self._options, self._name), (self._fn,))

    def __get__(self, instance: Any, owner: type | None = None) -> "StatefulMapping":
        if instance is None:
            return self
        bound = object.__new__(type(self))
        bound._set(jax.tree_util.Partial(self._fn, instance), self._options, self._name)
        return bound

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.__name__}, in_axes={self.in_axes}, "
            f"out_axes={self.out_axes}, state_in_axes={self.state_in_axes}, "
            f"state_out_axes={self.state_out_axes})"
        )

    def _trace(self, args: tuple, kwargs: dict[str, Any]) -> jax.stages.Traced:
        return self._traced(*pack(first_argument(args)), args[1:], kwargs)

    def _traced(self, *parts: Any) -> jax.stages.Traced:
        """What `_run` would run."""
        compiled, call, values, arrays = self._prepare(*parts)
        return compiled(call, values, arrays, trace=True)

    def _prepare(
        self,
        slots: Slots,
        values: Sequence[Any],
        frame: AnyFrame,
        extra: tuple[Any, ...],
        args: tuple,
        kwargs: dict[str, Any],
    ) -> tuple[Compiled, tuple[Any, ...], Sequence[Any], list[Any]]:
        """What is compiled for a call, and what to call it with."""
        function, calls = self._function, self._calls
        if function is None or calls is None:
            function, calls = self._resolve()
        if self._options.has_static:
            args, kwargs = mark_static(args, kwargs, *self._static)
        leaves, treedef = jax.tree.flatten((args, kwargs))
        arrays, statics = split_leaves(leaves, args, kwargs)
        key = (slots, frame, treedef, statics and exact(statics))
        try:
            compiled = calls.get(key)
        except TypeError:
            refuse_unhashable(frame, statics)
            raise
        if compiled is None:
            inputs = Inputs(treedef, statics, len(extra), self._options.donate_argnums)
            spread = self._spread(slots, tuple(values))
            new = Compiled(self._name, inputs, self._options.donate, spread)
            compiled = calls.add(key, new)
        if self._options.devices is not None:
            arrays = self._place(self._options.devices, compiled, arrays)
            extra = tuple(self._options.devices.place(x, None) for x in extra)
            values = list(values)
        if extra or function.arrays:
            arrays = [*arrays, *extra, *function.arrays]
        return compiled, (self._options, function, compiled.inputs, slots, frame), values, arrays

    def _resolve(self) -> tuple[Function, Cache[Compiled]]:
        """Finds what an equal mapping has compiled already."""
        key: Any = None
        self._function = Function(self._fn, self._name)
        if self._options.devices is not None:
            place = self._options.devices.place
            self._function.arrays = [place(x, None) for x in self._function.arrays]
        try:
            discard = _shared.discard  # when Python exits, the name goes first
            key = (self._function.key(lambda _: discard(key)), self._options)
            calls = _shared.get(key)
        except (TypeError, ValueError):  # something static can't be hashed or compared
            calls = Cache(_CALLS)
        self._calls = _shared.add(key, Cache(_CALLS)) if calls is None else calls
        return self._function, self._calls

    def _spread(self, slots: Slots, values: tuple[Any, ...]) -> Spread | None:
        """How a call moves the values of states to its devices, if it has any."""
        devices = self._options.devices
        if devices is None:
            return None
        matches = self._options.state_in.assign(slots, values)

        def spread(values: list[Any], indices: tuple[int, ...]) -> None:
            for i in indices:
                match = matches[i]
                axis = None if match is None else match.axis
                trailing = slots.entries[i].kind.trailing_axes
                values[i] = jax.tree.map(
                    lambda x, a=axis, t=trailing: devices.place(x, along(a, x, t)), values[i]
                )

        return spread

    def _place(self, devices: Devices, compiled: Compiled, arrays: list[Any]) -> list[Any]:
        args, kwargs = compiled.inputs.arguments(arrays)
        axes = argument_axes(self._options.in_axes, args, kwargs)
        axes = [a for j, a in enumerate(axes) if compiled.inputs.is_traced(j)]
        return [devices.place(x, along(a, x, 0)) for x, a in zip(arrays, axes)]

    def _warn(self, unexpected: tuple[str, ...]) -> None:
        if self._options.policy == "warn":
            listed = ", ".join(f"`{path}`" for path in unexpected)
            warnings.warn(
                f"{self.__name__} wrote values that depend on the lane to shared states, which "
                f"`state_out_axes` does not list: {listed}. They have the lanes on axis 0 now.",
                stacklevel=4,
            )


def _unflatten(aux: tuple[Options, str], children: Iterable[Any]) -> StatefulMapping:
    mapping = object.__new__(StatefulMapping)
    (fn,) = children
    mapping._set(fn, *aux)
    return mapping


jax.tree_util.register_pytree_with_keys(
    StatefulMapping,
    lambda m: (((jax.tree_util.GetAttrKey("origin_fun"), m._fn),), (m._options, m._name)),
    _unflatten,
    lambda m: ((m._fn,), (m._options, m._name)),
)
