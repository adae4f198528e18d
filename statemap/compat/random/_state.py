"""`RandomState`: a cell that holds a key, with the distributions as its methods."""

import operator
import threading
from typing import Any, cast, SupportsIndex

import jax
import jax.random as jr
import numpy as np

from .._cells import State
from .._frames import Stream, streams
from ._discrete import Discrete
from ._keys import as_key, entropy, Seed
from ._positive import Positive
from ._real import Real
from ._simple import Simple


# Taking a key and leaving the next one is one step for all threads: two never draw the same.
_LOCK = threading.RLock()


class RandomState(Simple, Real, Positive, Discrete, Stream, State[jax.Array]):
    """A stream of random numbers. (After `brainstate.random.RandomState`.)

    ```python
    from statemap.compat import random

    rng = random.RandomState(42)
    x = rng.normal(0.0, 2.0, size=(3,))
    assert x.shape == (3,)
    assert (x == random.RandomState(42).normal(0.0, 2.0, size=3)).all()
    ```

    Its value is a typed key, of `jax.random.key`. Each draw splits it, `carry, draw =
    split(value)`: the numbers come from `draw` and the value becomes `carry`.
    """

    def __init__(self, seed_or_key: Seed = None):
        """**Arguments:**

        - `seed_or_key`: an int, a typed key or the two words of one; by default words from NumPy's
            global generator.
        """
        super().__init__(cast(Any, entropy() if seed_or_key is None else as_key(seed_or_key)))
        self._backup: jax.Array | None = None

    @property
    def _held(self) -> Any:
        # `DEFAULT` is made on import, when JAX must not start yet: its devices may still be set up.
        value = vars(self)["_value"]
        if isinstance(value, np.ndarray):
            value = vars(self)["_value"] = as_key(value)
        return value

    @_held.setter
    def _held(self, value: Any) -> None:
        vars(self)["_value"] = value

    def seed(self, seed_or_key: Seed = None) -> None:
        """Begins the stream anew.

        **Arguments:**

        - `seed_or_key`: as for `RandomState`.
        """
        self.value = as_key(entropy() if seed_or_key is None else seed_or_key)

    def set_key(self, key: Seed) -> None:
        """Begins the stream anew, from a key or seed."""
        self.value = as_key(key)

    def split_key(self, n: SupportsIndex | None = None, backup: bool = False) -> jax.Array:
        """Takes keys from the stream. All draws do so.

        **Arguments:**

        - `n`: how many; by default a single one, without an axis.
        - `backup`: whether to keep the key that there was, for `restore_key`.

        **Returns:**

        A key, or an array of keys.

        **Raises:**

        `TypeError` or `ValueError` if `n` is no positive whole number.
        """
        count = 1 if n is None else positive(n)
        with _LOCK:
            before = self.value
            keys = jr.split(before, count + 1)
            if backup:
                self.backup_key()
            self.value = keys[0]
        return keys[1] if n is None else keys[1:]

    def self_assign_multi_keys(self, n: SupportsIndex, backup: bool = True) -> None:
        """Makes the value an array of `n` keys, one a lane.

        **Arguments:**

        - `n`: how many.
        - `backup`: whether to keep the key that there was, for `restore_key`.
        """
        count = positive(n)
        with _LOCK:
            keys = jr.split(self.value, count)
            if backup:
                self.backup_key()
            self.value = keys

    def backup_key(self) -> None:
        """Keeps the key, for `restore_key`.

        **Raises:**

        `ValueError` if one is kept already.
        """
        if self._backup is not None:
            raise ValueError("A key is kept already; `restore_key` comes before the next one.")
        self._backup = self.value

    def restore_key(self) -> None:
        """Goes back to the key that is kept.

        **Raises:**

        `ValueError` if none is kept.
        """
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
