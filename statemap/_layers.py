"""Layers whose arrays are states: declared in a model, filled in from a context."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, cast, TypeVar

import equinox as eqx
import jax
import numpy as np

from ._equinox import index_of, initial_value, is_emptied, is_index
from ._foreign import refuse_foreign
from ._pickle import name_of
from ._rest import difference
from ._state import is_state, LongTermState, State
from ._values import describe, dotted, one_level, Path, to_path


M = TypeVar("M")

KindOf = type[State] | Callable[[Path, Any], type[State] | None]


def declare(layer: M, kind: KindOf) -> M:
    """Makes every array of a layer a state, at its own path.

    Used in the `__init__` of a model. In a call, `states[self.layer]` is the layer with its
    arrays filled in, and `states.set(self.layer, new_layer)` writes them back. Each array is a
    state by itself, which filters, plans and optimisers see: `layers.0.weight`.

    ```python
    import equinox as eqx, jax.numpy as jnp, jax.random as jr
    import statemap as sm

    class Net(eqx.Module):
        mlp: eqx.nn.MLP

        def __init__(self, *, key):
            self.mlp = sm.declare(eqx.nn.MLP(2, 1, 8, depth=1, key=key), sm.ParamState)

        def __call__(self, states, x):
            return states[self.mlp](x), states

    net, states = sm.make_with_states(Net)(key=jr.key(0))
    assert states["mlp.layers.0.weight"].shape == (8, 2)
    out, states = net(states, jnp.ones(2))
    assert out.shape == (1,)
    ```

    A stateful layer of Equinox takes a context in the place of an `eqx.nn.State`. Each
    `eqx.nn.StateIndex` of it becomes a `LongTermState`, whatever `kind` is:

    ```python
    class Normed(eqx.Module):
        norm: eqx.nn.BatchNorm

        def __init__(self):
            self.norm = sm.declare(eqx.nn.BatchNorm(3, "batch", mode="batch"), sm.ParamState)

        def __call__(self, states, x):
            x, states = states[self.norm](x, states)
            return x, states

    net, states = sm.make_with_states(Normed)()
    out, states = sm.vmap2(net, axis_name="batch")(states, jnp.ones((5, 3)))
    assert out.shape == (5, 3) and states["norm.batch_counter.init"] == 1
    ```

    **Arguments:**

    - `layer`: a pytree, such as a layer of `equinox.nn` or a list of layers. What is no array in
        it, an activation function or a flag, stays as it is. So do States that it holds.
    - `kind`: the kind of the states, `sm.ParamState`; or a function `(path, array) -> kind` of
        the path within the layer, which may return None to leave an array a constant.

    **Returns:**

    The layer with States in the place of its arrays. A layer that is one object at two places in
    `layer` is one in the result, with one set of states. An array at two places is two states.

    **Raises:**

    `TypeError` if `layer` holds no array and is no module, or `kind` is no kind; `ValueError` if
    `eqx.nn.make_with_state` has taken the initial values of a stateful layer out already.
    """
    kinds = _kinds(kind)
    refuse = functools.partial(
        refuse_foreign,
        what="`declare` makes the arrays of a layer states, and was given",
        wrong="self.layer = sm.declare(module, sm.ParamState)",
        then="out, states = net(states, x)",
    )
    refuse(layer)
    nodes: dict[int, tuple[Any, Any]] = {}  # with the node, so that its id stays its own
    indices: dict[Any, Any] = {}
    found = []

    def walk(node: Any, path: Path) -> Any:
        refuse(node)
        if is_state(node):
            found.append(node)
            return node
        if is_index(node):
            return index(node, path)
        if isinstance(node, (jax.Array, np.ndarray)):
            chosen = kinds(path, node)
            found.append(chosen)
            return node if chosen is None else chosen(node)
        children = one_level(node)
        if children is None:
            return node
        if id(node) not in nodes:
            if isinstance(node, eqx.Module):
                found.append(node)
            new = [walk(child, (*path, *to_path((key,)))) for key, child in children]
            treedef = jax.tree.structure(node, is_leaf=lambda x: x is not node)
            nodes[id(node)] = node, jax.tree.unflatten(treedef, new)
        return nodes[id(node)][1]

    def index(node: eqx.nn.StateIndex, path: Path) -> eqx.nn.StateIndex:
        found.append(node)
        if is_state(initial_value(node)):
            return node
        if is_emptied(node):
            raise ValueError(
                f"The `eqx.nn.StateIndex` `{dotted(path)}` of the layer has no initial value any "
                "more: `eqx.nn.make_with_state` has moved it to an `eqx.nn.State`.\n"
                "Wrong:  layer, _ = eqx.nn.make_with_state(Layer)(...); sm.declare(layer, kind)\n"
                "Right:  sm.declare(Layer(...), kind)"
            )
        if node.marker not in indices:
            indices[node.marker] = index_of(LongTermState(initial_value(node)))
        return indices[node.marker]

    declared = walk(layer, ())
    if not found:
        raise TypeError(
            f"`declare` makes the arrays of a layer states, and was given {describe(layer)}, which "
            "holds none."
        )
    return declared


def _kinds(kind: Any) -> Callable[[Path, Any], type[State] | None]:
    def check(given: Any, path: Path | None = None) -> type[State] | None:
        if isinstance(given, type) and issubclass(given, State):
            return given
        where = "" if path is None else f" for `{dotted(path)}`"
        raise TypeError(
            f"`declare` takes a kind of State, or a function of path and array that returns one "
            f"or None, and got {given!r}{where}.\n"
            "Wrong:  sm.declare(layer, sm.ParamState(x))\n"
            "Right:  sm.declare(layer, sm.ParamState)"
        )

    if isinstance(kind, type) or is_state(kind) or not callable(kind):
        check(kind)
        return lambda path, array: kind

    def ask(path: Path, array: Any) -> type[State] | None:
        given = kind(path, array)
        return None if given is None else check(given, path)

    return ask


def _is_part(x: Any) -> bool:
    return is_state(x) or is_index(x)


def is_layer(key: Any) -> bool:
    """Whether a key of a context is a pytree that holds handles, or a module that may."""
    if isinstance(key, (str, State)) or is_index(key):
        return False
    stop = lambda x: isinstance(x, (State, eqx.Module))
    return any(map(stop, jax.tree.leaves(key, is_leaf=stop)))


def to_handle(key: Any) -> Any:
    """The handle that a declared `eqx.nn.StateIndex` holds; any other key as it is.

    **Raises:**

    `TypeError` for an index that is not declared.
    """
    if not is_index(key):
        return key
    handle = initial_value(key)
    if not is_state(handle):
        raise TypeError(
            "A context was asked for an `eqx.nn.StateIndex` that is not declared. A stateful layer "
            "of Equinox takes a context once its parts are states.\n"
            "Wrong:  self.norm = eqx.nn.BatchNorm(...)\n"
            "Right:  self.norm = sm.declare(eqx.nn.BatchNorm(...), sm.ParamState), and in the "
            "call: x, states = states[self.norm](x, states)"
        )
    return handle


def fill_layer(layer: M, look_up: Callable[[State], Any]) -> M:
    """A layer with values in the place of its handles. A `StateIndex` keeps its handle, by which
    the layer itself asks the context.
    """
    _refuse_pair(layer)
    filled = jax.tree.map(lambda x: look_up(x) if is_state(x) else x, layer, is_leaf=_is_part)
    return cast(M, filled)


def handles(key: Any) -> list[Any]:
    """The keys of single states that a key of a context stands for: the handles of a layer."""
    key = to_handle(key)
    if not is_layer(key):
        return [key]
    return [x for x in jax.tree.leaves(key, is_leaf=_is_part) if is_state(x)]


def _refuse_pair(key: Any) -> None:
    """Refuses what iterating over a context gives, which looks like a layer of one state."""
    if isinstance(key, tuple) and len(key) == 2 and is_state(key[1]) and key[1].handle is None:
        raise TypeError(
            "A context was asked for a pair of a path and a State, which is what iterating over a "
            "context gives.\n"
            "Wrong:  for path in states: states[path]\n"
            "Right:  for path, state in states: states[path]"
        )


def spread(key: Any, new: Any) -> Iterator[tuple[Any, Any]]:
    """The keys of single states that a key of a context stands for, each with its new value: of a
    layer its handles, each with what a new layer has in its place.

    **Raises:**

    `ValueError` if the new layer has another structure, or differs in what is no state.
    """
    layer = to_handle(key)
    if not is_layer(layer):
        yield layer, new
        return
    _refuse_pair(layer)
    with_path, treedef = jax.tree_util.tree_flatten_with_path(layer, is_leaf=_is_part)
    try:
        leaves = treedef.flatten_up_to(new)
    except (ValueError, TypeError) as error:
        error.add_note(
            "(A context was given a new layer of another structure than the layer that it was "
            "given as the key. Right: `states.set(self.layer, new)`, with a `new` made from "
            "`states[self.layer]`.)"
        )
        raise
    for (keys, mine), leaf in zip(with_path, leaves):
        if is_state(mine):
            yield mine, leaf
        elif leaf is not mine and (isinstance(mine, jax.Array) or difference(mine, leaf)):
            raise ValueError(
                f"A new layer was given whose `{jax.tree_util.keystr(keys)}` is {name_of(leaf)}, "
                f"and was {name_of(mine)}. It is no state but part of the model, so that the new "
                "one would be lost. Declare it as a state, or change the model."
            )
