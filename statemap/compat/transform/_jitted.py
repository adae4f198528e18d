"""What `jit` compiles: a program over the values of cells, for one set of settings."""

import threading
from collections.abc import Callable, Iterable
from typing import Any

import jax

from ..._settings import reads
from ..._signature import Static
from .._cells import State
from .._discover import Discovery
from .._frames import Frame
from .._lift import arrays_of, capture, Late, Program, read_all, refuse_cells, run
from ._roster import Roster
from ._settings import Variant


class _Pending(threading.local):
    """The call that this thread is making, for when `jax.jit` asks for its trace."""

    cells: tuple[State, ...] = ()
    program: Program | None = None


class Jitted(Variant):
    """A function under `jax.jit`, and the cells that it is called with."""

    def __init__(
        self,
        fun: Callable,
        name: str,
        nums: tuple[int, ...],
        names: tuple[str, ...],
        options: dict[str, Any],
    ):
        """**Arguments:**

        - `nums`, `names`: the static arguments.
        - `options`: for `jax.jit`.
        """
        super().__init__()
        self.fun = fun
        self.name = name
        self.nums, self.names = nums, names
        self.options = options
        self._clear()

    def _clear(self) -> None:

        self._lock = threading.Lock()
        self._pending = _Pending()
        self._roster: Roster | None = None

        def call(values: Any, *args: Any, **kwargs: Any) -> Any:
            return self._run(values, args, kwargs)

        call.__name__ = call.__qualname__ = self.name
        nums = tuple(n + 1 for n in self.nums)
        self._jitted = jax.jit(
            call, static_argnums=nums, static_argnames=self.names, **self.options
        )

    def call(self, method: str, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, Any]:
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
            self._clear()  # the function now uses its cells in another way
            return None
        self._roster = renewed
        return renewed

    def _enlist(self, cells: Iterable[State]) -> Roster:
        for cell in cells:
            arrays_of(cell)
        with self._lock:
            known = () if self._roster is None else self._roster.cells
            every = dict.fromkeys([*known, *cells])
            self._roster = Roster(self.fun, Discovery(self.fun), every)
            return self._roster

    def _split(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any], Callable]:
        """The arguments that are traced, and the function with the others bound."""
        dynamic = tuple(a for i, a in enumerate(args) if i not in self.nums)
        static = {k: v for k, v in kwargs.items() if k in self.names}

        def bound(*given: Any, **named: Any) -> Any:
            own = iter(given)
            every = [a if i in self.nums else next(own) for i, a in enumerate(args)]
            return self.fun(*every, **static, **named)

        return dynamic, {k: v for k, v in kwargs.items() if k not in static}, bound

    def _capture(self, args: tuple, kwargs: dict[str, Any]) -> Program:
        dynamic, named, bound = self._split(args, kwargs)
        with reads() as settings:
            program = capture(bound, dynamic, named)
        self.seen.update(settings)
        return program

    def _run(
        self, values: Any, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[Any, list[Any], Static]:
        """What `jax.jit` compiles."""
        cells, program = self._pending.cells, self._pending.program
        if program is not None:
            dynamic, named, _ = self._split(args, kwargs)
            out, new = program(values, dynamic, named)
            written = program.written
        else:
            refuse_cells((args, kwargs))
            frame = Frame(cells, values)
            with reads() as settings:
                out, new = run(self.fun, frame, *args, **kwargs)
            if frame.late:
                raise Late(frame.late)
            self.seen.update(settings)
            written = frame.written
        indices = tuple(cells.index(cell) for cell in written)
        return out, new, Static(indices)
