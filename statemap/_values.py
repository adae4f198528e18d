"""Values: pytrees of arrays, how they are taken in, described, and replaced."""

import collections
from collections.abc import Callable, Sequence
from typing import Any, TYPE_CHECKING, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


if TYPE_CHECKING:
    PyTree: TypeAlias = Any  # jaxtyping means that, and says what checkers count as unknown
else:
    from jaxtyping import PyTree

from ._exact import exact
from ._jax import is_ref
from ._pickle import from_pickle, to_pickle


Path = tuple[Any, ...]


class Struct:
    """The structure, shapes and dtypes of a value, and what in it is no array: what stays when the
    numbers go.

    Hashable, so that it can be static; pickled as the pytree that it describes.
    """

    __slots__ = ("leaves", "treedef")

    def __init__(self, value: PyTree):
        leaves, treedef = jax.tree.flatten(value)
        self.treedef: Any = treedef
        self.leaves: tuple[Any, ...] = tuple(map(_as_struct, leaves))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Struct)
            and self.treedef == other.treedef
            and exact(self.leaves) == exact(other.leaves)
        )

    def __hash__(self) -> int:
        return hash((self.treedef, self.leaves))

    def __deepcopy__(self, memo: Any) -> "Struct":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (to_pickle(self.tree),)

    def __repr__(self) -> str:
        return eqx.tree_pformat(self.tree, struct_as_array=True)

    @property
    def tree(self) -> PyTree:
        return jax.tree.unflatten(self.treedef, self.leaves)

    @property
    def arrays(self) -> list[jax.ShapeDtypeStruct]:
        return [x for x in self.leaves if isinstance(x, jax.ShapeDtypeStruct)]


def _unpickled(tree: PyTree) -> Struct:
    return Struct(from_pickle(tree))


def _as_struct(leaf: Any) -> Any:
    if isinstance(leaf, (jax.Array, np.ndarray, jax.ShapeDtypeStruct)):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return leaf


def refuse_recursive(tree: Any, label: str, above: tuple[int, ...] = ()) -> None:
    """Refuses a list, tuple or dictionary that holds itself, which JAX does not survive.

    **Arguments:**

    - `label`: what messages call it.
    - `above`: the identities of the containers around it.
    """
    if not isinstance(tree, (list, tuple, dict)):
        return
    if id(tree) in above:
        raise ValueError(f"{label} is a {type(tree).__name__} that holds itself, and no pytree.")
    for x in tree.values() if isinstance(tree, dict) else tree:
        refuse_recursive(x, label, (*above, id(tree)))


def one_level(node: Any) -> list[tuple[Any, Any]] | None:
    """The children of a pytree node with their keys; None for a leaf."""
    with_path, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    if len(with_path) == 1 and not with_path[0][0]:
        return None
    return [(keys[0], child) for keys, child in with_path]


def as_array(leaf: Any, owner: str) -> jax.Array:
    """A leaf as a JAX array of a strong dtype."""
    kind = getattr(getattr(leaf, "dtype", None), "kind", "b")
    if is_ref(leaf):
        raise TypeError(
            f"The value of a {owner} is a pytree of arrays, and holds a Ref, which JAX writes to "
            "in place. Give what is in it: `ref[...]`."
        )
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float, complex)) or (
        isinstance(leaf, np.ndarray) and kind in "OSUMm"
    ):
        raise TypeError(
            f"The value of a {owner} is a pytree of arrays, and holds {describe(leaf)}. "
            "Keep what is no array in a static field of the model."
        )
    array = jnp.asarray(leaf)
    # A weakly typed value would change its type on the first write, and compile again.
    return jax.lax.convert_element_type(array, array.dtype) if _is_weak(array) else array


def _is_weak(array: Any) -> bool:
    return getattr(jax.typeof(array), "weak_type", False)


