"""A module of brainstate taken apart: its states and arrays, and what it is besides."""

import functools
import threading
from collections.abc import Mapping
from typing import Any

import jax

from .._settings import fact
from .._values import dotted, Path, to_path
from . import _brainstate_private as private


bs, unit = private.bs, private.unit
_LOCKS = (type(threading.Lock()), type(threading.RLock()))
_OWN = "(itself)"  # a key of the facts about a node that are of none of its attributes


class Cell:
    """A state of brainstate in a container, or an array: its class, and its value."""

    def __init__(self, type: type, value: Any):
        self.type, self.value = type, value

    stands_for = property(lambda self: self.type)


class Attribute:
    """What an array of a module is tagged with that is in no state of brainstate's."""


jax.tree_util.register_pytree_with_keys(
    Cell,
    lambda cell: (((jax.tree_util.GetAttrKey("value"), cell.value),), cell.type),
    lambda cls, children: Cell(cls, *children),
    lambda cell: ((cell.value,), cell.type),
)


def is_cell(x: Any) -> bool:
    return isinstance(x, Cell)


class View:
    """What a module holds: states, arrays that are attributes, and facts about all else."""

    def __init__(self, module: Any):
        """**Raises:**

        `ValueError` for what a copy of the module could not have.
        """
        self.states: dict[Path, Any] = dict(bs.graph.states(module).items())
        self.nodes: dict[Path, Any] = dict(bs.graph.nodes(module).items())
        self.names = {id(x): path for path, x in [*self.nodes.items(), *self.states.items()]}
        self.arrays: dict[Path, Any] = {}
        self.facts: dict[Path, Any] = {}
        for path, node in self.nodes.items():
            self.facts[*path, _OWN] = type(node)
            for name, value in vars(node).items():
                if name in private.hidden_attributes(node):
                    self.facts[*path, name] = "hidden", id(value)
                else:
                    self._look_at((*path, name), value)
            if private.has_cache(node):
                raise ValueError(
                    f"`{dotted(path)}` has cached its value, which would stay as it is while the "
                    "state changes. Call its `clear_cache()` before."
                )
        for path, state in self.states.items():
            if private.backup(state) is not None:
                raise ValueError(
                    f"`{dotted(path)}` has laid a key aside (`backup_key`), for which there is no "
                    "state. Call its `restore_key()` before."
                )
            about = {k: fact(v) for k, v in private.metadata(state).items()}
            self.facts[*path, _OWN] = type(state), about, id(private.hooks(state))

    def _look_at(self, path: Path, value: Any) -> None:
        with_path, treedef = jax.tree_util.tree_flatten_with_path(value, is_leaf=_is_whole)
        facts: list[Any] = []
        for keys, leaf in with_path:
            if id(leaf) in self.names:
                facts.append(self.names[id(leaf)])
            elif _is_array(leaf):
                self.arrays[*path, *to_path(keys)] = leaf
                facts.append("an array")
            else:
                facts.append("a lock" if isinstance(leaf, _LOCKS) else fact(leaf))
        self.facts[path] = treedef, facts

    def has_same_values(self, other: "View") -> bool:
        """Whether a module has the same states and arrays, by path."""
        return self.states.keys() == other.states.keys() and (
            self.arrays.keys() == other.arrays.keys()
        )


def difference(facts: Mapping[Path, Any], others: Mapping[Path, Any]) -> Path | None:
    """Where two modules differ, besides the values of states and arrays."""
    for path in {**facts, **others}:
        if facts.get(path) != others.get(path):
            return path[:-1] if path[-1] == _OWN else path
    return None


def _is_whole(x: Any) -> bool:
    return isinstance(x, (bs.State, bs.graph.Node, unit.Quantity))


def _is_array(x: Any) -> bool:
    return isinstance(x.mantissa if isinstance(x, unit.Quantity) else x, jax.Array)


def put_arrays(module: Any, arrays: Mapping[Path, Any]) -> None:
    """Gives a module arrays in the places of others."""
    nodes = dict(bs.graph.nodes(module).items())
    attributes: dict[Path, dict[Path, Any]] = {}
    for path, x in arrays.items():
        n = max(n for n in range(len(path)) if path[:n] in nodes)
        attributes.setdefault(path[: n + 1], {})[path] = x
    for path, new in attributes.items():
        own = vars(nodes[path[:-1]])
        with_path, treedef = jax.tree_util.tree_flatten_with_path(own[path[-1]], is_leaf=_is_whole)
        leaves = [new.get((*path, *to_path(keys)), leaf) for keys, leaf in with_path]
        own[path[-1]] = treedef.unflatten(leaves)


def look_up(module: Any, path: Path) -> Any:
    """What lies at a path."""
    return functools.reduce(
        lambda x, k: vars(x)[k] if isinstance(x, bs.graph.Node) else x[k], path, module
    )
