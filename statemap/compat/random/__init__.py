"""Random numbers, with brainstate's names, arguments and numbers.

```python
from statemap.compat import random

random.seed(42)
print(random.rand(3))  # [0.72766423 0.78786755 0.18169427]
```

The functions draw from `DEFAULT`, and as methods of a [`statemap.compat.random.RandomState`][]
from that one. With the same seed the numbers are those of brainstate 0.5.4, to the bit. There are
no units here: a parameter with a unit is refused.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Concatenate, Final as _Final, ParamSpec, TypeVar

import jax

from ._draw import DType as _DType, Param as _Param, Size as _Size
from ._keys import Seed as _Seed
from ._seed import (
    clone_rng as clone_rng,
    default_rng as default_rng,
    get_key as get_key,
    get_key_data as get_key_data,
    restore_key as restore_key,
    seed as seed,
    seed_context as seed_context,
    self_assign_multi_keys as self_assign_multi_keys,
    set_key as set_key,
    split_key as split_key,
    split_keys as split_keys,
)
from ._state import DEFAULT as DEFAULT, RandomState as RandomState


_P = ParamSpec("_P")
_R = TypeVar("_R")


def _of_default(
    method: Callable[Concatenate[RandomState, _P], _R],
) -> Callable[_P, _R]:
    """A method of `DEFAULT` as a function. A bound method would take `DEFAULT` along when it is
    copied or pickled.
    """

    @functools.wraps(method)
    def function(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        return method(DEFAULT, *args, **kwargs)

    own = inspect.signature(method)
    function.__signature__ = own.replace(  # pyright: ignore
        parameters=list(own.parameters.values())[1:]
    )
    function.__module__ = __name__
    function.__qualname__ = method.__name__
    return function


beta: _Final = _of_default(RandomState.beta)
binomial: _Final = _of_default(RandomState.binomial)
categorical: _Final = _of_default(RandomState.categorical)
chisquare: _Final = _of_default(RandomState.chisquare)
choice: _Final = _of_default(RandomState.choice)
dirichlet: _Final = _of_default(RandomState.dirichlet)
exponential: _Final = _of_default(RandomState.exponential)
f: _Final = _of_default(RandomState.f)
gamma: _Final = _of_default(RandomState.gamma)
geometric: _Final = _of_default(RandomState.geometric)
gumbel: _Final = _of_default(RandomState.gumbel)
hypergeometric: _Final = _of_default(RandomState.hypergeometric)
laplace: _Final = _of_default(RandomState.laplace)
loggamma: _Final = _of_default(RandomState.loggamma)
logistic: _Final = _of_default(RandomState.logistic)
lognormal: _Final = _of_default(RandomState.lognormal)
logseries: _Final = _of_default(RandomState.logseries)
maxwell: _Final = _of_default(RandomState.maxwell)
multinomial: _Final = _of_default(RandomState.multinomial)
multivariate_normal: _Final = _of_default(RandomState.multivariate_normal)
negative_binomial: _Final = _of_default(RandomState.negative_binomial)
noncentral_chisquare: _Final = _of_default(RandomState.noncentral_chisquare)
noncentral_f: _Final = _of_default(RandomState.noncentral_f)
normal: _Final = _of_default(RandomState.normal)
orthogonal: _Final = _of_default(RandomState.orthogonal)
pareto: _Final = _of_default(RandomState.pareto)
permutation: _Final = _of_default(RandomState.permutation)
poisson: _Final = _of_default(RandomState.poisson)
power: _Final = _of_default(RandomState.power)
rand: _Final = _of_default(RandomState.rand)
randn: _Final = _of_default(RandomState.randn)
random: _Final = _of_default(RandomState.random)
random_integers: _Final = _of_default(RandomState.random_integers)
random_sample: _Final = _of_default(RandomState.random_sample)
ranf: _Final = _of_default(RandomState.ranf)
rayleigh: _Final = _of_default(RandomState.rayleigh)
sample: _Final = _of_default(RandomState.sample)
shuffle: _Final = _of_default(RandomState.shuffle)
standard_cauchy: _Final = _of_default(RandomState.standard_cauchy)
standard_exponential: _Final = _of_default(RandomState.standard_exponential)
standard_gamma: _Final = _of_default(RandomState.standard_gamma)
standard_normal: _Final = _of_default(RandomState.standard_normal)
standard_t: _Final = _of_default(RandomState.standard_t)
t: _Final = _of_default(RandomState.t)
triangular: _Final = _of_default(RandomState.triangular)
truncated_normal: _Final = _of_default(RandomState.truncated_normal)
uniform: _Final = _of_default(RandomState.uniform)
vonmises: _Final = _of_default(RandomState.vonmises)
wald: _Final = _of_default(RandomState.wald)
weibull: _Final = _of_default(RandomState.weibull)
weibull_min: _Final = _of_default(RandomState.weibull_min)
zipf: _Final = _of_default(RandomState.zipf)


# What brainstate's functions take in another order, or by other defaults, than its methods.


def bernoulli(
    p: _Param = 0.5, size: _Size = None, key: _Seed = None, check_valid: bool = True
) -> jax.Array:
    return DEFAULT.bernoulli(p, size, key, check_valid)


def randint(
    low: _Param,
    high: _Param = None,
    size: _Size = None,
    key: _Seed = None,
    dtype: _DType = None,
) -> jax.Array:
    return DEFAULT.randint(low, high, size, dtype, key)


def rand_like(input: _Param, *, dtype: _DType = None, key: _Seed = None) -> jax.Array:
    return DEFAULT.rand_like(input, dtype, key)


def randn_like(input: _Param, *, dtype: _DType = None, key: _Seed = None) -> jax.Array:
    return DEFAULT.randn_like(input, dtype, key)


def randint_like(
    input: _Param,
    low: _Param = 0,
    high: _Param = None,
    *,
    dtype: _DType = None,
    key: _Seed = None,
) -> jax.Array:
    return DEFAULT.randint_like(input, low, high, dtype, key)


for _function in (bernoulli, randint, rand_like, randn_like, randint_like):
    _function.__doc__ = getattr(RandomState, _function.__name__).__doc__


__all__ = [
    "RandomState",
    "DEFAULT",
    "seed",
    "set_key",
    "get_key",
    "get_key_data",
    "default_rng",
    "split_key",
    "split_keys",
    "seed_context",
    "restore_key",
    "self_assign_multi_keys",
    "clone_rng",
    "bernoulli",
    "beta",
    "binomial",
    "categorical",
    "chisquare",
    "choice",
    "dirichlet",
    "exponential",
    "f",
    "gamma",
    "geometric",
    "gumbel",
    "hypergeometric",
    "laplace",
    "loggamma",
    "logistic",
    "lognormal",
    "logseries",
    "maxwell",
    "multinomial",
    "multivariate_normal",
    "negative_binomial",
    "noncentral_chisquare",
    "noncentral_f",
    "normal",
    "orthogonal",
    "pareto",
    "permutation",
    "poisson",
    "power",
    "rand",
    "rand_like",
    "randint",
    "randint_like",
    "randn",
    "randn_like",
    "random",
    "random_integers",
    "random_sample",
    "ranf",
    "rayleigh",
    "sample",
    "shuffle",
    "standard_cauchy",
    "standard_exponential",
    "standard_gamma",
    "standard_normal",
    "standard_t",
    "t",
    "triangular",
    "truncated_normal",
    "uniform",
    "vonmises",
    "wald",
    "weibull",
    "weibull_min",
    "zipf",
]
