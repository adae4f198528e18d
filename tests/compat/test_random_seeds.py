"""Seeds, keys and streams of `statemap.compat.random`."""

import concurrent.futures
import copy
import os
import pickle
import subprocess
import sys

import jax
import jax.random as jr
import numpy as np
import pytest

from statemap.compat import random, State


@pytest.fixture(autouse=True)
def numpy_as_it_was():
    before = np.random.get_state()
    yield
    np.random.set_state(before)
    random.DEFAULT._backup = None


def same(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and (a == b).all()


def key_of(rng):
    return jr.key_data(rng.value).tolist()


def test_forms_of_seeds():
    typed = jr.key(3)
    for seed in (3, np.int64(3), np.array(3), typed, jr.PRNGKey(3), np.array([0, 3], np.uint32)):
        rng = random.RandomState(seed)
        assert isinstance(rng, State)
        assert rng.value == typed and rng.value.dtype == typed.dtype
        random.set_key(seed)
        assert random.get_key() == typed
        assert random.get_key_data().tolist() == [0, 3]


def test_a_seed_under_a_trace():
    """The key of a seed that is known is known too; that of a traced one is traced."""

    @jax.jit
    def draw(key):
        assert not isinstance(random.RandomState(3).value, jax.core.Tracer)
        return random.rand(2, key=key), random.rand(2, key=3)

    traced, known = draw(jr.PRNGKey(3))
    assert same(traced, known)
    assert same(jax.jit(lambda n: random.rand(2, key=n))(3), known)


def test_seeding_seeds_numpy_too():
    for seed in (-1, np.int64(2**32 - 1), np.array([2**32 - 1, 7], np.uint32)):
        random.seed(seed)
        assert np.random.random() == np.random.RandomState(2**32 - 1).random()
    random.seed(5)
    before = np.random.get_state()[1].copy()
    random.seed()
    assert (np.random.get_state()[1] == before).all()
    assert key_of(random.DEFAULT) != [0, 5]


def test_a_bad_seed_changes_nothing():
    random.seed(5)
    before = np.random.get_state()[1].copy()
    with pytest.raises(TypeError, match="A seed is an integer"):
        random.seed(1.5)
    with pytest.raises(ValueError, match="begins with one key, not with keys of shape .2,."):
        random.seed(jr.split(jr.key(0)))
    assert (np.random.get_state()[1] == before).all()
    assert key_of(random.DEFAULT) == [0, 5]


def test_entropy_is_that_of_numpy():
    np.random.seed(1)
    made = [random.RandomState(), random.RandomState()]
    np.random.seed(1)
    again = random.RandomState(0)
    for rng in made:
        again.seed()
        assert key_of(rng) == key_of(again)
    assert key_of(made[0]) != key_of(made[1])


@pytest.mark.parametrize("seed", [42, None])
def test_seed_context(seed):
    random.seed(1)
    with pytest.raises(ZeroDivisionError, match="by zero"):
        with random.seed_context(seed):
            assert key_of(random.DEFAULT) != [0, 1]
            inside = np.random.random()
            assert (inside == np.random.RandomState(42).random()) == (seed == 42)
            1 / 0  # pyright: ignore
    assert key_of(random.DEFAULT) == [0, 1]
    assert np.random.random() == np.random.RandomState(1).random()


def test_splitting():
    rng = random.RandomState(0)
    carry, draw = jr.split(jr.key(0))
    assert rng.split_key() == draw and rng.value == carry
    keys = jr.split(carry, 4)
    assert (rng.split_key(3) == keys[1:]).all() and rng.value == keys[0]

    random.set_key(0)
    assert random.split_key() == draw
    assert (random.split_keys(3) == keys[1:]).all()
    assert random.get_key() == keys[0]


@pytest.mark.parametrize("split", ["split_key", "split_keys", "self_assign_multi_keys"])
def test_no_number_of_keys(split):
    with pytest.raises(TypeError, match="1.5"):
        getattr(random, split)(1.5)
    with pytest.raises(ValueError, match="is 1 or more, not 0"):
        getattr(random, split)(0)


def test_keeping_a_key():
    random.set_key(0)
    random.split_keys(2, backup=True)
    with pytest.raises(ValueError, match="kept already"):
        random.split_key(backup=True)
    random.restore_key()
    assert random.get_key() == jr.key(0)
    with pytest.raises(ValueError, match="No key is kept"):
        random.restore_key()

    random.self_assign_multi_keys(3)
    assert (random.get_key() == jr.split(jr.key(0), 3)).all()
    random.restore_key()
    assert random.get_key() == jr.key(0)
    random.self_assign_multi_keys(3, backup=False)
    with pytest.raises(ValueError, match="No key is kept"):
        random.restore_key()


def test_streams_of_their_own():
    random.set_key(0)
    assert random.default_rng() is random.DEFAULT
    assert key_of(random.default_rng(3)) == [0, 3]
    assert random.clone_rng(clone=False) is random.DEFAULT
    assert key_of(random.clone_rng(3)) == [0, 3]
    clone = random.clone_rng()
    assert clone.value == jr.split(jr.key(0))[1]
    assert random.get_key() == jr.split(jr.key(0))[0]
    assert random.RandomState(0).clone().value == clone.value


def test_copies():
    rng = random.RandomState(3)
    for copied in (copy.deepcopy(rng), pickle.loads(pickle.dumps(rng)), rng.copy()):
        rng.seed(3)
        assert same(copied.rand(2), rng.rand(2))
    unused = random.RandomState()
    assert key_of(copy.deepcopy(unused)) == key_of(unused)


def test_functions_draw_from_default_wherever_they_are_kept():
    noise = copy.deepcopy({"noise": random.normal})["noise"]
    assert pickle.loads(pickle.dumps(noise)) is random.normal
    random.set_key(3)
    first = noise(size=2)
    random.set_key(3)
    assert same(first, random.normal(size=2))


def test_threads_never_draw_the_same():
    rng = random.RandomState(0)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: tuple(jr.key_data(rng.split_key()).tolist()), range(200)))
    assert len(set(keys)) == 200


def test_import_does_not_start_jax():
    code = """
import jax, numpy
numpy.random.seed(0)
from statemap.compat import random
jax.config.update("jax_num_cpu_devices", 3)
assert jax.device_count() == 3
print(random.get_key_data().tolist())
"""
    variables = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**variables, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    expected = np.random.RandomState(0).randint(0, 2**32, size=2, dtype=np.uint32)
    assert ran.stdout.strip() == str(expected.tolist())
