"""Functions and arguments taken apart: the arrays, which `jax.jit` is given, and the rest, which
keys what is compiled.
"""

import enum
import functools
import inspect
import operator
import types
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.core
import numpy as np

from ._exact import by_identity, exact
from ._immutable import FrozenNode
from ._jax import is_ref, new_ref
from ._watch import static_contents


class _Dynamic(enum.Enum):
    """Stands in a tuple of leaves for one that is traced."""

    ARRAY = enum.auto()
    NUMBER = enum.auto()
    REF = enum.auto()  # given as its value


_NUMBERS = (int, float, complex)


class _IsArray(dict[type, bool]):
    """By the type of a leaf, whether it is an array: asked for each leaf of each call."""

    def __missing__(self, cls: type) -> bool:
        # A tracer may stand for an array or for a Ref.
        known = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)
        found = issubclass(cls, known) and not issubclass(cls, jax.core.Tracer)
        if found or cls.__module__ == "builtins":  # a class of the user's is not held
            self[cls] = found
        return found


_is_array_type = _IsArray()


@jax.tree_util.register_static
class Static:
    """Something that is no array, on its way through `jax.jit`: an argument that `static_argnums`
    or `static_argnames` names, or a leaf of an output.
    """

    def __init__(self, value: Any):
        self.value = value
        self.key = exact(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def _static_argument(value: Any) -> Static:
    static = Static(value)
    try:
        hash(static)  # a PyTreeDef does not hash what is static in it
    except TypeError:
        raise TypeError(
            f"The static argument {value!r} of type `{type(value).__name__}` is not hashable, "
            "which what is compiled in must be."
        ) from None
    return static


def static_arguments(
    fn: Callable, nums: frozenset[int], names: frozenset[str]
) -> tuple[frozenset[int], frozenset[str]]:
    """Which arguments are static, however they are given: as `jax.jit` resolves them."""
    if not nums and not names:
        return nums, names
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        return nums, names
    kinds = {p.kind for p in parameters}
    if kinds and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:
        parameters = parameters[1:]  # the states
    by_position_kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    count = sum(p.kind in by_position_kinds for p in parameters)
    listed = ", ".join(f"`{p.name}`" for p in parameters) or "none"
    if inspect.Parameter.VAR_POSITIONAL not in kinds and (bad := [n for n in nums if n >= count]):
        raise ValueError(
            f"`static_argnums` names argument {bad[0]}, and the function has {count} after the "
            f"states: {listed}. The positions count from 0, the states left out."
        )
    unknown = names - {p.name for p in parameters}
    if inspect.Parameter.VAR_KEYWORD not in kinds and unknown:
        raise ValueError(
            f"`static_argnames` names `{min(unknown)}`, which the function does not have. Its "
            f"arguments after the states are: {listed}."
        )
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    by_position = {i for i, name in enumerate(positional) if name in names}
    by_name = {name for i, name in enumerate(positional) if i in nums}
    return nums | by_position, names | by_name


def mark_static(
    args: tuple, kwargs: dict[str, Any], nums: frozenset[int], names: frozenset[str]
) -> tuple[tuple, dict[str, Any]]:
    """The arguments with `Static` nodes in the place of those that are static."""
    args = tuple(_static_argument(a) if i in nums else a for i, a in enumerate(args))
    return args, {k: _static_argument(v) if k in names else v for k, v in kwargs.items()}


def split_leaves(
    leaves: list[Any], args: tuple, kwargs: dict[str, Any]
) -> tuple[list[Any], tuple[Any, ...] | None]:
    """The arrays among the leaves of `(args, kwargs)`, and what the other leaves are.

    An argument that is a Python number by itself is traced, as under `jax.jit`, and so are NumPy
    scalars; every other leaf that is no array is static, as in Equinox: numbers inside a module,
    bools, strings, functions.

    **Returns:**

    The arrays and numbers, and the leaves with a marker in the place of each; None for the
    latter if all are arrays.
    """
    if all(map(_is_array_type.__getitem__, map(type, leaves))):
        return leaves, None
    markers = [_Dynamic.REF if is_ref(x) else _marker(x) for x in leaves]
    at = 0
    for arg in (*args, *(kwargs[k] for k in sorted(kwargs))):
        if type(arg) in _NUMBERS:
            markers[at] = _Dynamic.NUMBER
        at += len(jax.tree.leaves(arg))
    if all(m is _Dynamic.ARRAY for m in markers):
        return leaves, None
    kept = [(x, m) for x, m in zip(leaves, markers) if isinstance(m, _Dynamic)]
    return [x[...] if m is _Dynamic.REF else x for x, m in kept], tuple(markers)


def static_objects(args: tuple, kwargs: dict[str, Any], statics: tuple | None) -> list[Any]:
    """What is static among arguments: those that are marked so, and leaves that are no arrays."""
    marked = [x.value for x in (*args, *kwargs.values()) if isinstance(x, Static)]
    return marked if statics is None else [*marked, *statics]


def _marker(leaf: Any) -> Any:
    if _is_array_type[type(leaf)] or isinstance(leaf, jax.core.Tracer) and not is_ref(leaf):
        return _Dynamic.ARRAY
    return _Dynamic.NUMBER if isinstance(leaf, np.generic) else leaf


def _fill(statics: tuple[Any, ...], arrays: list[Any]) -> list[Any]:
    own = iter(arrays)
    return [next(own) if isinstance(s, _Dynamic) else s for s in statics]


class Inputs:
    """How the flat list of arrays that a compiled call takes is made up: the arrays of the
    arguments, those of the container that are no states, those of the function.
    """

    def __init__(
        self,
        treedef: Any,
        statics: tuple[Any, ...] | None,
        n_container: int,
        donated: frozenset[int] = frozenset(),
    ):
        """**Arguments:**

        - `treedef`, `statics`: of the arguments, as `split_leaves` gives them.
        - `n_container`: how many arrays of the container are no states.
        - `donated`: the positional arguments whose memory the call may reuse.
        """
        self.treedef = treedef
        self.statics = statics
        markers = [s for s in statics or () if isinstance(s, _Dynamic)]
        self.n_arguments = treedef.num_leaves if statics is None else len(markers)
        self.n_container = n_container
        self._traced = [i for i, s in enumerate(self._statics()) if isinstance(s, _Dynamic)]
        # The positions in the list of arrays of those that were given as Refs.
        self.refs = [j for j, i in enumerate(self._traced) if self._statics()[i] is _Dynamic.REF]
        self.donated: list[int] = []  # positions in the list of arrays
        if donated:
            position = {leaf: j for j, leaf in enumerate(self._traced)}
            args, _ = jax.tree.unflatten(treedef, range(treedef.num_leaves))
            leaves = [x for i in donated if i < len(args) for x in jax.tree.leaves(args[i])]
            self.donated = sorted(position[leaf] for leaf in leaves if leaf in position)

    def _statics(self) -> tuple[Any, ...]:
        return self.statics or (_Dynamic.ARRAY,) * self.treedef.num_leaves

    def split_donated(self, arrays: list[Any]) -> tuple[list[Any], list[Any]]:
        """The arrays that are donated, and the rest."""
        if not self.donated:
            return [], arrays
        rest = [x for i, x in enumerate(arrays) if i not in self.donated]
        return [arrays[i] for i in self.donated], rest

    def join_donated(self, own: Sequence[Any], rest: Sequence[Any]) -> list[Any]:
        """All arrays in order, from the two parts."""
        arrays = list(rest)
        for i, x in zip(self.donated, own):
            arrays.insert(i, x)
        return arrays

    def arguments(self, arrays: list[Any]) -> tuple[tuple, dict[str, Any]]:
        """`(args, kwargs)` with their arrays, their static leaves and `Static` nodes."""
        leaves = arrays[: self.n_arguments]
        if self.statics is not None:
            leaves = _fill(self.statics, leaves)
        return jax.tree.unflatten(self.treedef, leaves)

    def leaf_of(self, j: int) -> int:
        """Which leaf of the arguments an array is."""
        return self._traced[j]

    def make_refs(self, arrays: list[Any], axes: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """In a lane, the arrays with Refs in the place of those that were given as such; and these.

        **Arguments:**

        - `axes`: of the lanes, in each array.
        """
        arrays = [
            new_ref(x, axis) if j in self.refs else x
            for j, (x, axis) in enumerate(zip(arrays, axes))
        ]
        return arrays, [arrays[j] for j in self.refs]

    def is_traced(self, leaf: int) -> bool:
        """Whether a leaf of the arguments is an array or a number, rather than static."""
        return isinstance(self._statics()[leaf], _Dynamic)

    def is_number(self, leaf: int) -> bool:
        """Whether a leaf of the arguments was given as a number: one that no axis can map."""
        return self.statics is not None and self.statics[leaf] is _Dynamic.NUMBER

    def container_arrays(self, arrays: list[Any]) -> list[Any]:
        return arrays[self.n_arguments : self.n_arguments + self.n_container]

    def function_arrays(self, arrays: list[Any]) -> list[Any]:
        return arrays[self.n_arguments + self.n_container :]


def unwrap(args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The arguments as the function takes them, without `Static` nodes."""
    args = tuple(a.value if isinstance(a, Static) else a for a in args)
    return args, {k: v.value if isinstance(v, Static) else v for k, v in kwargs.items()}


class HoldsArrays:
    """The base of what is static in a pytree and may hold arrays, in a closure perhaps."""

    __slots__ = ()

    def holds_arrays(self) -> bool:
        raise NotImplementedError


class Function:
    """A function as a pytree: a module, a `Partial` or a plain function."""

    def __init__(self, fn: Callable, name: str):
        self.name = name
        # Of a partial, the function is kept apart: in a treedef it would be held for good.
        self.partial, tree = _apart(fn)
        self.is_frozen = _is_frozen(tree)  # whether its arrays stay the same
        self.contents = () if self.is_frozen else static_contents([tree])
        leaves, self.treedef = jax.tree.flatten(tree)
        self.leaves = None if self.is_frozen else leaves
        self.statics = tuple(_marker(x) for x in leaves)
        self.arrays = [x for x, s in zip(leaves, self.statics) if isinstance(s, _Dynamic)]

    def rebuild(self, arrays: list[Any]) -> Callable:
        fn = jax.tree.unflatten(self.treedef, _fill(self.statics, arrays))
        if self.partial is None:
            return fn
        args, keywords = fn
        return functools.partial(self.partial, *args, **keywords)

    def key(self, on_death: Callable[[Any], None]) -> Hashable:
        """What equal functions share. Functions are referred to weakly, so that a cache keeps
        no closure alive; `on_death` is called when one of them goes.
        """
        # What a PyTreeDef is printed as tells apart static fields that are equal in Python.
        statics = tuple(by_identity(s, on_death) for s in self.statics)
        partial = by_identity(self.partial, on_death)
        return partial, repr(self.treedef), self.treedef, statics

    def is_same(self, fn: Callable) -> bool:
        """Whether a function has the very leaves that this one had."""
        partial, tree = _apart(fn)
        leaves, treedef = jax.tree.flatten(tree)
        known = self.leaves or []
        same = len(leaves) == len(known) and all(map(operator.is_, leaves, known))
        same = same and partial is self.partial and treedef == self.treedef
        return same and static_contents([tree]) == self.contents

    @property
    def structure(self) -> Hashable:
        """What of a function that can change a program depends on, besides its arrays."""
        if self.is_frozen:
            return None
        statics = tuple(by_identity(s, None) for s in self.statics)
        return repr(self.treedef), self.treedef, self.contents, statics

    @property
    def holds_closure(self) -> bool:
        """Whether the structure has a closure in it, such as one in a static field: a key would
        hold it for good.
        """
        return holds_closure(self.treedef)


def _apart(fn: Any) -> tuple[Callable | None, Any]:
    """The function of a partial or of a method, and what it binds; or None and the function."""
    if isinstance(fn, functools.partial):  # `jax.tree_util.Partial` is one
        return fn.func, (fn.args, fn.keywords)
    if isinstance(fn, eqx.Module) and hasattr(fn, "__func__"):  # a method of a module
        return fn.__func__, ((fn.__self__,), {})  # pyright: ignore
    return None, fn


def holds_closure(tree: Any) -> bool:
    """Whether a structure has a closure in it, or says of itself that it holds arrays."""
    node = tree.node_data()
    if node is not None and _is_closure(node[1]):
        return True
    return any(map(holds_closure, tree.children()))


def _is_closure(data: Any) -> bool:
    if isinstance(data, (tuple, list)):
        return any(map(_is_closure, data))
    if isinstance(data, HoldsArrays):
        return data.holds_arrays()
    return isinstance(data, types.FunctionType) and data.__closure__ is not None


def _is_frozen(fn: Any) -> bool:
    """Whether all nodes of a function as a pytree are immutable."""
    kinds: set[type] = set()

    def note(x: Any) -> bool:
        kinds.add(type(x))
        return False

    leaves = jax.tree.leaves(fn, is_leaf=note)
    nodes = kinds - set(map(type, leaves))
    frozen = (eqx.Module, FrozenNode, tuple, type(None), jax.tree_util.Partial)
    if type(fn) is tuple and len(fn) == 2 and type(fn[1]) is dict:  # of a partial
        return _is_frozen(fn[0]) and all(map(_is_frozen, fn[1].values()))
    return all(issubclass(kind, frozen) for kind in nodes)


def unfix(out: Any) -> Any:
    """An output with the leaves that are no arrays in it."""
    return jax.tree.map(
        lambda x: x.value if isinstance(x, Static) else x,
        out,
        is_leaf=lambda x: isinstance(x, Static),
    )
