"""A backend from somebody else: installed by pip, found by its entry point, checked by our kit."""

import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("mygrad", reason="the framework of the example")
pytest.importorskip("hatchling", reason="builds the example")
EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "gradbridge-mygrad"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The example installed into a folder of its own, on the path of a new interpreter."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(EXAMPLE)], check=True, capture_output=True)
    return {**os.environ, "PYTHONPATH": str(target)}


def python(code, environment):
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_it_is_found_by_its_entry_point_and_gives_gradients(environment):
    code = """
import autograd.numpy as np, mygrad as mg, gradbridge as gb
from autograd import grad
assert gb.backends()["mygrad"].package == "gradbridge-mygrad"
energy = gb.primitive(backend="mygrad")(lambda x, y: (mg.sin(x) * y).sum())
x, y = np.linspace(0, 1, 4), np.arange(4.0)
assert np.allclose(grad(energy)(x, y), np.cos(x) * y, rtol=1e-14)
try:
    grad(grad(energy))(np.array(1.0), np.array(2.0))
except gb.errors.HigherOrderError:
    print("fine")
"""
    run = python(code, environment)
    assert run.stdout.strip() == "fine", run.stderr


def test_it_keeps_every_law(environment):
    code = "import sys; from gradbridge.testing import check_command; sys.exit(check_command('mygrad'))"
    run = python(code, environment)
    assert run.returncode == 0, run.stdout[-3000:]
    assert "0 failed" in run.stdout
