"""What a mapping knows of the cells before a call: where they are, and the axis of each."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..._filters import InPaths
from ..._mapping import StatefulMapping as CoreMapping
from ..._program import Program
from ..._rules import Reduce, Restore
from ..._signature import Static
from ..._slots import Slots
from ..._state import RandomState as _RandomKind, State as _CoreState
from .._frames import peek, read, Stream, take_turn, trace_state
from .._lift import Lifted
from ..random._keys import is_typed
from ..util.filter import to_predicate


class _Kind(_CoreState):
    """The kind of a cell in a context of the core."""

    fixed_dtype = False
    fixed_shape = False


@functools.cache
def kind_of(cls: type, is_free: bool) -> type[_CoreState]:
    """With `is_free` a lane may give a value of any shape back."""
    if issubclass(cls, Stream):
        return _RandomKind
    fixed = {"fixed_shape": None} if is_free else {}
    return type(cls.__name__, (_Kind,), {"__module__": cls.__module__, **fixed})


def encode(cell: Any, value: Any) -> Any:
    """What the core is given: of a key its data."""
    return jax.random.key_data(value) if isinstance(cell, Stream) and is_typed(value) else value


def decode(cell: Any, data: Any, impl: str | None) -> Any:
    is_key = isinstance(cell, Stream) and impl is not None
    return jax.random.wrap_key_data(data, impl=impl) if is_key else data


class Prepared(Lifted):
    """The cells of a mapping, and the core's mapping that is called with their values."""

    core: CoreMapping
    slots: Slots
    cells: list[Any]
    impls: dict[Any, str | None]  # of streams, where their keys are typed
    by_lane: set[Any]  # what the policy "auto" takes lane by lane

    def __init__(self, fn: Any):
        super().__init__(fn)
        self.touched: set[int] = set()

    def touch(self, changed: Sequence[int]) -> None:
        """From now on the next call looks up the cells that this one has used."""
        self.touched.update(changed)
        self.use([self.cells[i] for i in list(self.touched)])


class Values(Sequence[Any]):
    """A call: the values of the cells. Those that are asked for one by one are read; an iteration
    is for a trace, which only looks at shapes.
    """

    def __init__(self, prepared: Prepared):
        self.prepared = prepared
        self.trace = trace_state()
        self.is_run = False  # the function, to be traced

    def __len__(self) -> int:
        return len(self.prepared.cells)

    def __getitem__(self, i: Any) -> Any:
        cell = self.prepared.cells[i]
        self.prepared.touched.add(i)
        if cell not in self.prepared.impls:
            return read(cell)
        take_turn()
        return encode(cell, read(cell))

    def __iter__(self) -> Iterator[Any]:
        # Inside another trace, nothing may be done to a value of this one.
        inside = self.trace != trace_state()
        for cell in self.prepared.cells:
            value = peek(cell)
            if cell in self.prepared.impls and is_typed(value):
                key_data = jax.random.key_data
                value = jax.eval_shape(key_data, value) if inside else key_data(value)
            yield value


def parse_axes(spec: Any, parameter: str, *, rules: bool = False) -> dict[Any, Any]:
    """`state_in_axes` or `state_out_axes` as a dictionary from axes to predicates; with `rules`,
    the core's `Reduce` and `Restore` may stand beside axes.
    """
    if spec is None:
        return {}
    if not isinstance(spec, dict):
        spec = {0: spec}
    for axis in spec:
        if rules and (isinstance(axis, Reduce) or axis is Restore):
            continue
        if axis is not None and (isinstance(axis, bool) or not hasattr(axis, "__index__")):
            raise TypeError(
                f"`{parameter}` goes from axes to filters, and {axis!r} is no axis (an int or "
                "None).\nWrong:  {ParamState: 0}\nRight:  {0: ParamState}"
            )
    return {axis: to_predicate(filter) for axis, filter in spec.items()}


def match(axes: dict[Any, Any], paths: list[Any], cell: Any) -> tuple[Any, ...]:
    """The axis of the first filter that matches, in a tuple that is empty if none does."""
    for axis, predicate in axes.items():
        if any(predicate(path, cell) for path in paths):
            return (axis,)
    return ()


class Written(NamedTuple):
    """What the policy "auto" knows of a cell to which lanes write values of their own."""

    lanes: int
    axis: int  # where these go
    is_read: bool  # too, so that where it has lanes on that axis, it comes in so

    def is_as_in(self, cell: Any) -> bool:
        """Whether it comes in lane by lane."""
        sizes = [jnp.shape(x)[self.axis :][:1] for x in jax.tree.leaves(peek(cell))]
        return self.is_read and all(size == (self.lanes,) for size in sizes)


def axes_of_lanes(program: Program, axis_name: Any) -> dict[int, int]:
    """The axis, by the position of the state, on which `jax.vmap` has the lanes of what a lane's
    program writes: 0 mostly, or where they were in what it is made of. brainstate leaves them.
    """
    lane, n = program._lane, program.lanes
    axes = [axis for axis, used in zip(program._lane_axes(), program._used) if used]
    found: dict[int, int] = {}

    def one(arrays: list[Any]) -> int:
        flat = iter(lane.run(arrays)[sum(not isinstance(o, Static) for o in program.outputs) :])
        for i, (row, count) in enumerate(zip(program.rows, program._counts)):
            if row.result in ("shared", "stacked", "reduced"):
                dims = {getattr(next(flat), "batch_dim", None) for _ in range(count)}
                found[i] = next(iter(dims)) or 0 if len(dims) == 1 else 0
        return 0

    def every(aval: Any, axis: int | None) -> Any:
        at = 0 if axis is None else axis
        lanes = () if axis is None else (n,)
        return jax.ShapeDtypeStruct((*aval.shape[:at], *lanes, *aval.shape[at:]), aval.dtype)

    mapped = jax.vmap(one, (axes,), None, axis_size=n, axis_name=axis_name)
    jax.eval_shape(mapped, list(map(every, lane.avals, axes)))
    return found


@dataclasses.dataclass(frozen=True)
class Declared(InPaths):
    """The paths of the cells that a filter of the user's matches."""

    filter: Any = dataclasses.field(compare=False)

    def __repr__(self) -> str:
        return repr(self.filter)


def in_paths(spec: dict[Any, list[Any]], axes: dict[Any, Any]) -> dict[Any, Declared]:
    """The paths of cells by axis, in the words of `axes`, which the user gave."""
    return {a: Declared(tuple(paths), axes.get(a, "auto")) for a, paths in spec.items()}
