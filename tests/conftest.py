"""Settings that every test shares."""

import numpy as np
import pytest
from hypothesis import settings

# Machines differ in speed; no test asserts a time.
settings.register_profile("gradbridge", deadline=None, derandomize=True)
settings.load_profile("gradbridge")

_states = {}  # {(module, name of a generator of it): its state after the import}


@pytest.fixture(autouse=True)
def _draws_do_not_depend_on_the_order_of_tests(request):
    """A module's generator starts each test as the import left it: workers run tests in any order."""
    for name, value in vars(request.module).items() if request.module else ():
        if isinstance(value, np.random.Generator):
            state = _states.setdefault((request.module.__name__, name), value.bit_generator.state)
            value.bit_generator.state = state
