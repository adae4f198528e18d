"""What is only semi-public in JAX about programs: all of it that statemap uses.

Tried with jax 0.8.2, 0.10.2 and 0.12.0; `tests/test_jax.py` fails by name when one goes.

- `dce_jaxpr`, `eval_jaxpr`, `make_jaxpr(axis_env=)`: a program without what is not wanted, run
    equation by equation, and traced with names of axes bound.
- `Jaxpr.replace`, `JaxprEqn.replace`: a program without what is merely passed on.
- `Jaxpr.effects`, by the names of their classes: which Refs are written.
- `jaxprs_in_params`, the parameter `callback` of `pure_callback`, and its `callback_func`.
- parameters of the primitives of control flow, for `passed_on` and `inside`.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
from jax.extend.core import Jaxpr, jaxprs_in_params
from jax.interpreters import partial_eval
from jax.sharding import PartitionSpec


eval_jaxpr = jax.core.eval_jaxpr


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
