"""Backends from somebody else: installed by pip, found by their entry points, checked by our kit."""

import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("hatchling", reason="builds the examples")
EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def mygrad(tmp_path_factory):
    """First order only, and gradients that are added up."""
    return installed("mygrad", tmp_path_factory)


@pytest.fixture(scope="module")
def tinygrad(tmp_path_factory):
    """Every order, and models that hold their parameters; on the device that needs no compiler, and without a cache in the home."""
    return {**installed("tinygrad", tmp_path_factory), "DEV": "PYTHON", "CACHELEVEL": "0"}


def installed(name, tmp_path_factory):
    """The example installed into a folder of its own, on the path of a new interpreter."""
    pytest.importorskip(name, reason="the framework of the example")
    target = tmp_path_factory.mktemp(name)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index"]
    install = [*pip, "--target", str(target), str(EXAMPLES / f"gradbridge-{name}")]
    subprocess.run(install, check=True, capture_output=True)
    path = os.pathsep.join([str(target), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def python(code, environment):
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def check(name, environment):
    code = f"import sys; from gradbridge.testing import check_command; sys.exit(check_command({name!r}))"
    return python(code, environment)


def test_mygrad_is_found_by_its_entry_point_and_gives_gradients(mygrad):
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
    run = python(code, mygrad)
    assert run.stdout.strip() == "fine", run.stderr


def test_mygrad_keeps_every_law_as_a_guest_and_as_a_host(mygrad):
    run = check("mygrad", mygrad)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert run.stdout.count(", 0 failed, ") == 2
    assert "mygrad as a host: " in run.stdout


def test_a_program_of_mygrad_goes_through_a_model_of_autograd(mygrad):
    code = """
import autograd.numpy as anp, mygrad as mg, numpy as np, gradbridge as gb
f = gb.bridge(lambda p, x: anp.tanh(anp.dot(x, p)), params=np.ones(3), backend="autograd")
x = np.arange(6.0).reshape(2, 3) / 6
p = mg.tensor([0.1, 0.2, 0.3])
mg.sum(mg.sin(f(p, x))).backward()
y = np.tanh(x @ p.data)
assert np.allclose(p.grad, (np.cos(y) * (1 - y**2)) @ x, rtol=1e-13)
print("fine")
"""
    run = python(code, mygrad)
    assert run.stdout.strip() == "fine", run.stderr


def test_tinygrad_is_found_by_its_entry_point_and_gives_every_order(tinygrad):
    code = """
import autograd.numpy as np, gradbridge as gb
from autograd import grad, hessian
info = gb.backends()["tinygrad"]
assert info.package == "gradbridge-tinygrad" and info.available, info.reason
energy = gb.primitive(backend="tinygrad")(lambda x, y: (x.sin() * y).sum())
x, y = np.linspace(0, 1, 4), np.arange(4.0)
assert np.allclose(grad(energy)(x, y), np.cos(x) * y, rtol=1e-12)
assert np.allclose(hessian(energy)(x, y), np.diag(-np.sin(x) * y), rtol=1e-12)
print("fine")
"""
    run = python(code, tinygrad)
    assert run.stdout.strip() == "fine", run.stderr


def test_tinygrad_tells_a_number_from_an_equal_constant(tinygrad):
    # tinygrad knows equal constants as one node; at x = 2 the 2s of this function must not get x's gradient.
    code = """
import numpy as np, gradbridge as gb
from autograd import grad
f = gb.primitive(backend="tinygrad")(lambda x: x * x * 2.0 + x**2.0)
assert abs(grad(f)(np.array(2.0)) - 12.0) < 1e-12, grad(f)(np.array(2.0))
assert abs(grad(grad(f))(np.array(2.0)) - 6.0) < 1e-12
print("fine")
"""
    run = python(code, tinygrad)
    assert run.stdout.strip() == "fine", run.stderr


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (
            "gb.primitive(backend='tinygrad')(lambda x: x * x.rand_like())(np.ones(3))",
            "draws tinygrad's random",
        ),
        (  # also where others were drawn before, so that the counters are there already
            "nn.Linear(2, 2).weight.realize()\n"
            "gb.primitive(backend='tinygrad')(lambda x: x * x.rand_like())(np.ones(3))",
            "draws tinygrad's random",
        ),
        ("gb.bridge(nn.BatchNorm(3), backend='tinygrad', mode='train')", "running_mean"),
        ("gb.bridge(nn.Linear(2, 2), backend='tinygrad', dtype='int8')", "dtype must be one of"),
        (
            "gb.bridge(nn.Linear(2, 2), backend='tinygrad', device='NOWHERE')",
            "does not open its device NOWHERE",
        ),
    ],
)
def test_tinygrad_refuses_what_it_cannot_do(tinygrad, code, word):
    run = python(f"import numpy as np, gradbridge as gb\nfrom tinygrad import nn\n{code}", tinygrad)
    assert run.returncode != 0
    assert word in run.stderr


def test_tinygrad_keeps_every_law(tinygrad):
    run = check("tinygrad", tinygrad)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "0 failed" in run.stdout
