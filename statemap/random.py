"""Random draws from a [`statemap.RandomState`][] in a context.

Every function takes the context and the random state, then the arguments that its namesake in
`jax.random` takes after the key, and returns `(sample, states)`: the sample, and a context whose
random state has moved on. Each draw splits the key, `carry, draw = split(key)`; the sample comes
from `draw` and the state keeps `carry`.

```python
import statemap as sm

states = sm.States(rng=sm.RandomState(0))
x, states = sm.random.normal(states, "rng", (3,))
y, states = sm.random.uniform(states, "rng", (3,), minval=-1.0)
assert x.shape == y.shape == (3,)
```
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import jax

from ._state import RandomState
from ._states import States
from ._values import describe, dotted


P = ParamSpec("P")
R = TypeVar("R")
Key = RandomState | str | tuple[Any, ...]


def next_key(states: States, rng: Key) -> tuple[jax.Array, States]:
    """A key to draw from, and the context with the random state moved on.

    **Arguments:**

    - `states`: the context.
    - `rng`: the handle, path or name of the random state.

    **Returns:**

    `(key, states)`, with a new-style key.

    **Raises:**

    `TypeError` if the state is no `RandomState`; `ValueError` if it holds an array of keys, one a
    lane, and is not mapped.
    """
    if not isinstance(states, States):
        raise TypeError(
            f"A draw takes the context first, and was given {_short(states)}.\n"
            "Wrong:  sm.random.normal(key, (3,))\n"
            "Right:  x, states = sm.random.normal(states, rng, (3,))"
        )
    if isinstance(rng, tuple) and all(isinstance(k, int) for k in rng) and rng not in states:
        raise TypeError(
            f"A draw takes the random state second, and was given {rng!r}.\n"
            "Wrong:  sm.random.normal(states, (3,))\n"
            "Right:  x, states = sm.random.normal(states, rng, (3,))"
        )
    i = states._slots.find(rng)
    slot = states._slots.entries[i]
    path = dotted(slot.path)
    if not issubclass(slot.kind, RandomState):
        raise TypeError(
            f"`{path}` is a {slot.kind.__name__}, and random numbers come from a RandomState."
        )
    key = states[rng]
    if key.shape != ():
        raise ValueError(
            f"The random state `{path}` holds keys of shape {key.shape}, one a lane, where a draw "
            "takes one key. Map the state on its axis: "
            "`state_in_axes={0: sm.RandomState}, state_out_axes={0: sm.RandomState}`."
        )
    carry, draw = jax.random.split(key)
    return draw, states.set(rng, carry)


def _short(x: Any) -> str:
    return describe(x) if isinstance(x, jax.Array) else f"a `{type(x).__name__}`"


def _functional(
    sampler: Callable[Concatenate[jax.Array, P], R],
) -> Callable[Concatenate[States, Key, P], tuple[R, States]]:
    """A sampler of `jax.random` that takes its key from a context and gives the context back."""

    @functools.wraps(sampler)
    def draw(states: States, rng: Any, /, *args: P.args, **kwargs: P.kwargs) -> tuple[R, States]:
        key, states = next_key(states, rng)
        return sampler(key, *args, **kwargs), states

    rest = list(inspect.signature(sampler).parameters.values())[1:]
    first = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in ("states", "rng")
    ]
    draw.__signature__ = inspect.Signature([*first, *rest])  # pyright: ignore
    draw.__annotations__ = {}  # those of the sampler have the key as their first argument
    draw.__module__ = __name__
    draw.__doc__ = (
        f"`jax.random.{sampler.__name__}` from a random state: takes the context, the random "
        f"state and what `jax.random.{sampler.__name__}` takes after the key, and returns "
        "`(sample, states)`."
    )
    return draw


ball: Final = _functional(jax.random.ball)
bernoulli: Final = _functional(jax.random.bernoulli)
beta: Final = _functional(jax.random.beta)
binomial: Final = _functional(jax.random.binomial)
bits: Final = _functional(jax.random.bits)
categorical: Final = _functional(jax.random.categorical)
cauchy: Final = _functional(jax.random.cauchy)
chisquare: Final = _functional(jax.random.chisquare)
choice: Final = _functional(jax.random.choice)
dirichlet: Final = _functional(jax.random.dirichlet)
double_sided_maxwell: Final = _functional(jax.random.double_sided_maxwell)
exponential: Final = _functional(jax.random.exponential)
f: Final = _functional(jax.random.f)
gamma: Final = _functional(jax.random.gamma)
generalized_normal: Final = _functional(jax.random.generalized_normal)
geometric: Final = _functional(jax.random.geometric)
gumbel: Final = _functional(jax.random.gumbel)
laplace: Final = _functional(jax.random.laplace)
loggamma: Final = _functional(jax.random.loggamma)
logistic: Final = _functional(jax.random.logistic)
lognormal: Final = _functional(jax.random.lognormal)
maxwell: Final = _functional(jax.random.maxwell)
multinomial: Final = _functional(jax.random.multinomial)
multivariate_normal: Final = _functional(jax.random.multivariate_normal)
normal: Final = _functional(jax.random.normal)
orthogonal: Final = _functional(jax.random.orthogonal)
pareto: Final = _functional(jax.random.pareto)
permutation: Final = _functional(jax.random.permutation)
poisson: Final = _functional(jax.random.poisson)
rademacher: Final = _functional(jax.random.rademacher)
randint: Final = _functional(jax.random.randint)
rayleigh: Final = _functional(jax.random.rayleigh)
split: Final = _functional(jax.random.split)
t: Final = _functional(jax.random.t)
triangular: Final = _functional(jax.random.triangular)
truncated_normal: Final = _functional(jax.random.truncated_normal)
uniform: Final = _functional(jax.random.uniform)
wald: Final = _functional(jax.random.wald)
weibull_min: Final = _functional(jax.random.weibull_min)
