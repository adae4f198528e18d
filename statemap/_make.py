"""From a constructor to a model of handles and a context of values."""

import functools
import zlib
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import equinox as eqx
import jax

from ._annotations import check_fields
from ._slots import collect, find_states
from ._state import Handle, is_state, State, with_fields
from ._states import assemble, States
from ._values import dotted, Path, Struct


P = ParamSpec("P")
M = TypeVar("M")


def make_with_states(make: Callable[P, M]) -> Callable[P, tuple[M, States]]:
    """Turns what makes a model into what makes a model and its context. (The form is that of
    `equinox.nn.make_with_state`.)

    ```python
    import equinox as eqx, jax.numpy as jnp, jax.random as jr
    import statemap as sm
    from jaxtyping import Array, Float

    class Leaky(eqx.Module):
        weight: sm.ParamState[Float[Array, "out in"]]
        v: sm.ShortTermState[Float[Array, "out"]]

        def __init__(self, n_in, n_out, *, key):
            self.weight = sm.ParamState(jr.normal(key, (n_out, n_in)))
            self.v = sm.ShortTermState(jnp.zeros(n_out))

        def __call__(self, states, x):
            v = 0.9 * states[self.v] + states[self.weight] @ x
            return v, states.set(self.v, v)

    model, states = sm.make_with_states(Leaky)(3, 4, key=jr.key(0))
    out, states = model(states, jnp.ones(3))
    assert out.shape == (4,)
    ```

    **Arguments:**

    - `make`: a class or a function that returns a pytree with States, such as an
        `equinox.Module` whose fields are States, to any depth.

    **Returns:**

    A function with the arguments of `make` that returns `(model, states)`: the pytree with a
    handle in the place of every State, and the context with the values. A State that is used at
    two places is one slot. Two models that are made the same way may exchange their contexts.

    **Raises:**

    `ValueError` if two States have the same name; `TypeError` if a State does not match the
    annotation of its field, such as `ParamState[Float[Array, "out in"]]`.
    """

    if not callable(make) or is_made(make):
        raise TypeError(
            "`make_with_states` takes what makes a model, a class or a function, and was given "
            f"`{type(make).__name__}`, which is made already.\n"
            "Wrong:  sm.make_with_states(LIF(3, 4))\n"
            "Right:  model, states = sm.make_with_states(LIF)(3, 4)\n"
            "For a model that is made: `sm.make_with_states(lambda: model)()`."
        )

    @functools.wraps(make, updated=())
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> tuple[M, States]:
        return bind(make(*args, **kwargs))

    return wrapped


def bind(model: M) -> tuple[M, States]:
    """The model with handles in the place of its States, and their context."""
    check_fields(model)
    every = [(p, s) for p, s in find_states(model) if is_state(s)]
    _refuse_twins(every)
    found = [(p, s) for p, s in every if not s.is_handle]
    fingerprint = _fingerprint(model, found)
    items = collect(found, fingerprint)
    paths = _first_paths(found)

    def to_handle(leaf: Any) -> Any:
        if not is_state(leaf) or leaf.is_handle:
            return leaf
        handle = Handle(paths[id(leaf)], fingerprint, Struct(leaf.value))
        return with_fields(leaf, data=None, handle=handle)

    return jax.tree.map(to_handle, model, is_leaf=is_state), assemble(items)


def is_made(make: Any) -> bool:
    """Whether something is a model rather than what makes one."""
    if isinstance(make, eqx.Module) and not hasattr(make, "__func__"):
        return any(map(is_state, jax.tree.leaves(make, is_leaf=is_state)))
    return isinstance(make, State)


def _refuse_twins(found: list[tuple[Path, State]]) -> None:
    """Refuses handles of two models of one class, made apart: one context can't hold both."""
    first: dict[Handle, tuple[Path, Handle]] = {}
    for path, state in found:
        handle = state.handle
        if handle is None:
            continue
        before, known = first.setdefault(handle, (path, handle))
        if known is not handle:
            raise ValueError(
                f"The model holds two handles of the state `{dotted(handle.path)}` of the model "
                f"`{handle.model}`, at `{dotted(before)}` and at `{dotted(path)}`, which were made "
                "apart: both would find one value. Make them inside one `make_with_states`:\n"
                "Wrong:  a, _ = sm.make_with_states(M)(); b, _ = sm.make_with_states(M)(); "
                "sm.make_with_states(Pair)(a, b)\n"
                "Right:  pair, states = sm.make_with_states(lambda: Pair(M(), M()))()\n"
                "One model at two places is the same object at both."
            )


def _first_paths(found: list[tuple[Path, State]]) -> dict[int, Path]:
    paths: dict[int, Path] = {}
    for path, state in found:
        paths.setdefault(id(state), path)
    return paths


def _fingerprint(model: Any, found: list[tuple[Path, State]]) -> str:
    """What tells models of different make apart, and is the same in every process."""
    described = [(p, type(s).__qualname__, s.name, s.tag, Struct(s.value)) for p, s in found]
    return f"{type(model).__qualname__}:{zlib.crc32(repr(described).encode()):08x}"
