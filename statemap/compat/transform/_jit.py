"""`jit`: the values of the cells that a function touches go in, those that it writes come out."""

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from ..._cache import Cache
from ..._exact import Identity
from ..._pickle import Reference
from ..._settings import now, Read, reads
from ..._signature import Static
from .._frames import end_turn, Frame, in_turn, local, write_all
from .._lift import arrays_of, calls, capture, Late, Lifted, read_all, refuse_cells, run_closed
from ._arguments import from_start, left_out, names_of, split_static
from ._function import StatefulFunction


class JittedFunction:
    """What [`statemap.compat.transform.jit`][] returns: a function with the arguments of
    `origin_fun`.
    """

    def __init__(
        self, fun: Callable, static_argnums: tuple[int, ...], static_argnames: tuple[str, ...],
        name: str | None, options: dict[str, Any],
    ):  # fmt: skip
        functools.update_wrapper(self, fun, updated=())
        self.origin_fun: Callable[..., Any] = fun
        self.__wrapped__: Callable[..., Any] = fun
        self.__name__: str = name or getattr(fun, "__name__", type(fun).__name__)
        self.static_argnums: tuple[int, ...] = static_argnums
        self.static_argnames: tuple[str, ...] = static_argnames
        self._options = options
        self._lock = threading.Lock()
        self.clear_cache()

    def clear_cache(self) -> None:
        """Forgets what was compiled."""
        fun, nums, names = self.origin_fun, self.static_argnums, self.static_argnames
        self._methods: Cache[JittedFunction] = Cache(METHODS)

        def call(settings: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
            return _run(fun, nums, names, values, args, kwargs)

        call.__name__ = call.__qualname__ = self.__name__
        nums_of_call = (0, *_shifted(nums))
        jitted = jax.jit(call, static_argnums=nums_of_call, static_argnames=names, **self._options)
        # What belongs together changes at once, for other threads.
        self._made: tuple[Any, Lifted | None] = jitted, None

    @functools.cached_property
    def stateful_fun(self) -> StatefulFunction:
        """The same function, to look at its jaxpr and its cells; it is traced apart."""
        nums, names = self.static_argnums, self.static_argnames
        return StatefulFunction(self.origin_fun, nums, names, name="jit")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if jax.config.jax_disable_jit:  # pyright: ignore
            return self.origin_fun(*args, **kwargs)
        before = local.lock
        try:
            cells, (out, new, written) = self._call("__call__", args, kwargs)
            if new:
                write_all([cells[i] for i in written.value], new)
            return out
        finally:  # as `in_turn`, which is one more call
            if local.lock is not before:
                end_turn()

    @in_turn
    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """The lowered program, from the values of cells and the arguments."""
        return self._call("lower", args, kwargs)[1]

    @in_turn
    def trace(self, *args: Any, **kwargs: Any) -> jax.stages.Traced:
        """The traced program."""
        return self._call("trace", args, kwargs)[1]

    def compile(self, *args: Any, **kwargs: Any) -> jax.stages.Compiled:
        """The compiled program."""
        return self.lower(*args, **kwargs).compile()

    @in_turn
    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """The shapes and dtypes of the output."""
        return self._call("eval_shape", args, kwargs)[1][0]

    def _call(self, method: str, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The cells of the call, and what a method of `jax.jit` gives."""
        program = None
        jitted, lifted = self._made
        if lifted is not None and (current := lifted.now()) is not lifted:
            if current.places != lifted.places:  # the function now uses its cells in another way
                self.clear_cache()
                jitted, lifted = self._made
            else:
                self._made = jitted, (lifted := current)
        if lifted is None:
            nums, names = self.static_argnums, self.static_argnames
            dynamic, named, bound = split_static(self.origin_fun, nums, names, args, kwargs)
            program = capture(bound, dynamic, named)
            jitted, lifted = self._use(program.cells, program.settings, method)
        while True:
            cells, settings = lifted.used, lifted.settings
            own = program if program and program.cells == cells else None
            calls.stack.append((lifted, own))
            try:
                key = now(settings) if settings else ()
                values = read_all(cells, streams=lifted.draws)
                return cells, getattr(jitted, method)(key, values, *args, **kwargs)
            except Late as late:
                jitted, lifted = self._use(late.cells, late.settings, method)
            finally:
                calls.stack.pop()

    def _use(self, cells: Iterable[Any], settings: Read, method: str) -> tuple[Any, Lifted]:
        """From now on the function is called with these cells, too, and for these settings."""
        for cell in cells:
            arrays_of(cell, shapes=method != "__call__")
        with self._lock:  # what other threads have found stays, in its order
            jitted, known = self._made
            if known is not None:
                cells, settings = [*known.used, *cells], {**known.settings, **settings}
            self._made = jitted, (lifted := Lifted(self.origin_fun, cells, settings))
            return jitted, lifted

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        make = lambda: JittedFunction(functools.partial(self.origin_fun, instance), *self._parts())
        return of_instance(self._methods, instance, make)

    def _parts(self) -> tuple[Any, ...]:
        return self.static_argnums, self.static_argnames, self.__name__, self._options

    def __reduce__(self) -> Any:
        return by_name(self) or (JittedFunction, (self.origin_fun, *self._parts()))

    def __repr__(self) -> str:
        return f"jit({self.__name__})"


def _run(
    fun: Callable, nums: tuple[int, ...], names: tuple[str, ...], values: Any, args: tuple,
    kwargs: dict[str, Any],
) -> tuple[Any, list[Any], Static]:  # fmt: skip
    """What `jax.jit` compiles."""
    lifted, program = calls.stack[-1]
    if program is not None:
        dynamic, named, _ = split_static(fun, nums, names, args, kwargs)
        out, new = program(values, dynamic, named)
        written = program.written
    else:
        refuse_cells((args, kwargs))
        frame = Frame(lifted.used, values)
        with reads() as settings:
            out, new = run_closed(fun, frame, *args, **kwargs)
        if not settings.keys() <= lifted.settings.keys():
            raise Late([], settings)
        written = frame.written
    return out, new, Static(tuple(lifted.used.index(cell) for cell in written))


def by_name(transformed: Any) -> str | None:
    """What a decorated function is pickled by, if it can be imported: the function that it is made
    of can't.
    """
    try:
        name = transformed.__qualname__
        return name if Reference(transformed.__module__, name).find() is transformed else None
    except (ImportError, AttributeError, ValueError, TypeError):
        return None


METHODS = 16  # of as many objects a decorated method stays compiled


def of_instance(kept: Cache, instance: Any, make: Callable[[], Any]) -> Any:
    """The method of an object, the same each time that it is looked up, so that it is compiled
    once. The last few are kept.
    """
    key = Identity(instance, weak=False)
    return kept.get(key) or kept.add(key, make())


def jit(
    fun: Any = None, in_shardings: Any = None, out_shardings: Any = None,
    static_argnums: int | Sequence[int] | None = None,
    donate_argnums: int | Sequence[int] | None = None,
    static_argnames: str | Iterable[str] | None = None,
    donate_argnames: str | Iterable[str] | None = None, keep_unused: bool = False,
    device: Any = None, backend: str | None = None, inline: bool = False, name: str | None = None,
    **kwargs: Any,
) -> Any:  # fmt: skip
    """[`brainstate.transform.jit`](https://brainstate.readthedocs.io), with the arguments of
    `jax.jit`.

    The function runs once for each combination of shapes and dtypes. What goes into the compiled
    program are the values of the cells that it uses, and what comes out those that it writes. A
    cell that is made anew (by `init_state`, say) is the one that the next call uses.
    `in_shardings` is a tuple with an entry for each argument; `name` is what profiles call it.
    """
    if left_out(fun):
        options = {k: v for k, v in locals().items() if k not in ("fun", "kwargs")}
        return functools.partial(jit, **options, **kwargs)
    if not callable(fun):
        raise TypeError(f"`jit` compiles a function, and {fun!r} can't be called.")
    donated = _shifted(from_start(donate_argnums, fun))
    options: dict[str, Any] = {"donate_argnums": donated, **kwargs}
    if not left_out(in_shardings):
        if not isinstance(in_shardings, (tuple, list)):
            raise NotImplementedError(
                "`in_shardings` is a tuple with an entry for each argument, since the values of "
                f"the cells go in before them, not {in_shardings!r}."
            )
        options["in_shardings"] = (None, *in_shardings)
    if not left_out(out_shardings):
        options["out_shardings"] = (out_shardings, None, None)
    given = {"donate_argnames": donate_argnames, "device": device, "backend": backend}
    options |= {k: v for k, v in given.items() if v is not None}
    options |= {k: v for k, v in {"keep_unused": keep_unused, "inline": inline}.items() if v}
    nums = from_start(static_argnums, fun)
    return JittedFunction(fun, nums, names_of(static_argnames), name, options)


def _shifted(nums: tuple[int, ...]) -> tuple[int, ...]:
    """Positions among the arguments of what is compiled; those from the end stay."""
    return tuple(n + 2 if n >= 0 else n for n in nums)
