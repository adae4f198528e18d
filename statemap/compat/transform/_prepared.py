"""What a mapping knows of the cells before a call: where they are, and the axis of each."""

import dataclasses
import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..._filters import InPaths
from ..._mapping import StatefulMapping as CoreMapping
from ..._slots import Slots
from ..._state import RandomState as _RandomKind, State as _CoreState
from .._cells import State
from .._discover import Discovery, Edge
from .._frames import peek, read, Stream, take_turn, trace_state
from ..util.filter import to_predicate


class _Kind(_CoreState):
    """The kind of a cell in a context of the core."""

    fixed_dtype = False
    fixed_shape = False


@functools.cache
def kind_of(cls: type) -> type[_CoreState]:
    if issubclass(cls, Stream):
        return _RandomKind
    return type(cls.__name__, (_Kind,), {"__module__": cls.__module__})


def is_typed(key: Any) -> bool:
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def encode(cell: State, value: Any) -> Any:
    """What the core is given: of a key its data."""
    return encode_key(value) if isinstance(cell, Stream) else value


def encode_key(key: Any) -> Any:
    return jax.random.key_data(key) if is_typed(key) else key


def decode(cell: State, data: Any, impl: str | None) -> Any:
    if isinstance(cell, Stream) and impl is not None:
        return jax.random.wrap_key_data(data, impl=impl)
    return data


class Prepared:
    """The cells of a mapping, and the core's mapping that is called with their values."""

    def __init__(self, core: CoreMapping, slots: Slots, discovery: Discovery):
        self.core = core
        self.slots = slots
        self.cells: list[State] = []
        self.impls: dict[State, str | None] = {}  # of typed keys
        self.by_lane: set[State] = set()  # what the policy "auto" takes lane by lane
        self.discovery = discovery
        self.edges: list[Edge] = []
        self.touched: set[int] = set()
        self.checked = -1

    def look_at_edges(self) -> None:
        """From now on the next call checks the ways to the cells that are touched."""
        if self.checked != len(self.touched):
            self.checked = len(self.touched)
            self.edges = self.discovery.edges(self.cells[i] for i in list(self.touched))


class Values(Sequence[Any]):
    """The values of the cells of a call. Those that are asked for one by one are read; an
    iteration is for a trace, which only looks at shapes.
    """

    def __init__(self, prepared: Prepared):
        self.prepared = prepared
        self.trace = trace_state()

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
        values = [peek(cell) for cell in self.prepared.cells]
        for i, cell in enumerate(self.prepared.cells):
            if cell in self.prepared.impls:
                # Inside another trace, nothing may be done to a value of this one.
                inside = self.trace != trace_state()
                values[i] = (
                    jax.eval_shape(encode_key, values[i]) if inside else encode_key(values[i])
                )
        return iter(values)


class _Calls(threading.local):
    """The calls that this thread is making, the innermost last."""

    def __init__(self) -> None:
        self.stack: list[Prepared] = []


calls = _Calls()


def parse_axes(spec: Any, parameter: str) -> dict[Any, Any]:
    """`state_in_axes` or `state_out_axes` as a dictionary from axes to predicates."""
    if spec is None:
        return {}
    if not isinstance(spec, dict):
        spec = {0: spec}
    for axis in spec:
        if axis is not None and (isinstance(axis, bool) or not hasattr(axis, "__index__")):
            raise TypeError(
                f"`{parameter}` goes from axes to filters, and {axis!r} is no axis (an int or "
                "None).\nWrong:  {ParamState: 0}\nRight:  {0: ParamState}"
            )
    return {axis: to_predicate(filter) for axis, filter in spec.items()}


def match(axes: dict[Any, Any], paths: list[Any], cell: State) -> tuple[Any, ...]:
    """The axis of the first filter that matches, in a tuple that is empty if none does."""
    for axis, predicate in axes.items():
        if any(predicate(path, cell) for path in paths):
            return (axis,)
    return ()


@dataclasses.dataclass(frozen=True)
class Declared(InPaths):
    """The paths of the cells that a filter of the user's matches."""

    filter: Any = dataclasses.field(compare=False)

    def __repr__(self) -> str:
        return repr(self.filter)


def in_paths(spec: dict[Any, list[Any]], axes: dict[Any, Any]) -> dict[Any, Declared]:
    """The paths of cells by axis, in the words of `axes`, which the user gave."""
    return {a: Declared(tuple(paths), axes.get(a, "auto")) for a, paths in spec.items()}
