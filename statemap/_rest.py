"""The rest of a value: what in it is no array, such as an activation function or a flag."""

import functools
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np

from ._equinox import holds_initial_values
from ._exact import exact
from ._foreign import refuse_foreign
from ._pickle import from_pickle, name_of, to_pickle
from ._values import as_array, describe, misfit, one_level, PyTree


class _Array:
    """The type of `Array`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "array"

    def __reduce__(self) -> str:
        return "Array"


Array: _Array = _Array()  # stands in a `Rest` for an array


class Rest:
    """A value without its arrays. These are its *data*: the value with None in the place of
    everything else, which is all that JAX sees.

    Compared by structure and leaves, of which `1`, `1.0` and `True` are three.
    """

    __slots__ = ("key", "leaves", "treedef")

    def __init__(self, tree: PyTree):
        """**Arguments:**

        - `tree`: the value, with `Array` for each array.
        """
        leaves, treedef = jax.tree.flatten(tree)
        self.leaves: list[Any] = leaves
        self.treedef: Any = treedef
        self.key: tuple[Hashable, ...] = tuple(map(static_key, leaves))

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Rest) and self.key == other.key and self.treedef == other.treedef
        )

    def __hash__(self) -> int:
        return hash((self.key, self.treedef))

    def __deepcopy__(self, memo: Any) -> "Rest":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (to_pickle(self.tree),)

    def __repr__(self) -> str:
        return eqx.tree_pformat(self.tree)

    @property
    def tree(self) -> PyTree:
        return jax.tree.unflatten(self.treedef, self.leaves)

    def differs(self, other: "Rest | None") -> str:
        """A sentence about where the rest of another state differs, if both have one structure."""
        if other is None or other.treedef != self.treedef:
            return ""
        found = difference(self.tree, other.tree)
        return "" if found is None else " `{}` is {} in one and {} in the other.".format(*found)

    def fill(self, data: PyTree) -> PyTree:
        """The value, from its data."""
        if jax.tree_util.all_leaves([data]):
            return data  # an axis, say, in the place of a value
        try:
            arrays = self.treedef.flatten_up_to(data)
        except ValueError:
            return data  # `jax.tree.map` has put something in the place of whole parts
        leaves = [x if mine is Array else mine for mine, x in zip(self.leaves, arrays)]
        return jax.tree.unflatten(self.treedef, leaves)

    def take(self, value: PyTree, label: str) -> PyTree:
        """The data of a new value.

        **Raises:**

        `ValueError` if it has another structure, or something else that is no array.
        """
        leaves, treedef = jax.tree.flatten(value)
        if treedef != self.treedef:
            raise ValueError(misfit(label, "structure", self.tree, value))
        data = [x if mine is Array else None for mine, x in zip(self.leaves, leaves)]
        rest = [mine if mine is Array else x for mine, x in zip(self.leaves, leaves)]
        if found := difference(self.tree, jax.tree.unflatten(treedef, rest)):
            where, was, now = found
            raise ValueError(
                f"The state `{label}` was given a value whose `{where}` is {now}, and was {was}. "
                "What is no array in a value is static, and stays as it was made. Change it in a "
                "copy, where the value is used (`eqx.nn.inference_mode(states[key])`), or make "
                "the model with it."
            )
        return jax.tree.unflatten(treedef, data)


def _unpickled(tree: PyTree) -> Rest:
    return Rest(from_pickle(tree))


def split(value: Any, owner: str) -> tuple[PyTree, Rest | None]:
    """A value's data, every leaf a JAX array of a strong dtype, and its rest, if there is one.

    A Python number is an array where it is the whole value or sits in a dictionary, list or
    tuple; in any other node, a module, it is static.

    **Raises:**

    `TypeError` if the value holds no array and no module, or something that is neither an array
    nor hashable.
    """
    if isinstance(value, jax.Array):
        return as_array(value, owner), None
    if holds_initial_values(value):
        raise TypeError(
            f"The value of a {owner} is a pytree of arrays, and this one holds an "
            "`eqx.nn.StateIndex` with its initial value, which is a state itself.\n"
            f"Wrong:  sm.{owner}(eqx.nn.BatchNorm(...))\n"
            f"Right:  sm.declare(eqx.nn.BatchNorm(...), sm.{owner})"
        )
    data, rest = [], []
    for where, leaf, parent in _leaves(value):
        if _is_static(leaf, parent):
            refuse_foreign(
                leaf,
                f"The value of a {owner} is a pytree of arrays, and holds",
                f"sm.{owner}(state)",
            )
            _refuse_unhashable(where, leaf, owner)
            data.append(None)
            rest.append(leaf)
        else:
            data.append(as_array(leaf, owner))
            rest.append(Array)
    treedef = jax.tree.structure(value)
    if Array not in rest and not _holds_module(value):
        raise TypeError(
            f"The value of a {owner} is a pytree of arrays, and {value!r} holds no array."
        )
    if all(x is Array for x in rest):
        return jax.tree.unflatten(treedef, data), None
    return jax.tree.unflatten(treedef, data), Rest(jax.tree.unflatten(treedef, rest))


_NUMBERS = (bool, int, float, complex, np.generic)
_CONTAINERS = (Mapping, list, tuple)


def _leaves(node: Any, keys: tuple = (), parent: Any = None) -> Iterator[tuple[tuple, Any, Any]]:
    """The leaves of a pytree, with their paths and the nodes that they sit in."""
    children = one_level(node)
    if children is None:
        yield keys, node, parent
        return
    for key, child in children:
        yield from _leaves(child, (*keys, key), node)


def _is_static(leaf: Any, parent: Any) -> bool:
    if isinstance(leaf, _NUMBERS):
        return not (parent is None or isinstance(parent, _CONTAINERS))
    if isinstance(leaf, type):
        return True
    # What looks like an array and is none of JAX's is refused, rather than static.
    return not (hasattr(leaf, "shape") and hasattr(leaf, "dtype"))


def _holds_module(node: Any) -> bool:
    children = one_level(node)
    if children is None or node is None:
        return False
    return not isinstance(node, _CONTAINERS) or any(_holds_module(x) for _, x in children)


def _refuse_unhashable(keys: tuple, leaf: Any, owner: str) -> None:
    try:
        hash(static_key(leaf))
    except TypeError:
        raise TypeError(
            f"The value of a {owner} is a pytree of arrays, and holds {describe(leaf)} at "
            f"`{jax.tree_util.keystr(keys)}`. What is no array is static, and must be hashable."
        ) from None


def static_key(leaf: Any) -> Hashable:
    """What a static leaf is compared by. A `functools.partial` made again is the same."""
    if type(leaf) is functools.partial:
        keywords = tuple(sorted((k, static_key(v)) for k, v in leaf.keywords.items()))
        return functools.partial, static_key(leaf.func), tuple(map(static_key, leaf.args)), keywords
    return exact(leaf)


def difference(mine: PyTree, other: PyTree) -> tuple[str, str, str] | None:
    """The first leaf in which two pytrees of one structure differ: where, and how it is shown in
    either.
    """
    with_path, _ = jax.tree_util.tree_flatten_with_path(mine)
    for (keys, a), b in zip(with_path, jax.tree.leaves(other)):
        if a is not b and static_key(a) != static_key(b):
            one, two = ("an array" if x is Array else name_of(x) for x in (a, b))
            alike = ", another object that is written alike" * (one == two)
            return jax.tree_util.keystr(keys), one, two + alike
    return None
