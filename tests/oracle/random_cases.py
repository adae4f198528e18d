"""Calls of the distributions, seeds, and what it is to be the same."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np


F32 = np.float32
A2 = jnp.array([0.5, 2.0])
N3 = np.array([0.3, 1.7, 2.5])  # float64: what JAX makes of it is a part of the comparison
P2 = jnp.array([0.2, 0.7])
P3 = np.array([0.1, 0.5, 0.95])
COV = [[2.0, 0.5], [0.5, 1.0]]


def call(*args, **kwargs):
    return args, kwargs


SHAPES = [
    call(),
    call(3),
    call((2, 3)),
    call([4]),
    call(()),
    call((0, 2)),
    call(2, dtype="float16"),
]
PLACED = [
    call(),
    call(1.5),
    call(None, 2),
    call(scale=[0.5, 2.0]),
    call(N3, 2.0),
    call(A2, A2, size=(3, 2)),
    call(1, 2, 5),
    call(np.ones((2, 1)), N3, dtype=jnp.bfloat16),
    call(0.5, np.float64(0.3), (2, 2), key=7),
    call(A2, 2.0, ()),
]
ONE = [
    call(0.7),
    call(3),
    call([0.5, 2.0]),
    call(N3),
    call([np.float64(0.3), 1.7]),
    call(A2, (3, 2)),
    call(2.5, 6),
    call(1.5, (0,)),
    call(N3, dtype="float16"),
    call(A2, key=jr.key(3)),
    call(1.5, 3, jr.PRNGKey(4), F32),
]
# Where each shape takes long to compile.
FEW = [
    call(3, (2,)),
    call([0.5, 2.0]),
    call([np.float64(0.3), 1.7], (2,)),
    call(2.5, 2, key=jr.PRNGKey(4), dtype=F32),
]
TWO = [
    call(0.7, 2),
    call([0.5, 2.0], 1.5),
    call(N3, N3[::-1]),
    call(A2, 1.0, (3, 2)),
    call(2.5, np.float64(0.3), 6),
    call((1.0, 2.0), np.ones((3, 1)), dtype="float16"),
    call(1.5, A2, key=np.array([1, 2], np.uint32)),
    call(1.0, 2.0, (0,)),
]
FEW_TWO = [
    call([0.5, 2.0], [1.5, 3.0]),
    call(N3[:2], N3[::-1][:2]),
    call(2.5, np.float64(0.3), 2, key=np.array([1, 2], np.uint32)),
]
CHANCES = [
    call([0.2, 0.7]),
    call(P3),
    call(P2, (3, 2)),
    call(0.5, ()),
    call(P3, key=5),
]
CASES = {
    "rand": [call(), call(3), call(2, 3), call(4, key=1), call(2, dtype="float16")],
    "randn": [call(), call(3), call(2, 3), call(4, key=1), call(2, dtype="float16")],
    "random": SHAPES,
    "random_sample": SHAPES,
    "ranf": SHAPES,
    "sample": SHAPES,
    "standard_normal": SHAPES,
    "standard_cauchy": SHAPES,
    "standard_exponential": SHAPES,
    "maxwell": SHAPES,
    "randint": [
        call(10),
        call(3, 10),
        call(0, 10, 5),
        call([0, 5], [5, 50]),
        call(jnp.array([3, 9]), size=(3, 2)),
        call(0, 200, (2, 2), dtype=jnp.uint8),
        call(-5, np.array([5, 6]), key=9),
        call(5, size=(0,)),
    ],
    "random_integers": [
        call(10),
        call(3, 10),
        call(0, 10, 5),
        call([0, 5], [5, 50]),
        call(jnp.array([3, 9]), size=(3, 2)),
        call(0, 200, (2, 2), dtype=jnp.uint8),
        call(-5, jnp.array([5, 6]), key=9),  # one of NumPy's is changed by brainstate
    ],
    "choice": [
        call(5),
        call(5, 3),
        call(np.int64(5), 3),
        call([1.5, 2.5, 3.5], (2, 2)),
        call(jnp.arange(6).reshape(3, 2), 2, replace=False),
        call(np.arange(4), 3, False, [0.1, 0.2, 0.3, 0.4]),
        call(4, 3, p=np.array([0.0, 0.5, 0.5, 0.0])),
        call(["a", "b", "c"], 4),
        call(("a", "b", "c"), p=[0.0, 1.0, 0.0]),
        call(np.array(["x", "y"]), (2, 2), key=3),
        call(np.array([["x", "y"], ["z", "w"]])),
        call([True, False], 5),
    ],
    "permutation": [
        call(10),
        call([3, 1, 2]),
        call(jnp.arange(6).reshape(2, 3)),
        call(np.arange(6.0).reshape(2, 3), 1),
        call(np.arange(6.0).reshape(2, 3), 1, True),
        call(jnp.arange(6).reshape(2, 3), axis=-1, key=2),
        call((True, False)),
    ],
    "shuffle": [
        call(10),
        call([3, 1, 2]),
        call(np.arange(6.0).reshape(2, 3), 1),
        call(jnp.arange(6).reshape(2, 3), key=2),
    ],
    "uniform": [
        call(),
        call(2.0),
        call(-1, 4, (2, 2)),
        call([0.0, 1.0], [1.0, 5.0]),
        call(N3, 9.0),
        call(high=A2, size=(3, 2)),
        call(0.0, 2.0, 3, 5, "float16"),
    ],
    "normal": PLACED,
    "gumbel": PLACED,
    "laplace": PLACED,
    "logistic": PLACED,
    "lognormal": [*PLACED[:3], *PLACED[4:], call(sigma=[0.5, 2.0])],
    "exponential": [call(), *ONE],
    "rayleigh": [call(), call(None, 3), *ONE],
    "pareto": ONE,
    "chisquare": [*FEW, call(2.0, check_valid=False)],
    "standard_gamma": FEW,
    "standard_t": FEW,
    "t": [*FEW, call(N3[:2], dtype="float16")],
    "loggamma": FEW,
    "power": [*FEW, call(A2, (3, 2)), call(-1.0, 2, check_valid=False)],
    "weibull": [call(0.7), call(3), call([0.5, 2.0]), call(N3), call(2.5, 6), call(N3, key=1)],
    "weibull_min": [
        call(0.7),
        call(3, 2.0),
        call([0.5, 2.0], A2),
        call(N3, N3),
        call(2.5, 3, (4, 2)),
        call(2.5, N3, 3),
        call(N3, 1.0, key=1, dtype="float16"),
    ],
    "beta": FEW_TWO,
    "gamma": [*FEW_TWO, call(1.5), call(N3[:2])],
    "f": FEW_TWO,
    "noncentral_chisquare": FEW_TWO,
    "wald": [*FEW_TWO, call(N3, A2[:, None], (2, 3))],
    "vonmises": [
        call(0.7, 2),
        call([0.5, 2.0], 1.5, dtype=np.float16),
        call(A2, N3[:2], (3, 2)),
        call(-3.0, [0.01, 0.0], (3, 2)),
        call(0.1, A2, ()),
    ],
    "noncentral_f": [
        call(2.0, 3.0, 0.5, 2),
        call([0.5, 2.0], N3[:2], 1.0),
    ],
    "truncated_normal": [
        call(-1.0, 1.0),
        call(-1, 2, (2, 3)),
        call(N3, 3.0, loc=N3[::-1], scale=2.0),
        call(-0.5, A2, (3, 2), 0.25, 0.5),
        call(3.0, 4.0, (2, 3), check_valid=False),
        call(-1.0, 1.0, (2, 3), key=2, dtype="float16"),
    ],
    "triangular": [
        call(),
        call(-1, 0, 2, 5),
        call([0.0, 1.0], 2.0, [3.0, 4.0]),
        call(0.0, N3, 4.0, (2, 3)),
        call(0.0, 0.0, 1.0, 4, key=2, dtype="float16"),
    ],
    "bernoulli": [*CHANCES, call(1.5, 3, check_valid=False)],
    "geometric": [*CHANCES, call(0.2, 5, dtype=jnp.int8), call(1e-3, 5, dtype=float)],
    "binomial": [
        call(10, 0.3),
        call(np.array([5, 1000]), P2),
        call(20, 0.5, 2, key=1, dtype=jnp.int16, check_valid=False),
    ],
    "negative_binomial": [
        call(10, 0.3),
        call(np.array([5.0, 100.0]), P2),
        call(7.0, P2, ()),
        call(20, 0.5, 2, key=1, dtype=jnp.int16),
    ],
    "poisson": [call(), *FEW[:-1], call(100.0, 2, dtype=jnp.int16, key=1)],
    "hypergeometric": [
        call(10, [5, 50], jnp.array([0, 100])),
        call(-3, 20, 30, (2, 2), key=1, dtype=jnp.int16),
    ],
    "logseries": [
        call([0.2, 0.99]),
        call(np.array([0.0, 0.5, 0.95]), (2, 3)),
        call(0.9, 50, key=1, dtype=jnp.int16),
    ],
    "zipf": [
        call([1.5, 3], (3, 2)),
        call(2.0, 50, key=1, dtype=jnp.int16),
    ],
    "multinomial": [
        call(10, [0.2, 0.3, 0.5]),
        call(20, np.array([0.25, 0.75]), 3),
        call(np.array([3, 0, 8]), P2),
        call([4, 5], [[0.2, 0.8], [0.5, 0.5]]),
        call(5, jnp.array([[0.2, 0.8]]), (4,)),
        call(0, [0.5, 0.5], (2, 2)),
        call(9, [0.1, 0.2], key=1, dtype=jnp.int8, check_valid=False),
    ],
    "dirichlet": [
        call([1.0, 2.0, 3.0]),
        call(N3, (2,)),
        call(A2, 2, key=1),
    ],
    "multivariate_normal": [
        call([0.0, 1.0], COV),
        call(np.zeros(2), np.array(COV), (3,)),
        call(jnp.zeros((3, 2)), COV),
        call([1, 2], COV, 4, "svd"),
        call([1, 2], COV, (2, 2), method="eigh"),
        call([1.0, 2.0], jnp.stack([jnp.array(COV)] * 2), key=1),
    ],
    "orthogonal": [call(3), call(2, 4), call(1, (2, 3)), call(2, key=1, dtype=F32)],
    "categorical": [
        call([0.0, 1.0, 2.0]),
        call(N3, size=5),
        call(jnp.zeros((2, 3))),
        call(np.zeros((2, 3)), 0),
        call(np.zeros((2, 3)), -1, (4, 2)),
        call([0.0, 5.0], key=1),
    ],
    "rand_like": [
        call(jnp.ones((2, 3))),
        call(jnp.arange(3)),
        call(1.0),
        call(np.zeros(2, bool), dtype=F32),
        call(True),
        call(jnp.ones(2, "float16"), key=1),
    ],
    "randn_like": [
        call(jnp.ones((2, 3))),
        call(jnp.arange(3)),
        call(1.0),
        call(3),
        call(jnp.ones(2, "float16"), key=1),
    ],
    "randint_like": [
        call(jnp.array([5, 9, 3])),
        call(jnp.ones((2, 3)), 2, 9),
        call(jnp.arange(4), high=20, key=1),
        call(np.zeros(3, np.int8), -3, 3, dtype=F32),
        call(7),
    ],
}


SEEDS = [
    0,
    -1,
    2**40 + 3,
    True,
    np.array(3),
    np.array([5]),
    np.array([1, 2], np.uint32),
    jnp.array([1, 2], jnp.uint32),
    jr.PRNGKey(4),
    jr.key(3),
    jr.key(3, impl="rbg"),
]


def assert_same(ours, expected):
    assert type(ours) is type(expected)
    if isinstance(expected, jax.Array) and jnp.issubdtype(expected.dtype, jax.dtypes.prng_key):
        assert ours.dtype == expected.dtype
        ours, expected = jr.key_data(ours), jr.key_data(expected)
    assert ours.dtype == expected.dtype
    assert ours.shape == expected.shape
    if isinstance(expected, jax.Array):
        assert ours.weak_type == expected.weak_type
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(expected))
