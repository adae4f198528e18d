"""Frames: what the cells hold while a function runs under a transform.

Outside of transforms a cell holds its value itself. A transform runs a function in a *frame*,
which holds values of its own for the cells that the function uses: those that the transform
gives it, and those that are written. When the function is done, the transform takes the new
values from the frame, and nothing of the run is left in the cells.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, ClassVar, ParamSpec, TypeGuard, TypeVar

import jax
import jax.core
import jax.numpy as jnp

from .._jax import make_user_context, trace_state as trace_state
from ._errors import TraceContextError


class _Local(threading.local):
    """What is going on in this thread."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.catchers: list[Any] = []  # of `catch_new_states`
        self.recorders: list[Any] = []  # `StateTraceStack`s
        self.tree_checks = [False]  # of `check_state_value_tree`
        self.lock: Any = None  # that of the streams, while it is this thread's turn


local = _Local()

P = ParamSpec("P")
R = TypeVar("R")


class Cell:
    """What transforms thread through functions. The shim's `State` is one; so is any class that
    has this one among its bases, with the attributes `_value`, `_level`, `_trace` and `_name`.
    """

    _value: Any
    _level: int  # how many frames there were when it was made
    _trace: Any  # and under which of JAX's traces
    _name: str | None
    _been_writen: bool  # brainstate's spelling
    # Whether it is refused where a transform of JAX itself would compile its value in, and where
    # somebody else restores or, under a recorder, writes tracers.
    _guarded: ClassVar[bool] = True

    def _born(self) -> None:
        """Takes note of where it was made."""
        self._level = len(local.frames)
        self._trace = trace_state()
        if local.frames:
            local.frames[-1].created.append(self)

    @property
    def _held(self) -> Any:
        """What it holds itself. A function under a transform sees what its frame holds."""
        return vars(self)["_value"]

    @_held.setter
    def _held(self, value: Any) -> None:
        vars(self)["_value"] = value

    def _receive(self, value: Any) -> None:
        write(self, value)
        self._been_writen = True

    @property
    def label(self) -> str:
        """What messages call it."""
        return type(self).__name__ + (f" `{self._name}`" if self._name else "")


class Stream(Cell):
    """A cell that holds a key: in lanes, each draws from a stream of its own."""


class Unbatched(Cell):
    """A cell that has no lanes when it is made in lanes."""


def is_cell(x: Any) -> TypeGuard[Any]:
    return isinstance(x, Cell)


streams: list[Any] = []  # the global ones, from which any function may draw

# Held from when a key is read till the next one is written, so that no two threads use the same.
# One for all streams: those that a call uses can't be waited for in two orders.
LOCK: Any = threading.RLock()


def take_turn() -> None:
    """Waits till no other thread uses streams. It is this thread's turn then, till the call that
    is going on (the outermost `in_turn`) is done.

    Only a frame that is open takes a key from outside. In others the key is an input, which was
    read before; and while they are traced, other threads may be waiting for what is traced.
    """
    if local.lock is None and all(frame.open for frame in local.frames):
        lock = LOCK
        lock.acquire()
        local.lock = lock


def end_turn() -> None:
    """Lets other threads use streams, unless a call around this one is not done yet."""
    if local.lock is not None and not local.frames:
        lock, local.lock = local.lock, None
        lock.release()


def in_turn(fn: Callable[P, R]) -> Callable[P, R]:
    """Makes a function that may take the turn give it back, on errors too."""

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        before = local.lock
        try:
            return fn(*args, **kwargs)
        finally:
            if local.lock is not before:
                end_turn()

    return call


def has_tracer(value: Any) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(value))


class Frame:
    """One run of a function under a transform.

    A cell knows how many frames there were when it was made, its *level*. Frames with a higher
    number hold its values; in the others it does not exist yet.
    """

    def __init__(
        self, cells: Sequence[Any] = (), values: Iterable[Any] = (), *, open: bool = False
    ):
        """Of cells and values that the transform gives to the function. If it is `open`, values of
        others are used, too; if not, the function starts again with all that it needs.
        """
        self.open = open
        self._initial = dict(zip(cells, values))
        self.given = frozenset(self._initial)
        self.caches: contextlib.ExitStack | None = None

    def __enter__(self) -> "Frame":
        self.values: dict[Any, Any] = dict(self._initial)
        self.read: dict[Any, None] = {}  # in order
        self.written: dict[Any, None] = {}
        self.reads_first: set[Any] = set()  # what is read before it is written
        self.created: list[Any] = []
        self.trace = trace_state()
        local.frames.append(self)
        self.number = len(local.frames)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, tb: TracebackType | None):
        local.frames.pop()
        for cell in self.created:
            if has_tracer(cell._held):
                cell._held = DEAD

    def run(self, fn: Callable, *args: Any, **kwargs: Any) -> Any:
        """Runs a function in the frame.

        JAX caches what its own transforms trace (a function given to `jax.lax.scan`, say), by
        function. If it reads a cell, the value of that moment would come back, in this run or in
        another. So then the run starts again, with caches that are used no second time after a
        write. (To use such caches always would compile all anew in each call that is not compiled
        as a whole, and to refuse such reads would refuse code that brainstate runs.)
        """
        try:
            with self:
                return fn(*args, **kwargs)
        except _ReadUnderJax:
            with contextlib.ExitStack() as self.caches:
                self.renew_caches()
                with self:
                    return fn(*args, **kwargs)

    def renew_caches(self) -> None:
        if self.caches is not None:
            self.caches.enter_context(_cache_key(object()))

    def release(self) -> None:
        """Lets go of all values, which are tracers mostly."""
        self.values, self._initial = {}, {}

    def get(self, cell: Any) -> Any:
        """The value of a cell, without a note that it was read."""
        if cell in self.values:
            return self.values[cell]
        value = outer_value(cell, self.number - 1)
        if isinstance(value, (dict, list)):  # what is changed in place is not that outside
            return jax.tree.map(lambda x: x, value)
        return value

    @property
    def late(self) -> list[Any]:
        """The cells that were used and not given."""
        return [c for c in {**self.read, **self.written} if c not in self.given]


