"""Settings of other libraries that a function is traced under, of which JAX does not know.

A program is for those that were read when it was traced. So it notes them, and a call under others
finds or makes another program. What reads no such setting costs nothing.
"""

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from ._exact import exact, Identity, PLAIN


Settings = Callable[[], Mapping[Hashable, Any]]  # gives all settings of a library
Read = dict[tuple[Settings, Hashable], Hashable]  # what was read, and the value


class _Local(threading.local):
    def __init__(self) -> None:
        self.traces: list[tuple[dict[Settings, Mapping[Hashable, Any]], Read]] = []


_local = _Local()
_UNSET: Any = object()
_libraries: list[Settings] = []


def register(settings: Settings) -> None:
    """Makes the settings of a library known, once."""
    _libraries.append(settings)


@contextlib.contextmanager
def reads() -> Iterator[Read]:
    """Collects what is read in a `with` block, each with the value that it had before."""
    found: Read = {}
    before: dict[Settings, Mapping[Hashable, Any]] = {x: dict(x()) for x in _libraries}
    entry = (before, found)
    _local.traces.append(entry)
    try:
        yield found
    finally:
        _local.traces[:] = [t for t in _local.traces if t is not entry]


def note(library: Settings, name: Hashable) -> None:
    """Says that a setting is read; all of them, if the name is `...`. For a trace that one does not
    count which was set in it.
    """
    if not _local.traces:
        return
    present = library().get(name, _UNSET)
    for before, found in _local.traces:
        own = before.get(library, {})
        if name is ... or present is own.get(name, _UNSET):
            found.setdefault((library, name), _value(own, name))


def now(read: Read) -> tuple[Hashable, ...]:
    """The present values of what was read. Looking at them so counts as reading."""
    found: list[Hashable] = []
    library, settings = None, {}
    for each, name in read:
        if each is not library:
            library, settings = each, each()
        if _local.traces:
            note(each, name)
        found.append(_value(settings, name))
    return tuple(found)


def _value(settings: Mapping[Hashable, Any], name: Hashable) -> Hashable:
    if name is ...:
        return tuple((k, fact(settings[k])) for k in sorted(settings, key=str))
    return fact(settings[name]) if name in settings else "not set"


def fact(value: Any) -> Hashable:
    """A pytree as part of a key: arrays by their numbers, all else as `exact`, or what is not
    hashable by identity.
    """
    if isinstance(value, PLAIN):
        return exact(value)
    leaves, treedef = jax.tree.flatten(value)
    return treedef, tuple(map(_leaf, leaves))


def _leaf(x: Any) -> Hashable:
    if isinstance(x, jax.core.Tracer):
        return object()  # equal to nothing
    if isinstance(x, (np.ndarray, jax.Array)) and getattr(x.dtype, "hasobject", False) is False:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        weak = getattr(x, "weak_type", False)
        return type(x), x.shape, str(x.dtype), weak, np.asarray(x).tobytes()
    if isinstance(x, (set, frozenset)):
        return type(x), frozenset(map(_leaf, x))
    try:
        hash(x)
        return exact(x)
    except TypeError:
        return Identity(x, weak=False)
