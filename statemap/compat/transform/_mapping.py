"""`StatefulMapping`: the core's mapping, over cells."""

import functools
import inspect
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import equinox as eqx
import jax

from ... import _mapping
from ..._cache import Cache
from ..._container import ContextFrame
from ..._errors import BatchAxisError as _BatchAxisError
from ..._overlay import Watched
from ..._plan import Plan
from ..._program import Program
from ..._slots import intern_slots, Slot
from ..._states import make_states, States
from ..._values import dotted
from .._errors import BatchAxisError
from .._frames import end_turn, Frame, in_turn, local, peek, Stream, write_all
from .._lift import arrays_of, calls, Late, reachable, refuse_cells, run_closed
from ..random._keys import is_typed
from ._arguments import from_start
from ._jit import by_name, METHODS, of_instance
from ._policy import check_policy
from ._prepared import (
    axes_of_lanes,
    decode,
    encode,
    in_paths,
    kind_of,
    match,
    parse_axes,
    Prepared,
    Values,
    Written,
)


_CONTEXT = ContextFrame()


class StatefulMapping:
    """A function mapped over lanes, with the cells that it uses: what
    [`statemap.compat.transform.vmap2`][] returns. Use it directly to map with a `mapping_fn` of
    your own. ([`brainstate.transform.StatefulMapping`](https://brainstate.readthedocs.io); its
    `axis_env` and `return_only_write=False` are not supported.)
    """

    def __init__(
        self, fun: Callable, in_axes: Any = 0, out_axes: Any = 0, state_in_axes: Any = None,
        state_out_axes: Any = None, unexpected_out_state_mapping: str | None = None,
        static_argnums: int | Iterable[int] = (), static_argnames: str | Iterable[str] = (),
        axis_env: Any = None, return_only_write: bool = True, axis_size: int | None = None,
        axis_name: Hashable = None, name: str | None = None,
        mapping_fn: Callable = eqx.filter_vmap, mapping_kwargs: dict[str, Any] | None = None,
    ):  # fmt: skip
        if axis_env is not None or not return_only_write:
            raise NotImplementedError(
                "`axis_env` and `return_only_write` are not supported: names of axes come from the "
                "mappings around, and only what is written is written back."
            )
        make = functools.partial(
            _mapping.StatefulMapping,
            mapping_fn=functools.partial(mapping_fn, **mapping_kwargs or {}),
            name=name,
            static_argnums=from_start(static_argnums, fun),
            static_argnames=static_argnames,
        )
        given = {"in_axes": in_axes, "out_axes": out_axes, "axis_name": axis_name}
        given |= {"axis_size": axis_size, "state_in_axes": state_in_axes}
        policy = {"unexpected_out_state_mapping": unexpected_out_state_mapping}
        self._set(fun, make, **given, **policy, state_out_axes=state_out_axes)

    in_axes: Any
    out_axes: Any
    axis_name: Any
    axis_size: int | None
    state_in_axes: dict[Any, Any]
    state_out_axes: dict[Any, Any]
    unexpected_out_state_mapping: str

    def _set(self, fun: Callable, make: Callable[..., Any], **options: Any) -> None:
        """`make` makes the core's mapping, of a function and the `options`."""
        if not callable(fun):
            raise TypeError(f"A mapping maps a function, and {fun!r} can't be called.")
        for name in ("state_in_axes", "state_out_axes"):
            rules = name == "state_out_axes"
            options[name] = parse_axes(options[name], name, rules=rules)
        policy = "unexpected_out_state_mapping"
        options[policy] = check_policy(options[policy])
        functools.update_wrapper(self, fun, updated=())
        vars(self).update(options)
        self.__name__: str = getattr(fun, "__name__", type(fun).__name__)
        self.__wrapped__: Callable[..., Any] = fun
        self.origin_fun: Callable[..., Any] = fun
        self._make, self._options = make, options
        self._methods: Cache[StatefulMapping] = Cache(METHODS)
        self._prepared: Prepared | None = None
        self._is_narrow = False  # only the cells that the function was seen to use go in
        self._reads: set[Any] = set()
        self._written: dict[Any, Written] = {}  # what the policy "auto" has found
        self._lane = _lane_of(fun, self._reads)
        core = self._core({}, {})  # so that what is wrong with an option shows now
        self.name: str = core.__name__
        self.static_argnums: tuple[int, ...] = tuple(sorted(core._options.static_argnums))
        self.static_argnames: tuple[str, ...] = tuple(sorted(core._options.static_argnames))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before = local.lock
        try:
            while True:
                prepared, (out, program, values) = self._with(args, kwargs, "_run")
                touched = prepared.touched
                if len(touched) != len(prepared.used) or not touched.issuperset(program.changed):
                    prepared.touch(program.changed)
                if not program.unexpected or not self._place(prepared, program):
                    break
            if program.special:
                out = prepared.core._finish(out, program)
            if values:
                cells = [prepared.cells[i] for i in program.changed]
                if impls := prepared.impls:
                    values = [decode(c, v, impls.get(c)) for c, v in zip(cells, values)]
                write_all(cells, values)
            return out
        finally:  # as `in_turn`, which is one more call
            if local.lock is not before:
                end_turn()

    @in_turn
    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """What a call with these arguments does with each cell, as
        [`statemap.StatefulMapping.plan`][].
        """
        prepared, program = self._with(args, kwargs, "_program")
        return prepared.core._plan_of(program)

    @in_turn
    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """The lowered program, as [`statemap.StatefulMapping.lower`][]."""
        return self._with(args, kwargs, "_traced")[1].lower()

    @in_turn
    def get_arg_cache_key(self, *args: Any, **kwargs: Any) -> Hashable:
        """What a call with these arguments is compiled for."""
        prepared, _ = self._with(args, kwargs, "_traced")
        context = make_states(prepared.slots, tuple(Values(prepared)))
        return prepared.core.get_arg_cache_key(context, *args, **kwargs)

    def get_jaxpr_by_cache(self, key: Hashable) -> Any:
        """The jaxpr that a call with this key runs; the key is from `get_arg_cache_key`."""
        prepared = self._current()
        calls.stack.append(Values(prepared))
        try:
            return prepared.core.get_jaxpr_by_cache(key)
        finally:
            calls.stack.pop()

    def _with(self, args: tuple, kwargs: dict[str, Any], method: str) -> tuple[Prepared, Any]:
        """Calls a method of the core's mapping with the values of the cells."""
        before: tuple[Prepared, ValueError] | None = None
        while True:
            prepared = self._current()
            values = Values(prepared)
            calls.stack.append(values)
            try:
                call = getattr(prepared.core, method)
                return prepared, call(prepared.slots, values, _CONTEXT, (), args, kwargs)
            except Late as late:
                for cell in late.cells:
                    arrays_of(cell)
                self._prepared = self._prepare([*prepared.cells, *late.cells])
            except ValueError as error:
                if before is None and prepared.cells and not (values.is_run or self._is_narrow):
                    # It may be about a cell that the function does not use. So now it gets those
                    # that it is seen to use.
                    before, self._is_narrow = (prepared, error), True
                    self._prepared = self._prepare([prepared.cells[i] for i in prepared.touched])
                    continue
                shown = prepared, error
                if before is not None:
                    self._prepared, self._is_narrow = before[0], False
                    shown = shown if prepared.cells else before
                if (named := self._named(*shown)) is error:
                    raise
                raise named from None
            finally:
                calls.stack.pop()

    def _named(self, prepared: Prepared, error: ValueError) -> ValueError:
        """An error of the core, with the names that cells have themselves."""
        if isinstance(error, _BatchAxisError) and not isinstance(error, BatchAxisError):
            error = BatchAxisError.of(error)
        for cell, slot in zip(prepared.cells, prepared.slots.entries):
            label, own, text = f"`{dotted(slot.path)}`", f"`{cell._name}`", str(error)
            if cell._name and label != own and label in text and f"{label} ({own})" not in text:
                error.args = (text.replace(label, f"{label} ({own})"), *error.args[1:])
        return error

    def _current(self) -> Prepared:
        prepared = self._prepared
        if prepared is None:
            prepared = self._prepared = self._prepare(())
        current = prepared.now()
        by_lane = {c for c, w in self._written.items() if w.is_as_in(c)} if self._written else set()
        if current is not prepared or prepared.by_lane != by_lane & set(prepared.cells):
            prepared = self._prepared = self._prepare(current.used)
        return prepared

    def _prepare(self, used: Iterable[Any]) -> Prepared:
        """Finds the cells beside those that the function is known to use, and the axis of each."""
        new = Prepared(self.__wrapped__)
        found = [] if self._is_narrow else reachable(new.discovery)
        new.cells = list(dict.fromkeys([*found, *used]))
        new.use(new.cells)
        new.impls, new.by_lane = {}, set()
        is_auto = self.unexpected_out_state_mapping == "auto"
        entries: list[Slot] = []
        taken: set[Any] = set()
        state_in: dict[Any, list[Any]] = {}
        state_out: dict[Any, list[Any]] = {}
        for k, cell in enumerate(new.cells):
            paths = new.discovery.paths.get(cell) or [(cell._name or type(cell).__name__,)]
            path = next((p for p in paths if p not in taken), (*paths[0], k)) or ("state",)
            taken.add(path)
            static: tuple = (("name", None), ("tag", None))
            came = match(self.state_in_axes, paths, cell)
            goes = match(self.state_out_axes, paths, cell)
            if isinstance(cell, Stream):
                key = peek(cell)
                impl = str(jax.random.key_impl(key))
                new.impls[cell] = impl if is_typed(key) else None
                static = (*static, ("impl", impl))
                if key.ndim == (0 if is_typed(key) else 1) and came != (None,):
                    came = goes = ()  # one key for all: each lane gets one of its own
            elif is_auto and not came and goes != (None,):
                written = self._written.get(cell)
                goes = (written.axis,) if written and written.axis != 0 else ()
                if written and written.is_as_in(cell):
                    came = goes = (written.axis,)
                    new.by_lane.add(cell)
            for axes, spec in (came, state_in), (goes, state_out):
                for axis in axes:
                    spec.setdefault(axis, []).append(path)
            entries.append(Slot(path, kind_of(type(cell), is_auto), static, None, ()))
        axes_in, axes_out = self.state_in_axes, self.state_out_axes
        new.core = self._core(in_paths(state_in, axes_in), in_paths(state_out, axes_out))
        new.slots = intern_slots(tuple(entries))
        return new

    def _core(self, state_in: Any, state_out: Any) -> _mapping.StatefulMapping:
        options = {**self._options, "state_in_axes": state_in, "state_out_axes": state_out}
        if self.unexpected_out_state_mapping == "auto":
            options["unexpected_out_state_mapping"] = "ignore"
        return self._make(self._lane, **options)

    def _place(self, prepared: Prepared, program: Program) -> bool:
        """With the policy "auto", notes the axes of what differs between lanes and no filter lists,
        and says whether the call has to be made again, with these.
        """
        if self.unexpected_out_state_mapping != "auto":
            return False
        found = {i: row for i, row in enumerate(program.rows) if row.path in program.unexpected}
        axes = axes_of_lanes(program, self.axis_name) if found else {}
        again = False
        for i in found:
            cell = prepared.cells[i]
            paths = prepared.discovery.paths.get(cell) or [()]
            declared = match(self.state_out_axes, paths, cell)
            (axis,) = declared or (axes[i],)
            is_read = cell in self._reads and not declared
            self._written[cell] = written = Written(program.lanes, axis, is_read)
            again |= axis != 0 or written.is_as_in(cell)
        if again:
            self._prepared = self._prepare(prepared.used)
        return again

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        bound = functools.partial(self.__wrapped__, instance)
        make = lambda: mapping_of(bound, self._make, self._options)
        return of_instance(self._methods, instance, make)

    def __reduce__(self) -> Any:  # without what is compiled
        return by_name(self) or (mapping_of, (self.__wrapped__, self._make, self._options))

    def __repr__(self) -> str:
        return (
            f"StatefulMapping({self.__name__}, in_axes={self.in_axes}, out_axes={self.out_axes}, "
            f"state_in_axes={self.state_in_axes}, state_out_axes={self.state_out_axes})"
        )


def mapping_of(fun: Callable, make: Callable, options: dict[str, Any]) -> StatefulMapping:
    mapping = object.__new__(StatefulMapping)
    mapping._set(fun, make, **options)
    return mapping


def _lane_of(fun: Callable, reads: set[Any]) -> Callable:
    """The function from a context to a context. `reads` gets the cells that it reads before it
    writes them.
    """

    def lane(states: States, *args: Any, **kwargs: Any) -> Any:
        call = calls.stack[-1]
        call.is_run = True
        cells, impls = call.prepared.cells, call.prepared.impls
        refuse_cells((args, kwargs))
        given: Watched = states._values  # pyright: ignore
        before = [decode(cell, x, impls.get(cell)) for cell, x in zip(cells, given.every)]
        frame = Frame(cells, before)
        out, new = run_closed(fun, frame, *args, **kwargs)
        reads.update(frame.reads_first)
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
