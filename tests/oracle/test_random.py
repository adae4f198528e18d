"""`statemap.compat.random` against brainstate's own: the same names, arguments and numbers."""

import inspect

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from statemap.compat import environ, random

from .peer import brainstate
from .random_cases import A2, assert_same, CASES, SEEDS


theirs = brainstate.random
NAMES = [n for n in theirs.__all__ if n not in ("RandomState", "DEFAULT")]


SEEDING = {"seed", "set_key", "split_key", "restore_key", "self_assign_multi_keys"}
NOT_KEPT = {"check_if_deleted"}  # gives a stream whose key was donated fresh numbers


def test_every_name():
    assert set(random.__all__) == set(theirs.__all__)
    assert set(CASES) == {n for n in NAMES if hasattr(theirs.RandomState, n)} - SEEDING
    methods = {n for n in vars(theirs.RandomState) if not n.startswith("_")} - NOT_KEPT
    assert {n for n in methods if not hasattr(random.RandomState, n)} == set()


def parameters(fn):
    return [(p.name, p.kind, p.default) for p in inspect.signature(fn).parameters.values()]


@pytest.mark.parametrize("name", NAMES)
def test_signatures(name):
    assert parameters(getattr(random, name)) == parameters(getattr(theirs, name))
    assert getattr(random, name).__name__ == name
    if name in CASES or name in SEEDING:
        ours, expected = getattr(random.RandomState, name), getattr(theirs.RandomState, name)
        assert parameters(ours) == parameters(expected)


@pytest.mark.parametrize("name", CASES)
def test_draws(name):
    """As a function, as a method, and the key after each."""
    rng = random.RandomState(5)
    random.seed(5)
    theirs.seed(5)
    for args, kwargs in CASES[name]:
        expected = getattr(theirs, name)(*args, **kwargs)
        assert_same(getattr(random, name)(*args, **kwargs), expected)
        assert_same(random.get_key(), theirs.get_key())
        assert_same(getattr(rng, name)(*args, **kwargs), expected)
        assert_same(rng.value, theirs.get_key())


def test_positional_arguments_of_methods():
    rng, expected = random.RandomState(5), theirs.RandomState(5)
    assert_same(rng.randint(0, 9, 2, jnp.int16), expected.randint(0, 9, 2, jnp.int16))
    assert_same(rng.rand_like(A2, jnp.float16, 3), expected.rand_like(A2, jnp.float16, 3))
    assert_same(rng.randint_like(A2, 0, 9, None, 3), expected.randint_like(A2, 0, 9, None, 3))
    assert_same(random.bernoulli(key=1), theirs.bernoulli(key=1))


@pytest.mark.parametrize("seed", SEEDS, ids=repr)
def test_seeds(seed):
    assert_same(random.RandomState(seed).value, theirs.RandomState(seed).value)
    generators = []
    for library in (random, theirs):
        library.seed(seed)
        generators.append(np.random.get_state()[1])
    np.testing.assert_array_equal(*generators)
    assert_same(random.get_key(), theirs.get_key())
    assert_same(random.get_key_data(), theirs.get_key_data())
    assert_same(random.rand(2), theirs.rand(2))
    for library in (random, theirs):
        library.set_key(seed)
    assert_same(random.normal(size=2, key=seed), theirs.normal(size=2, key=seed))
    assert_same(random.get_key(), theirs.get_key())
    assert_same(random.default_rng(seed).value, theirs.default_rng(seed).value)
    assert_same(random.clone_rng(seed).value, theirs.clone_rng(seed).value)


def test_keys_of_lanes():
    keys = jr.split(jr.key(0), 3)
    assert_same(random.RandomState(keys).value, theirs.RandomState(keys).value)
    for library in (random, theirs):
        library.set_key(keys)
    assert_same(random.get_key(), theirs.get_key())


def test_entropy():
    """NumPy's global generator gives what is not seeded."""
    values = []
    for library in (random, theirs):
        np.random.seed(7)
        rng = library.RandomState()
        first = rng.value
        rng.seed()
        values.append((first, rng.value))
    for ours, expected in zip(*values):
        assert_same(ours, expected)


def test_seed_without_a_seed_leaves_numpy_alone():
    for library in (random, theirs):
        np.random.seed(7)
        library.seed(1)
        before = np.random.get_state()[1].copy()
        library.seed()
        np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert (random.get_key_data() != theirs.get_key_data()).any()


BAD = [1.5, "a", [1, 2], np.array([1, 2, 3], np.uint32), np.array([1.0, 2.0])]


@pytest.mark.parametrize("seed", BAD, ids=repr)
def test_no_seeds(seed):
    for library in (random, theirs):
        before = library.get_key_data()
        for use in (library.RandomState, library.seed, library.set_key, library.DEFAULT.seed):
            with pytest.raises(TypeError, match="uint32"):
                use(seed)
        with pytest.raises(TypeError, match="uint32"):
            library.normal(key=seed)
        assert (library.get_key_data() == before).all()


@pytest.mark.parametrize("precision", [16, "bf16", 32])
def test_precision(precision):
    with environ.context(precision=precision), brainstate.environ.context(precision=precision):
        for name in ("rand", "normal", "rayleigh", "geometric", "randint", "rand_like"):
            args = {"randint": (9,), "geometric": (0.5,), "rand_like": (1.0,)}.get(name, ())
            assert_same(getattr(random, name)(*args, key=1), getattr(theirs, name)(*args, key=1))
