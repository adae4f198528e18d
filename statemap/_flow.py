"""What flows through a jaxpr: the outputs that are merely an input passed on, and the inputs that
matter to what is wanted of it.

Both look into `jit`, `checkpoint`, loops, branches and custom rules, however deep.
"""

from collections.abc import Sequence
from typing import Any

from ._jaxpr import Inside, inside, is_variable, Loop, with_equations


def forwarded(jaxpr: Any) -> Any:
    """A jaxpr in which nothing takes the way through an equation that merely passes it on: a
    `jit`, a loop, a branch. What has a rule of its own, for derivatives or for batching, is no
    such equation, and nor is a barrier.
    """
    flow, keys, origin, eqns = Flow(jaxpr, through_rules=False), Keys(), {}, []

    def source(atom: Any) -> Any:
        return origin.get(atom, atom) if is_variable(atom) else atom

    for eqn in jaxpr.eqns:
        invars = [source(atom) for atom in eqn.invars]
        if any(new is not old for new, old in zip(invars, eqn.invars)):
            eqn = eqn.replace(invars=invars)
        eqns.append(eqn)
        for var, x in zip(eqn.outvars, keys.outputs(eqn, invars)):
            if x is not None:
                origin[var] = x
        for var, k in zip(eqn.outvars, flow.of_equation(eqn)):
            if k is not None:
                origin[var] = invars[k]
    if not origin:
        return jaxpr
    return with_equations(jaxpr, eqns, [source(atom) for atom in jaxpr.outvars])


class Flow:
    """The analysis of a jaxpr. What it has found out of the jaxprs inside it keeps, so that all
    outputs together take one pass.
    """

    def __init__(self, jaxpr: Any, through_rules: bool = True):
        """**Arguments:**

        - `through_rules`: whether a value is the same after a function with a rule of its own.
        """
        self.jaxpr, self.through_rules = jaxpr, through_rules
        self._found: dict[int, list[int | None]] = {}
        self._jaxprs: list[Any] = []  # kept, so that no id is used again

    def passed_on(self) -> list[int | None]:
        """For each output the position of the input that it is, or None."""
        return self._passed_on(self.jaxpr)

    def _passed_on(self, jaxpr: Any) -> list[int | None]:
        found = self._found.get(id(jaxpr))
        if found is None:
            origin: dict[Any, Any] = {}
            keys = Keys()
            for eqn in jaxpr.eqns:
                invars = [origin.get(x, x) if is_variable(x) else x for x in eqn.invars]
                for var, x in zip(eqn.outvars, keys.outputs(eqn, invars)):
                    if x is not None:
                        origin[var] = x
                for var, k in zip(eqn.outvars, self.of_equation(eqn)):
                    if k is not None and is_variable(invars[k]):
                        origin[var] = invars[k]
            place = {var: k for k, var in enumerate(jaxpr.invars)}
            found = [
                place.get(origin.get(var, var)) if is_variable(var) else None
                for var in jaxpr.outvars
            ]
            self._found[id(jaxpr)] = found
            self._jaxprs.append(jaxpr)
        return found

    def of_equation(self, eqn: Any) -> list[int | None]:
        """For each output of an equation the position of the input that it is, or None."""
        found: list[int | None] = [None] * len(eqn.outvars)
        name = eqn.primitive.name
        if name == "optimization_barrier" and self.through_rules:
            return list(range(len(eqn.invars)))
        if name.startswith("custom_") and not self.through_rules:
            return found
        parts = inside(eqn)
        if parts is None:
            return found
        if isinstance(parts, Loop):
            body = self._passed_on(parts.body.jaxpr)
            for i in range(parts.n_carry):
                own = parts.n_consts + i
                if body[i] == own:  # the carry stays what it was at the start
                    found[i] = parts.body.inputs[own]
            return found
        each = [[_at(p, k) for k in self._passed_on(p.jaxpr)] for p in parts]
        return [ks[0] if len(set(ks)) == 1 else None for ks in zip(*each)]

    def matter(self, wanted: Sequence[bool]) -> list[bool]:
        """Which inputs matter to the wanted outputs or to an effect. What a loop carries round
        and nothing looks at does not.
        """
        return _matter(self.jaxpr, wanted)


class Keys:
    """The data of random keys, which are typed and taken apart again on their way through a lane:
    the same all along.
    """

    def __init__(self):
        self._data: dict[Any, Any] = {}  # by the typed keys

    def outputs(self, eqn: Any, invars: Sequence[Any]) -> list[Any]:
        """For each output of an equation the variable that it is, or None."""
        name = eqn.primitive.name
        if name == "random_wrap" and is_variable(invars[0]):
            self._data[eqn.outvars[0]] = invars[0]
        if name == "random_unwrap" and is_variable(invars[0]):
            return [self._data.get(invars[0])]
        return [None] * len(eqn.outvars)


def _at(part: Inside, k: int | None) -> int | None:
    return None if k is None else part.inputs[k]


def _matter(jaxpr: Any, wanted: Sequence[bool]) -> list[bool]:
    live = {var for var, w in zip(jaxpr.outvars, wanted) if w and is_variable(var)}
    for eqn in reversed(jaxpr.eqns):
        outs = [var in live for var in eqn.outvars]
        if not any(outs) and not eqn.effects:
            continue
        for var, matters in zip(eqn.invars, _matter_to(eqn, outs)):
            if matters and is_variable(var):
                live.add(var)
    return [var in live for var in jaxpr.invars]


def _matter_to(eqn: Any, outs: list[bool]) -> list[bool]:
    parts = inside(eqn)
    if parts is None:
        return [True] * len(eqn.invars)
    found = [False] * len(eqn.invars)

    def note(part: Inside, wanted: Sequence[bool]) -> list[bool]:
        inner = _matter(part.jaxpr, wanted)
        for k, matters in zip(part.inputs, inner):
            found[k] |= matters
        return inner

    if not isinstance(parts, Loop):
        if eqn.primitive.name == "cond":
            found[0] = True
        for part in parts:
            note(part, outs)
        return found
    wanted = outs
    if parts.condition is not None:
        asked = note(parts.condition, [True])[-parts.n_carry :]
        wanted = [w or a for w, a in zip(outs, asked)]
    carry = slice(parts.n_consts, parts.n_consts + parts.n_carry)
    while True:
        inner = note(parts.body, wanted)
        more = [w or c for w, c in zip(wanted, inner[carry])] + list(wanted[parts.n_carry :])
        if more == wanted:
            return found
        wanted = more
