"""Settings that every test shares."""

import os
import random
import subprocess
import sys
import textwrap

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


@pytest.fixture
def run_forking(tmp_path):
    """Runs a program that forks, apart from pytest and its threads, and gives the lines that it prints."""
    if not hasattr(os, "fork"):
        pytest.skip("there are no forks here")
    imports = """
        import os, pickle
        import autograd.numpy as np
        import gradbridge as gb
        from autograd import grad
        from forked import forked
        """

    def run(*code, seconds=120):
        program = tmp_path / "program.py"
        program.write_text("\n".join(map(textwrap.dedent, (imports, *code))), encoding="utf-8")
        folders = filter(None, sys.path)
        done = subprocess.run(
            [sys.executable, program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()

    return run