class _ReadUnderJax(BaseException):
    """A cell is read in a frame, under a transform of JAX. No error, and not for `except`."""


# Part of the key of JAX's caches of what it traces.
_cache_key = make_user_context(None)


class _Dead:
    """The value of a cell that was made under a transform, once that is over."""

    def __repr__(self) -> str:
        return "<made under a transform that is over>"


DEAD = _Dead()


def outer_value(cell: Any, depth: int) -> Any:
    """The value of a cell as the first `depth` frames have it."""
    return local.frames[depth - 1].get(cell) if depth > cell._level else cell._held


def peek(cell: Any) -> Any:
    """The value of a cell as the running function sees it, without a note that it was read."""
    return outer_value(cell, len(local.frames))


def read(cell: Any) -> Any:
    """The value of a cell as the running function sees it, or a `TraceContextError` where it would
    be compiled in, or is gone.
    """
    frames = local.frames
    if len(frames) > cell._level:
        frame = frames[-1]
        value = frame.get(cell)
        if frame.caches is None and frame.trace != trace_state() and is_staged():
            raise _ReadUnderJax
        for frame in reversed(frames[cell._level :]):  # whence the value comes
            frame.read[cell] = None
            if cell not in frame.written:
                frame.reads_first.add(cell)
            if cell in frame.values:
                break
        else:
            if isinstance(cell, Stream) and cell._level == 0:
                take_turn()
                value = cell._held
    else:
        value = cell._held
        if not frames and cell._guarded and cell._trace != trace_state():
            if is_staged():
                _refuse(cell, "read", "Its value would be compiled in, and stay as it is now.")
            if has_tracer(value):
                value = DEAD  # made under a transform of JAX itself
    if value is DEAD:
        raise TraceContextError(
            f"This {cell.label} was made under a transform, and its value is gone with it. Make it "
            "before, or with `vmap_new_states`; or give it a value: `state.value = ...`."
        )
    for recorder in local.recorders:
        recorder.read_its_value(cell)
    return value


def write(cell: Any, value: Any, *, restore: bool = False) -> None:
    """Gives a cell another value, as the running function sees it; with `restore` without a note
    that it was written. It is a `TraceContextError` if a tracer would be left in the cell.
    """
    frames = local.frames
    framed = len(frames) > cell._level
    owner = frames[-1].trace if framed else cell._trace
    guarded = cell._guarded or framed and not restore and not local.recorders
    if guarded and owner != trace_state() and (has_tracer(value) or is_staged()):
        if framed or cell._level == 0:
            _refuse(cell, "written", "A tracer would be left in it.")
    for recorder in local.recorders:
        note = recorder.read_its_value if restore else recorder.write_its_value
        note(cell)
    if framed:
        frames[-1].values[cell] = value
        frames[-1].renew_caches()
        if not restore:
            frames[-1].written[cell] = None
    else:
        cell._held = value


def write_all(cells: Sequence[Any], values: Sequence[Any]) -> None:
    """Writes the results of a transform to cells: to all, or if one fails to none."""
    before = [peek(cell) for cell in cells]
    done = 0
    try:
        for cell, value in zip(cells, values):
            done += 1
            cell._receive(value)
    except BaseException:
        for cell, value in zip(cells[:done], before):
            write(cell, value, restore=True)
        raise


def is_staged() -> bool:
    """Whether what is done now is recorded, to be compiled and run later."""
    return isinstance(jnp.zeros(()) + 0, jax.core.Tracer)


def _refuse(cell: Any, what: str, why: str) -> None:
    raise TraceContextError(
        f"This {cell.label} is {what} under a transform of JAX itself (`jax.jit`, `jax.grad`, "
        f"`jax.lax.scan`, ...), which does not know of it. {why} Use the transform of the same "
        "name in `statemap.compat.transform`.\n"
        "Wrong:  jax.jit(f), jax.grad(f), jax.lax.scan(f, ...), also around such a transform\n"
        "Right:  transform.jit(f), transform.grad(f), transform.scan(f, ...)"
    )
