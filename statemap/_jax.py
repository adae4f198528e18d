"""What is only semi-public in JAX: all of it that statemap uses, in two places. Programs are in
`_jaxpr.py`; here is what else there is.

Each name here is importable without `jax._src`, and none is promised by JAX's documentation. They
were tried with jax 0.8.2, 0.10.2 and 0.12.0; `tests/test_jax.py` fails by name when one goes.

- `get_opaque_trace_state`: which trace is going on. In `jax.core` before 0.9.
- `ShapedArray.update`, `NamedSharding.update`: the type of an array with another shape.
- `Inline` (0.12): `inline=True` comes to mean less there.
- `make_user_context` (0.8): a part of the key of JAX's caches.
"""

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec


try:
    from jax.extend.core import get_opaque_trace_state
except ImportError:  # before jax 0.9
    from jax.core import get_opaque_trace_state  # pyright: ignore


make_user_context = jax.make_user_context
# Inside an outer trace, a mapping is its equations.
INLINE: Any = jax.Inline.JAX_EARLY if hasattr(jax, "Inline") else True  # pyright: ignore


REF: tuple[type, ...] = (jax.Ref,) if hasattr(jax, "Ref") else ()


def _own_jit() -> Any:
    """`jax.jit`, which Equinox (0.13.8) replaces under `EQX_ON_ERROR=breakpoint` by a function that
    ignores it in a trace, and that has no `trace`.
    """
    jit: Any = jax.jit
    while jit.__globals__["__name__"].partition(".")[0] == "equinox":
        jit = jit.__wrapped__
    return jit


jit = _own_jit()


def trace_state() -> Any:
    """Which of JAX's traces is going on: something to compare."""
    return get_opaque_trace_state("statemap")


with jax.ensure_compile_time_eval():
    _BASE_TRACE = trace_state()


def is_base_trace() -> bool:
    """Whether no transform is going on, so that all values are arrays."""
    return trace_state() == _BASE_TRACE


@jax.tree_util.register_static
class _Context:
    """A number for all that JAX keys its traces by besides types: its settings, the sizes of named
    axes, the mesh, contexts of the user's.
    """

    def __init__(self, number: int):
        self.number = number


_numbers = itertools.count()
# `jax.jit` runs this once in each such context, and knows when it is in one of them again.
_context = jit(lambda: _Context(next(_numbers)), inline=INLINE)


def trace_context() -> int:
    """All that a program depends on besides functions, types and what is static, as a number."""
    with jax.disable_jit(False):
        return _context().number


def type_of(x: Any) -> tuple[Any, ...]:
    """What of an array a program depends on: shape, dtype, whether it is weakly typed; and how it
    is laid over a mesh where that is part of its type (explicit and manual axes).
    """
    aval = jax.typeof(x)
    placed = placement(aval)
    return (aval.shape, aval.dtype, aval.weak_type, *(() if placed is None else placed))


def placement(aval: Any) -> tuple[Any, ...] | None:
    """The sharding of a type and what it varies over, None where neither is part of the type."""
    sharding = getattr(aval, "sharding", None)
    if sharding is None or sharding.mesh.empty or _is_auto(sharding.mesh):
        return None
    return sharding, getattr(aval, "manual_axis_type", None) or getattr(aval, "vma", None)


def _type(x: Any) -> Any:
    return x if isinstance(x, jax.core.ShapedArray) else jax.typeof(x)


def _is_auto(mesh: Any) -> bool:
    return all(kind == AxisType.Auto for kind in mesh.axis_types)


def without_axis(x: Any, axis: int | None) -> Any:
    """The type of what a lane sees of an array that is mapped on an axis."""
    aval = _type(x)
    shape = aval.shape if axis is None else aval.shape[:axis] + aval.shape[axis + 1 :]
    if placement(aval) is None:
        return jax.ShapeDtypeStruct(shape, aval.dtype, weak_type=aval.weak_type)
    if axis is None:
        return aval
    spec = list(_spec(aval))
    del spec[axis]
    return aval.update(shape=shape, sharding=aval.sharding.update(spec=PartitionSpec(*spec)))


def with_lanes(x: Any, lanes: int, sharding: Any) -> Any:
    """The type of an array that is made for each lane, with the lanes on axis 0.

    **Arguments:**

    - `x`: what a lane sees.
    - `sharding`: from `lanes_sharding`.
    """
    aval = _type(x)
    shape = (lanes, *aval.shape)
    if sharding is None and placement(aval) is not None:
        spec = PartitionSpec(None, *_spec(aval))
        return aval.update(shape=shape, sharding=aval.sharding.update(spec=spec))
    if sharding is None:
        return jax.ShapeDtypeStruct(shape, aval.dtype)
    spec = PartitionSpec(*sharding.spec, *[None] * len(aval.shape))
    return aval.update(shape=shape, sharding=sharding.update(spec=spec))


