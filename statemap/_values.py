"""Values: pytrees of arrays, how they are taken in, described, and replaced."""

import collections
from typing import Any, TYPE_CHECKING, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


if TYPE_CHECKING:
    PyTree: TypeAlias = Any  # jaxtyping means that, and says what checkers count as unknown
else:
    from jaxtyping import PyTree


Path = tuple[Any, ...]


class Struct:
    """The structure, shapes and dtypes of a value: what stays when the numbers go.

    Hashable, so that it can be static; pickled as the pytree that it describes.
    """

    __slots__ = ("leaves", "treedef")

    def __init__(self, value: PyTree):
        leaves, treedef = jax.tree.flatten(value)
        self.treedef: Any = treedef
        self.leaves: tuple[jax.ShapeDtypeStruct, ...] = tuple(
            jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves
        )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Struct)
            and self.treedef == other.treedef
            and self.leaves == other.leaves
        )

    def __hash__(self) -> int:
        return hash((self.treedef, self.leaves))

    def __reduce__(self) -> tuple[Any, ...]:
        return Struct, (self.tree,)

    def __repr__(self) -> str:
        return eqx.tree_pformat(self.tree, struct_as_array=True)

    @property
    def tree(self) -> PyTree:
        return jax.tree.unflatten(self.treedef, self.leaves)


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


def as_arrays(value: Any, owner: str) -> Any:
    """`value` with every leaf a JAX array of a strong dtype."""
    leaves, treedef = jax.tree.flatten(value)
    if not leaves:
        raise TypeError(
            f"The value of a {owner} is a pytree of arrays, and {value!r} holds no array."
        )
    return jax.tree.unflatten(treedef, [_as_array(x, owner) for x in leaves])


def _as_array(leaf: Any, owner: str) -> jax.Array:
    kind = getattr(getattr(leaf, "dtype", None), "kind", "b")
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


def fit(old: Any, new: Any, label: str, *, shapes: bool = True, dtypes: bool = True) -> Any:
    """`new` as a replacement of `old`: the same structure, shapes and dtypes, or an error.

    Without `shapes`, axes may have come, gone or moved; without `dtypes`, dtypes may differ.
    """
    old_leaves, old_treedef = jax.tree.flatten(old)
    new_leaves, new_treedef = jax.tree.flatten(new)
    if old_treedef != new_treedef:
        raise ValueError(_misfit(label, "structure", old, new))
    fitted = []
    for before, after in zip(old_leaves, new_leaves):
        if after is before:
            fitted.append(after)
            continue
        if not isinstance(after, jax.Array):
            after = jnp.asarray(after) if _is_arraylike(after) else _refuse(label, after)
        alike = after.shape == before.shape
        if not alike and (shapes or not _adds_axes(before.shape, after.shape)):
            raise ValueError(_misfit(label, "shape", old, new))
        if dtypes and (after.dtype != before.dtype or _is_weak(after)):
            # Weak values (Python numbers) take the slot's dtype where promotion would.
            same = after.dtype == before.dtype
            if not (same or _is_weak(after) and _rank(after) <= _rank(before)):
                raise ValueError(_misfit(label, "dtype", old, new))
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
    raise ValueError(f"The state `{label}` holds arrays, and was given {describe(leaf)}.")


def _misfit(label: str, what: str, old: Any, new: Any) -> str:
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


def own(value: Any) -> Any:
    """A value that nobody else can change: its containers, which may be mutable, made anew."""
    return value if isinstance(value, jax.Array) else jax.tree.map(lambda x: x, value)


def dotted(path: Path) -> str:
    """A path as people write it: `layers.0.weight`."""
    return ".".join(str(key) for key in path)
