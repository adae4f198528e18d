import sys

import numpy as np
import pytest

from statemap.compat import random


@pytest.fixture(autouse=True)
def strict_promotion():
    """Not here: brainstate does not pass under strict promotion."""
    yield


@pytest.fixture(autouse=True)
def ends_as_it_began():
    before = np.random.get_state()
    yield
    np.random.set_state(before)
    random.DEFAULT._backup = None
    if "brainstate" in sys.modules:
        sys.modules["brainstate"].random.DEFAULT._backup = None