def lanes_sharding(xs: Sequence[Any], axes: Sequence[int | None]) -> Any:
    """How the lanes lie over an explicit mesh: the sharding of one axis, or None."""
    for x, axis in zip(xs, axes):
        if axis is None:
            continue
        aval = jax.typeof(x)
        sharding = getattr(aval, "sharding", None)
        if sharding is not None and AxisType.Explicit in sharding.mesh.axis_types:
            entry = _spec(aval)[axis]
            if entry is not None:
                return NamedSharding(sharding.mesh, PartitionSpec(entry))
    return None


def lay_lanes(x: jax.Array, lanes: Any) -> jax.Array:
    """An array that was made for the lanes on axis 0, laid over the mesh as they are."""
    if lanes is None:
        return x
    rest = [None] * (x.ndim - 1)
    return jax.sharding.reshard(x, NamedSharding(lanes.mesh, PartitionSpec(*lanes.spec, *rest)))


def on_axis(x: jax.Array, mesh: Any, axis: int | None, name: Hashable) -> jax.Array:
    """An array inside a program, laid over an axis of an explicit mesh, and over its others as it
    was.
    """
    names = set(name) if isinstance(name, tuple) else {name}
    spec = [None if _names(entry) & names else entry for entry in _spec(jax.typeof(x))]
    if axis is not None:
        spec[axis] = name
    return jax.sharding.reshard(x, NamedSharding(mesh.abstract_mesh, PartitionSpec(*spec)))


def _names(entry: Any) -> set[Hashable]:
    return set(entry) if isinstance(entry, tuple) else {entry} - {None}


def gather_lanes(x: jax.Array, axis: int) -> jax.Array:
    """An array whose lanes can be sliced: no explicit mesh axis on theirs."""
    aval = jax.typeof(x)
    sharding = getattr(aval, "sharding", None)
    if sharding is None or AxisType.Explicit not in sharding.mesh.axis_types:
        return x
    spec = list(_spec(aval))
    if spec[axis] is None:
        return x
    spec[axis] = None
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*spec)))


def take_lanes(x: jax.Array, axis: int, at: Any, size: int | None) -> jax.Array:
    """Some lanes of an array, or one, without its axis, where `size` is None.

    Where no numbers come out, JAX (0.10, 0.12) fails to index an array on an explicit mesh.
    """
    if size == 0 and isinstance(x, jax.core.Tracer):
        return jax.lax.slice_in_dim(x, 0, 0, axis=axis)
    if size == 0 or x.size == 0:
        return jnp.take(x, np.zeros(() if size is None else size, int), axis)
    return x[(slice(None),) * axis + (at,)]


def lay_as(y: Any, x: Any, before: int | None, after: int | None) -> Any:
    """An array `y` that was made of `x`, laid over the mesh as `x` is; over no other. The axis of
    the lanes keeps its place on the mesh where its new size allows that.

    **Arguments:**

    - `before`, `after`: the axis of the lanes in `x` and in `y`, None where there is none.
    """
    sharding = _lies(x)
    if sharding is None:
        return y
    spec = list(sharding.spec) + [None] * (len(x.shape) - len(sharding.spec))
    entry = None if before is None else spec.pop(before)
    if after is not None:
        parts = math.prod(sharding.mesh.shape[name] for name in _names(entry))
        spec.insert(after, entry if y.shape[after] % parts == 0 else None)
    wanted = sharding.update(spec=PartitionSpec(*spec))
    if isinstance(y, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(y.shape, y.dtype, sharding=wanted)
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    if explicit and isinstance(y, jax.core.Tracer):
        return jax.sharding.reshard(y, wanted)
    if isinstance(y, jax.core.Tracer):
        return y
    if isinstance(y, jax.Array) and y.committed and y.sharding == wanted:
        return y
    return jax.device_put(y, wanted)


def _lies(x: Any) -> Any:
    """The mesh that an array lies on, and how, if it has several devices: of a traced one where
    its type says so.
    """
    is_typed = isinstance(x, jax.core.Tracer)
    sharding = getattr(jax.typeof(x) if is_typed else x, "sharding", None)
    if not isinstance(sharding, NamedSharding) or sharding.mesh.empty or sharding.mesh.size == 1:
        return None
    if is_typed and AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    return sharding


def _spec(aval: Any) -> tuple[Any, ...]:
    spec = tuple(aval.sharding.spec)
    return spec + (None,) * (len(aval.shape) - len(spec))


def is_ref(x: Any) -> bool:
    """Whether something is a `jax.Ref`, or traced in the place of one."""
    return isinstance(x, REF)


def new_ref(x: Any, axis: int | None) -> Any:
    """In a lane, a Ref that begins as an array, of which the lanes are on an axis.

    `jax.vmap` (0.10) gets the shapes of a Ref wrong whose lanes are not on axis 0; there a reshape
    brings them.
    """
    if axis:
        x = jax.lax.squeeze(jax.lax.reshape(x, (1, *x.shape)), (0,))
    return jax.new_ref(x)
