"""From a function that uses cells to a pure function of their values: the one mechanism under
every transform of the shim that is not a mapping.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from .._jaxpr import dce_jaxpr, eval_jaxpr
from ._cells import State
from ._discover import Discovery
from ._frames import DEAD, Frame, is_cell, local, peek, read, streams


_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


class Late(Exception):
    """A function used cells that it was not given."""

    def __init__(self, cells: Sequence[State]):
        self.cells = list(cells)


class Program(NamedTuple):
    """A function traced once: a jaxpr from the values of cells and the arguments to the output
    and the new values.
    """

    cells: tuple[State, ...]  # whose values go in
    written: tuple[State, ...]  # whose values come out
    read: tuple[State, ...]  # what the function read, used or not
    jaxpr: Any
    out_treedef: Any
    out_shape: Any  # of the output and the new values

    def __call__(self, values: Sequence[Any], *arguments: Any) -> tuple[Any, list[Any]]:
        """**Arguments:**

        - `values`: of `cells`.
        - `arguments`: those that were traced, or any pytree with the same leaves.

        **Returns:**

        The output, and the new values of `written`.
        """
        leaves = jax.tree.leaves((list(values), arguments))
        flat = eval_jaxpr(self.jaxpr.jaxpr, self.jaxpr.consts, *leaves)
        return jax.tree.unflatten(self.out_treedef, flat)


def run(fn: Callable, frame: Frame, *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
    """Runs a function in a frame.

    **Returns:**

    Its output, and the new values of `frame.written`.
    """
    out = frame.run(fn, *args, **kwargs)
    refuse_cells(out)
    new = [frame.values[cell] for cell in frame.written]
    frame.release()
    return out, new


def capture(
    fn: Callable,
    args: tuple,
    kwargs: dict[str, Any] | None = None,
    *,
    closed: bool = True,
    axis_env: Any = None,
) -> Program:
    """Traces a function once, with abstract values.

    **Arguments:**

    - `args`, `kwargs`: pytrees of arrays, or of `jax.ShapeDtypeStruct`s.
    - `closed`: whether the cells that the function uses must be inputs. If not, those that are
        only read may be constants of the jaxpr, and nothing is looked for beforehand.
    - `axis_env`: names and sizes of axes, for collectives.
    """
    cells = reachable(fn) if closed else []
    values = [peek(cell) for cell in cells]
    for value in args, kwargs:
        refuse_cells(value)
    while True:
        frames: list[Frame] = []

        def program(values: Any, args: Any, kwargs: Any, cells: Any = cells, frames=frames) -> Any:
            frames.append(Frame(cells, values))
            return run(fn, frames[-1], *args, **kwargs)

        named = {} if axis_env is None else {"axis_env": axis_env}
        make = jax.make_jaxpr(program, return_shape=True, **named)
        traced, shape = make(values, args, kwargs or {})
        frame = frames[-1]
        if not (closed and frame.late):
            return _prune(cells, values, traced, shape, frame)
        cells = cells + frame.late
        values = [arrays_of(cell) for cell in cells]


def _prune(cells: list[State], values: list[Any], traced: Any, shape: Any, frame: Frame) -> Program:
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
        jaxpr=ClosedJaxpr(jaxpr, traced.consts),
        out_treedef=jax.tree.structure(shape),
        out_shape=shape,
    )


def reachable(fn: Callable, discovery: Discovery | None = None) -> list[State]:
    """The cells that a function can reach and whose values can be inputs: arrays."""
    discovery = discovery or Discovery(fn)
    cells = dict.fromkeys([*discovery.paths, *streams])
    return [c for c in cells if c._level <= len(local.frames) and _holds_arrays(peek(c))]


def _holds_arrays(value: Any) -> bool:
    return value is not DEAD and all(isinstance(x, _ARRAYS) for x in jax.tree.leaves(value))


def arrays_of(cell: State) -> Any:
    """The value of a cell as an input of a program.

    **Raises:**

    `TypeError` if it holds something that is no array.
    """
    value = peek(cell)
    if value is not DEAD and not _holds_arrays(value):
        raise TypeError(
            f"This {cell.label} is used under a transform and holds {value!r}. Cells that are used "
            "there hold arrays and numbers; keep what is none in an attribute."
        )
    return value


def read_all(cells: Sequence[State]) -> list[Any]:
    """The values of cells, read as the running function would."""
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


def check_carry(cells: Sequence[State], before: Sequence[Any], after: Sequence[Any], by: str):
    """Refuses new values of another structure, shape or dtype, where a loop carries cells.

    **Raises:**

    `TypeError`, which names the cell.
    """
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
