"""`StatefulMapping`: the object that a mapping is, and how a call goes."""

import warnings
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Concatenate, Generic, overload, ParamSpec, TypeVar

import equinox as eqx
import jax

from ._axes import AxisSpec
from ._call import Call
from ._container import first_argument, pack
from ._filters import Filter
from ._foreign import refuse_foreign
from ._jax import is_base_trace
from ._options import Options, Policy
from ._overlay import Chosen, moved_of, with_moved
from ._plan import Plan
from ._program import Program
from ._programs import abstract, CacheKey, Programs, shared_programs
from ._rules import Rule
from ._signature import Function, static_arguments, unfix
from ._state_axes import Axis, StateAxisSpec
from ._states import make_states, States
from ._treescope import below, show_node
from ._values import function_name
from ._warm import as_overlay, is_plain, warm_call, WarmCall
from ._watch import Reach, reach, refuse_changed


P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
I = TypeVar("I")


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
        unexpected_out_state_mapping: Policy = "raise",
        axis_name: Hashable = None,
        axis_size: int | None = None,
        mapping_fn: Callable[..., Any] = eqx.filter_vmap,
        static_argnums: int | Iterable[int] | None = (),
        static_argnames: str | Iterable[str] | None = (),
        donate: bool = False,
        donate_argnums: int | Iterable[int] | None = (),
        devices: Any = None,
        chunk_size: int | None = None,
        name: str | None = None,
    ):
        """**Arguments:**

        - `fn`: `fn(states, *args, **kwargs) -> (out, states)`, or a module that is called so.
        - `mapping_fn`: what maps: called with a function and `in_axes`, `out_axes`, `axis_name`
            and `axis_size`, as `jax.vmap` is. It maps one lane at a time: what gives the function
            blocks of lanes is refused.
        - `donate_argnums`: arguments whose memory the compiled call may reuse, counted after the
            states.
        - `devices`: the devices that lanes are laid over, for [`statemap.pmap2`][].
        - `name`: what profiles and printed programs call the mapping.

        The others are those of [`statemap.vmap2`][].
        """
        refuse_foreign(fn, "A mapping was given as its function", "sm.vmap2(module)")
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
            chunk_size=chunk_size,
        )
        self._set(fn, options, name or function_name(fn))

    def _set(self, fn: Callable[P, R], options: Options, name: str) -> None:
        self._fn = fn
        self.__wrapped__: Callable[P, R] = fn
        self._options = options
        self._name = name
        self._function: Function | None = None
        self._programs: Programs | None = None
        self._reach: Reach | None = None  # of objects of other libraries, as they were traced
        self._warm: WarmCall | None = None
        self._is_frozen = False
        self._static = static_arguments(fn, options.static_argnums, options.static_argnames)
        for attribute in ("__doc__", "__module__"):
            if isinstance(value := getattr(fn, attribute, None), str):
                setattr(self, attribute, value)
        self.__name__ = self.__qualname__ = name

    origin_fun: property = property(lambda self: self._fn, doc="The function that is mapped.")
    in_axes: property = property(lambda self: self._options.in_axes)
    out_axes: property = property(lambda self: self._options.out_axes)
    axis_name: property = property(lambda self: self._options.axis_name)
    axis_size: property = property(lambda self: self._options.axis_size)

    @property
    def state_in_axes(self) -> dict[Axis, Filter]:
        """The axes that states come in on, each with its filter."""
        return self._options.state_in.as_dict

    @property
    def state_out_axes(self) -> dict[Axis | Rule, Filter]:
        """The axes that states come out on, and the rules, each with its filter."""
        return self._options.state_out.as_dict

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the mapped function. It runs once for a combination of shapes and dtypes, to be
        traced, under `jax.disable_jit()` as well.

        **Arguments:**

        - `states`: the context, or another pytree with States in it.
        - `*args`, `**kwargs`: the arguments, with lanes on the axes that `in_axes` names.

        **Returns:**

        `(out, states)`: the output with lanes on `out_axes`, and the updated container. What was
        not written in it is the same array as before.
        """
        warm = self._warm
        if warm is not None and not kwargs and (self._is_frozen or self._is_as_before()):
            if (result := warm(args)) is not None:
                return result  # pyright: ignore
        container = first_argument(args)
        slots, values, frame, extra = pack(container)
        if self._options.donate and type(container) is not States:
            raise ValueError(
                "With `donate=True` the states are given as a context, `sm.States`, which can "
                f"tell that its memory is gone; this is a {type(container).__name__}."
            )
        donated = container if self._options.donate else None
        call = self._call(slots, values, frame, extra, args[1:], kwargs)
        program, out, new = call.run(donated)
        out = self._finish(out, program) if program.special else out
        self._is_frozen = call.function.is_frozen and self._reach is None
        plain = is_plain(args, kwargs) and not program.inputs.donated
        plain = plain and call.programs is self._programs
        chosen = self._remember(program, call, args) if plain else None
        if not program.changed and program.devices is None:
            return out, container  # pyright: ignore
        values = list(call.values)
        for i, value in (*call.placed.items(), *zip(program.changed, new)):
            values[i] = value
        if chosen is not None and program.devices is not None:
            return out, make_states(slots, as_overlay(values, chosen))  # pyright: ignore
        values = tuple(values)
        if not is_base_trace():  # a lane of a mapping around, perhaps
            before = moved_of(container._values) if type(container) is States else frozenset()
            values = with_moved(values, before | program.moved_paths)
        return out, frame.fill(slots, values, extra)  # pyright: ignore

    def _run(self, *parts: Any) -> tuple[Any, Program, tuple[Any, ...]]:
        """A call in terms of the values of states.

        **Arguments:**

        - `parts`: the slots, values, frame and other arrays of a container, `args`, `kwargs`. Of
            the values, only the touched ones are looked up, except for a trace.

        **Returns:**

        The output, the program, and the new values of the states that it changed.
        """
        program, out, new = self._call(*parts).run(None)
        return out, program, new

    def _finish(self, out: Any, program: Program) -> Any:
        """The output with what is no array in it; and the warning, where there is one."""
        if program.unexpected:
            self._warn(program.unexpected)
        return unfix(out) if program.has_static else out

    def plan(self, *args: P.args, **kwargs: P.kwargs) -> Plan:
        """What a call with these arguments does with each state, without running it: which are
        read and written, on which axis they come in and go out, and why.

        **Arguments:**

        Those of a call; arrays may be `jax.ShapeDtypeStruct`s.

        **Returns:**

        A [`statemap.Plan`][], to print or to look rows up in.
        """
        container = first_argument(args)
        return self._plan_of(self._program(*pack(container), args[1:], kwargs))

    def _plan_of(self, program: Program) -> Plan:
        named = "" if self.axis_name is None else f", axis_name={self.axis_name!r}"
        return Plan(f"{self.__name__} ({program.lanes} lanes{named})", program.rows)

    def lower(self, *args: P.args, **kwargs: P.kwargs) -> jax.stages.Lowered:
        """The lowered program of a call with these arguments, as `jax.jit(f).lower` gives it.

        Its inputs are the values of the touched states, then the arrays of the arguments and of
        the function; its outputs are the function's and the values of the written states.
        """
        return self._traced(*pack(first_argument(args)), args[1:], kwargs).lower()

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
        return self._traced(*pack(container), args, kwargs).jaxpr

    def __reduce__(self) -> tuple[Any, ...]:  # without what is compiled
        return _unflatten, ((self._options, self._name), (self._fn,))

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> "StatefulMapping[P, R]": ...

    @overload
    def __get__(
        self: "StatefulMapping[Concatenate[I, Q], R]", instance: I, owner: type | None = None
    ) -> "StatefulMapping[Q, R]": ...

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
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

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        shown = ("in_axes", "out_axes", "state_in_axes", "state_out_axes")
        fn = subtree_renderer(self._fn, path=below(path, ".origin_fun"))
        parts = [(f"{name}=", repr(getattr(self, name))) for name in shown]
        return show_node(type(self), [("", fn), *parts], path)

    def _traced(self, *parts: Any) -> jax.stages.Traced:
        """What `_run` would run."""
        return self._call(*parts).traced()

    def _program(self, *parts: Any) -> Program:
        """The program that `_run` would use."""
        return self._call(*parts).program()

    def _call(self, *parts: Any) -> Call:
        return Call(self._options, *self._resolve(), self._static, *parts)

    def _remember(self, program: Program, call: Call, args: tuple) -> Chosen:
        """Makes ready for a call like this one. What a program touches is one object, by whose
        identity contexts know that its inputs are at hand.
        """
        going_in = program.kept + program.donated
        chosen = program.chosen
        if chosen is None:
            rest = tuple(i for i in program.changed if i not in going_in)
            chosen = program.chosen = Chosen(going_in + rest)
        devices = program.devices
        placed = program.place_arrays(call.arrays)
        shardings = None if devices is None else tuple(x.sharding for x in placed)
        own = tuple(placed[len(args) - 1 :])
        self._warm = warm_call(program, chosen, call.slots, args, own, shardings, self._finish)
        return chosen

    def _resolve(self) -> tuple[Function, Programs]:
        """The function, taken apart, and the programs of all equal mappings."""
        function, programs = self._function, self._programs
        if function is None or not function.is_frozen:
            function = self._function = Function(self._fn, self._name)
        if programs is None or self._reach is not None and not self._reach.is_same():
            programs = self._refresh(function)
        return function, programs

    def _refresh(self, function: Function) -> Programs:
        """The programs, once it is known what the function reaches of other libraries' objects:
        if that has changed since it was traced, they are of no use.
        """
        before, now = self._reach, reach(self._fn)
        if now is not None and now.holds_tracer:  # of a trace around, which ends
            return Programs.none_yet()
        if before is not None:
            refuse_changed(before.facts, now, self.__name__, f"sm.vmap2({self.__name__}, ...)")
        self._reach = now
        if self._programs is None:
            self._programs = shared_programs(
                function, self._options, None if now is None else now.facts
            )
        return self._programs

    def _is_as_before(self) -> bool:
        """Whether a function whose arrays can change has not changed since the last call."""
        function, reached = self._function, self._reach
        if function is None or reached is not None and not reached.is_same():
            return False
        return function.is_frozen or function.is_same(self._fn)

    def _warn(self, unexpected: tuple[str, ...]) -> None:
        if self._options.policy == "warn":
            listed = ", ".join(f"`{path}`" for path in unexpected)
            warnings.warn(
                f"{self.__name__} wrote values that depend on the lane to shared states, which "
                f"`state_out_axes` does not list: {listed}. They have the lanes on axis 0 now.",
                stacklevel=3,
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
