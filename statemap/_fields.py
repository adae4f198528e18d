"""`field`: a state that is named once, in the body of its class."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from ._annotations import field_hint, show_hint
from ._keys import one_key
from ._pending import holds_states, kind_of, parameters, Pending
from ._state import is_state, RandomState
from ._streams import key_at
from ._values import dotted, Path, to_path


Made = Callable[[], Any] | Callable[[Any], Any] | Callable[[Any, Any], Any]
_MISSING: Any = dataclasses.MISSING


def field(
    default: Made | object = _MISSING,
    /,
    *,
    name: str | None = None,
    tag: str | None = None,
    **kwargs: Any,
) -> Any:
    """A field of an `equinox.Module` whose state is made by [`statemap.make_with_states`][], so
    that it needs no `__init__`.

    ```python
    import equinox as eqx, jax.numpy as jnp, jax.random as jr
    import statemap as sm
    from jaxtyping import Array, Float

    class LIF(eqx.Module):
        n_in: int
        n_out: int
        weight: sm.ParamState[Float[Array, "out in"]] = sm.field(
            lambda self, key: jr.normal(key, (self.n_out, self.n_in))
        )
        v: sm.ShortTermState[Float[Array, "out"]] = sm.field(lambda self: jnp.zeros(self.n_out))
        gain: sm.ParamState[Float[Array, ""]] = sm.field(1.0)
        rng: sm.RandomState = sm.field()

        def __call__(self, states, x):
            noise, states = sm.random.normal(states, self.rng, self.v.shape)
            v = 0.9 * states[self.v] + states[self.weight] @ x + noise
            return v, states.set(self.v, states[self.gain] * v)

    model, states = sm.make_with_states(LIF)(3, 4, key=jr.key(0))
    assert states[model.weight].shape == (4, 3)

    model, states, axes = sm.vmap2_new_states(
        LIF, dict(n_in=3, n_out=4), key=jr.key(0), axis_size=10
    )
    assert states[model.weight].shape == (10, 4, 3)
    ```

    The annotation says which kind of state it is. The states are made after `__init__` and
    `__check_init__`, field by field, so that a function may look at the fields above its own,
    `self.weight.shape`. Models within a model, also in lists and dictionaries, get theirs too:
    `Net(LIF(3, 4), LIF(4, 5))` takes no key.

    Each function that asks for `key` gets its own. It is derived from the one `key=` that
    `make_with_states` or `vmap2_new_states` was given, and from the path of the field
    (`"layers.0.weight"`) alone: other fields, added or taken away, don't change its numbers. A
    constructor that has a parameter `key` is given that one `key` as well.

    An instance may be given another State: `LIF(3, 4, v=sm.ShortTermState(v))`.

    **Arguments:**

    - `default`: where the value comes from:
        - a function of `self` (the module), `key`, both or none, told apart by these names. It
            returns the value; or a State, or a pytree with States (such as a model), which goes
            into the field as it is. It may return `None` if the annotation says so,
            `sm.ParamState | None`;
        - a value, the same for every instance;
        - left out, for a `RandomState`: a key of its own.
    - `name`: as for [`statemap.State`][].
    - `tag`: as for [`statemap.State`][].
    - `**kwargs`: more arguments for a kind of your own.

    **Returns:**

    A dataclass field, given by keyword alone where it is given.

    **Raises:**

    `TypeError` if a function takes other parameters or the value holds a State. When the states
    are made, `TypeError` if there is no key and one is asked for, or the annotation names no kind.
    """
    takes = None
    given = {k: v for k, v in dict(name=name, tag=tag).items() if v is not None} | kwargs
    if default is not _MISSING:
        if holds_states(default):
            raise TypeError(
                "The value of a field is the same for all instances, and a State may not be: "
                "used twice in a model, it would be one slot. Give its value, or a function.\n"
                "Wrong:  v: sm.ShortTermState = sm.field(sm.ShortTermState(0.0))\n"
                "Right:  v: sm.ShortTermState = sm.field(0.0)"
            )
        # A layer can be called, too, and is a value.
        if callable(default) and not any(map(eqx.is_array_like, jax.tree.leaves(default))):
            takes = parameters(default)
    pending = Pending(default, takes, given)
    # By keyword alone: so a key that is given by position is refused by Python.
    return eqx.field(default=pending, converter=pending.accept, kw_only=True)


class Keys:
    """The keys of fields, derived from one key and their paths."""

    def __init__(self, make: str, key: Any, is_taken: bool):
        """**Arguments:**

        - `make`: the name of what made the model.
        - `is_taken`: whether that was given the key, too.
        """
        self.make, self.key = make, key
        self.is_used = is_taken or key is None

    def derive(self, path: Path) -> jax.Array:
        self.is_used = True
        return key_at(one_key(self.key, "sm.make_with_states"), path)

    def refuse_unused(self) -> None:
        if not self.is_used:
            raise TypeError(
                f"`{self.make}` was given a `key`, which it does not take, and no field of its "
                "model is made from one. Leave the key out, or use it:\n"
                "Wrong:  weight: sm.ParamState = sm.field(lambda self: ...)\n"
                "Right:  weight: sm.ParamState = sm.field(lambda self, key: ...)"
            )


def make_fields(model: Any, keys: Keys) -> Any:
    """The model with States where its modules have pending ones; the very same if there are none.

    A module at two places is one at both.
    """
    return _Filling(keys).tree(model, ())


class _Filling:
    def __init__(self, keys: Keys):
        self.keys = keys
        self.done: dict[int, tuple[Any, Any]] = {}  # with the module, so that its id stays its own

    def tree(self, tree: Any, path: Path) -> Any:
        if is_state(tree):
            return tree
        if isinstance(tree, eqx.Module):
            if id(tree) not in self.done:
                self.done[id(tree)] = (tree, self.module(tree, path))
            return self.done[id(tree)][1]
        leaves, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_module)
        new = [
            self.tree(leaf, (*path, *to_path(keys))) if _is_module(leaf) else leaf
            for keys, leaf in leaves
        ]
        if all(a is b for a, (_, b) in zip(new, leaves)):
            return tree
        return jax.tree.unflatten(treedef, new)

    def module(self, module: eqx.Module, path: Path) -> eqx.Module:
        cls, own = type(module), vars(module)
        new = object.__new__(cls)
        vars(new).update(own)
        for f in dataclasses.fields(cls):
            if f.metadata.get("static"):
                continue
            old = own.get(f.name, getattr(cls, f.name, None))
            at = (*path, f.name)
            value = (
                self.state(old, new, f.name, at) if isinstance(old, Pending) else self.tree(old, at)
            )
            if value is not old:
                object.__setattr__(new, f.name, value)
        return module if all(v is own.get(k) for k, v in vars(new).items()) else new

    def state(self, pending: Pending, module: eqx.Module, field: str, path: Path) -> Any:
        """What a field holds whose states are made."""
        cls = type(module)
        where = f"`{pending.where(cls)}`"
        kind = kind_of(cls, field)
        if pending.default is _MISSING:
            if kind is None or not issubclass(kind, RandomState):
                named = _annotated(cls, field) if kind is None else f"this is a `{kind.__name__}`"
                raise TypeError(
                    f"{where} has no value: only a `RandomState` may go without, and {named}.\n"
                    f"Wrong:  {field}: sm.ShortTermState = sm.field()\n"
                    f"Right:  {field}: sm.ShortTermState = sm.field(lambda self: jnp.zeros(self.n))"
                )
            value = self.key(where, cls, path)
        elif pending.takes is None:
            value = pending.default
        else:
            given: dict[str, Any] = {"self": module} if "self" in pending.takes else {}
            if "key" in pending.takes:
                given["key"] = self.key(where, cls, path)
            try:
                value = self.tree(pending.default(**given), path)
            except Exception as error:
                error.add_note(f"(Raised by the function of the field {where}.)")
                raise
        if value is None and _is_optional(cls, field):
            return None
        if holds_states(value):
            return self._as_it_is(value, kind, pending, where)
        if kind is None:
            raise TypeError(
                f"{where} is a field of `sm.field`, and {_annotated(cls, field)}.\n"
                f"Wrong:  {field}: Array = sm.field(0.0)\n"
                f"Right:  {field}: sm.ShortTermState[Array] = sm.field(0.0)"
            )
        try:
            return kind(value, **pending.given)
        except Exception as error:
            error.add_note(f"(Raised when the state of the field {where} was made.)")
            raise

    def _as_it_is(self, value: Any, kind: Any, pending: Pending, where: str) -> Any:
        if pending.given:
            shown = ", ".join(f"{k}={v!r}" for k, v in pending.given.items())
            raise TypeError(
                f"The function of {where} returned States, which have names and tags of their "
                f"own; give `{shown}` to them."
            )
        if kind is not None and is_state(value) and not isinstance(value, kind):
            raise TypeError(
                f"{where} is annotated `{kind.__name__}`, and its function returned a "
                f"{type(value).__name__}."
            )
        return value

    def key(self, where: str, cls: type, path: Path) -> jax.Array:
        if self.keys.key is None:
            raise TypeError(
                f"{where} (at `{dotted(path)}`) is made from a key, and none was given.\n"
                f"Wrong:  sm.make_with_states({cls.__name__})(...)\n"
                f"Right:  sm.make_with_states({cls.__name__})(..., key=jr.key(0)), or for a "
                f"population sm.vmap2_new_states({cls.__name__}, ..., key=jr.key(0))"
            )
        return self.keys.derive(path)


def _annotated(cls: type, field: str) -> str:
    hint = field_hint(cls, field)
    if isinstance(hint, str):
        return (
            f"its annotation {hint!r} can't be resolved: some of its names are not defined in the "
            f"module `{cls.__module__}`. Define them there, or let the function return a State"
        )
    return f"its annotation `{show_hint(hint)}` names no kind of State"


def _is_optional(cls: type, field: str) -> bool:
    hint = field_hint(cls, field)
    return hint is None or type(None) in getattr(hint, "__args__", ())


def _is_module(x: Any) -> bool:
    return isinstance(x, eqx.Module)
