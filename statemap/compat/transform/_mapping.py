"""`StatefulMapping`: the core's mapping, over cells."""

import functools
import inspect
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import equinox as eqx
import jax

from ... import _mapping
from ..._container import ContextFrame
from ..._errors import BatchAxisError as _BatchAxisError
from ..._overlay import Watched
from ..._plan import Plan
from ..._program import Program
from ..._settings import Read, reads
from ..._slots import intern_slots, Slot
from ..._states import make_states, States
from ..._values import dotted
from .._cells import State
from .._discover import Discovery, unchanged
from .._errors import BatchAxisError
from .._frames import Frame, peek, Stream, write_all
from .._lift import arrays_of, Late, reachable, refuse_cells, run
from ._policy import check_policy
from ._prepared import (
    calls,
    decode,
    encode,
    in_paths,
    is_typed,
    kind_of,
    match,
    parse_axes,
    Prepared,
    Values,
)
from ._settings import Variant, variant


_CONTEXT = ContextFrame()


class StatefulMapping:
    """A function mapped over lanes, with the cells that it uses: what
    [`statemap.compat.transform.vmap2`][] returns. (After
    `brainstate.transform.StatefulMapping`.)

    Use it directly to map with a `mapping_fn` of your own.
    """

    def __init__(
        self,
        fun: Callable,
        in_axes: Any = 0,
        out_axes: Any = 0,
        state_in_axes: Any = None,
        state_out_axes: Any = None,
        unexpected_out_state_mapping: str | None = None,
        static_argnums: int | Iterable[int] = (),
        static_argnames: str | Iterable[str] = (),
        axis_env: Any = None,
        return_only_write: bool = True,
        axis_size: int | None = None,
        axis_name: Hashable = None,
        name: str | None = None,
        mapping_fn: Callable = eqx.filter_vmap,
        mapping_kwargs: dict[str, Any] | None = None,
    ):
        """**Arguments:**

        - `fun`: the function.
        - `mapping_fn`: what maps: called with a function and `in_axes`, `out_axes`, `axis_name`
            and `axis_size`, as `jax.vmap` is, and with `mapping_kwargs`.
        - `static_argnums`, `static_argnames`: arguments that are compiled in.
        - `name`: what profiles call it.
        - `axis_env`, `return_only_write`: not supported.
        - The others are those of [`statemap.compat.transform.vmap2`][].
        """
        if axis_env is not None or not return_only_write:
            raise NotImplementedError(
                "`axis_env` and `return_only_write` are not supported: names of axes come from the "
                "mappings around, and only what is written is written back."
            )
        mapping_fn = (
            functools.partial(mapping_fn, **mapping_kwargs) if mapping_kwargs else mapping_fn
        )
        make = functools.partial(
            _mapping.StatefulMapping,
            mapping_fn=mapping_fn,
            name=name,
            static_argnums=static_argnums,
            static_argnames=static_argnames,
        )
        self._set(
            fun,
            make,
            in_axes=in_axes,
            out_axes=out_axes,
            axis_name=axis_name,
            axis_size=axis_size,
            state_in_axes=parse_axes(state_in_axes, "state_in_axes"),
            state_out_axes=parse_axes(state_out_axes, "state_out_axes"),
            policy=check_policy(unexpected_out_state_mapping),
        )

    def _set(self, fun: Callable, make: Callable[..., Any], **options: Any) -> None:
        if not callable(fun):
            raise TypeError(f"A mapping maps a function, and {fun!r} can't be called.")
        self.origin_fun: Callable[..., Any] = fun
        self.__wrapped__: Callable[..., Any] = fun
        self.__name__: str = getattr(fun, "__name__", type(fun).__name__)
        self.__doc__ = getattr(fun, "__doc__", None)
        self._make = make
        self._options = options
        self.in_axes: Any = options["in_axes"]
        self.out_axes: Any = options["out_axes"]
        self.axis_name: Any = options["axis_name"]
        self.axis_size: int | None = options["axis_size"]
        self.state_in_axes: dict[Any, Any] = options["state_in_axes"]
        self.state_out_axes: dict[Any, Any] = options["state_out_axes"]
        self.unexpected_out_state_mapping: str = options["policy"]
        self._variants: list[_Variant] = []
        self._late: dict[State, None] = {}  # cells that only running the function shows
        self._by_lane: dict[State, int] = {}  # by the policy "auto", with the number of lanes
        self._reads_first: set[State] = set()
        # So that what is wrong with an option shows now.
        core = self._core(_lane_of(fun, set(), {}), {}, {})
        self.name: str = core.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        while True:
            prepared, (out, program, values) = self._with(args, kwargs, "_run")
            prepared.look_at_edges()
            if not program.special or not self._take_by_lane(prepared, program):
                break
        if program.special:
            out = prepared.core._finish(out, program)
        if values:
            cells = [prepared.cells[i] for i in program.changed]
            if prepared.impls:
                impls = prepared.impls
                values = [decode(c, v, impls.get(c)) for c, v in zip(cells, values)]
            write_all(cells, values)
        return out

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """What a call with these arguments does with each cell, as
        [`statemap.StatefulMapping.plan`][].
        """
        prepared, program = self._with(args, kwargs, "_program")
        return prepared.core._plan_of(program)

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """The lowered program, as [`statemap.StatefulMapping.lower`][]."""
        return self._with(args, kwargs, "_traced")[1].lower()

    def get_arg_cache_key(self, *args: Any, **kwargs: Any) -> Hashable:
        """What a call with these arguments is compiled for."""
        prepared, _ = self._with(args, kwargs, "_traced")
        return prepared.core.get_arg_cache_key(self._context(prepared), *args, **kwargs)

    def get_jaxpr_by_cache(self, key: Hashable) -> Any:
        """The jaxpr that a call with this key runs; the key is from `get_arg_cache_key`."""
        prepared = self._current()
        calls.stack.append(prepared)
        try:
            return prepared.core.get_jaxpr_by_cache(key)
        finally:
            calls.stack.pop()

    def _with(self, args: tuple, kwargs: dict[str, Any], method: str) -> tuple[Prepared, Any]:
        """Calls a method of the core's mapping with the values of the cells."""
        while True:
            prepared = self._current()
            values = Values(prepared)
            calls.stack.append(prepared)
            try:
                call = getattr(prepared.core, method)
                return prepared, call(prepared.slots, values, _CONTEXT, (), args, kwargs)
            except Late as late:
                for cell in late.cells:
                    arrays_of(cell)
                self._late.update(dict.fromkeys(late.cells))
                self._forget()
            except _BatchAxisError as error:
                raise BatchAxisError.of(error) from None
            finally:
                calls.stack.pop()

    def _context(self, prepared: Prepared) -> States:
        return make_states(prepared.slots, tuple(Values(prepared)))

    def _current(self) -> Prepared:
        chosen = variant(self._variants, self._new_variant)
        prepared = chosen.prepared
        if (
            prepared is None
            or not unchanged(prepared.edges)
            or self._by_lane
            and prepared.by_lane != set(filter(self._has_lanes, self._by_lane))
        ):
            prepared = chosen.prepared = self._prepare(chosen)
        return prepared

    def _new_variant(self) -> "_Variant":
        return _Variant(self.__wrapped__, self._reads_first)

    def _forget(self) -> None:
        """Has the cells and their axes found again."""
        for each in list(self._variants):
            each.prepared = None

    def _prepare(self, chosen: "_Variant") -> Prepared:
        """Finds the cells, and the axis of each."""
        discovery = Discovery(self.__wrapped__)
        cells = list(dict.fromkeys([*reachable(self.__wrapped__, discovery), *self._late]))
        entries: list[Slot] = []
        taken: set[Any] = set()
        state_in: dict[Any, list[Any]] = {}
        state_out: dict[Any, list[Any]] = {}
        impls: dict[State, str | None] = {}
        by_lane: set[State] = set()
        for k, cell in enumerate(cells):
            paths = discovery.paths.get(cell) or [(cell.name or type(cell).__name__,)]
            path = next((p for p in paths if p not in taken), (*paths[0], k)) or ("state",)
            taken.add(path)
            static: tuple = (("name", None), ("tag", None))
            came = match(self.state_in_axes, paths, cell)
            goes = match(self.state_out_axes, paths, cell)
            if isinstance(cell, Stream):
                key = peek(cell)
                impl = str(jax.random.key_impl(key))
                impls[cell] = impl if is_typed(key) else None
                static = (*static, ("impl", impl))
                if key.ndim == (0 if is_typed(key) else 1) and came != (None,):
                    came = goes = ()  # one key for all: each lane gets one of its own
            elif not came and not goes and self._has_lanes(cell):
                came = (0,)
                by_lane.add(cell)
            for axes, spec in (came, state_in), (goes, state_out):
                for axis in axes:
                    spec.setdefault(axis, []).append(path)
            entries.append(Slot(path, kind_of(type(cell)), static, None, ()))
        axes_in = in_paths(state_in, self.state_in_axes)
        axes_out = in_paths(state_out, self.state_out_axes)
        core = self._core(chosen.lane, axes_in, axes_out)
        prepared = Prepared(core, intern_slots(tuple(entries)), discovery)
        prepared.cells, prepared.impls, prepared.by_lane = cells, impls, by_lane
        prepared.edges = discovery.edges(cells)
        return prepared

    def _core(self, fn: Callable, state_in: Any, state_out: Any) -> _mapping.StatefulMapping:
        options = {k: v for k, v in self._options.items() if k != "policy"}
        policy = self.unexpected_out_state_mapping
        options |= {"state_in_axes": state_in, "state_out_axes": state_out}
        options["unexpected_out_state_mapping"] = "ignore" if policy == "auto" else policy
        return self._make(fn, **options)

    def _take_by_lane(self, prepared: Prepared, program: Program) -> bool:
        """With the policy "auto", notes the cells that are read and then written, each lane with a
        value of its own. From now on they are taken lane by lane.

        **Returns:**

        Whether one of them held such values already, so that the call has to be made again.
        """
        if self.unexpected_out_state_mapping != "auto":
            return False
        again = False
        for cell, slot in zip(prepared.cells, prepared.slots.entries):
            if dotted(slot.path) in program.unexpected and cell in self._reads_first:
                self._by_lane[cell] = program.lanes
                again |= self._has_lanes(cell)
        return again

    def _has_lanes(self, cell: State) -> bool:
        """Whether a cell that the policy has noted holds a value for each lane."""
        shapes = [jax.numpy.shape(x) for x in jax.tree.leaves(peek(cell))]
        return cell in self._by_lane and all(s[:1] == (self._by_lane[cell],) for s in shapes)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        bound = object.__new__(StatefulMapping)
        bound._set(functools.partial(self.__wrapped__, instance), self._make, **self._options)
        return bound

    def __reduce__(self) -> tuple[Any, ...]:  # without what is compiled
        return _rebuild, (self.__wrapped__, self._make, self._options)

    def __repr__(self) -> str:
        return (
            f"StatefulMapping({self.__name__}, in_axes={self.in_axes}, out_axes={self.out_axes}, "
            f"state_in_axes={self.state_in_axes}, state_out_axes={self.state_out_axes})"
        )


