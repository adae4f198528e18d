import pytest


pytest.importorskip("brainstate", reason="the layers are those of brainstate")

import brainstate

from statemap import compat


@pytest.fixture(autouse=True)
def strict_promotion():
    """brainstate's layers promote."""


@pytest.fixture
def layers():
    """brainstate, on the shim."""
    compat.install(layers="brainstate")
    brainstate.random.seed(0)
    yield brainstate
    compat.uninstall()


@pytest.fixture
def both():
    """Runs a program on brainstate alone and on the shim: `(theirs, ours)`."""

    def run(program):
        brainstate.random.seed(0)
        theirs = program(brainstate)
        compat.install(layers="brainstate")
        try:
            brainstate.random.seed(0)
            return theirs, program(brainstate)
        finally:
            compat.uninstall()

    return run
