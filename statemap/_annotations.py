"""`ParamState[Float[Array, "out in"]]` as an annotation that a type checker can test.

jaxtyping's import hook checks the fields of a module with `isinstance`, which for an ordinary
generic alias says nothing about the value. What `State.__class_getitem__` returns at run time
is therefore a class of its own, whose `isinstance` looks at the kind and then at the value.
"""

from typing import Any, TypeVar

import jax


class _CheckedMeta(type):
    kind: type
    hint: Any

    def __new__(mcs, name: str, bases: tuple, namespace: dict[str, Any]) -> type:
        kinds = tuple(b.kind if isinstance(b, _CheckedMeta) else b for b in bases)
        if kinds != bases:  # `class Mine(ParamState[Array])` subclasses `ParamState`
            namespace.pop("__orig_bases__", None)
            metaclass = max((type(k) for k in kinds), key=lambda m: len(m.__mro__))
            return metaclass(name, kinds, namespace)
        return super().__new__(mcs, name, bases, namespace)

    def __instancecheck__(cls, instance: Any) -> bool:
        if not isinstance(instance, cls.kind):
            return False
        if instance.is_handle:  # the value is in a context, checked when it was made
            return True
        return _matches(instance.value, cls.hint)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return subclass is cls or issubclass(subclass, cls.kind)

    def __repr__(cls) -> str:
        return cls.__name__


def checked(kind: type, hint: Any) -> type:
    """The class whose instances are the `kind`s with a value that `hint` describes."""
    name = f"{kind.__name__}[{getattr(hint, '__name__', None) or hint!r}]"
    return _CheckedMeta(name, (), {"kind": kind, "hint": hint, "__module__": kind.__module__})


def _matches(value: Any, hint: Any) -> bool:
    if hint is Any or isinstance(hint, TypeVar) or isinstance(hint, str):
        return True
    if any(isinstance(x, jax.ShapeDtypeStruct) or x is None for x in jax.tree.leaves(value)):
        return True  # a specification rather than a value
    try:
        return isinstance(value, hint)
    except TypeError:  # `dict[str, Array]` and the like: `isinstance` takes the origin alone
        origin = getattr(hint, "__origin__", None)
        return isinstance(value, origin) if isinstance(origin, type) else True