def _rebuild(fun: Callable, make: Callable[..., Any], options: dict[str, Any]) -> StatefulMapping:
    mapping = object.__new__(StatefulMapping)
    mapping._set(fun, make, **options)
    return mapping


class _Variant(Variant):
    """The function as the core maps it, under some settings, and its cells."""

    def __init__(self, fun: Callable, reads_first: set[State]):
        super().__init__()
        self.lane = _lane_of(fun, reads_first, self.seen)
        self.prepared: Prepared | None = None


def _lane_of(fun: Callable, reads_first: set[State], seen: Read) -> Callable:
    """The function from a context to a context."""

    def lane(states: States, *args: Any, **kwargs: Any) -> Any:
        prepared = calls.stack[-1]
        cells, impls = prepared.cells, prepared.impls
        refuse_cells((args, kwargs))
        given: Watched = states._values  # pyright: ignore
        before = [decode(cell, x, impls.get(cell)) for cell, x in zip(cells, given.every)]
        frame = Frame(cells, before)
        with reads() as settings:
            out, new = run(fun, frame, *args, **kwargs)
        if frame.late:
            raise Late(frame.late)
        seen.update(settings)
        reads_first.update(frame.reads_first)
        after = list(given.every)
        index = {cell: i for i, cell in enumerate(cells)}
        given.seen.update(index[cell] for cell in frame.read)
        for cell, value in zip(frame.written, new):
            after[index[cell]] = encode(cell, value)
        return out, make_states(states._slots, tuple(after))

    lane.__name__ = getattr(fun, "__name__", type(fun).__name__)
    try:  # for messages that name an argument
        first, *_ = inspect.signature(lane).parameters.values()
        own = inspect.signature(fun)
        lane.__signature__ = own.replace(parameters=[first, *own.parameters.values()])  # pyright: ignore
    except (TypeError, ValueError):
        pass
    return lane
