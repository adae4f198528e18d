"""`statemap.compat.random` by itself. What brainstate draws is compared in `tests/oracle`."""

import inspect

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from statemap.compat import environ, random
from statemap.compat.random import _table


SEEDING = """seed set_key get_key get_key_data default_rng split_key split_keys seed_context
restore_key self_assign_multi_keys clone_rng""".split()

# The arguments of each, and what comes with `key=42`.
DRAWN = {
    "rand": ((2,), [0.48871, 0.679797]),
    "randn": ((2,), [-0.028305, 0.467132]),
    "random": ((2,), [0.48871, 0.679797]),
    "random_sample": ((2,), [0.48871, 0.679797]),
    "ranf": ((2,), [0.48871, 0.679797]),
    "sample": ((2,), [0.48871, 0.679797]),
    "randint": ((0, 100, 2), [44, 14]),
    "random_integers": ((1, 100, 2), [45, 15]),
    "choice": ((100, 2), [44, 14]),
    "permutation": ((5,), [4, 2, 3, 0, 1]),
    "shuffle": ((5,), [4, 2, 3, 0, 1]),
    "uniform": ((-1.0, 3.0, 2), [0.954838, 1.719189]),
    "normal": ((1.0, 2.0, 2), [0.943391, 1.934264]),
    "gumbel": ((1.0, 2.0, 2), [1.668187, 2.904039]),
    "laplace": ((1.0, 2.0, 2), [1.045679, 0.108693]),
    "logistic": ((1.0, 2.0, 2), [0.909661, 2.50568]),
    "lognormal": ((1.0, 0.5, 2), [2.680083, 3.433451]),
    "standard_normal": ((2,), [-0.028305, 0.467132]),
    "standard_cauchy": ((2,), [-0.035485, 0.633726]),
    "standard_t": ((3.0, 2), [0.089875, -1.735747]),
    "t": ((3.0, 2), [0.089875, -1.735747]),
    "truncated_normal": ((-1.0, 2.0, 2), [0.1477, 0.568445]),
    "triangular": ((0.0, 1.0, 3.0, 2), [1.248503, 1.61392]),
    "vonmises": ((1.0, 2.0, 2), [1.764508, 0.52706]),
    "beta": ((2.0, 3.0, 2), [0.431962, 0.312818]),
    "chisquare": ((3.0, 2), [5.870714, 1.397851]),
    "exponential": ((2.0, 2), [1.341635, 2.277601]),
    "f": ((3.0, 4.0, 2), [1.183929, 0.69045]),
    "gamma": ((2.0, 3.0, 2), [11.01755, 3.277156]),
    "loggamma": ((2.0, 2), [1.300877, 0.088364]),
    "maxwell": ((2,), [0.553582, 0.293285]),
    "noncentral_chisquare": ((3.0, 1.0, 2), [3.527507, 8.064941]),
    "noncentral_f": ((3.0, 4.0, 1.0, 2), [0.468557, 20.572296]),
    "pareto": ((3.0, 2), [1.250578, 1.4617]),
    "power": ((3.0, 2), [0.787681, 0.879278]),
    "rayleigh": ((2.0, 2), [2.393302, 1.757181]),
    "standard_exponential": ((2,), [0.670817, 1.138801]),
    "standard_gamma": ((2.0, 2), [3.672517, 1.092385]),
    "wald": ((1.0, 2.0, 2), [1.055148, 1.408075]),
    "weibull": ((2.0, 2), [0.819035, 1.067146]),
    "weibull_min": ((2.0, 3.0, 2), [2.457103, 3.201438]),
    "bernoulli": ((0.5, 4), [True, False, False, False]),
    "binomial": ((20, 0.5, 4), [12, 10, 10, 11]),
    "categorical": (([0.0, 1.0, 2.0], -1, 4), [2, 2, 2, 2]),
    "geometric": ((0.2, 4), [4, 6, 5, 4]),
    "hypergeometric": ((20, 30, 10, 4), [3, 5, 5, 4]),
    "logseries": ((0.8, 4), [2, 3, 2, 1]),
    "negative_binomial": ((5.0, 0.5, 4), [5, 2, 2, 3]),
    "poisson": ((5.0, 4), [7, 4, 3, 2]),
    "zipf": ((2.0, 4), [1, 2, 2, 1]),
    "multinomial": ((20, [0.2, 0.3, 0.5]), [2, 4, 14]),
    "dirichlet": (([1.0, 2.0, 3.0],), [0.264732, 0.1348, 0.600468]),
    "multivariate_normal": (([0.0, 1.0], [[2.0, 0.5], [0.5, 1.0]]), [-0.040029, 1.426955]),
    "orthogonal": ((2,), [[-0.095284, 0.99545], [0.99545, 0.095284]]),
    "rand_like": ((np.zeros(2, np.float32),), [0.48871, 0.679797]),
    "randn_like": ((np.zeros(2, np.float32),), [-0.028305, 0.467132]),
    "randint_like": ((np.full(2, 100, np.int32),), [44, 14]),
}


