"""What stands in a field that `statemap.field` declares, until its state is made."""

import inspect
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import jax

from ._annotations import field_hint, is_checked
from ._state import is_state, State
from ._values import describe


_ALLOWED = ("self", "key")
_FIXED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Pending:
    """A state that is declared and not made yet: where its value comes from, and the arguments
    of its kind. It holds no value, so that all instances of a class share it.
    """

    owner: type | None = None  # the class whose body declares it, and the name it has there
    field: str = "?"

    def __init__(self, default: Any, takes: tuple[str, ...] | None, given: dict[str, Any]):
        """**Arguments:**

        - `default`: a value, or a function that makes it; `MISSING` for a key.
        - `takes`: what the function takes, of `self` and `key`; `None` for a value.
        - `given`: the arguments for the kind besides the value.
        """
        self.default, self.takes, self.given = default, takes, given

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner, self.field = owner, name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(self.unbound())

    def __reduce__(self) -> tuple:
        return getattr, (self.owner, self.field)

    def __repr__(self) -> str:
        return f"<`{self.where()}`, not made yet>"

    def where(self, cls: type | None = None) -> str:
        """The field as messages name it, in the class of an instance."""
        cls = self.owner if cls is None else cls
        return self.field if cls is None else f"{cls.__name__}.{self.field}"

    def unbound(self) -> str:
        """The message for a use before there is a state."""
        cls = "Model" if self.owner is None else self.owner.__name__
        return (
            f"`{self.where()}` is declared by `sm.field` and holds no state yet. "
            "`make_with_states` makes the states of a model, each after those of the fields "
            "above it, once its `__init__` and `__check_init__` are through.\n"
            f"Wrong:  model = {cls}(...); model(states, x)\n"
            f"Right:  model, states = sm.make_with_states({cls})(..., key=jr.key(0))"
        )

    def accept(self, value: Any) -> Any:
        """The converter of the field: what an instance may be given instead."""
        if value is None or holds_states(value):
            return value
        cls = "Model" if self.owner is None else self.owner.__name__
        kind = None if self.owner is None else kind_of(self.owner, self.field)
        shown = "State" if kind is None else kind.__name__
        if kind is None or kind.__module__ == State.__module__:
            shown = f"sm.{shown}"
        raise TypeError(
            f"`{self.where()}` was given {_short(value)}, and takes a State.\n"
            f"Wrong:  {cls}(..., {self.field}=x)\n"
            f"Right:  {cls}(..., {self.field}={shown}(x))"
        )


def parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """Which of `self` and `key` the function of a field takes.

    **Raises:**

    `TypeError` if it takes anything else.
    """
    try:
        given = inspect.signature(function).parameters.values()
    except ValueError:
        _refuse(function, None)
    needed = [p for p in given if p.default is p.empty and p.kind not in _OPEN]
    if any(p.name not in _ALLOWED or p.kind not in _FIXED for p in needed):
        _refuse(function, needed)
    return tuple(p.name for p in given if p.name in _ALLOWED and p.kind in _FIXED)


def _refuse(function: Callable[..., Any], needed: Iterable[inspect.Parameter] | None) -> NoReturn:
    name = getattr(function, "__name__", repr(function))
    what = "whose signature is unknown"
    if needed is not None:
        what = f"which needs {', '.join(f'`{p.name}`' for p in needed)}"
    raise TypeError(
        "The function of a field takes the module as `self`, a key of its own as `key`, both or "
        f"none of them, by these names; and was given `{name}`, {what}.\n"
        "Wrong:  sm.field(lambda n, k: jr.normal(k, (n,)))\n"
        "Right:  sm.field(lambda self, key: jr.normal(key, (self.n,)))"
    )


def holds_states(tree: Any) -> bool:
    """Whether there are States in a pytree, made or pending."""
    leaves = jax.tree.leaves(tree, is_leaf=is_state)
    return any(isinstance(x, State | Pending) for x in leaves)


def kind_of(cls: type, field: str) -> type[State] | None:
    """The kind that the annotation of a field names, alone or besides `None`; `None` if there is
    no such kind.
    """
    hint = field_hint(cls, field)
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    parts = typing.get_args(hint) if is_union else (hint,)
    kinds = [k for k in map(_kind, parts) if k is not None]
    return kinds[0] if len(kinds) == 1 else None


def _kind(hint: Any) -> type[State] | None:
    kind = getattr(hint, "kind", hint) if is_checked(hint) else typing.get_origin(hint) or hint
    return kind if isinstance(kind, type) and issubclass(kind, State) else None


def _short(value: Any) -> str:
    return describe(value) if len(repr(value)) < 200 else f"a {type(value).__name__}"
