"""From a constructor to a model of handles and a context of values."""

import functools
import inspect
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any, overload, ParamSpec, Protocol, runtime_checkable, TypeVar

import equinox as eqx
import jax

from ._annotations import check_fields
from ._fields import Keys, make_fields
from ._foreign import refuse_foreign
from ._pending import holds_states, Pending
from ._pickle import name_of
from ._slots import collect, find_states
from ._state import Handle, is_state, State, with_fields
from ._states import assemble, States
from ._values import dotted, function_name, Path, Struct, to_path


P = ParamSpec("P")
M = TypeVar("M", covariant=True)

_THEN = "out, states = net(states, x)"


@runtime_checkable
class _WithStates(Protocol[P, M]):
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> tuple[M, States]: ...

    @overload
    def __call__(self, *args: Any, key: Any, **kwargs: Any) -> tuple[M, States]: ...


def make_with_states(make: Callable[P, M]) -> _WithStates[P, M]:
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
    It takes a `key=`, too, for the fields that [`statemap.field`][] declares; `make` is given it
    as well if it has such a parameter.

    **Raises:**

    `ValueError` if two States have the same name; `TypeError` if a State does not match the
    annotation of its field, such as `ParamState[Float[Array, "out in"]]`, or a `key` is missing
    or of no use.
    """

    refuse_foreign(
        make,
        "`make_with_states` was given",
        "model, states = sm.make_with_states(module)()",
        then=_THEN,
    )
    if not callable(make) or is_made(make):
        raise TypeError(
            "`make_with_states` takes what makes a model, a class or a function, and was given "
            f"`{type(make).__name__}`, which is made already.\n"
            "Wrong:  sm.make_with_states(LIF(3, 4))\n"
            "Right:  model, states = sm.make_with_states(LIF)(3, 4)\n"
            "For a model that is made: `sm.make_with_states(lambda: model)()`."
        )

    @functools.wraps(make, updated=())
    def wrapped(*args: Any, **kwargs: Any) -> tuple[M, States]:
        return bind(*call(make, args, kwargs))

    _show_key(wrapped)
    return wrapped


def _show_key(fn: Any) -> None:
    """Adds `key` to the signature of a function, which takes it."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return
    every = list(signature.parameters.values())
    if not any(p.name == "key" or p.kind is p.VAR_KEYWORD for p in every):
        key = inspect.Parameter("key", inspect.Parameter.KEYWORD_ONLY, default=None)
        fn.__signature__ = signature.replace(parameters=[*every, key])


def call(
    make: Callable[..., M], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[M, Keys]:
    """What `make` makes, and the keys for its fields. It is given `key` if it takes one."""
    name = function_name(make)
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # of what is written in C
        return make(*args, **kwargs), Keys(name, kwargs.get("key"), True)
    parameter = signature.parameters.get("key")
    is_taken = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    if parameter is not None:  # a field that is called so gets a key as all others do
        is_taken = not isinstance(parameter.default, Pending)
    key = kwargs.get("key")
    if is_taken:
        made = make(*args, **kwargs)
        if parameter is not None and key is None:  # given by position, or the default
            key = _argument(signature, args, kwargs)
    else:
        made = make(*args, **{k: v for k, v in kwargs.items() if k != "key"})
    return made, Keys(name, key, is_taken)


def _argument(signature: inspect.Signature, args: tuple, kwargs: Mapping[str, Any]) -> Any:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments["key"]


def bind(model: M, keys: Keys | None = None) -> tuple[M, States]:
    """The model with handles in the place of its States, and their context.

    **Arguments:**

    - `keys`: for the fields whose states are made here.
    """
    refuse_foreign(
        model,
        "What makes a model returned",
        "model, states = sm.make_with_states(Module)(...)",
        then=_THEN,
    )
    _refuse_contexts(model)
    if keys is not None:
        model = make_fields(model, keys)
        keys.refuse_unused()
    check_fields(model, State)
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
        return holds_states(make)
    return isinstance(make, State)


def _refuse_contexts(model: Any) -> None:
    """Refuses a context in a model, whose values would be none of the new context's."""
    is_context = lambda x: isinstance(x, States)
    for keys, leaf in jax.tree_util.tree_flatten_with_path(model, is_leaf=is_context)[0]:
        if is_context(leaf):
            raise TypeError(
                f"The model holds a context, at `{dotted(to_path(keys))}`, whose states would be "
                "none of the context that is made. Let each part have its values in it. (What "
                "makes one model with its context takes no `make_with_states` around it.)\n"
                "Wrong:  self.actor = bridge.nnx(module)\n"
                "Right:  self.actor = bridge.unbind(*bridge.nnx(module))"
            )


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
                "One model at two places is the same object at both. Of what `statemap.bridge` "
                "made, each is a part by `bridge.unbind(*bridge.nnx(module))`."
            )


def _first_paths(found: list[tuple[Path, State]]) -> dict[int, Path]:
    paths: dict[int, Path] = {}
    for path, state in found:
        paths.setdefault(id(state), path)
    return paths


def _fingerprint(model: Any, found: list[tuple[Path, State]]) -> str:
    """What tells models of different make apart, and is the same in every process."""
    described = [
        (p, type(s).__qualname__, s.name, s.tag, _named(Struct(s.value))) for p, s in found
    ]
    # A static field of a module may be shown by its address.
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(described))
    name = getattr(model, "__name__", type(model).__qualname__)  # that of what a bridge brought in
    return f"{name}:{zlib.crc32(text.encode()):08x}"


def _named(struct: Struct) -> Struct:
    """A value's structure, with names for what is no array."""
    leaves = (x if isinstance(x, jax.ShapeDtypeStruct) else name_of(x) for x in struct.leaves)
    return Struct(jax.tree.unflatten(struct.treedef, leaves))
