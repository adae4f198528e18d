"""Which members of a population an index means, and which of them it takes again."""

import operator
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from ._values import describe


class Chosen(NamedTuple):
    """Members of a population."""

    at: Any  # what an axis is indexed with: an integer, a slice, or integers; none is negative
    size: int | None  # how many they are; None for one, without an axis

    def copies(self) -> Any:
        """Of each, how often it was taken before; None where it is known that none was."""
        if self.size is None or isinstance(self.at, slice):
            return None
        if isinstance(self.at, jax.core.Tracer):
            return _copies(self.at, jnp.argsort(self.at), jnp)
        copies = _copies(self.at, np.argsort(self.at, kind="stable"), np)
        return copies if copies.any() else None


def choose(index: Any, n: int) -> Chosen:
    """The members that an index means, of `n`.

    **Raises:**

    `TypeError` if it is no index, `IndexError` if there is no such member.
    """
    if isinstance(index, (bool, np.bool_)):
        raise TypeError(
            f"Members are taken by an integer, a slice, integers or a mask, not by {index}. A mask "
            "has an entry for each member."
        )
    if isinstance(index, slice):
        return _slice(index, n)
    given, index = index, _as_array(index)
    if index is None:
        raise TypeError(_no_index(given))
    if isinstance(index, jax.core.Tracer):
        return _traced(index, n)
    if index.size == 0 and index.dtype.kind != "b":
        index = index.astype(int)
    if index.dtype.kind not in "biu" or index.ndim > 1:
        raise TypeError(_no_index(index.tolist(), index))
    if index.dtype == bool:
        (index,) = np.nonzero(check_mask(index, n))
    index = index.astype(np.int64)
    if outside := index[(index < -n) | (index >= n)].tolist():
        raise IndexError(f"There is no member {outside[0]}: the population has {n} members.")
    index = index % n if n else index
    return Chosen(int(index), None) if index.ndim == 0 else Chosen(index, len(index))


def check_mask(mask: Any, n: int) -> Any:
    """A mask with an entry for each member."""
    given, mask = mask, _as_array(mask)
    if isinstance(given, (list, tuple)) and not given:
        mask = np.zeros(0, bool)
    if mask is None or mask.dtype != bool:
        shown = describe(given if mask is None else mask)
        raise TypeError(
            f"A mask is an array of bools, one for each member, not {shown}.\n"
            "Wrong:  mask = jnp.array([1, 0, 1])\n"
            "Right:  mask = jnp.array([True, False, True])"
        )
    if mask.shape != (n,):
        raise IndexError(f"A mask of shape {mask.shape} is given for {n} members.")
    return mask


def _as_array(x: Any) -> Any:
    """An index or a mask as an array, of NumPy unless it is traced; None if it is no array: a
    ragged list, or a random key.
    """
    if isinstance(x, jax.core.Tracer):
        return x
    try:
        if isinstance(x, (list, tuple)) and any(isinstance(i, jax.core.Tracer) for i in x):
            return jnp.stack([jnp.asarray(i) for i in x])
        return np.asarray(x)
    except (TypeError, ValueError):
        return None


def _slice(index: slice, n: int) -> Chosen:
    parts = (index.start, index.stop, index.step)
    for part in parts:
        if isinstance(part, jax.core.Tracer):
            raise TypeError(
                "A slice with traced bounds has no fixed number of members. Take integers, "
                "whose number is fixed.\n"
                "Wrong:  sm.lane(states, axes, slice(i, i + 3))\n"
                "Right:  sm.lane(states, axes, i + jnp.arange(3))"
            )
        if part is not None and (isinstance(part, bool) or not hasattr(part, "__index__")):
            raise TypeError(f"A slice of members has integers as bounds, not {part!r}.")
    index = slice(*(None if part is None else operator.index(part) for part in parts))
    return Chosen(index, len(range(*index.indices(n))))


def _traced(index: Any, n: int) -> Chosen:
    if index.dtype == bool:
        raise TypeError(
            "A traced mask can't choose members: how many it takes is not known while a program "
            "is traced. Keep all members and choose between values, or take as many as you know.\n"
            "Wrong:  sm.lane(states, axes, mask)\n"
            "Right:  sm.where(mask, new, states, axes), or "
            "sm.lane(states, axes, jnp.nonzero(mask, size=3)[0])"
        )
    if not jnp.issubdtype(index.dtype, jnp.integer) or index.ndim > 1:
        raise TypeError(_no_index(index, index))
    if n == 0 and index.size:
        raise IndexError("There is no member to take: the population has 0 members.")
    index = index.astype(jax.dtypes.canonicalize_dtype(np.int64))
    index = jnp.where(index < 0, index + n, index)
    return Chosen(index, None if index.ndim == 0 else len(index))


def _no_index(shown: Any, array: Any = None) -> str:
    of = "" if array is None else f" of dtype {array.dtype} and shape {array.shape}"
    return (
        f"Members are taken by an integer, a slice, integers or a mask, not by {shown!r}{of}."
        + (" Integers are in one dimension." if getattr(array, "ndim", 0) > 1 else "")
    )


def _copies(at: Any, order: Any, xp: Any) -> Any:
    """Of each integer, how many equal ones come before it, in `k log k`.

    **Arguments:**

    - `order`: what sorts them, equal ones in the order in which they are.
    """
    if len(at) < 2:
        return xp.zeros(at.shape, int)
    ordered, places = at[order], xp.arange(len(at))
    is_first = xp.concatenate([xp.ones(1, bool), ordered[1:] != ordered[:-1]])
    since = xp.maximum.accumulate(xp.where(is_first, places, 0))
    return (places - since)[xp.argsort(order)]


def last_copies(at: Any, n: int) -> Any:
    """Traced integers, those that come again put out of range, so that only the last is left."""
    places = jnp.arange(len(at))
    last = jnp.zeros(n, places.dtype).at[at].max(places, mode="drop")
    return jnp.where(last[jnp.clip(at, 0, n - 1)] == places, at, n)
