import os


# Eight devices on the CPU; set before jax starts.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import pytest
from hypothesis import settings


# Each example compiles a program, so examples are few and slow ones are no failure.
settings.register_profile("default", max_examples=25, deadline=None, derandomize=True)
settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=400, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def strict_promotion():
    """For the tests of the library alone: the documentation runs as its readers run it."""
    with jax.numpy_dtype_promotion("strict"):
        yield


class Counter:
    """Counts how often a function runs."""

    def __init__(self):
        self.count = 0

    def __call__(self, fn):
        def counted(*args, **kwargs):
            self.count += 1
            return fn(*args, **kwargs)

        return counted


@pytest.fixture
def runs():
    return Counter()
