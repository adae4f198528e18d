"""The rules that stand in `state_out_axes` beside axes: `Reduce` and `Restore`."""

from collections.abc import Callable, Hashable
from typing import Any

from ._exact import by_identity
from ._values import describe, function_name


HOWS = ("mean", "sum", "min", "max", "any", "all", "changes")


class Reduce:
    """A key of `state_out_axes`: the states listed under it come out shared, what the lanes wrote
    to each combined into one value.

    ```python
    import jax.numpy as jnp
    import statemap as sm

    def step(states, x):
        states = states.set("seen", states["seen"] + 1)
        return x, states.set("mean", 0.9 * states["mean"] + 0.1 * x)

    rules = {sm.Reduce("changes"): "count", sm.Reduce("mean"): sm.LongTermState}
    mapped = sm.vmap2(step, state_out_axes=rules)

    seen = sm.ShortTermState(0, tag="count")
    states = sm.States(seen=seen, mean=sm.LongTermState(0.0))
    _, states = mapped(states, jnp.array([1.0, 2.0, 3.0]))
    assert states["seen"] == 3  # every lane added one
    assert jnp.allclose(states["mean"], 0.2)
    ```

    The dtype is kept. In chunks, over devices and over processes the result is that of all lanes
    at once: of integers, and of `"min"`, `"max"`, `"any"` and `"all"`, to the bit; else to
    rounding. A shared state that the function does not write is as it was. A state that came in
    on an axis comes out shared, whether it was written or not.

    The first entry that matches a state counts, so that rules stand before the axes of a
    population: `{sm.Reduce("mean"): sm.LongTermState, **axes}`. Each `Reduce(...)` is a key of
    its own, and may stand in a dictionary beside another of the same kind.
    """

    __slots__ = ("how", "__weakref__")

    how: str | Callable[[Any, Any], Any]

    def __init__(self, how: str | Callable[[Any, Any], Any]):
        """**Arguments:**

        - `how`: one of
            - `"mean"`, of floating or complex numbers;
            - `"sum"`, of numbers;
            - `"min"`, `"max"`, of bools and of numbers that are not complex; which of several equal
                lanes the gradient goes to is not promised;
            - `"any"`, `"all"`, of bools;
            - `"changes"`: the old value plus the sum over the lanes of what each added to it. Of
                floating numbers, what a lane added is known to the rounding of the old value;
            - a function `(stacked, old) -> new`, of the lanes' values with the lanes on axis 0
                and the value that the state came in with, to a value of one lane's shape. It sees
                all lanes, and is refused in chunks.

        **Raises:**

        `ValueError` for another word, `TypeError` for what is no word and no function.
        """
        if isinstance(how, str):
            if how not in HOWS:
                known = ", ".join(map(repr, HOWS))
                raise ValueError(
                    f"`Reduce` takes one of {known}, or a function `(stacked, old) -> new`; not "
                    f"{how!r}."
                )
        elif not callable(how) or isinstance(how, type):  # a kind, given as the filter
            raise TypeError(
                "`Reduce` takes a word or a function, and was given "
                f"{describe(how)}.\n"
                "Wrong:  {sm.Reduce(sm.LongTermState): ...}\n"
                'Right:  {sm.Reduce("mean"): sm.LongTermState}'
            )
        self.how = how

    def __repr__(self) -> str:
        if isinstance(self.how, str):
            return f'Reduce("{self.how}")'
        return f"Reduce({function_name(self.how)})"


class _Restore:
    """The type of `Restore`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Restore"

    def __reduce__(self) -> str:
        return "Restore"


Restore: _Restore = _Restore()
"""A key of `state_out_axes`: the states listed under it come out as they came in, and what the
lanes write to them matters within the call alone.

```python
import jax.numpy as jnp
import statemap as sm

def f(states, x):
    states = states.set("scratch", states["scratch"] + x)
    return states["scratch"] ** 2, states

states = sm.States(scratch=sm.HiddenState(1.0))
out, states = sm.vmap2(f, state_out_axes={sm.Restore: sm.HiddenState})(states, jnp.arange(3.0))
assert out.tolist() == [1.0, 4.0, 9.0] and states["scratch"] == 1.0
```

A mapped state stays on the axis that it came in on. A random state draws the same numbers at
each call.
"""

Rule = Reduce | _Restore


def rule_key(rule: Rule | None, on_death: Callable[[Any], None] | None) -> Hashable:
    """What a rule is equal by, in the key of what is compiled."""
    return by_identity(rule.how, on_death) if isinstance(rule, Reduce) else rule
