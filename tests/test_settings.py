"""Settings of another library, which JAX does not know of, as part of what a program is for."""

import threading

import jax.numpy as jnp
import pytest

import statemap as sm
from statemap import _settings


class Library(threading.local):
    """A library with settings."""

    def __init__(self):
        self.settings = {}

    def all(self):
        return self.settings

    def get(self, name):
        _settings.note(self.all_of, name)
        return self.settings.get(name, 0)


@pytest.fixture
def library():
    found = Library()
    found.all_of = lambda: found.settings
    _settings.register(found.all_of)
    yield found
    _settings._libraries.remove(found.all_of)


X = jnp.arange(3.0)


def test_a_program_is_for_the_settings_that_it_read(library, runs):
    @sm.vmap2
    @runs
    def f(states, x):
        return x + library.get("a") * (library.get("b") if library.get("a") else 0), states

    for a, b, expected, count in (
        (0, 5, 0, 1),
        (0, 6, 0, 1),  # which it did not read
        (2, 5, 10, 2),
        (2, 6, 12, 3),
        (2, 5, 10, 3),
        (0, 7, 0, 3),
        (2, 6, 12, 3),
    ):
        library.settings = {"a": a, "b": b, "c": object()}
        for _ in range(2):  # warm, too
            assert (f(sm.States(), X)[0] == X + expected).all()
        assert runs.count == count


def test_what_a_program_inside_read_the_one_around_did(library, runs):
    @sm.vmap2
    def inner(states, x):
        return x * library.get("a"), states

    @runs
    def outer(states, x):
        return inner(states, jnp.stack([x, x]))[0], states

    other = lambda states, x: inner(states, jnp.stack([x, x]))
    mapped, again = sm.vmap2(outer), sm.vmap2(other)
    for a in (1.0, 2.0, 1.0, 2.0):
        library.settings = {"a": a}
        assert (mapped(sm.States(), X)[0][:, 0] == a * X).all()
        assert (again(sm.States(), X)[0][:, 0] == a * X).all()  # whose inner program is there
    assert runs.count == 2


def test_all_settings_and_1_is_not_true(library, runs):
    @sm.vmap2
    @runs
    def f(states, x):
        _settings.note(library.all_of, ...)
        return x, states

    for settings in ({"a": 1}, {"a": 1, "b": 2}, {"a": True}, {"a": 1.0}, {"a": jnp.ones(2)}):
        library.settings = settings
        f(sm.States(), X)
        f(sm.States(), X)
    library.settings = {"a": jnp.ones(2)}  # other arrays of the same numbers
    f(sm.States(), X)
    assert runs.count == 5


def test_a_function_that_changes_what_it_reads(library, runs):
    @sm.vmap2
    @runs
    def f(states, x):
        library.settings = {"a": library.get("a") + 1}
        return x * library.get("a"), states

    for i in range(3):
        assert (f(sm.States(), X)[0] == (i + 1) * X).all()
    assert runs.count == 3


def test_what_reads_nothing_looks_at_nothing(library):
    f = sm.vmap2(lambda states, x: (x, states))
    f(sm.States(), X)
    library.settings = None  # would fail
    f(sm.States(), X)
