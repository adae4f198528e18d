"""The programs of a mapping, which equal mappings share, and what a user asks for them by."""

from typing import Any, NamedTuple

import equinox as eqx
import jax

from ._cache import Cache
from ._exact import exact
from ._options import Options
from ._program import Program
from ._signature import Function


_PROGRAMS = 256  # of one mapping: other slots, other structure of arguments, other shapes


class Programs(NamedTuple):
    """The programs of a mapping, and of all that are equal to it."""

    made: Cache[Program]  # by signature
    last: Cache[Program]  # by what of a signature is known without looking at arrays
    facts: tuple | None  # what their function reached of other libraries' objects

    @staticmethod
    def none_yet(facts: tuple | None = None) -> "Programs":
        return Programs(Cache(_PROGRAMS), Cache(_PROGRAMS), facts)


# By function and options.
_shared: Cache[Programs] = Cache(512)


def shared_programs(function: Function, options: Options, facts: tuple | None) -> Programs:
    """The programs of all mappings of equal functions with equal options."""
    programs, key = Programs.none_yet(facts), None
    if not options.is_ours or function.holds_closure:
        return programs
    try:
        discard = _shared.discard  # when Python exits, the name goes first
        on_death = lambda _: discard(key)
        key = (function.key(on_death), options.key(on_death))
        known = _shared.get(key)
        if known is not None and known.facts != facts:  # what was traced is no more
            _shared.replace(key, programs)
            return programs
        return known or _shared.add(key, programs)
    except (TypeError, ValueError):  # something static can't be hashed or compared
        return programs


class CacheKey:
    """The abstract signature of a call."""

    __slots__ = ("key", "leaves", "treedef")

    def __init__(self, treedef: Any, leaves: tuple[Any, ...]):
        self.treedef = treedef
        self.leaves = leaves
        self.key = exact(leaves)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, CacheKey) and self.treedef == other.treedef and self.key == other.key
        )

    def __hash__(self) -> int:
        return hash((self.treedef, self.key))

    def __repr__(self) -> str:
        tree = jax.tree.unflatten(self.treedef, self.leaves)
        return eqx.tree_pformat(tree, struct_as_array=True)


def abstract(x: Any) -> Any:
    if not eqx.is_array(x):
        return x
    aval = jax.typeof(x)
    weak = getattr(aval, "weak_type", False)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=weak)
