"""The global stream: seeds, keys and contexts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import SupportsIndex

import jax
import jax.core
import numpy as np

from ._keys import as_key, Seed
from ._state import DEFAULT, positive, RandomState


def seed(seed_or_key: Seed = None) -> None:
    """Begins the global stream anew, and that of NumPy's global generator.

    **Arguments:**

    - `seed_or_key`: an int, a typed key or the two words of one. NumPy is seeded with the first
        word, which for an int is its low 32 bits. `None` takes entropy from the system, and
        leaves NumPy alone.

    **Raises:**

    `TypeError` if it is no seed; `ValueError` for an array of keys. Nothing is changed then.
    """
    if seed_or_key is None:
        DEFAULT.set_key(np.random.default_rng().integers(0, 2**32, size=2, dtype=np.uint32))
        return
    key = as_key(seed_or_key)
    if key.shape != ():
        raise ValueError(
            f"A stream begins with one key, not with keys of shape {key.shape}. For a key a lane: "
            "`set_key(keys)`."
        )
    DEFAULT.set_key(key)
    if isinstance(seed_or_key, (int, np.integer)):
        np.random.seed(int(seed_or_key) % 2**32)
    elif not isinstance(key, jax.core.Tracer):  # NumPy's generator can't follow a trace
        np.random.seed(int(np.asarray(jax.random.key_data(key))[0]))


@contextmanager
def seed_context(seed_or_key: Seed) -> Iterator[None]:
    """Seeds the global stream and NumPy's for a while, and then puts both back.

    **Arguments:**

    - `seed_or_key`: as for `seed`. With `None`, NumPy is seeded too.

    ```python
    from statemap.compat import random

    with random.seed_context(42):
        x = random.rand(3)
    with random.seed_context(42):
        assert (x == random.rand(3)).all()
    ```
    """
    key, generator = DEFAULT.value, np.random.get_state()
    try:
        seed(int(np.random.default_rng().integers(2**32)) if seed_or_key is None else seed_or_key)
        yield
    finally:
        DEFAULT.set_key(key)
        np.random.set_state(generator)


def set_key(seed_or_key: Seed) -> None:
    """Begins the global stream anew, and leaves NumPy alone.

    **Arguments:**

    - `seed_or_key`: an int, a typed key, an array of keys, or the two words of a key.
    """
    DEFAULT.set_key(seed_or_key)


def get_key() -> jax.Array:
    """The key of the global stream: a typed key."""
    return DEFAULT.value


def get_key_data() -> jax.Array:
    """The words of the key of the global stream, as `uint32`."""
    return jax.random.key_data(DEFAULT.value)


def split_key(n: SupportsIndex | None = None, backup: bool = False) -> jax.Array:
    """Takes keys from the global stream.

    **Arguments:**

    - `n`: how many; by default a single one, without an axis.
    - `backup`: whether to keep the key that there was, for `restore_key`.
    """
    return DEFAULT.split_key(n, backup)


def split_keys(n: SupportsIndex, backup: bool = False) -> jax.Array:
    """Takes an array of `n` keys from the global stream; otherwise as `split_key`."""
    return DEFAULT.split_key(positive(n), backup)


def self_assign_multi_keys(n: SupportsIndex, backup: bool = True) -> None:
    """Makes the value of `DEFAULT` an array of `n` keys, one a lane.

    **Arguments:**

    - `n`: how many.
    - `backup`: whether to keep the key that there was, for `restore_key`.
    """
    DEFAULT.self_assign_multi_keys(n, backup)


def restore_key() -> None:
    """Goes back to the key that `backup=True` kept.

    **Raises:**

    `ValueError` if none is kept.
    """
    DEFAULT.restore_key()


def default_rng(seed_or_key: Seed = None) -> RandomState:
    """A random state.

    **Arguments:**

    - `seed_or_key`: the seed of one of its own; by default this is `DEFAULT` itself.
    """
    return DEFAULT if seed_or_key is None else RandomState(seed_or_key)


def clone_rng(seed_or_key: Seed = None, clone: bool = True) -> RandomState:
    """A random state of its own.

    **Arguments:**

    - `seed_or_key`: its seed; by default its key is taken from the global stream.
    - `clone`: without a seed, whether to do so; if not, this is `DEFAULT` itself.
    """
    if seed_or_key is not None:
        return RandomState(seed_or_key)
    return DEFAULT.clone() if clone else DEFAULT
