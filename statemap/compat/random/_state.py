"""`RandomState`: a cell that holds a key. The distributions are its methods."""

import operator
from collections.abc import Callable
from typing import Any, cast, SupportsIndex, TYPE_CHECKING

import jax
import jax.random as jr
import numpy as np

from .._cells import State
from .._frames import in_turn, Stream, streams, take_turn
from ._keys import as_key, entropy, Seed


class RandomState(Stream, State[jax.Array]):
    """A stream of random numbers, as
    [`brainstate.random.RandomState`](https://brainstate.readthedocs.io).

    Its value is a typed key, of `jax.random.key`. Each draw splits it, `carry, draw =
    split(value)`: the numbers come from `draw` and the value becomes `carry`. No two threads draw
    the same.
    """

    if TYPE_CHECKING:  # the distributions

        def __getattr__(self, name: str) -> Callable[..., jax.Array]: ...

    def __init__(self, seed_or_key: Seed = None):
        """From an int, a typed key or the two words of one; by default words from NumPy's global
        generator.
        """
        super().__init__(cast(Any, entropy() if seed_or_key is None else as_key(seed_or_key)))
        self._backup: jax.Array | None = None

    @Stream._held.getter
    def _held(self) -> Any:
        # `DEFAULT` is made on import, when JAX must not start yet: its devices may still be set up.
        value = vars(self)["_value"]
        return as_key(value) if isinstance(value, np.ndarray) else value

    def seed(self, seed_or_key: Seed = None) -> None:
        """Begins the stream anew, as `RandomState(seed_or_key)` would."""
        self.set_key(entropy() if seed_or_key is None else seed_or_key)

    @in_turn
    def set_key(self, key: Seed) -> None:
        """Begins the stream anew, from a key or seed."""
        made = as_key(key)
        take_turn()
        self.value = made

    @in_turn
    def split_key(self, n: SupportsIndex | None = None, backup: bool = False) -> jax.Array:
        """Takes an array of `n` keys from the stream, or a single one; all draws do so. With
        `backup` it keeps the key that there was, for `restore_key`.

        A `TypeError` or `ValueError` is raised if `n` is no positive whole number.
        """
        count = 1 if n is None else positive(n)
        take_turn()
        keys = jr.split(self.value, count + 1)
        if backup:
            self.backup_key()
        self.value = keys[0]
        return keys[1] if n is None else keys[1:]

    @in_turn
    def self_assign_multi_keys(self, n: SupportsIndex, backup: bool = True) -> None:
        """Makes the value an array of `n` keys, one a lane."""
        count = positive(n)
        take_turn()
        keys = jr.split(self.value, count)
        if backup:
            self.backup_key()
        self.value = keys

    def backup_key(self) -> None:
        """Keeps the key, for `restore_key`; a `ValueError` if one is kept already."""
        if self._backup is not None:
            raise ValueError("A key is kept already; `restore_key` comes before the next one.")
        self._backup = self.value

    @in_turn
    def restore_key(self) -> None:
        """Goes back to the key that is kept; a `ValueError` if none is."""
        take_turn()
        if self._backup is None:
            raise ValueError(
                "No key is kept. `backup_key()`, or `split_key(backup=True)`, keeps one."
            )
        self.value, self._backup = self._backup, None

    def clone(self) -> "RandomState":
        """A random state with a stream of its own, begun with a key from this one."""
        return type(self)(self.split_key())


def positive(n: SupportsIndex) -> int:
    """A number of keys, checked."""
    try:
        count = operator.index(n)
    except TypeError:
        raise TypeError(f"The number of keys is a whole number, not {n!r}.") from None
    if count < 1:
        raise ValueError(f"The number of keys is 1 or more, not {count}.")
    return count


DEFAULT = RandomState()
streams.append(DEFAULT)