def same(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and (a == b).all()


def key_of(rng):
    return jr.key_data(rng.value).tolist()


# Numbers.


def test_the_numbers_of_a_seed():
    random.seed(42)
    np.testing.assert_allclose(random.rand(3), [0.72766423, 0.78786755, 0.18169427], rtol=1e-6)
    assert random.get_key_data().tolist() == [1832780943, 270669613]
    np.testing.assert_allclose(random.normal(1.0, 2.0, 2), [0.578219, -1.72559], rtol=1e-5)


def test_every_distribution_is_here():
    assert set(DRAWN) | set(SEEDING) | {"RandomState", "DEFAULT"} == set(random.__all__)


@pytest.mark.parametrize("name", DRAWN)
def test_drawn(name):
    args, expected = DRAWN[name]
    rng = random.RandomState(0)
    for source in (random, rng):
        drawn = getattr(source, name)(*args, key=42)
        np.testing.assert_allclose(drawn, expected, rtol=1e-4, atol=1e-5)
    assert key_of(rng) == [0, 0]  # a key of one's own leaves the stream alone


@pytest.mark.parametrize("name", DRAWN)
def test_the_stream_moves_on(name):
    args, _ = DRAWN[name]
    rng = random.RandomState(0)
    random.set_key(0)
    first, second = getattr(rng, name)(*args), getattr(rng, name)(*args)
    assert key_of(rng) != [0, 0]
    assert same(first, getattr(random, name)(*args))
    assert same(second, getattr(random, name)(*args))
    assert random.get_key() == rng.value


@pytest.mark.parametrize("name", DRAWN)
def test_under_a_trace(name):
    args, expected = DRAWN[name]
    traced = jax.eval_shape(lambda key: getattr(random, name)(*args, key=key), jr.key(3))
    assert traced.shape == np.shape(expected)


def test_under_jit():
    for name in ("normal", "choice", "binomial", "vonmises", "hypergeometric", "multinomial"):
        args, _ = DRAWN[name]
        draw = getattr(random, name)
        traced = jax.jit(lambda key: draw(*args, key=key))(jr.key(3))
        np.testing.assert_allclose(traced, draw(*args, key=3), rtol=1e-4)


def test_under_vmap():
    keys = jr.split(jr.key(0), 3)
    lanes = jax.vmap(lambda key, p: random.bernoulli(p, (4,), key=key))(keys, jnp.full(3, 0.5))
    for lane, key in zip(lanes, keys):
        assert same(lane, random.bernoulli(0.5, 4, key=key))


# Every parameter does something: base arguments, and for each parameter another value.

UNIFORM = dict(size=2, key=1, dtype=None), dict(size=3, key=2, dtype=jnp.float16)
COUNT = dict(size=2, key=1, dtype=None), dict(size=3, key=2, dtype=jnp.int16)


def both(common, base, other):
    return {**common[0], **base}, {**common[1], **other}


X = np.arange(12.0, dtype=np.float32).reshape(3, 4)
PARAMETERS = {
    **dict.fromkeys(
        "random random_sample ranf sample standard_normal standard_cauchy standard_exponential "
        "maxwell".split(),
        UNIFORM,
    ),
    **dict.fromkeys(
        "normal gumbel laplace logistic".split(),
        both(UNIFORM, dict(loc=None, scale=None), dict(loc=1.0, scale=2.0)),
    ),
    **dict.fromkeys("standard_t t".split(), both(UNIFORM, dict(df=3.0), dict(df=30.0))),
    "uniform": both(UNIFORM, dict(low=0.0, high=1.0), dict(low=-1.0, high=2.0)),
    "lognormal": both(UNIFORM, dict(mean=None, sigma=None), dict(mean=1.0, sigma=2.0)),
    "truncated_normal": both(
        UNIFORM,
        dict(lower=-1.0, upper=1.0, loc=0.0, scale=1.0),
        dict(lower=0.0, upper=2.0, loc=0.5, scale=2.0),
    ),
    "triangular": both(
        UNIFORM, dict(left=0.0, mode=0.5, right=1.0), dict(left=-1.0, mode=0.9, right=2.0)
    ),
    "vonmises": both(UNIFORM, dict(mu=0.0, kappa=1.0), dict(mu=1.0, kappa=9.0)),
    "beta": both(UNIFORM, dict(a=1.0, b=2.0), dict(a=2.0, b=3.0)),
    "chisquare": both(UNIFORM, dict(df=3.0), dict(df=30.0)),
    "exponential": both(UNIFORM, dict(scale=None), dict(scale=2.0)),
    "f": both(UNIFORM, dict(dfnum=2.0, dfden=3.0), dict(dfnum=3.0, dfden=4.0)),
    "gamma": both(UNIFORM, dict(shape=2.0, scale=None), dict(shape=3.0, scale=2.0)),
    "noncentral_chisquare": both(UNIFORM, dict(df=2.0, nonc=1.0), dict(df=3.0, nonc=5.0)),
    "noncentral_f": both(
        UNIFORM, dict(dfnum=2.0, dfden=3.0, nonc=1.0), dict(dfnum=3.0, dfden=4.0, nonc=5.0)
    ),
    **dict.fromkeys(
        "loggamma pareto power weibull".split(), both(UNIFORM, dict(a=1.0), dict(a=2.0))
    ),
    "rayleigh": both(UNIFORM, dict(scale=1.0), dict(scale=2.0)),
    "standard_gamma": both(UNIFORM, dict(shape=1.0), dict(shape=2.0)),
    "wald": both(UNIFORM, dict(mean=1.0, scale=1.0), dict(mean=2.0, scale=3.0)),
    "weibull_min": both(UNIFORM, dict(a=1.0, scale=None), dict(a=2.0, scale=2.0)),
    "randint": both(COUNT, dict(low=50, high=None), dict(low=0, high=1000)),
    "random_integers": both(COUNT, dict(low=50, high=None), dict(low=0, high=1000)),
    "binomial": both(COUNT, dict(n=20, p=0.5), dict(n=90, p=0.9)),
    "geometric": both(COUNT, dict(p=0.5), dict(p=0.01)),
    "hypergeometric": both(
        COUNT, dict(ngood=20, nbad=30, nsample=20), dict(ngood=50, nbad=99, nsample=9)
    ),
    "logseries": both(COUNT, dict(p=0.9), dict(p=0.1)),
    "negative_binomial": both(COUNT, dict(n=9.0, p=0.5), dict(n=30.0, p=0.1)),
    "poisson": both(COUNT, dict(lam=9.0), dict(lam=50.0)),
    "zipf": both(COUNT, dict(a=1.5), dict(a=9.0)),
    "multinomial": both(COUNT, dict(n=9, pvals=[0.2, 0.8]), dict(n=8, pvals=[0.8, 0.2])),
    "dirichlet": both(UNIFORM, dict(alpha=[1.0, 2.0]), dict(alpha=[5.0, 1.0])),
    "multivariate_normal": both(
        UNIFORM,
        dict(mean=[0.0, 1.0], cov=[[2.0, 0.5], [0.5, 1.0]], method="cholesky"),
        dict(mean=[5.0, 1.0], cov=[[9.0, 0.5], [0.5, 1.0]], method="eigh"),
    ),
    "bernoulli": (dict(p=0.5, size=9, key=1), dict(p=0.1, size=3, key=2)),
    "categorical": (
        dict(logits=X, axis=-1, size=None, key=1),
        dict(logits=-X, axis=0, size=(2, 3), key=2),
    ),
    "choice": (
        dict(a=9, size=9, replace=True, p=None, key=1),
        dict(a=np.eye(9, dtype=int), size=3, replace=False, p=np.eye(9)[0], key=2),
    ),
    "permutation": (
        dict(x=X, axis=0, independent=False, key=1),
        dict(x=-X, axis=1, independent=True, key=2),
    ),
    "shuffle": (dict(x=X, axis=0, key=1), dict(x=-X, axis=1, key=2)),
    "rand_like": (dict(input=X, dtype=None, key=1), dict(input=X[0], dtype=int, key=2)),
    "randn_like": (dict(input=X, dtype=None, key=1), dict(input=X[0], dtype=int, key=2)),
    "randint_like": (
        dict(input=jnp.full(3, 99), low=0, high=None, dtype=None, key=1),
        dict(input=jnp.full(3, 9), low=90, high=9, dtype=jnp.int16, key=2),
    ),
}


@pytest.mark.parametrize("name", [n for n in DRAWN if n not in ("rand", "randn", "orthogonal")])
def test_every_parameter_does_something(name):
    draw, (base, other) = getattr(random, name), PARAMETERS[name]
    parameters = set(inspect.signature(draw).parameters) - {"check_valid"}
    assert parameters == set(base) == set(other)
    drawn = draw(**base)
    for parameter, value in other.items():
        if (name, parameter) == ("multivariate_normal", "dtype"):
            continue  # see below
        changed = {**base, parameter: value}
        if parameter in ("size", "dtype"):  # known before anything is compiled
            struct = jax.eval_shape(lambda: draw(**changed))
            assert (struct.shape, struct.dtype) != (drawn.shape, drawn.dtype)
        else:
            assert not same(drawn, draw(**changed)), parameter


def test_parameters_that_give_the_shape():
    for name in ("rand", "randn"):
        draw = getattr(random, name)
        assert draw(2, 3, dtype=jnp.float16).shape == (2, 3)
        assert draw(2, dtype=jnp.float16).dtype == jnp.float16
        assert not same(draw(2, key=1), draw(2, key=2))
    assert random.orthogonal(2, 3).shape == (3, 2, 2)


def test_dtypes_of_factored_matrices():
    """JAX factors none of half precision."""
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            assert random.orthogonal(2, dtype=dtype, key=1).dtype == dtype
            drawn = random.multivariate_normal([0.0], [[1.0]], key=1, dtype=dtype)
            assert drawn.dtype == dtype


def test_the_default_dtypes_are_those_of_the_environment():
    with environ.context(precision=16):
        assert random.normal().dtype == jnp.float16
        assert random.randint(5).dtype == jnp.int16
        assert random.poisson(dtype=jnp.int32).dtype == jnp.int32


def test_choice_of_what_jax_has_no_arrays_of():
    chosen = random.choice(["a", "b", "c"], 3, replace=False, key=0)
    assert isinstance(chosen, np.ndarray) and sorted(chosen) == ["a", "b", "c"]
    assert random.choice(("a", "b"), p=[0.0, 1.0]) == "b"
    with pytest.raises(TypeError, match="can't be traced. Choose numbers"):
        jax.jit(lambda key: random.choice(["a", "b"], key=key))(jr.key(0))


def test_arguments_are_left_alone():
    high = np.array([3, 9])
    random.random_integers(0, high)
    assert high.tolist() == [3, 9]


# What is refused.

OUTSIDE = [
    ("bernoulli", dict(p=1.5), "`p` within .0, 1..* p=1.5"),
    ("bernoulli", dict(p=[0.5, -0.1]), "`bernoulli` requires `p` within"),
    ("binomial", dict(n=3, p=jnp.array(2.0)), "`p` within .0, 1."),
    ("chisquare", dict(df=0.0), "`df > 0`"),
    ("power", dict(a=[1.0, -1.0]), "`a > 0`"),
    ("multinomial", dict(n=3, pvals=[0.9, 0.8, 0.1]), "sum of up to 1"),
    ("truncated_normal", dict(lower=5.0, upper=6.0), "within two `scale`s"),
    ("geometric", dict(p=0.0), "`p` within .0, 1."),
    ("triangular", dict(left=1.0, mode=0.0, right=2.0), "left <= mode <= right"),
    ("zipf", dict(a=1.0), "`a > 1`"),
]


@pytest.mark.parametrize("name, arguments, match", OUTSIDE)
def test_values_that_make_no_distribution(name, arguments, match):
    rng = random.RandomState(0)
    draw = getattr(rng, name)
    with pytest.raises(ValueError, match=match):
        draw(**arguments)
    assert key_of(rng) == [0, 0]
    if "check_valid" in inspect.signature(draw).parameters:
        draw(**arguments, check_valid=False)


def test_values_that_are_traced_are_not_looked_at():
    draw = jax.jit(lambda p, key: random.bernoulli(p, 3, key))
    assert draw(1.5, jr.key(0)).all()
    with pytest.raises(ValueError, match="`p` within"):  # this one is not
        jax.jit(lambda key: random.bernoulli(1.5, key=key))(jr.key(0))


class Quantity:
    unit = "mV"
    shape = ()


@pytest.mark.parametrize("loc", [Quantity(), [1.0, Quantity()]])
def test_units(loc):
    with pytest.raises(TypeError, match="`loc` has the unit mV, and `statemap.compat` knows no"):
        random.normal(loc, 1.0)


REFUSED = [
    ("normal", dict(key="a"), TypeError, "A seed is an integer.*came: 'a'"),
    ("normal", dict(key=jnp.ones(2)), TypeError, "dtype float32 and shape .2,."),
    ("beta", dict(a=1.0), TypeError, "missing a required argument: 'b'"),
    ("normal", dict(sigma=1.0), TypeError, "unexpected keyword argument 'sigma'"),
    ("weibull", dict(a=[1.0, 2.0], size=()), ValueError, "which do not broadcast to `size=..`"),
    ("weibull_min", dict(a=[1.0, 2.0], size=3), ValueError, "`weibull_min` has parameters of"),
    ("t", dict(df=[1.0, 2.0], size=3), ValueError, "`t` has parameters of shapes .2,."),
    ("vonmises", dict(mu=0.0, kappa=1.0, dtype=jnp.bfloat16), ValueError, "not bfloat16"),
    ("multivariate_normal", dict(mean=0.0, cov=[[1.0]]), ValueError, "takes `mean` of shape"),
    ("multivariate_normal", dict(mean=[0.0], cov=1.0), ValueError, "takes `mean` of shape"),
    (
        "multivariate_normal",
        dict(mean=[0.0], cov=[[1.0]], method="lu"),
        ValueError,
        "'cholesky', 'eigh' or 'svd', not 'lu'",
    ),
    (
        "multivariate_normal",
        dict(mean=np.zeros((3, 1), np.float32), cov=[[1.0]], size=2),
        ValueError,
        "`multivariate_normal` has parameters of shapes",
    ),
]


@pytest.mark.parametrize("name, arguments, error, match", REFUSED)
def test_refused(name, arguments, error, match):
    with pytest.raises(error, match=match):
        getattr(random, name)(**arguments)


def test_a_traced_number_of_trials():
    with pytest.raises(ValueError, match="`n` of `multinomial` decides how much"):
        jax.jit(lambda n: random.multinomial(n, [0.5, 0.5], key=0))(3)


# Documentation.


@pytest.mark.parametrize("name", [*DRAWN, *SEEDING])
def test_documented(name):
    fn = getattr(random, name)
    doc = inspect.getdoc(fn)
    assert doc and fn.__name__ == fn.__qualname__ == name
    assert fn.__module__.startswith("statemap.compat.random")
    if name in DRAWN:
        method = getattr(random.RandomState, name)
        assert (method.__name__, method.__qualname__) == (name, f"RandomState.{name}")
        assert inspect.getdoc(method) == doc
        assert fn.__module__ == method.__module__ == "statemap.compat.random"
        assert f"[`brainstate.random.{name}`](https://brainstate.readthedocs.io)" in doc
        needs = [match for n, _, match in OUTSIDE if n == name]
        assert ("`ValueError`" in doc) == bool(needs)


def test_the_table_lists_all_that_it_holds():
    made = {name for name, value in vars(_table).items() if hasattr(value, "__signature__")}
    assert made == set(_table.__all__) == set(DRAWN)


def test_signatures():
    assert str(inspect.signature(random.rand)).startswith("(*dn, key=None, dtype=None) ->")
    method, function = random.RandomState.beta, random.beta
    assert list(inspect.signature(function).parameters) == ["a", "b", "size", "key", "dtype"]
    assert list(inspect.signature(method).parameters)[1:] == ["a", "b", "size", "key", "dtype"]
    assert list(inspect.signature(random.randint).parameters)[-2:] == ["key", "dtype"]
    assert list(inspect.signature(random.RandomState.randint).parameters)[-2:] == ["dtype", "key"]
