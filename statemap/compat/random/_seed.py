"""The global stream: seeds, keys and contexts. All are as those of `brainstate.random`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import SupportsIndex

import jax
import jax.core
import numpy as np

from ._keys import as_key, Seed
from ._state import DEFAULT, positive, RandomState


__all__ = ["seed", "set_key", "get_key", "get_key_data", "default_rng", "split_key", "split_keys"]
__all__ += ["seed_context", "restore_key", "self_assign_multi_keys", "clone_rng"]


def seed(seed_or_key: Seed = None) -> None:
    """Begins the global stream anew, and that of NumPy's global generator, which is seeded with
    the first word of the key. `None` takes entropy from the system, and leaves NumPy alone.

    A `TypeError` if it is no seed, or a `ValueError` for an array of keys, changes nothing.
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
    """Seeds the global stream and NumPy's (with `None` too) for a while, and puts both back."""
    key, generator = DEFAULT.value, np.random.get_state()
    try:
        seed(int(np.random.default_rng().integers(2**32)) if seed_or_key is None else seed_or_key)
        yield
    finally:
        DEFAULT.set_key(key)
        np.random.set_state(generator)


def set_key(seed_or_key: Seed) -> None:
    """Begins the global stream anew, and leaves NumPy alone. An array of keys is one a lane."""
    DEFAULT.set_key(seed_or_key)


def get_key() -> jax.Array:
    """The key of the global stream: a typed key."""
    return DEFAULT.value


def get_key_data() -> jax.Array:
    """The words of the key of the global stream, as `uint32`."""
    return jax.random.key_data(DEFAULT.value)


def split_key(n: SupportsIndex | None = None, backup: bool = False) -> jax.Array:
    """Takes keys from the global stream: [`statemap.compat.random.RandomState.split_key`][]."""
    return DEFAULT.split_key(n, backup)


def split_keys(n: SupportsIndex, backup: bool = False) -> jax.Array:
    """Takes an array of `n` keys from the global stream; otherwise as `split_key`."""
    return DEFAULT.split_key(positive(n), backup)


def self_assign_multi_keys(n: SupportsIndex, backup: bool = True) -> None:
    """Makes the value of `DEFAULT` an array of `n` keys, one a lane."""
    DEFAULT.self_assign_multi_keys(n, backup)


def restore_key() -> None:
    """Goes back to the key that `backup=True` kept, or raises a `ValueError` without one."""
    DEFAULT.restore_key()


def default_rng(seed_or_key: Seed = None) -> RandomState:
    """A random state with this seed; without one, `DEFAULT` itself."""
    return DEFAULT if seed_or_key is None else RandomState(seed_or_key)


def clone_rng(seed_or_key: Seed = None, clone: bool = True) -> RandomState:
    """A random state with this seed; without one, it begins with a key from the global stream, or
    with `clone=False` is `DEFAULT` itself.
    """
    if seed_or_key is not None:
        return RandomState(seed_or_key)
    return DEFAULT.clone() if clone else DEFAULT
