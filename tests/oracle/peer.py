"""brainstate, which the shim is compared with; without it, the modules that import this skip."""

import warnings

import pytest


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own
    brainstate = pytest.importorskip("brainstate", "0.5.4")
