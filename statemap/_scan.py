"""`scan`: a step of a context, taken many times."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from ._axes import argument_labels
from ._container import read_context, refuse_no_context
from ._foreign import refuse_foreign
from ._run import pair
from ._states import make_states, States
from ._values import describe, dotted, fit, function_name
from ._watch import reach, refuse_changed, run_watched


P = ParamSpec("P")
R = TypeVar("R")


def scan(
    step: Callable[P, R], *, length: int | None = None, reverse: bool = False, unroll: int = 1
) -> Callable[P, R]:
    """Many steps of a function, one after another: `jax.lax.scan`, for functions that take a
    context first and return it last.

    The result is such a function, too. So it may be mapped, and what is mapped may be scanned:

    ```python
    import jax, jax.numpy as jnp
    import statemap as sm

    def step(states, x):
        v = 0.9 * states["v"] + x
        return v, states.set("v", v)

    states = sm.States(v=sm.ShortTermState(0.0))
    volts, after = sm.scan(step)(states, jnp.ones(50))
    assert volts.shape == (50,) and after["v"] == volts[-1]

    states, axes = sm.broadcast(states, {0: ...}, axis_size=3)
    inside = sm.vmap2(sm.scan(step), in_axes=None, state_in_axes=axes)
    outside = jax.jit(sm.scan(sm.vmap2(step, in_axes=None, state_in_axes=axes)))
    assert inside(states, jnp.ones(50))[0].shape == (3, 50)
    assert outside(states, jnp.ones(50))[0].shape == (50, 3)
    ```

    **Arguments:**

    - `step`: a function `(states, *xs) -> (out, states)`, such as a model, a method of one, or a
        mapping.
    - `length`: the number of steps; needed where there are no arguments to tell it.
    - `reverse`: whether the last step is taken first.
    - `unroll`: the number of steps in one turn of the compiled loop.

    **Returns:**

    A function of a context and of arguments whose axis 0 is time. It returns `(outs, states)`: what
    the steps returned, stacked on axis 0, and the context after the last of them. What `step` is to
    be given in every step alike, let it close over.

    **Raises:**

    When it is called: `TypeError` if `step` does not return `(out, states)`, `ValueError` if it
    returns other states than it was given, or a state in another shape or dtype, if nothing tells
    how many steps there are, or if an argument has no axis of time, or one of another length.
    """

    refuse_foreign(step, "`scan` was given as its step", "sm.scan(module)(states, xs)")
    traced: list[tuple] = []  # what the step reached of other libraries' objects at first

    def body(states: PyTree, xs: tuple[Any, ...]) -> tuple[PyTree, Any]:
        out, after = pair(run_watched(step, (states, *xs), {}), step, "A step")
        return _alike(states, after), out

    @functools.wraps(step, updated=())
    def steps(states: Any, /, *xs: Any) -> Any:
        refuse_no_context(states)
        _check_time(step, xs, length)
        now, one = reach(step), body
        if now is not None and now.holds_tracer:
            one = lambda *given: body(*given)  # a function that JAX has not traced yet
        elif now is not None or traced:
            if not traced:
                traced.append(() if now is None else now.facts)
            refuse_changed(traced[0], now, name := function_name(step), f"sm.scan({name})")
        states, outs = jax.lax.scan(one, states, xs, length, reverse, unroll)
        return outs, states

    return steps  # pyright: ignore


def _check_time(step: Callable, xs: tuple[Any, ...], length: int | None) -> None:
    """Refuses arguments that do not have a value for each step."""
    sizes = [] if length is None else [("`length`", length)]
    for label, leaf in zip(argument_labels(step, xs, {}), jax.tree.leaves(xs)):
        shape = np.shape(leaf)
        if not shape:
            raise ValueError(
                f"{label[0].upper()}{label[1:]} has no axis of time: it is {describe(leaf)}. What "
                "is alike in every step, let the step close over it.\n"
                "Wrong:  sm.scan(step)(states, xs, rate)\n"
                "Right:  sm.scan(lambda states, x: step(states, x, rate))(states, xs)"
            )
        sizes.append((label, shape[0]))
    if not sizes:
        raise ValueError(
            "Nothing tells how many steps there are: no argument has an axis of time.\n"
            "Wrong:  sm.scan(step)(states)\n"
            "Right:  sm.scan(step, length=100)(states)"
        )
    if len({size for _, size in sizes}) > 1:
        listed = "\n".join(f"  {size:>6}  {label}" for label, size in sizes)
        raise ValueError(f"The number of steps differs:\n{listed}")


def _alike(before: PyTree, after: PyTree) -> PyTree:
    """What a step gave back, for the next one to be given."""
    if not isinstance(before, States):
        return after  # of another pytree JAX tells what is wrong
    values = []
    for slot, old, new in zip(
        before._slots.entries, before._values, read_context(before._slots, after)
    ):
        try:
            values.append(fit(old, new, dotted(slot.path)))
        except ValueError as error:
            error.add_note(
                "(A step gives each state back as it came, since the next one is given it. A state "
                "that a mapping in the step gives an axis of lanes has it from the start: "
                "`states, axes = sm.broadcast(states, axes, axis_size=n)`.)"
            )
            raise
    return make_states(before._slots, tuple(values))
