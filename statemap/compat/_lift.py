"""From a function that uses cells to a pure function of their values: the one mechanism under
every transform of the shim.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from .._jaxpr import dce_jaxpr, eval_jaxpr
from .._settings import Read, reads
from ._discover import Discovery, Edge, unchanged
from ._frames import DEAD, Frame, is_cell, local, peek, read, Stream, streams, take_turn


_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


class Late(Exception):
    """A function used cells that it was not given, or read settings that it was not known to."""

    def __init__(self, cells: Sequence[Any], settings: Read | None = None):
        self.cells, self.settings = cells, settings or {}


class Program(NamedTuple):
    """A function traced once: a jaxpr from the values of cells and the arguments to the output
    and the new values.
    """

    cells: tuple[Any, ...]  # whose values go in
    written: tuple[Any, ...]  # whose values come out
    read: tuple[Any, ...]  # what the function read, used or not
    settings: Read
    jaxpr: Any
    out_treedef: Any
    out_shape: Any  # of the output and the new values

    def __call__(self, values: Sequence[Any], *arguments: Any) -> tuple[Any, list[Any]]:
        """The output, and the new values of `written`, for values of `cells` and the arguments that
        were traced, or any pytree with the same leaves.
        """
        leaves = jax.tree.leaves((list(values), arguments))
        flat = eval_jaxpr(self.jaxpr.jaxpr, self.jaxpr.consts, *leaves)
        return jax.tree.unflatten(self.out_treedef, flat)


class Lifted:
    """A function, the cells that its programs are called with, and the settings that these read.

    A cell may be made anew between two calls (`init_state` does so). What is compiled stands for
    the cell at a place rather than for one object, so that a call first asks for the cells that
    are there `now`.
    """

    def __init__(self, fn: Callable, used: Iterable[Any] = (), settings: Read | None = None):
        self.fn, self.settings = fn, settings or {}
        self.discovery = Discovery(fn)
        self.use(used)

    def use(self, cells: Iterable[Any]) -> None:
        """From now on these cells are looked up at each call."""
        self.used = tuple(dict.fromkeys(cells))
        self.places = [self.discovery.places.get(cell) for cell in self.used]  # None: not found
        self.edges: list[Edge] = self.discovery.edges(self.used)
        self.draws = any(isinstance(cell, Stream) for cell in self.used)

    def now(self) -> "Lifted":
        """Itself, or if the cells are no longer where they were, the function with those that are
        there now. Its `places` are the same, unless some can't be told.
        """
        if unchanged(self.edges):
            return self
        new = Lifted(self.fn, (), self.settings)
        there: dict[Any, Any] = {place: cell for cell, place in new.discovery.places.items()}
        own = [there.get(p) if p else c for c, p in zip(self.used, self.places)]
        new.use(c for c in own if c is not None)
        return new


class _Calls(threading.local):
    """The calls that this thread is making, for when they are traced; the innermost last."""

    def __init__(self) -> None:
        self.stack: list[Any] = []


calls = _Calls()


def run(fn: Callable, frame: Frame, *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
    """Runs a function in a frame: its output, and the new values of `frame.written`."""
    out = frame.run(fn, *args, **kwargs)
    refuse_cells(out)
    new = [frame.values[cell] for cell in frame.written]
    frame.release()
    return out, new


def run_closed(fn: Callable, frame: Frame, *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
    """The same for a function that is to use the cells of the frame alone. If it uses others, it is
    `Late`: it has seen these as they are outside, and what became of it, an error perhaps, is void.
    """
    try:
        out = run(fn, frame, *args, **kwargs)
    except Exception:
        if frame.late:
            raise Late(frame.late) from None
        raise
    if frame.late:
        raise Late(frame.late)
    return out


def capture(
    fn: Callable, args: tuple, kwargs: dict[str, Any] | None = None, *, closed: bool = True,
    axis_env: Any = None,
) -> Program:  # fmt: skip
    """Traces a function once, with abstract values, for arrays or `jax.ShapeDtypeStruct`s.

    With `closed` the cells that it uses must be inputs. If not, those that are only read may be
    constants of the jaxpr, and nothing is looked for beforehand. `axis_env` are names and sizes of
    axes, for collectives.
    """
    cells = reachable(Discovery(fn), shapes=True) if closed else []
    values = [peek(cell) for cell in cells]
    refuse_cells((args, kwargs))
    named = {} if axis_env is None else {"axis_env": axis_env}
    while True:
        frames: list[Frame] = []

        def program(values: Any, args: Any, kwargs: Any, cells: Any = cells, frames=frames) -> Any:
            frames.append(Frame(cells, values, open=not closed))
            return run(fn, frames[-1], *args, **kwargs)

        with reads() as settings:
            make = jax.make_jaxpr(program, return_shape=True, **named)
            traced, shape = make(values, args, kwargs or {})
        frame = frames[-1]
        if not (closed and frame.late):
            return _prune(cells, values, traced, shape, frame, settings)
        cells = cells + frame.late
        values = [arrays_of(cell, shapes=True) for cell in cells]


def _prune(
    cells: list[Any], values: list[Any], traced: Any, shape: Any, frame: Frame, settings: Read
) -> Program:
    """The program without the cells that the function does not touch."""
    counts = [len(jax.tree.leaves(value)) for value in values]
    keep = []
    for cell, count in zip(cells, counts):
        keep += [cell in frame.read or cell in frame.written] * count
    keep += [True] * (len(traced.jaxpr.invars) - len(keep))
    outputs = [True] * len(traced.jaxpr.outvars)
    jaxpr, used = dce_jaxpr(traced.jaxpr, outputs, instantiate=keep)
    touched, at = [], 0
    for cell, count in zip(cells, counts):
        if cell in frame.read or cell in frame.written or any(used[at : at + count]):
            touched.append(cell)
        at += count
    return Program(
        cells=tuple(touched),
        written=tuple(frame.written),
        read=tuple(frame.read),
        settings=settings,
        jaxpr=ClosedJaxpr(jaxpr, traced.consts),
        out_treedef=jax.tree.structure(shape),
        out_shape=shape,
    )


def reachable(discovery: Discovery, *, shapes: bool = False) -> list[Any]:
    """The cells that were found and whose values can be inputs: arrays. For a program that is only
    traced, with `shapes`, a `jax.ShapeDtypeStruct` will do.
    """
    cells = dict.fromkeys([*discovery.paths, *streams])
    return [c for c in cells if c._level <= len(local.frames) and _holds_arrays(peek(c), shapes)]


def _holds_arrays(value: Any, shapes: bool) -> bool:
    kinds = (*_ARRAYS, jax.ShapeDtypeStruct) if shapes else _ARRAYS
    return value is not DEAD and all(isinstance(x, kinds) for x in jax.tree.leaves(value))


def arrays_of(cell: Any, *, shapes: bool = False) -> Any:
    """The value of a cell as an input of a program; a `TypeError` if that is no array."""
    value = peek(cell)
    if value is not DEAD and not _holds_arrays(value, shapes):
        raise TypeError(
            f"This {cell.label} is used under a transform and holds {value!r}. Cells that are used "
            "there hold arrays and numbers; keep what is none in an attribute."
        )
    return value


def read_all(cells: Sequence[Any], *, streams: bool = True) -> list[Any]:
    """The values of cells, read as the running function would. With `streams`, there may be
    streams among them, for which to take the turn.
    """
    if streams and any(isinstance(cell, Stream) for cell in cells):
        take_turn()
    if local.frames or local.recorders:
        return [read(cell) for cell in cells]
    if cells:
        read(cells[0])  # asks under which trace, which is the same for all
    values = [cell._held for cell in cells]
    for cell, value in zip(cells, values):
        if value is DEAD:
            read(cell)
    return values


def refuse_cells(tree: Any) -> None:
    """Refuses States as inputs and outputs of transforms."""
    for leaf in jax.tree.leaves(tree):
        if is_cell(leaf):
            raise ValueError(
                f"A State ({leaf.label}) can't go in or out of a transform as an argument or a "
                "result. Use it from where the function is defined, or give its `.value`."
            )


def check_carry(cells: Sequence[Any], before: Sequence[Any], after: Sequence[Any], by: str):
    """Refuses new values of another structure, shape or dtype, where a loop carries cells."""
    for cell, old, new in zip(cells, before, after):
        same = jax.tree.structure(old) == jax.tree.structure(new)
        if not same or any(
            jnp.shape(a) != jnp.shape(b) or jnp.result_type(a) != jnp.result_type(b)
            for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new))
        ):
            raise TypeError(
                f"In `{by}`, the structure, shape and dtype of this {cell.label} stay the same in "
                f"all steps and branches: it held {_short(old)} and was given {_short(new)}."
            )


def _short(tree: Any) -> str:
    shapes = [f"{jnp.result_type(x)}{list(jnp.shape(x))}" for x in jax.tree.leaves(tree)]
    return ", ".join(shapes) or "nothing"
