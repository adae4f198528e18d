"""Names of axes that are one in a call of a model and in its fields.

In a method that jaxtyping checks, the value of a state is checked against the annotation of its
field when it is looked up, so that `"in"` of a weight is `"in"` of an argument.
"""

import inspect
from typing import Any, no_type_check

import equinox as eqx
import jax

from ._annotations import field_hint, is_checked, matches, resolved, show_hint


# The arguments of the call that is being checked, and the sizes of its axes by name: jaxtyping
# tells these to `isinstance` and, printed, to people. The same in 0.3.0 to 0.3.11; elsewhere
# nothing is checked here.
try:
    from jaxtyping._storage import get_shape_memo
except ImportError:
    get_shape_memo = lambda: ({}, {}, {}, {})


# Not checked themselves, all of these: what `isinstance` learns is for the user's call.
@no_type_check
def bind_axes(handle: Any, value: Any) -> None:
    """Checks a value that is looked up in a method against the annotation of its field.

    **Arguments:**

    - `handle`: the handle that it is looked up by.

    **Raises:**

    `TypeError` if an axis has another size than an argument or a field that was looked up before.
    """
    sizes, _, _, arguments = get_shape_memo()
    module = arguments.get("self")
    if module is None or not isinstance(module, eqx.Module):
        return
    # Only of the model whose method this is: another may have axes of other sizes.
    field = next((n for n, x in vars(module).items() if x is handle), None)
    hint = None if field is None else field_hint(type(module), field)
    if not is_checked(hint) or not _is_lane(handle, value):
        return
    if not matches(value, hint.hint):
        _refuse(type(module), field, hint.hint, value, sizes, arguments)


@no_type_check
def _is_lane(handle: Any, value: Any) -> bool:
    """Whether a value is that of one lane rather than of a population."""
    leaves = jax.tree.leaves(value)
    return [x.shape for x in leaves] == [x.shape for x in jax.tree.leaves(handle.struct)]


@no_type_check
def _refuse(cls, field, hint, value, sizes, arguments):
    shape = getattr(value, "shape", ())
    names = _names(hint, len(shape))
    where = f"`{cls.__name__}.{field}`"
    found = [(n, size) for n, size in zip(names, shape) if sizes.get(n, size) != size]
    if not found:
        known = ", ".join(f"{n}={size}" for n, size in sizes.items())
        raise TypeError(
            f"{where} is annotated `{show_hint(hint)}` and has the shape {shape}, which does not "
            f"fit the other axes of this call: {known}."
        )
    has = ", ".join(f"{n}={size}" for n, size in found)
    others = []
    for name, size in [(n, sizes[n]) for n, _ in found]:
        holders = _holders(cls, arguments, name, size)
        others.append(
            f"the argument `{holders[0]}` has {name}={size}"
            if holders
            else f"another field or argument has {name}={size}"
        )
    raise TypeError(
        f"{where} is annotated `{show_hint(hint)}` and has {has}, and {', '.join(others)}."
    )


@no_type_check
def _holders(cls, arguments, axis, size):
    """The arguments of the call that have an axis of a name and a size."""
    fn = _method(cls)
    found = []
    for name, value in arguments.items() if fn is not None else ():
        shape = getattr(value, "shape", ())
        hint = resolved(inspect.get_annotations(fn).get(name), fn.__globals__)
        if (axis, size) in zip(_names(hint, len(shape)), shape):
            found.append(name)
    return found


@no_type_check
def _method(cls):
    """The method that is running, for the annotations of its parameters."""
    frame = inspect.currentframe()
    while frame is not None:
        fn = getattr(cls, frame.f_code.co_name, None)
        if fn is not None and getattr(inspect.unwrap(fn), "__code__", None) is frame.f_code:
            return inspect.unwrap(fn)
        frame = frame.f_back
    return None


@no_type_check
def _names(hint, ndim):
    """The names of the axes of a jaxtyping annotation, if it has a name for each."""
    names = str(getattr(hint, "dim_str", "")).split()
    return names if len(names) == ndim and all(n.isidentifier() for n in names) else []
