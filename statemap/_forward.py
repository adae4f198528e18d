"""What a program merely passes through: outputs that are one of its inputs, however deep inside
`jit`, `checkpoint`, loops and conditionals the path from one to the other leads.
"""

from typing import Any


class Origins:
    """Where the outputs of a jaxpr come from. What it has found out, also of the jaxprs inside,
    it keeps, so that all outputs together take one pass.
    """

    def __init__(self) -> None:
        self._producers: dict[int, dict[Any, tuple[Any, int]]] = {}
        self._inputs: dict[int, dict[Any, int]] = {}
        self._jaxprs: list[Any] = []  # kept, so that no id is used again

    def of(self, jaxpr: Any, var: Any) -> Any:
        """The input of a jaxpr that an output is, or the variable where the way back ends."""
        producers = self._look_at(jaxpr)
        while _hashable(var) and var in producers:
            before = self._before(*producers[var])
            if before is None:
                break
            var = before
        return var

    def _look_at(self, jaxpr: Any) -> dict[Any, tuple[Any, int]]:
        if id(jaxpr) not in self._producers:
            self._jaxprs.append(jaxpr)
            self._inputs[id(jaxpr)] = {var: k for k, var in enumerate(jaxpr.invars)}
            self._producers[id(jaxpr)] = {
                out: (eqn, i) for eqn in jaxpr.eqns for i, out in enumerate(eqn.outvars)
            }
        return self._producers[id(jaxpr)]

    def _before(self, eqn: Any, i: int) -> Any:
        """The input of an equation that is passed on as its output `i`, if one is."""
        params, name, source = eqn.params, eqn.primitive.name, self._input
        if name == "while":
            skip, consts = params["cond_nconsts"], params["body_nconsts"]
            own = consts + i
            return eqn.invars[skip + own] if source(params["body_jaxpr"], i) == own else None
        if name == "scan":
            if "num_consts" not in params:  # jax 0.12, where `scan` leaves out what it passes on
                return None
            own, carried = params["num_consts"] + i, i < params["num_carry"]
            return eqn.invars[own] if carried and source(params["jaxpr"], i) == own else None
        if name == "cond":
            found = {source(branch, i) for branch in params["branches"]}
            k = found.pop()
            return None if found or k is None else eqn.invars[1 + k]
        if name == "sharding_constraint":
            return eqn.invars[0]
        inner = params.get("jaxpr", params.get("call_jaxpr"))
        if inner is None or len(_open(inner).invars) != len(eqn.invars):
            return None
        k = source(inner, i)
        return None if k is None else eqn.invars[k]

    def _input(self, jaxpr: Any, i: int) -> int | None:
        """The position of the input that output `i` is."""
        jaxpr = _open(jaxpr)
        var = self.of(jaxpr, jaxpr.outvars[i])
        return self._inputs[id(jaxpr)].get(var) if _hashable(var) else None


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _hashable(var: Any) -> bool:
    return not hasattr(var, "val")  # a literal
