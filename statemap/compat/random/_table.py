"""The distributions, one a row: what it is called with, what draws, and what must hold.

Names, arguments and numbers are those of `brainstate.random`.
"""

from typing import Final

import jax.random as jr

from . import _compiled as compiled, _samplers as s
from ._draw import draw, publish, Require


# fmt: off
__all__ = [
    "bernoulli", "beta", "binomial", "categorical", "chisquare", "choice", "dirichlet",
    "exponential", "f", "gamma", "geometric", "gumbel", "hypergeometric", "laplace", "loggamma",
    "logistic", "lognormal", "logseries", "maxwell", "multinomial", "multivariate_normal",
    "negative_binomial", "noncentral_chisquare", "noncentral_f", "normal", "orthogonal", "pareto",
    "permutation", "poisson", "power", "rand", "rand_like", "randint", "randint_like", "randn",
    "randn_like", "random", "random_integers", "random_sample", "ranf", "rayleigh", "sample",
    "shuffle", "standard_cauchy", "standard_exponential", "standard_gamma", "standard_normal",
    "standard_t", "t", "triangular", "truncated_normal", "uniform", "vonmises", "wald", "weibull",
    "weibull_min", "zipf",
]
# fmt: on

PROBABILITY = Require("p", lambda p: (p < 0) | (p > 1), "`p` within [0, 1]")
POSITIVE_P = Require("p", lambda p: (p <= 0) | (p > 1), "`p` within (0, 1]")
POSITIVE_DF = Require("df", lambda df: df <= 0, "`df > 0`")
POSITIVE_A = Require("a", lambda a: a <= 0, "`a > 0`")
ABOVE_ONE = Require("a", lambda a: ~(a > 1), "`a > 1`")
SUM_TO_ONE = Require(
    "pvals",
    lambda pvals: pvals[..., :-1].sum(-1, dtype=float) > 1 + 1e-6,
    "`pvals[..., :-1]` with a sum of up to 1",
)
NEAR = Require(
    "lower upper loc scale",
    lambda lower, upper, loc, scale: (loc < lower - 2 * scale) | (loc > upper + 2 * scale),
    "`loc` within two `scale`s of the interval from `lower` to `upper`, as the numbers are not "
    "exact further away",
)
ORDERED = Require(
    "left mode right",
    lambda left, mode, right: (left > mode) | (mode > right) | (left >= right),
    "`left <= mode <= right` and `left < right`",
)

# Real numbers: uniform, and others on an interval.
rand: Final = draw("*dn, key=None, dtype=None", jr.uniform)
random: Final = draw("...", jr.uniform)
random_sample: Final = draw("...", jr.uniform)
ranf: Final = draw("...", jr.uniform)
sample: Final = draw("...", jr.uniform)
uniform: Final = draw("low=0.0, high=1.0, ...", s.uniform)
beta: Final = draw("a, b, ...", jr.beta)
power: Final = draw("a, ..., check_valid=True", compiled.power, POSITIVE_A)
triangular: Final = draw("left=0.0, mode=0.5, right=1.0, ...", jr.triangular, ORDERED)
truncated_normal: Final = draw(
    "lower, upper, size=None, loc=0.0, scale=1.0, key=None, dtype=None, check_valid=True",
    s.truncated_normal,
    NEAR,
)
vonmises: Final = draw("mu, kappa, ...", s.vonmises)

# On the whole line.
randn: Final = draw("*dn, key=None, dtype=None", jr.normal)
normal: Final = draw("loc=None, scale=None, ...", s.placed(jr.normal))
gumbel: Final = draw("loc=None, scale=None, ...", s.placed(jr.gumbel))
laplace: Final = draw("loc=None, scale=None, ...", s.placed(jr.laplace))
logistic: Final = draw("loc=None, scale=None, ...", s.placed(jr.logistic))
loggamma: Final = draw("a, ...", jr.loggamma)
standard_cauchy: Final = draw("...", jr.cauchy)
standard_normal: Final = draw("...", jr.normal)
standard_t: Final = draw("df, ...", jr.t)
t: Final = draw("df, ...", s.t, keys=2)

