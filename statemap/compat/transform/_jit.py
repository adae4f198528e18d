"""`jit`: the values of the cells that a function touches go in, those that it writes come out."""

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from ..._outcome import Fixed
from .._cells import State
from .._discover import Discovery
from .._frames import Frame, write_all
from .._lift import arrays_of, capture, Late, Program, read_all, refuse_cells, run
from ._roster import Roster


class _Missing:
    def __repr__(self) -> str:
        return "<missing>"


MISSING: Any = _Missing()


class _Pending(threading.local):
    """The call that this thread is making, for when `jax.jit` asks for its trace."""

    cells: tuple[State, ...] = ()
    program: Program | None = None


class JittedFunction:
    """What [`statemap.compat.transform.jit`][] returns: a function with the arguments of
    `origin_fun`.
    """

    def __init__(
        self,
        fun: Callable,
        static_argnums: tuple[int, ...],
        static_argnames: tuple[str, ...],
        name: str | None,
        options: dict[str, Any],
    ):
        functools.update_wrapper(self, fun, updated=())
        self.__wrapped__ = self.origin_fun = fun
        self.__name__ = name or getattr(fun, "__name__", type(fun).__name__)
        self._nums, self._names = static_argnums, static_argnames
        self._options = options
        self.clear_cache()

    def clear_cache(self) -> None:
        """Forgets what was compiled."""
        self._lock = threading.Lock()
        self._pending = _Pending()
        self._roster: Roster | None = None

        def call(values: Any, *args: Any, **kwargs: Any) -> Any:
            return self._run(values, args, kwargs)

        call.__name__ = call.__qualname__ = self.__name__
        nums = tuple(n + 1 for n in self._nums)
        self._jitted = jax.jit(
            call, static_argnums=nums, static_argnames=self._names, **self._options
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if jax.config.jax_disable_jit:  # pyright: ignore
            return self.origin_fun(*args, **kwargs)
        cells, (out, new, written) = self._call("__call__", args, kwargs)
        if new:
            write_all([cells[i] for i in written.value], new)
        return out

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """The lowered program, from the values of cells and the arguments."""
        return self._call("lower", args, kwargs)[1]

    def trace(self, *args: Any, **kwargs: Any) -> jax.stages.Traced:
        """The traced program."""
        return self._call("trace", args, kwargs)[1]

    def compile(self, *args: Any, **kwargs: Any) -> jax.stages.Compiled:
        """The compiled program."""
        return self.lower(*args, **kwargs).compile()

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """The shapes and dtypes of the output."""
        return self._call("eval_shape", args, kwargs)[1][0]

    def _call(self, method: str, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The cells of the call, and what a method of `jax.jit` gives."""
        roster, program = self._current(), None
        if roster is None:
            program = self._capture(args, kwargs)
            roster = self._enlist(program.cells)
        pending = self._pending
        before = pending.cells, pending.program
        try:
            while True:
                cells = roster.cells
                pending.cells = cells
                pending.program = program if program and program.cells == cells else None
                try:
                    return cells, getattr(self._jitted, method)(read_all(cells), *args, **kwargs)
                except Late as late:
                    roster = self._enlist(late.cells)
        finally:
            pending.cells, pending.program = before

    def _current(self) -> Roster | None:
        """The cells to call with, None before the first call."""
        roster = self._roster
        if roster is None or roster.is_current:
            return roster
        renewed = roster.renewed()
        if renewed is None or renewed.identities != roster.identities:
            self.clear_cache()  # the function now uses its cells in another way
            return None
        self._roster = renewed
        return renewed

    def _enlist(self, cells: Iterable[State]) -> Roster:
        for cell in cells:
            arrays_of(cell)
        with self._lock:
            known = () if self._roster is None else self._roster.cells
            every = dict.fromkeys([*known, *cells])
            self._roster = Roster(self.origin_fun, Discovery(self.origin_fun), every)
            return self._roster

    def _split(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any], Callable]:
        """The arguments that are traced, and the function with the others bound."""
        dynamic = tuple(a for i, a in enumerate(args) if i not in self._nums)
        static = {k: v for k, v in kwargs.items() if k in self._names}

        def bound(*given: Any, **named: Any) -> Any:
            own = iter(given)
            every = [a if i in self._nums else next(own) for i, a in enumerate(args)]
            return self.origin_fun(*every, **static, **named)

        return dynamic, {k: v for k, v in kwargs.items() if k not in static}, bound

    def _capture(self, args: tuple, kwargs: dict[str, Any]) -> Program:
        dynamic, named, bound = self._split(args, kwargs)
        return capture(bound, dynamic, named)

    def _run(
        self, values: Any, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[Any, list[Any], Fixed]:
        """What `jax.jit` compiles."""
        cells, program = self._pending.cells, self._pending.program
        if program is not None:
            dynamic, named, _ = self._split(args, kwargs)
            out, new = program(values, dynamic, named)
            written = program.written
        else:
            refuse_cells((args, kwargs))
            frame = Frame(cells, values)
            out, new = run(self.origin_fun, frame, *args, **kwargs)
            if frame.late:
                raise Late(frame.late)
            written = frame.written
        indices = tuple(cells.index(cell) for cell in written)
        return out, new, Fixed(indices)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        fun = functools.partial(self.origin_fun, instance)
        bound = JittedFunction(fun, self._nums, self._names, self.__name__, self._options)
        return bound

    def __reduce__(self) -> tuple:
        parts = self.origin_fun, self._nums, self._names, self.__name__, self._options
        return JittedFunction, parts

    def __repr__(self) -> str:
        return f"jit({self.__name__})"


def jit(
    fun: Callable = MISSING,
    in_shardings: Any = MISSING,
    out_shardings: Any = MISSING,
    static_argnums: int | Sequence[int] | None = None,
    donate_argnums: int | Sequence[int] | None = None,
    static_argnames: str | Iterable[str] | None = None,
    donate_argnames: str | Iterable[str] | None = None,
    keep_unused: bool = False,
    device: Any = None,
    backend: str | None = None,
    inline: bool = False,
    name: str | None = None,
    **kwargs: Any,
) -> Any:
    """Compiles a function that uses cells.

    ```python
    import jax.numpy as jnp
    from statemap.compat import ShortTermState, transform

    count = ShortTermState(jnp.zeros((), int))

    @transform.jit
    def step(x):
        count.value = count.value + 1
        return x * count.value

    assert step(2.0) == 2 and step(2.0) == 4
    ```

    The function runs once for each combination of shapes and dtypes. What goes into the compiled
    program are the values of the cells that it uses, and what comes out those that it writes. A
    cell that is made anew (by `init_state`, say) is the one that the next call uses.

    **Arguments:**

    - `fun`: the function. Left out, a decorator is returned.
    - `in_shardings`: a tuple with an entry for each argument.
    - `name`: what profiles call it.
    - The others are those of `jax.jit`.
    """
    if fun is MISSING:
        options = {k: v for k, v in locals().items() if k not in ("fun", "kwargs")}
        return functools.partial(jit, **options, **kwargs)
    if not callable(fun):
        raise TypeError(f"`jit` compiles a function, and {fun!r} can't be called.")
    nums, donated = (
        _numbers(static_argnums, "static_argnums"),
        _numbers(donate_argnums, "donate_argnums"),
    )
    options: dict[str, Any] = {"donate_argnums": tuple(n + 1 for n in donated), **kwargs}
    if in_shardings is not MISSING and in_shardings is not None:
        if not isinstance(in_shardings, (tuple, list)):
            raise NotImplementedError(
                "`in_shardings` is a tuple with an entry for each argument, since the values of "
                f"the cells go in before them, not {in_shardings!r}."
            )
        options["in_shardings"] = (None, *in_shardings)
    if out_shardings is not MISSING and out_shardings is not None:
        options["out_shardings"] = (out_shardings, None, None)
    given = {"donate_argnames": donate_argnames, "device": device, "backend": backend}
    options |= {k: v for k, v in given.items() if v is not None}
    options |= {k: v for k, v in {"keep_unused": keep_unused, "inline": inline}.items() if v}
    names = (static_argnames,) if isinstance(static_argnames, str) else static_argnames
    return JittedFunction(fun, nums, tuple(names or ()), name, options)


def _numbers(nums: int | Sequence[int] | None, parameter: str) -> tuple[int, ...]:
    out = (nums,) if isinstance(nums, int) else tuple(nums or ())
    if any(n < 0 for n in out):
        raise ValueError(f"`{parameter}` counts from the first argument, and holds {min(out)}.")
    return out
