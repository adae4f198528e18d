"""`ParamState[Float[Array, "out in"]]` as an annotation that a type checker can test.

jaxtyping and beartype check with `isinstance`, which for an ordinary generic alias says nothing
about the value. What `State.__class_getitem__` returns at run time is therefore a class of its
own, whose `isinstance` looks at the kind and then at the value.
"""

import dataclasses
import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any, no_type_check, TypeVar

import equinox as eqx
import jax
from jaxtyping import jaxtyped, PyTree


class _CheckedMeta(type):
    kind: type
    hint: Any

    def __new__(mcs, name: str, bases: tuple, namespace: dict[str, Any]) -> type:
        kinds = tuple(b.kind if isinstance(b, _CheckedMeta) else b for b in bases)
        if kinds != bases:  # `class Mine(ParamState[Array])` subclasses `ParamState`
            namespace.pop("__orig_bases__", None)
            metaclass = max((type(k) for k in kinds), key=lambda m: len(type.mro(m)))
            return metaclass(name, kinds, namespace)
        return super().__new__(mcs, name, bases, namespace)

    # Unchecked itself: a scope of its own would forget the sizes of axes that it learns.
    @no_type_check
    def __instancecheck__(cls, instance: Any) -> bool:
        if not isinstance(instance, cls.kind):
            return False
        if instance.is_handle:  # the value is in a context, checked when it was made
            return True
        return matches(instance.value, cls.hint)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return subclass is cls or issubclass(subclass, cls.kind)


def checked(kind: type, hint: Any) -> type:
    """The class whose instances are the `kind`s with a value that `hint` describes."""
    name = f"{kind.__name__}[{show_hint(hint)}]"
    return _CheckedMeta(name, (), {"kind": kind, "hint": hint, "__module__": kind.__module__})


def show_hint(hint: Any) -> str:
    shape, array = getattr(hint, "dim_str", None), getattr(hint, "array_type", None)
    if shape is None or array is None:
        return (getattr(hint, "__name__", None) or repr(hint)).rpartition(".")[2]
    return f'{hint.__name__.partition("[")[0]}[{show_hint(array)}, "{shape}"]'


def is_checked(hint: Any) -> bool:
    """Whether an annotation is what `State[...]` returns."""
    return isinstance(hint, _CheckedMeta)


def field_hint(cls: type, name: str) -> Any:
    """The annotation of a field; a string, as `from __future__ import annotations` makes it, where
    the module of its class does not have all of its names.
    """
    for base in cls.__mro__:
        hint = inspect.get_annotations(base).get(name)
        if hint is not None:
            module = sys.modules.get(base.__module__)
            return resolved(hint, getattr(module, "__dict__", {}), vars(base))
    return None


def resolved(hint: Any, names: dict[str, Any], more: Mapping[str, Any] | None = None) -> Any:
    """An annotation, of which `from __future__ import annotations` may have made a string."""
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, names, more)
    except Exception:  # whatever it evaluates: it may be in somebody else's class
        return hint


def check_fields(model: PyTree, base: type) -> None:
    """Checks the States in a model against the annotations of their fields.

    **Arguments:**

    - `base`: the class of all kinds, `State`.

    The import hook of jaxtyping checks the arguments of functions, which the fields of a module
    with an `__init__` of its own are not. Names of axes are one within a module.

    **Raises:**

    `TypeError` that names the class, the field, what was expected and what came.
    """
    for module in _modules(model):
        _check_module(module, base)


@jaxtyped(typechecker=None)  # what `isinstance` learns of the axes' sizes lasts for this call
def _check_module(module: eqx.Module, base: type) -> None:
    cls = type(module)
    hints = {f.name: field_hint(cls, f.name) for f in dataclasses.fields(module)}
    hints = {n: h for n, h in hints.items() if is_checked(h) or _is_kind(h, base)}
    fields = {n: getattr(module, n, None) for n in hints}
    for name, value in fields.items():
        if not isinstance(value, hints[name]):
            others = ", ".join(
                f"{n}={eqx.tree_pformat(v, struct_as_array=True)}"
                for n, v in fields.items()
                if n != name
            )
            raise TypeError(
                f"`{cls.__name__}.{name}` is annotated `{show_hint(hints[name])}` and holds "
                f"{eqx.tree_pformat(value, struct_as_array=True)}."
                + (f" (Besides it: {others}.)" if others else "")
                + ("" if isinstance(value, base) else _advice(name, value, hints[name]))
            )


def _is_kind(hint: Any, base: type) -> bool:
    return isinstance(hint, type) and issubclass(hint, base)


def _advice(field: str, value: Any, hint: Any) -> str:
    """How a value becomes a state."""
    kind = show_hint(getattr(hint, "kind", hint))
    is_number = isinstance(value, (bool, int, float, complex))
    shown = repr(value) if is_number else "value"
    return (
        f"\nWrong:  self.{field} = {shown}\n"
        f"Right:  self.{field} = sm.{kind}({shown})\n"
        f"Or in the class, without an `__init__`: {field}: sm.{kind} = sm.field({shown})"
    )


def _modules(tree: PyTree) -> Iterator[eqx.Module]:
    """Every module in a pytree, at any depth."""
    if isinstance(tree, eqx.Module):
        yield tree
    for leaf in jax.tree.leaves(tree, is_leaf=lambda x: x is not tree):
        if leaf is not tree and not isinstance(leaf, jax.Array):
            yield from _modules(leaf)


@no_type_check
def matches(value: Any, hint: Any) -> bool:
    if hint is Any or isinstance(hint, TypeVar) or isinstance(hint, str):
        return True
    if any(isinstance(x, jax.ShapeDtypeStruct) or x is None for x in jax.tree.leaves(value)):
        return True  # a specification rather than a value
    try:
        return isinstance(value, hint)
    except TypeError:  # `dict[str, Array]` and the like: `isinstance` takes the origin alone
        origin = getattr(hint, "__origin__", None)
        return isinstance(value, origin) if isinstance(origin, type) else True
