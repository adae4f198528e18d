"""Random programs of draws, seeds and splits, run on `statemap.compat.random` and brainstate's."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from hypothesis import given, settings, strategies as st

from statemap.compat import random

from .peer import brainstate
from .random_cases import A2, assert_same, N3, P2, SEEDS


theirs = brainstate.random


# Programs: lists of operations, run on both libraries. Operations on streams take the module or
# one of the random states that the program has made.

params = st.one_of(
    st.none(),
    st.floats(0.125, 5.0),
    st.sampled_from([1, 3, np.float64(0.3), N3[:2], A2, [0.5, 2.0], [np.float64(0.3), 1.0]]),
)
sizes = st.sampled_from([None, 2, (3, 2), [2]])
dtypes = st.sampled_from([None, "float16", jnp.bfloat16])
keys = st.sampled_from([None, None, None, 3, jr.key(8)])
seeds = st.one_of(st.integers(-5, 2**33), st.sampled_from(SEEDS[6:10]))


def drawing(names, *args, **kwargs):
    calls = st.tuples(st.tuples(*args), st.fixed_dictionaries({"key": keys}, optional=kwargs))
    return st.tuples(st.just("draw"), st.sampled_from(names), calls)


draws = st.one_of(
    drawing(["random", "standard_normal", "standard_cauchy"], size=sizes, dtype=dtypes),
    drawing(["normal", "laplace", "gumbel"], params, params, size=sizes, dtype=dtypes),
    drawing(["exponential", "rayleigh"], params, size=sizes, dtype=dtypes),
    drawing(["weibull", "pareto"], st.floats(0.1, 5.0), size=sizes),
    drawing(["randint"], st.integers(-9, 0), st.sampled_from([3, [5, 9]]), size=sizes),
    drawing(["bernoulli"], st.sampled_from([0.3, P2]), size=sizes),
    drawing(["permutation"], st.sampled_from([4, [1, 5, 3], A2])),
    drawing(["choice"], st.sampled_from([4, [1.0, 5.0], ["a", "b"]]), size=sizes),
    drawing(["rand_like", "randn_like"], st.sampled_from([0.5, 3, A2, jnp.arange(3)])),
    drawing(["t"], st.floats(0.5, 9.0)),  # takes two keys from the stream
)
operations = st.deferred(
    lambda: st.one_of(
        draws,
        draws,
        draws,
        st.tuples(st.just("seed"), seeds),
        st.tuples(st.just("set_key"), seeds),
        st.tuples(st.just("split_key"), st.sampled_from([None, 1, 3]), st.booleans()),
        st.tuples(st.just("lanes"), st.integers(1, 3)),
        st.tuples(st.just("restore")),
        st.tuples(st.just("make"), st.none() | seeds),
        st.tuples(st.just("clone")),
        st.tuples(st.just("context"), st.none() | seeds, programs),
        st.tuples(st.just("switch"), st.integers(0, 3)),
    )
)
programs = st.lists(operations, max_size=5)


class Machine:
    """Runs a program on one library, and notes what comes out."""

    def __init__(self, library):
        self.library = library
        self.streams = [library]  # the module itself, and random states
        self.stream = library
        self.out = []

    @property
    def state(self):
        return self.library.DEFAULT if self.stream is self.library else self.stream

    def run(self, program):
        for operation, *rest in program:
            try:
                getattr(self, operation)(*rest)
            except ValueError as error:
                self.out.append(type(error))
            self.out.append(self.state.value)

    def draw(self, name, call):
        args, kwargs = call
        self.out.append(getattr(self.stream, name)(*args, **kwargs))

    def seed(self, seed):
        self.stream.seed(seed)

    def set_key(self, seed):
        self.stream.set_key(seed)

    def split_key(self, n, backup):
        self.out.append(self.stream.split_key(n, backup))

    def lanes(self, n):
        """Keys of lanes draw nothing: they are put back."""
        self.stream.self_assign_multi_keys(n)
        self.out.append(self.state.value)
        self.stream.restore_key()

    def restore(self):
        self.stream.restore_key()

    def make(self, seed):
        self.streams.append(self.library.default_rng(seed))

    def clone(self):
        self.streams.append(self.library.clone_rng())

    def switch(self, i):
        self.stream = self.streams[i % len(self.streams)]

    def context(self, seed, program):
        if seed is None:  # fresh entropy: only that it is put back can be compared
            with self.library.seed_context(None):
                self.library.rand()
        else:
            with self.library.seed_context(seed):
                self.run(program)


@settings(max_examples=2 * settings().max_examples)  # it compiles little
@given(st.integers(0, 9), st.lists(operations, min_size=5, max_size=15))
def test_programs(seed, program):
    outs = []
    for library in (random, theirs):
        library.DEFAULT._backup = None
        library.seed(seed)
        machine = Machine(library)
        machine.run(program)
        outs.append([*machine.out, np.random.random()])
    for ours, expected in zip(*outs, strict=True):
        if isinstance(expected, (type, float)):
            assert ours == expected
        else:
            assert_same(ours, expected)
