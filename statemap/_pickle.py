"""How what is static in a value is named and pickled.

An activation function of JAX is a jitted function or one with rules of its own, which pickle takes
apart and then can't find again. What can be found by its module and name is pickled by these.
"""

import functools
import importlib
import operator
import pickle
import sys
from typing import Any

import jax
from jaxtyping import PyTree

from ._exact import PLAIN


class Reference:
    """Stands in a pickle for what is found by its module and name."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    def __reduce__(self) -> tuple:
        return Reference, (self.module, self.name)

    def find(self) -> Any:
        return operator.attrgetter(self.name)(importlib.import_module(self.module))


def to_pickle(tree: PyTree) -> PyTree:
    """A pytree whose leaves are pickled by name where they can be.

    **Raises:**

    What pickle raises for a leaf that does not pickle, with a note about where that is.
    """
    with_path, treedef = jax.tree_util.tree_flatten_with_path(tree)
    # These pickle more than pickle does, functions without a name among them.
    more = sys._getframe(2).f_globals.get("__name__", "").startswith(("cloudpickle", "dill"))
    leaves = []
    for keys, leaf in with_path:
        leaves.append(found := _by_name(leaf))
        if found is not leaf or more:
            continue
        try:
            pickle.dumps(leaf)
        except Exception as error:
            error.add_note(
                f"(This is {name_of(leaf)}, `{jax.tree_util.keystr(keys)}` in the value of a "
                "state, which is static and does not pickle. `eqx.tree_serialise_leaves` saves "
                "the arrays of a context alone.)"
            )
            raise
    return jax.tree.unflatten(treedef, leaves)


def from_pickle(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.find() if type(x) is Reference else x, tree)


def _by_name(leaf: Any) -> Any:
    if not callable(leaf) or not hasattr(leaf, "__qualname__"):
        return leaf
    found = Reference(getattr(leaf, "__module__", None) or "", leaf.__qualname__)
    try:
        return found if found.find() is leaf else leaf
    except (ImportError, AttributeError, ValueError):
        return leaf  # a lambda, say


def name_of(leaf: Any) -> str:
    """What stands for a static leaf in messages and fingerprints, the same in every process."""
    if leaf is None or isinstance(leaf, PLAIN):
        return repr(leaf)
    if type(leaf) is functools.partial:
        given = [name_of(x) for x in leaf.args]
        given += [f"{k}={name_of(v)}" for k, v in leaf.keywords.items()]
        return f"partial({', '.join([name_of(leaf.func), *given])})"
    if isinstance(leaf, jax.Array):
        return f"an array of dtype {leaf.dtype} and shape {leaf.shape}"
    named = leaf if hasattr(leaf, "__qualname__") else type(leaf)
    return f"<{getattr(named, '__module__', None)}.{named.__qualname__}>"
