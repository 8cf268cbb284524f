"""Settings that every test shares."""

import random
import sys

import numpy as np
import pytest
from hypothesis import settings

# Machines differ in speed; no test asserts a time.
settings.register_profile("gradbridge", deadline=None, derandomize=True)
settings.load_profile("gradbridge")

_states = {}  # {(module, name of a generator of it): its state after the import}


@pytest.hookimpl(tryfirst=True)  # before any fixture draws
def pytest_runtest_setup(item):
    """Every test draws the same numbers, whichever ones the same worker ran before it."""
    for name, value in vars(item.module).items():
        if isinstance(value, np.random.Generator):
            key = item.module.__name__, name
            value.bit_generator.state = _states.setdefault(key, value.bit_generator.state)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002, what others draw from
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
