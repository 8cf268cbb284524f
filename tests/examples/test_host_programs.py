"""Programs that people would write, each in its own system through a guest of another: they reach what they are after."""

import importlib.util
import math
import pathlib
import shutil
import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")
EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    """An example's module by its name, after the packages that it needs."""

    def load(name, *packages):
        for package in packages:
            pytest.importorskip(package)
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000


def test_an_ode_of_jax_is_fitted_in_a_training_loop_of_torch(example, tmp_path, capsys):
    patients = example("patients_in_torch", "torch", "jax")
    found = patients.main(tmp_path / "patients.png")
    assert found["held_out"] < 1.1 * patients.NOISE < found["errors"][0] / 5
    for name, rate in patients.TRUTH.items():
        assert abs(found["rates"][name] / rate - 1) < 0.08, name
    assert max(found["off"]) < 0.05
    assert is_picture(tmp_path / "patients.png")
    assert "half_saturation" in capsys.readouterr().out


def test_the_odes_gradient_in_torch_is_that_of_its_closed_form(example):
    patients = example("patients_in_torch", "torch", "jax")
    import torch

    # Far below saturation the equation is linear; its solution is Bateman's function.
    half, dose, volume, elimination = 1e9, 300.0, 30.0, 4e9
    rates = {"absorption": np.log(0.9), "half_saturation": np.log(half)}
    f = patients.gb.bridge(patients.concentrations, params=rates, backend="jax")
    tree = {name: torch.tensor(rate, dtype=torch.float64, requires_grad=True) for name, rate in rates.items()}
    person = torch.tensor([[volume, elimination]], dtype=torch.float64, requires_grad=True)
    doses = torch.tensor([dose], dtype=torch.float64)
    out = f(tree, person, doses)[0, 39]  # 10 hours
    leaves = [*tree.values(), person]
    gradients = torch.autograd.grad(out, leaves)

    def closed(absorption, half, person):
        k, rate = person[0, 1] / torch.exp(half) / person[0, 0], torch.exp(absorption)
        return dose * rate / person[0, 0] / (rate - k) * (torch.exp(-10 * k) - torch.exp(-10 * rate))

    copies = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    expected = closed(*copies)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=0)  # Runge and Kutta's error
    for found, right in zip(gradients, torch.autograd.grad(expected, copies)):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=0)


def test_a_path_is_found_in_jax_over_the_energies_of_a_torch_network(example, tmp_path, capsys):
    molecule = example("force_field_in_jax", "torch", "jax")
    found = molecule.main(tmp_path / "path.png")
    ours, exact = found["through PyTorch's network"], found["on the surface itself"]
    # The surface's passes and the valley between them, as they are known.
    np.testing.assert_allclose(exact["level"], [[-0.822, 0.624], [-0.050, 0.467], [0.212, 0.293]], atol=1e-3)
    np.testing.assert_allclose(exact["heights"], [106.0, 65.9, 74.5], atol=0.2)
    np.testing.assert_allclose(ours["level"], exact["level"], atol=0.04)
    np.testing.assert_allclose(ours["heights"], exact["heights"], atol=2.5)
    assert (np.sign(ours["curvatures"]) == [[-1, 1], [1, 1], [-1, 1]]).all()
    # Forces and curvatures are the network's own, by torch alone.
    import jax
    import torch

    points = np.array(ours["level"], np.float32)

    def energy(point):
        return molecule.SCALE * found["network"](point[None])[0, 0]

    slopes = jax.jit(jax.grad(lambda x: found["energies"](x).sum()))(points)
    right = torch.func.vmap(torch.func.grad(energy))(torch.tensor(points)).detach()
    np.testing.assert_allclose(slopes, right, rtol=1e-4, atol=2e-2)  # of energies of 100, in single precision
    curvature = torch.func.hessian(energy)(torch.tensor(points[0])).detach()
    found_curvature = jax.hessian(lambda x: found["energies"](x[None])[0])(points[0])
    np.testing.assert_allclose(found_curvature, curvature, rtol=1e-4, atol=1e-1)
    assert is_picture(tmp_path / "path.png")
    assert "a pass at (-0.8" in capsys.readouterr().out


@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="compiles a C function")
def test_a_c_function_is_fitted_by_keras(example, tmp_path, capsys):
    star = example("orbit_in_keras", "tensorflow", "keras")
    found = star.main(tmp_path / "orbit.png")
    assert found["errors"][-1] < 1.3 * star.NOISE < found["errors"][0] / 4
    for name, tolerance in {
        "amplitude": 1.5,
        "eccentricity": 0.02,
        "period": 0.03,
        "periastron": 0.05,
    }.items():
        assert abs(found["elements"][name] - star.TRUTH[name]) < tolerance, name
    assert is_picture(tmp_path / "orbit.png")
    assert "eccentricity" in capsys.readouterr().out


@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="compiles a C function")
def test_the_c_functions_gradient_in_tensorflow_is_the_implicit_one(example):
    star = example("orbit_in_keras", "tensorflow", "keras")
    import tensorflow as tf

    mean, e = tf.constant(np.linspace(-3, 3, 7)[:, None]), tf.constant(0.4, tf.float64)

    @tf.function
    def value_and_gradients(mean, e):
        with tf.GradientTape() as tape:
            tape.watch((mean, e))
            E = star.anomaly(mean, e)
            total = tf.reduce_sum(tf.sin(E))
        return E, tape.gradient(total, (mean, e))

    E, (by_mean, by_e) = value_and_gradients(mean, e)
    np.testing.assert_allclose(E - 0.4 * np.sin(E), mean, rtol=0, atol=1e-14)
    slope = np.cos(E) / (1 - 0.4 * np.cos(E))
    np.testing.assert_allclose(by_mean, slope, rtol=1e-12)
    assert math.isclose(by_e, np.sum(slope * np.sin(E)), rel_tol=1e-12, abs_tol=1e-13)