def fit(old: Any, new: Any, label: str, *, shapes: bool | None = True, dtypes: bool = True) -> Any:
    """`new` as a replacement of `old`: the same structure, shapes and dtypes, or an error.

    Without `shapes`, axes may have come, gone or moved, and if it is None shapes may be any;
    without `dtypes`, dtypes may differ.
    """
    old_leaves, old_treedef = jax.tree.flatten(old)
    new_leaves, new_treedef = jax.tree.flatten(new)
    if old_treedef != new_treedef:
        raise ValueError(misfit(label, "structure", old, new))
    fitted, struct = [], jax.ShapeDtypeStruct
    for before, after in zip(old_leaves, new_leaves):
        if after is before:
            fitted.append(after)
            continue
        is_struct = isinstance(after, struct) and isinstance(before, struct)
        if not is_struct and (not isinstance(after, jax.Array) or is_ref(after)):
            after = jnp.asarray(after) if _is_arraylike(after) else _refuse(label, after)
        alike = after.shape == before.shape
        if not (alike or shapes is None) and (shapes or not _adds_axes(before.shape, after.shape)):
            raise ValueError(misfit(label, "shape", old, new))
        if isinstance(after, struct):  # a skeleton's: its dtype is what it says
            if dtypes and after.dtype != before.dtype:
                raise ValueError(misfit(label, "dtype", old, new))
        elif dtypes and (after.dtype != before.dtype or _is_weak(after)):
            # Weak values (Python numbers) take the slot's dtype where promotion would.
            same = after.dtype == before.dtype
            if not (same or _is_weak(after) and _rank(after) <= _rank(before)):
                raise ValueError(misfit(label, "dtype", old, new))
            after = jax.lax.convert_element_type(after, before.dtype)
        fitted.append(after)
    return jax.tree.unflatten(old_treedef, fitted)


def _adds_axes(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether one shape has the axes of the other, in any order, and perhaps more."""
    one, other = collections.Counter(a), collections.Counter(b)
    return one <= other or other <= one


def _rank(array: Any) -> int:
    """The place of a dtype in bool, integer, float, complex: promotion goes upwards."""
    kinds = (jnp.integer, jnp.floating, jnp.complexfloating)
    return sum(i for i, kind in enumerate(kinds, 1) if jnp.issubdtype(array.dtype, kind))


def _is_arraylike(x: Any) -> bool:
    return isinstance(x, (np.ndarray, np.generic, bool, int, float, complex))


def _refuse(label: str, leaf: Any) -> Any:
    what = "a Ref: give what is in it, `ref[...]`" if is_ref(leaf) else describe(leaf)
    raise ValueError(f"The state `{label}` holds arrays, and was given {what}.")


def misfit(label: str, what: str, old: Any, new: Any) -> str:
    """The message about a value of another shape, dtype or structure."""

    def show(x):
        return eqx.tree_pformat(x, struct_as_array=True)

    advice = {
        "shape": "A write never broadcasts: use `jnp.broadcast_to` or `jnp.full_like`.",
        "dtype": "Cast it first: `value.astype(...)`.",
        "structure": "A state keeps the pytree structure it was made with.",
    }[what]
    return (
        f"The state `{label}` was given a value of another {what}: expected {show(old)}, "
        f"got {show(new)}. {advice}"
    )


def describe(x: Any) -> str:
    if isinstance(x, (jax.Array, np.ndarray)):
        return f"an array of dtype {x.dtype} and shape {x.shape}"
    return f"{x!r} of type `{type(x).__name__}`"


def short(x: Any) -> str:
    """A pytree as messages show it: with shapes for arrays, and not all of it."""
    text = eqx.tree_pformat(x, struct_as_array=True)
    return text if len(text) < 200 else text[:200] + "..."


def function_name(fn: Any) -> str:
    """What a function is called; of another callable, its class."""
    return getattr(fn, "__name__", type(fn).__name__)


def is_skeleton(value: Any) -> bool:
    """Whether a value has shapes in the place of numbers, as `jax.eval_shape` makes it."""
    return any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(value))


def refuse_labels(slots: Any, values: Sequence[Any], label: str) -> None:
    """Refuses a context of labels or axes, which has something else in the place of arrays.

    **Arguments:**

    - `slots`: those of the context, which messages call `label`.
    """
    for i, value in enumerate(values):
        for leaf in jax.tree.leaves(value):
            if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
                raise TypeError(
                    f"The state `{dotted(slots.entries[i].path)}` of {label} holds "
                    f"{describe(leaf)} in the place of an array. A context of labels "
                    "(`states.labels`) or of axes (`axes.tree`) goes along with one of arrays, "
                    "and does not stand for it."
                )


def through(fn: Callable[[Any], Any], value: Any) -> Any:
    """`fn(value)`; of a skeleton, the skeleton of that."""
    return jax.eval_shape(fn, value) if is_skeleton(value) else fn(value)


def own(value: Any) -> Any:
    """A value that nobody else can change: its containers, which may be mutable, made anew."""
    return value if isinstance(value, jax.Array) else jax.tree.map(lambda x: x, value)


def dotted(path: Path) -> str:
    """A path as people write it: `layers.0.weight`."""
    return ".".join(str(key) for key in path)


def to_path(keys: tuple) -> Path:
    """A path as this library writes it, from one as JAX writes it."""
    out = []
    for k in keys:
        part = getattr(k, "name", getattr(k, "key", getattr(k, "idx", None)))
        out.append(str(k) if part is None else part)
    return tuple(out)
