"""What a program merely passes through: outputs that are one of its inputs, however deep inside
`jit`, `checkpoint`, loops and conditionals the path from one to the other leads.
"""

from typing import Any


def origin(jaxpr: Any, var: Any) -> Any:
    """The input of a jaxpr that an output is, or the variable where the way back ends."""
    producers = {out: (eqn, i) for eqn in jaxpr.eqns for i, out in enumerate(eqn.outvars)}
    while _hashable(var) and var in producers:
        before = _before(*producers[var])
        if before is None:
            break
        var = before
    return var


def _before(eqn: Any, i: int) -> Any:
    """The input of an equation that is passed on as its output `i`, if one is."""
    params, name = eqn.params, eqn.primitive.name
    if name == "while":
        skip, consts = params["cond_nconsts"], params["body_nconsts"]
        own = consts + i
        return eqn.invars[skip + own] if _input(params["body_jaxpr"], i) == own else None
    if name == "scan":
        if "num_consts" not in params:  # jax 0.12, where `scan` itself leaves out what it passes on
            return None
        own, carried = params["num_consts"] + i, i < params["num_carry"]
        return eqn.invars[own] if carried and _input(params["jaxpr"], i) == own else None
    if name == "cond":
        found = {_input(branch, i) for branch in params["branches"]}
        k = found.pop()
        return None if found or k is None else eqn.invars[1 + k]
    if name == "sharding_constraint":
        return eqn.invars[0]
    inner = params.get("jaxpr", params.get("call_jaxpr"))
    if inner is None or len(_open(inner).invars) != len(eqn.invars):
        return None
    k = _input(inner, i)
    return None if k is None else eqn.invars[k]


def _input(jaxpr: Any, i: int) -> int | None:
    """The position of the input that output `i` is."""
    jaxpr = _open(jaxpr)
    var = origin(jaxpr, jaxpr.outvars[i])
    return next((k for k, invar in enumerate(jaxpr.invars) if invar is var), None)


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _hashable(var: Any) -> bool:
    return not hasattr(var, "val")  # a literal
