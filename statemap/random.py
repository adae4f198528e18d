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
from collections.abc import Callable, Hashable
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import jax

from ._state import RandomState
from ._states import States
from ._values import describe, dotted


P = ParamSpec("P")
R = TypeVar("R")
Key = RandomState | str | tuple[Any, ...]
AxisName = Hashable | tuple[Hashable, ...]


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
    path = _random_path(states, rng)
    key = states[rng]
    if key.shape != ():
        raise ValueError(
            f"The random state `{path}` holds keys of shape {key.shape}, one a lane, where a draw "
            "takes one key. Map the state on its axis: "
            "`state_in_axes={0: sm.RandomState}, state_out_axes={0: sm.RandomState}`."
        )
    carry, draw = jax.random.split(key)
    return draw, states.set(rng, carry)


def fold_axis(states: States, rng: Key, axis_name: AxisName) -> States:
    """A context in which a random state draws other numbers in each place along a named axis.

    Under `jax.shard_map` a random state that all shards are given draws the same numbers on each.
    (The lanes of [`statemap.vmap2`][] and `pmap2` draw numbers of their own without this.) What
    the shards draw from then differs, and can't come out as one state. So let the shared one move
    on by itself, and put it back:

    ```python
    import jax, jax.numpy as jnp
    import statemap as sm
    from jax.sharding import PartitionSpec as P

    def add_noise(states, x):
        _, after = sm.random.next_key(states, "rng")  # the same on every shard
        states = sm.random.fold_axis(states, "rng", "d")
        noise, states = sm.random.normal(states, "rng", x.shape)
        return x + noise, states.set("rng", after["rng"])

    mesh = jax.make_mesh((jax.device_count(),), ("d",))
    sharded = jax.shard_map(
        add_noise, mesh=mesh, in_specs=(P(), P("d")), out_specs=(P("d"), P())
    )
    states = sm.States(rng=sm.RandomState(0))
    x = jax.device_put(jnp.zeros(jax.device_count()), jax.NamedSharding(mesh, P("d")))
    out, states = jax.jit(sharded)(states, x)
    ```

    It works for every named axis: of `jax.vmap(axis_name=)` and `jax.pmap`, too.

    **Arguments:**

    - `states`: the context.
    - `rng`: the handle, path or name of the random state. If it holds an array of keys, each of
        them is folded.
    - `axis_name`: the name of the axis, or a tuple of names.

    **Returns:**

    The context. Its random state, which held `key`, holds
    `jax.random.fold_in(draw, jax.lax.axis_index(axis_name))`, with the `carry, draw = split(key)`
    of every draw. [`statemap.random.next_key`][] gives the context with `carry`, which is what the
    shared state moves on to.

    **Raises:**

    `TypeError` if the state is no `RandomState`; `NameError` if there is no axis of this name.
    """
    if not isinstance(states, States):
        raise TypeError(
            f"`fold_axis` takes the context first, and was given {_short(states)}.\n"
            "Wrong:  key = sm.random.fold_axis(key, rng, axis_name)\n"
            "Right:  states = sm.random.fold_axis(states, rng, axis_name)"
        )
    path = _random_path(states, rng)
    try:
        index = jax.lax.axis_index(axis_name)
    except NameError:
        raise NameError(
            f"`fold_axis` was to fold the random state `{path}` over {axis_name!r}, and there is "
            "no axis of this name here: it is called inside `jax.shard_map`, or inside "
            "`jax.vmap` or `statemap.vmap2` with this `axis_name`."
        ) from None
    keys = states[rng]
    # Not `fold_in(key, ...)`: for JAX's default keys these are the keys that `split(key)` gives, of
    # which one is what the shared state moves on to.
    fold = lambda key: jax.random.fold_in(jax.random.split(key)[1], index)
    for _ in keys.shape:
        fold = jax.vmap(fold)
    return states.set(rng, fold(keys))


def _random_path(states: States, rng: Key) -> str:
    """The dotted path of a random state."""
    slot = states._slots.entries[states._slots.find(rng)]
    path = dotted(slot.path)
    if not issubclass(slot.kind, RandomState):
        raise TypeError(
            f"`{path}` is a {slot.kind.__name__}, and random numbers come from a RandomState."
        )
    return path


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
