"""`adopt`: any pytree of arrays as states. The one mechanism of all bridges."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from .._make import bind
from .._state import is_state, LongTermState, RandomState, State
from .._states import States
from .._values import describe, dotted, Path, short
from ._adopted import Adopted, Origin
from ._library import apart, class_of, Fixed, Layout, Library, Node, nodes_of


T = TypeVar("T")
M = TypeVar("M")
KindOf = Callable[[Path, Any], type[State] | None]
Kinds = Mapping[Any, type[State]] | KindOf
IsNode = Callable[[Any], bool]


def adopt(
    tree: T, kinds: Kinds | None = None, is_node: IsNode | None = None
) -> tuple[Adopted[T], States]:
    """Any pytree of arrays as states, each at its own path. The bridges are made of this; use it
    for the containers of other libraries.

    ```python
    import jax.numpy as jnp, optax
    from statemap import bridge

    adam = optax.adam(1e-3)
    optimiser, states = bridge.adopt(adam.init({"w": jnp.ones(3)}))

    def step(states, grads):
        updates, new = adam.update(grads, optimiser.rebuild(states))
        return updates, optimiser.read(states, new)

    updates, states = step(states, {"w": jnp.ones(3)})
    assert states["0.count"] == 1 and states["0.mu.w"].shape == (3,)
    ```

    **Arguments:**

    - `tree`: a pytree. Every array in it becomes a state. What is no array stays as it is, and may
        not change.
    - `kinds`: which kind each state has: a mapping from classes of nodes, or from the strings that
        paths begin with, to kinds; or a function `(path, node) -> kind`, which may return None.
        What is not named is a `RandomState` if it holds typed keys, else a `LongTermState`.
    - `is_node`: which nodes of the tree are one state each, such as the variables of a library. The
        value of its state is what the node holds, its tag the name of its class.

    **Returns:**

    `(model, states)`: an [`statemap.bridge.Adopted`][], and its context.

    **Raises:**

    `TypeError` if the tree holds no array, or `kinds` is no such mapping or function.
    """
    return bridged(Library(), tree, kinds, {}, is_node)


def unbind(model: M, states: States) -> M:
    """A model with its values in it: what a larger model is made of, in `make_with_states` or
    `vmap2_new_states`. (The inverse of `make_with_states`.)

    ```python
    import jax, jax.numpy as jnp
    import equinox as eqx
    import statemap as sm
    from statemap import bridge

    def make(*, key):
        a, c = jax.random.split(key)
        actor = bridge.unbind(*bridge.equinox(eqx.nn.Linear(3, 2, key=a)))
        critic = bridge.unbind(*bridge.equinox(eqx.nn.Linear(3, 1, key=c)))
        return {"actor": actor, "critic": critic}

    model, states, axes = sm.vmap2_new_states(make, key=jax.random.key(0), axis_size=4)
    assert states["actor.weight"].shape == (4, 2, 3)

    def step(states, x):
        action, states = model["actor"](states, x)
        value, states = model["critic"](states, x)
        return (action, value), states

    (action, value), states = sm.vmap2(step, in_axes=None, state_in_axes=axes)(states, jnp.ones(3))
    assert action.shape == (4, 2) and value.shape == (4, 1)
    ```

    Such a part may be a field of an `equinox.Module`, too: `self.actor = bridge.unbind(...)`.

    **Arguments:**

    - `model`: a model of handles, such as an [`statemap.bridge.Adopted`][].
    - `states`: its context.

    **Returns:**

    The model with a State that holds its value in the place of every handle. It can't be called,
    until it is made part of a model with a context.

    **Raises:**

    `TypeError` if `model` holds no handle; [`statemap.StateNotFoundError`][] if the context is that
    of another model.
    """
    handles = [x for x in jax.tree.leaves(model, is_leaf=is_state) if is_state(x)]
    if not isinstance(states, States) or not any(x.is_handle for x in handles):
        raise TypeError(
            f"`unbind` takes a model of handles and its context, not {short(model)} and "
            f"{short(states)}.\n"
            "Wrong:  bridge.unbind(bridge.nnx(module))\n"
            "Right:  bridge.unbind(*bridge.nnx(module))"
        )
    every = [state for _, state in states]

    def fill(x: Any) -> Any:
        return every[states._slots.find(x)] if is_state(x) and x.is_handle else x

    return jax.tree.map(fill, model, is_leaf=is_state)


def bridged(
    library: Library,
    tree: Any,
    kinds: Kinds | None,
    default: Kinds,
    is_node: IsNode | None = None,
    origin: Any = None,
) -> tuple[Adopted[Any], States]:
    """A model of a library, and its context.

    **Arguments:**

    - `library`: how it is called.
    - `tree`: its container.
    - `kinds`, `default`: which kind each state has; the user's come first.
    - `is_node`: as for `adopt`.
    - `origin`: the mutable object that the container is of.
    """
    ask = _asked(kinds, library.name)
    found, treedef = nodes_of(tree, is_node)
    nodes, made = [], []
    for path, node in found:
        outer, value = apart(node, is_node)
        if not any(map(_is_array, jax.tree.leaves(value))):
            nodes.append(Node(path, None, Fixed(node), False))
            made.append(None)
            continue
        kind = ask(path, node)
        if kind is None:
            kind = RandomState if _is_key(value) else _one(default, path, node) or LongTermState
        is_legacy = issubclass(kind, RandomState) and not _is_key(value)
        nodes.append(Node(path, outer, None, is_legacy))
        try:
            made.append(kind(value, tag=None if outer is None else class_of(node).__name__))
        except Exception as error:
            error.add_note(f"(Raised when `{dotted(path)}` of `{library.name}` became a state.)")
            raise
    if not any(s is not None for s in made):
        raise TypeError(f"`{library.name}` holds no array to be a state: {describe(tree)}.")
    leaves = jax.tree.leaves(tree)
    is_traced = any(isinstance(x, jax.core.Tracer) for x in leaves)
    layout = Layout(library, treedef, tuple(nodes), is_node)
    return bind(Adopted(made, layout, None, Origin(None if is_traced else origin)))


def _asked(kinds: Kinds | None, name: str) -> KindOf:
    """What a user wants of a node; None where he says nothing."""
    if not (kinds is None or callable(kinds) or isinstance(kinds, Mapping)):
        raise TypeError(
            "`kinds` is a mapping from classes or strings to kinds of State, or a function of path "
            f"and node, not {kinds!r}.\n"
            "Right:  kinds={nnx.Cache: sm.ShortTermState}"
        )

    def ask(path: Path, node: Any) -> type[State] | None:
        if kinds is None:
            return None
        kind = _one(kinds, path, node)
        if kind is None or isinstance(kind, type) and issubclass(kind, State):
            return kind
        raise TypeError(
            f"`kinds` gave {kind!r} for `{dotted(path)}` of `{name}`, which is no kind of State."
        )

    return ask


def _one(kinds: Kinds, path: Path, node: Any) -> Any:
    """What a function says; or the kind of the nearest class of a node, else of the string that its
    path begins with.
    """
    if not isinstance(kinds, Mapping):
        return kinds(path, node)
    for cls in class_of(node).__mro__:
        if cls in kinds:
            return kinds[cls]
    return kinds.get(path[0]) if isinstance(path[0], str) else None


def _is_array(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct))


def _is_key(value: Any) -> bool:
    return _is_array(value) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
