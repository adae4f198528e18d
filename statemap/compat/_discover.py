"""Which cells a function can reach: those in its closure, its globals, its object.

What is found before a function is traced becomes an input of the compiled program. What is not
found is noticed when it is used, and the function is traced again, with it.
"""

import functools
import sys
import types
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ._frames import is_cell


Path = tuple[Any, ...]


class Edge(NamedTuple):
    """One step on the way to a cell: a look-up that gave `value`."""

    get: Callable[[Any], Any]
    key: Any
    value: Any


Way = tuple[Any, ...]  # the edges to an object, last one first: `(edge, way)`, or `()`


class Discovery:
    """The cells that a function can reach, and how."""

    def __init__(self, fn: Any):
        self.paths: dict[Any, list[Path]] = {}  # in the order in which they are found
        self._ways: dict[int, list[Way]] = {}  # by the id of what they lead to
        self._seen: dict[int, Any] = {}  # keeps the objects, so that no id is used again
        stack: list[tuple[Any, Path, Way]] = [(fn, (), ())]
        while stack:
            obj, path, way = stack.pop()
            if isinstance(obj, _SKIPPED):
                continue
            self._ways.setdefault(id(obj), []).append(way)
            if is_cell(obj):
                self.paths.setdefault(obj, []).append(path)
            elif id(obj) not in self._seen:
                further = []
                for get, key, value, name in _steps(obj):
                    edge = way if get is None else (Edge(get, key, value), way)
                    further.append((value, path if name is None else (*path, name), edge))
                stack += reversed(further)
            self._seen[id(obj)] = obj

    def edges(self, cells: Iterable[Any]) -> list[Edge]:
        """All steps on the ways to these cells, each once."""
        out: dict[int, Edge] = {}
        reached: set[int] = set()
        ids = [id(cell) for cell in cells]
        while ids:
            target = ids.pop()
            if target in reached:
                continue
            reached.add(target)
            for way in self._ways.get(target, ()):
                while way:
                    edge, way = way
                    out[id(edge)] = edge
                    ids.append(id(edge.value))  # to which other ways may lead
        return list(out.values())

    @functools.cached_property
    def places(self) -> dict[Any, Hashable]:
        """By cell, where it is, so that another can take its place; of a cell in a set, say, which
        has no place of its own, the cell itself.
        """
        found = {cell: (type(cell), tuple(paths)) for cell, paths in self.paths.items()}
        counts = Counter(found.values())
        return {c: place if counts[place] == 1 else (c,) for c, place in found.items()}


def unchanged(edges: list[Edge]) -> bool:
    """Whether all look-ups still give what they gave."""
    try:
        for get, key, value in edges:
            if get(key) is not value:
                return False
    except (IndexError, ValueError):  # a list that got shorter, a closure without a value
        return False
    return True


_PLAIN = (str, bytes, int, float, complex, type(None), type, np.ndarray, np.generic, np.dtype)
_SKIPPED = (*_PLAIN, jax.Array, types.BuiltinFunctionType, types.ModuleType)


def _steps(obj: Any) -> Iterator[tuple[Any, Any, Any, Any]]:
    """Whither one object leads: `(look-up, key, what is there, its name in a path)`."""
    if isinstance(obj, types.MethodType):
        yield from ((None, None, value, None) for value in (obj.__self__, obj.__func__))
    elif isinstance(obj, functools.partial):
        yield from ((None, None, value, None) for value in (obj.func, obj.args, obj.keywords))
    elif isinstance(obj, types.FunctionType):
        yield from _function_steps(obj)
    elif isinstance(obj, Mapping):
        yield from ((obj.get, key, value, key) for key, value in list(obj.items()))
    elif isinstance(obj, (list, tuple)):
        yield from ((obj.__getitem__, i, value, i) for i, value in enumerate(obj))
    elif isinstance(obj, (set, frozenset)):
        yield from ((None, None, value, None) for value in obj)
    elif hasattr(obj, "__wrapped__"):  # a transform, of which nothing else matters
        for name in ("__wrapped__", "grad_states"):
            yield None, None, getattr(obj, name, None), None
    elif isinstance(getattr(obj, "__dict__", None), dict) and _is_walked(type(obj)):
        attributes = vars(obj)
        hidden = getattr(obj, "graph_invisible_attrs", ())
        for name in sorted(attributes.keys() - set(hidden)):
            yield attributes.get, name, attributes[name], name
        for base in type(obj).__mro__:
            if not _is_library(base.__module__):
                for value in vars(base).values():
                    if isinstance(value, types.FunctionType):
                        yield None, None, value, None


@functools.cache
def _is_walked(cls: type) -> bool:
    """Whether the attributes of an object may hold cells: its class is the user's own, is derived
    from one of the shim's or of brainstate's, or merely holds what it is given.
    """
    holds = issubclass(cls, types.SimpleNamespace) or hasattr(cls, "__dataclass_fields__")
    modules = [f"{base.__module__}." for base in cls.__mro__]
    ours = any(m.startswith(("statemap.compat.", "brainstate.")) for m in modules)
    return holds or ours or not _is_library(cls.__module__)


def _function_steps(fn: types.FunctionType) -> Iterator[tuple[Any, Any, Any, Any]]:
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or ()):
        try:
            yield cell.__getattribute__, "cell_contents", cell.cell_contents, name
        except ValueError:  # not assigned yet
            pass
    for value in (fn.__defaults__, fn.__kwdefaults__, getattr(fn, "__wrapped__", None)):
        yield None, None, value, None
    if _is_library(fn.__module__):
        return
    names = list(_names(fn.__code__))
    for name in names:
        value = fn.__globals__.get(name)
        if isinstance(value, types.ModuleType):
            if not _is_library(value.__name__):
                for attribute in names:
                    if attribute in vars(value):
                        yield vars(value).get, attribute, vars(value)[attribute], attribute
        elif value is not None:
            yield fn.__globals__.get, name, value, name


def _names(code: types.CodeType) -> Iterator[str]:
    """The names that a function uses, and the functions defined in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


@functools.cache
def _is_library(module: str | None) -> bool:
    """Whether a module is installed rather than the user's own: its globals hold no cells of
    the user's.
    """
    if module is None:
        return True
    root = module.partition(".")[0]
    if root in sys.stdlib_module_names and root != "__main__":
        return True
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    return root in ("statemap", "jax", "numpy") or "site-packages" in file