# Positive ones.
chisquare: Final = draw("df, ..., check_valid=True", s.chisquare, POSITIVE_DF)
exponential: Final = draw("scale=None, ...", s.exponential)
f: Final = draw("dfnum, dfden, ...", compiled.f)
gamma: Final = draw("shape, scale=None, ...", s.gamma)
lognormal: Final = draw("mean=None, sigma=None, ...", s.lognormal)
maxwell: Final = draw("...", jr.maxwell)
noncentral_chisquare: Final = draw("df, nonc, ...", s.noncentral_chisquare, keys=3)
noncentral_f: Final = draw("dfnum, dfden, nonc, ...", compiled.noncentral_f)
pareto: Final = draw("a, ...", s.pareto)
rayleigh: Final = draw("scale=1.0, ...", s.rayleigh)
standard_exponential: Final = draw("...", jr.exponential)
standard_gamma: Final = draw("shape, ...", jr.gamma)
wald: Final = draw("mean, scale, ...", s.wald)
weibull: Final = draw("a, ...", s.weibull)
weibull_min: Final = draw("a, scale=None, ...", s.weibull_min)

# Whole numbers, and events.
bernoulli: Final = draw(
    "p, size=None, key=None, check_valid=True",
    jr.bernoulli,
    PROBABILITY,
    function="p=0.5, size=None, key=None, check_valid=True",
)
binomial: Final = draw("n, p, ..., check_valid=True", s.binomial, PROBABILITY, kind=int)
categorical: Final = draw("logits, axis=-1, size=None, key=None", jr.categorical, sized=False)
geometric: Final = draw("p, ...", s.geometric, POSITIVE_P, kind=int)
hypergeometric: Final = draw("ngood, nbad, nsample, ...", compiled.hypergeometric, kind=int)
logseries: Final = draw("p, ...", compiled.logseries, kind=int)
multinomial: Final = draw(
    "n, pvals, ..., check_valid=True", s.multinomial, SUM_TO_ONE, kind=int, sized=False
)
negative_binomial: Final = draw("n, p, ...", s.negative_binomial, kind=int, keys=2)
poisson: Final = draw("lam=1.0, ...", jr.poisson, kind=int)
randint: Final = draw(
    "low, high=None, size=None, dtype=None, key=None",
    s.randint,
    kind=int,
    function="low, high=None, ...",
)
random_integers: Final = draw("low, high=None, ...", s.random_integers, kind=int)
zipf: Final = draw("a, ...", compiled.zipf, ABOVE_ONE, kind=int)

# Several numbers at a time.
dirichlet: Final = draw("alpha, ...", s.dirichlet, sized=False)
multivariate_normal: Final = draw(
    "mean, cov, size=None, method='cholesky', key=None, dtype=None",
    s.multivariate_normal,
    sized=False,
)
orthogonal: Final = draw("n, ...", s.orthogonal, sized=False)

# Of an array, or in its shape.
choice: Final = draw("a, size=None, replace=True, p=None, key=None", s.choice, sized=False)
permutation: Final = draw("x, axis=0, independent=False, key=None", jr.permutation)
shuffle: Final = draw("x, axis=0, key=None", jr.permutation)
rand_like: Final = draw(
    "input, dtype=None, key=None", s.rand_like, kind=None, function="input, *, dtype=None, key=None"
)
randn_like: Final = draw(
    "input, dtype=None, key=None",
    s.randn_like,
    kind=None,
    function="input, *, dtype=None, key=None",
)
randint_like: Final = draw(
    "input, low=0, high=None, dtype=None, key=None",
    s.randint_like,
    kind=None,
    function="input, low=0, high=None, *, dtype=None, key=None",
)

publish({name: globals()[name] for name in __all__})
