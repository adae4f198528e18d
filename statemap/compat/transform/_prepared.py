"""What a mapping knows of the cells before a call: where they are, and the axis of each."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..._filters import InPaths
from ..._mapping import StatefulMapping as CoreMapping
from ..._slots import Slots
from ..._state import RandomState as _RandomKind, State as _CoreState
from .._frames import peek, read, Stream, trace_state
from .._lift import Lifted
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
        if len(self.touched) != len(self.used):
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
        value = read(cell)
        return encode(cell, value) if cell in self.prepared.impls else value

    def __iter__(self) -> Iterator[Any]:
        # Inside another trace, nothing may be done to a value of this one.
        inside = self.trace != trace_state()
        for cell in self.prepared.cells:
            value = peek(cell)
            if cell in self.prepared.impls and is_typed(value):
                key_data = jax.random.key_data
                value = jax.eval_shape(key_data, value) if inside else key_data(value)
            yield value


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


def match(axes: dict[Any, Any], paths: list[Any], cell: Any) -> tuple[Any, ...]:
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
