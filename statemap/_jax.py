"""What is only semi-public in JAX: all of it that statemap uses, in one place.

Each name here is importable without `jax._src`, and none is promised by JAX's documentation. They
were tried with jax 0.8.2, 0.10.2 and 0.12.0; `tests/test_jax.py` fails by name when one goes.

- `get_opaque_trace_state`: which trace is going on. In `jax.core` before 0.9.
- `dce_jaxpr`, `eval_jaxpr`, `make_jaxpr(axis_env=)`: a program without what is not wanted, run
    equation by equation, and traced with names of axes bound.
- `ShapedArray.update`, `NamedSharding.update`: the type of an array with another shape.
- `Jaxpr.replace`, `JaxprEqn.replace`: a program without what is merely passed on.
- `Inline` (0.12): `inline=True` comes to mean less there.
- `Jaxpr.effects`, by the names of their classes: which Refs are written.
- `make_user_context` (0.8): a part of the key of JAX's caches.
- `jaxprs_in_params`, the parameter `callback` of `pure_callback`, and its `callback_func`.
- parameters of the primitives of control flow, for `passed_on` and `inside`.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, jaxprs_in_params
from jax.interpreters import partial_eval
from jax.sharding import AxisType, NamedSharding, PartitionSpec


try:
    from jax.extend.core import get_opaque_trace_state
except ImportError:  # before jax 0.9
    from jax.core import get_opaque_trace_state  # pyright: ignore


eval_jaxpr = jax.core.eval_jaxpr
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


def make_jaxpr(
    fn: Callable[..., Any], avals: Sequence[Any], axis_env: Sequence[tuple[Hashable, int]] | None
) -> Any:
    """The `ClosedJaxpr` of `fn(avals)`, with names and sizes of axes for its collectives."""
    env = {} if axis_env is None else {"axis_env": list(axis_env)}
    # A function made for this call: JAX's caches hold what they traced of a bound method for good.
    return jax.make_jaxpr(lambda flat: fn(flat), **env)(list(avals))  # pyright: ignore


def dce_jaxpr(
    jaxpr: Any, wanted: Sequence[bool], instantiate: bool | list[bool] = False
) -> tuple[Any, list[bool]]:
    """A jaxpr with the wanted outputs alone, and which inputs it takes; those that `instantiate`
    names it takes at any rate.
    """
    # Its checks know no name of an axis out here.
    with jax.enable_checks(False):
        return partial_eval.dce_jaxpr(jaxpr, list(wanted), instantiate=instantiate)


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


def written_refs(jaxpr: Any) -> set[Any]:
    """The variables of a program, Refs, that it writes to."""
    effects = [(eqn, effect) for eqn in jaxpr.eqns for effect in eqn.effects]
    return {
        effect.input if hasattr(effect, "input") else eqn.invars[effect.input_index]
        for eqn, effect in effects
        if type(effect).__name__ in ("WriteEffect", "AccumEffect")
    }


def axis_names(jaxpr: Any) -> set[Hashable]:
    """The names of axes that a program has collectives over."""
    return {effect.name for effect in jaxpr.effects if hasattr(effect, "name")}


def ordered_effects(jaxpr: Any) -> list[Any]:
    """The effects of a program that come in an order: those of `jax.debug.print(ordered=True)`."""
    return [e for e in jaxpr.effects if "Ordered" in type(e).__name__]


def called_back(eqn: Any) -> Any:
    """The function that an equation calls back on the host for its results, or None."""
    if eqn.primitive.name != "pure_callback":
        return None
    callback = eqn.params["callback"]
    return getattr(callback, "callback_func", callback)


def jaxprs_in(eqn: Any) -> list[Any]:
    """The jaxprs in the parameters of an equation."""
    return list(jaxprs_in_params(eqn.params))


def with_jaxprs(eqn: Any, change: Callable[[Any], Any]) -> Any:
    """An equation with the jaxprs in its parameters changed."""

    def changed(value: Any) -> Any:
        if type(value) is tuple:
            return tuple(map(changed, value))
        jaxpr = _open(value)
        if not isinstance(jaxpr, Jaxpr):
            return value
        return change(jaxpr) if jaxpr is value else value.replace(jaxpr=change(jaxpr))

    return eqn.replace(params={name: changed(x) for name, x in eqn.params.items()})


def on_each_device(eqn: Any, mesh: Any) -> Any:
    """An equation whose work is done by every device of a mesh, each with all of its inputs."""
    work = lambda *xs: eqn.primitive.bind(*xs, **eqn.params)
    whole = PartitionSpec()
    each = jax.shard_map(work, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)
    (made,) = jax.make_jaxpr(each)(*(x.aval for x in eqn.invars)).jaxpr.eqns
    return made.replace(invars=eqn.invars, outvars=eqn.outvars)


class Inside(NamedTuple):
    """A jaxpr inside an equation, and which input of the equation each of its inputs is."""

    jaxpr: Any
    inputs: list[int]


class Loop(NamedTuple):
    """A `scan` or a `while`: its body, its condition, and which inputs are carried."""

    body: Inside
    condition: Inside | None
    n_consts: int  # of the body
    n_carry: int


# Primitives that call a jaxpr with their own inputs.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "custom_vmap_call": "call",
}


def inside(eqn: Any) -> Loop | list[Inside] | None:
    """The jaxprs that an equation runs: a loop, several of which one is run, or one. None if it
    has none, or is of another kind.
    """
    name, params = eqn.primitive.name, eqn.params
    if name == "while":
        n_condition, n_body = params["cond_nconsts"], params["body_nconsts"]
        carry = list(range(n_condition + n_body, len(eqn.invars)))
        return Loop(
            Inside(
                _open(params["body_jaxpr"]), [*range(n_condition, n_condition + n_body), *carry]
            ),
            Inside(_open(params["cond_jaxpr"]), [*range(n_condition), *carry]),
            n_body,
            len(carry),
        )
    if name == "scan":
        if "num_consts" in params:
            n_consts, n_carry = params["num_consts"], params["num_carry"]
        else:  # jax 0.12
            n_consts, n_carry, _ = map(len, params["ft_in"].unpack())
        every = list(range(len(eqn.invars)))
        return Loop(Inside(_open(params["jaxpr"]), every), None, n_consts, n_carry)
    if name == "cond":
        given = list(range(1, len(eqn.invars)))
        return [Inside(_open(branch), given) for branch in params["branches"]]
    if name in _CALLS and _CALLS[name] in params:
        jaxpr = _open(params[_CALLS[name]])
        if len(jaxpr.invars) == len(eqn.invars):
            return [Inside(jaxpr, list(range(len(eqn.invars))))]
    return None


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def with_equations(jaxpr: Any, eqns: Sequence[Any], outvars: Sequence[Any]) -> Any:
    """A jaxpr with other equations and outputs."""
    return jaxpr.replace(eqns=list(eqns), outvars=list(outvars))


def is_variable(atom: Any) -> bool:
    """Whether an atom of a jaxpr is a variable, rather than a literal."""
    return not hasattr(atom, "val")
