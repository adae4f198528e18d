"""What is used of Equinox's stateful layers: `eqx.nn.StateIndex`, whose `init` and `marker` are no
documented attributes. Tried with Equinox 0.13.8.

A `StateIndex` wraps an initial value, `init`, and a static `marker`, by which `eqx.nn.State` finds
the value of today. A declared one has a State, later its handle, as its `init`, by which a context
finds it.
"""

from typing import Any, TypeGuard

import equinox as eqx
import jax


def is_index(x: Any) -> TypeGuard[eqx.nn.StateIndex]:
    return isinstance(x, eqx.nn.StateIndex)


def initial_value(index: eqx.nn.StateIndex) -> Any:
    """The initial value, or what stands for it: a State in a declared index."""
    return index.init


def is_emptied(index: eqx.nn.StateIndex) -> bool:
    """Whether `eqx.nn.make_with_state` has taken the initial value out."""
    return not jax.tree.leaves(index.init) and isinstance(index.init, eqx.Module)


def index_of(init: Any, marker: Any = "statemap") -> eqx.nn.StateIndex:
    """An index with an initial value: a declared one, whose value is a State, unless it is given a
    marker.
    """
    index = eqx.nn.StateIndex(init)
    # By itself each index has a marker of its own, so that no two models would have one structure.
    object.__setattr__(index, "marker", marker)
    return index


def holds_initial_values(tree: Any) -> bool:
    """Whether a pytree holds an index with its initial value."""
    leaves = jax.tree.leaves(tree, is_leaf=is_index)
    return any(is_index(x) and not is_emptied(x) for x in leaves)
