"""Lets `pytest benchmarks` time statemap as users have it, and not with the checks of the tests."""

import pathlib
import sys

import pytest


HERE = pathlib.Path(__file__).parent


def checks() -> list[object]:
    """The import hooks by which pytest's `--jaxtyping-packages` has every annotation checked."""
    return [finder for finder in sys.meta_path if type(finder).__module__.startswith("jaxtyping")]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    asked_for = [config.invocation_params.dir / arg.split("::")[0] for arg in config.args]
    if all(HERE in (path.resolve(), *path.resolve().parents) for path in asked_for):
        for finder in checks():
            sys.meta_path.remove(finder)
        if not getattr(config.option, "tx", None):  # `--dist` alone has pytest-benchmark give up
            config.option.dist = "no"
