"""What each framework does without the others: import, one bridge, one run of the real Seldonian Engine.

`nox -s tests_only` runs these tests where one framework is installed, `nox -s tests_bare` where none is. They
hold everywhere: where several frameworks are installed, each is tested in turn.
"""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
from autograd import grad, hessian

import gradbridge as gb
from gradbridge.errors import BackendUnavailableError

FRAMEWORKS = ("torch", "jax", "tensorflow")
INSTALLED = tuple(name for name in FRAMEWORKS if importlib.util.find_spec(name))
MISSING = tuple(name for name in FRAMEWORKS if name not in INSTALLED)
# Set by the sessions `tests_only` and `tests_bare`: the framework that is there, or an empty string.
ALONE = os.environ.get("GRADBRIDGE_TESTED_ALONE")
# What of other people's such an environment holds, so that no test here skips itself for want of it.
HOLDS = {
    "": set(),
    "torch": {"torch", "seldonian"},
    "jax": {"jax", "flax", "equinox", "seldonian"},
    "tensorflow": {"tensorflow", "keras", "seldonian"},
}

each_missing = pytest.mark.parametrize("backend", MISSING)


# -- the environment, and the list of backends ------------------------------------------------------


@pytest.mark.skipif(ALONE is None, reason="asked where an environment is for one framework, or for none")
def test_the_environment_holds_what_it_is_for_and_nothing_else():
    """Else the tests here would skip themselves, or prove nothing, and nobody would know."""
    assert {name for name in set().union(*HOLDS.values()) if importlib.util.find_spec(name)} == HOLDS[ALONE]


def test_the_list_says_what_works_and_how_to_install_what_does_not():
    code = """
import sys, gradbridge as gb
found = gb.backends()
assert not {"torch", "jax", "tensorflow"} & set(sys.modules), "listing imports nothing"
for name, info in found.items():
    print(name, info.installed, info.available, info.reason, sep=" | ")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    rows = [line.split(" | ") for line in run.stdout.splitlines() if " | " in line]
    told = {name: row for name, *row in rows}
    for name in ("autograd", "numpy", *INSTALLED):
        assert told[name] == ["True", "True", "None"]
    for name in MISSING:
        installed, available, reason = told[name]
        assert (installed, available) == ("False", "False")
        assert f'{name}, which is not installed; install it with: pip install "{name}>=' in reason


@each_missing
def test_a_missing_framework_is_refused_with_the_line_that_installs_it(backend):
    for ask in (
        lambda: gb.build("linear", 2, backend=backend),
        lambda: gb.bridge(object(), backend=backend),
        lambda: gb.bridge(lambda p, x: p * x, params=np.ones(2), backend=backend),
        lambda: gb.primitive(backend=backend)(lambda x: x)(np.ones(2)),
    ):
        with pytest.raises(BackendUnavailableError, match=rf'install it with: pip install "{backend}>='):
            ask()


def test_a_model_is_built_of_what_is_installed(monkeypatch):
    monkeypatch.delenv("GRADBRIDGE_BACKEND", raising=False)
    model = gb.build("linear", 2)
    preferred = [name for name in ("torch", "tensorflow", "jax", "numpy") if name not in MISSING]
    assert gb.default_registry().match(model) == preferred[0]
    f = gb.bridge(model, dtype="float64")
    np.testing.assert_allclose(f(np.array([1.0, 10.0, 100.0]), np.array([[1.0, 2.0]])), [211.0], rtol=1e-14)


# -- one layer, tanh(x w + b), as its users write it ------------------------------------------------


def torch_module(features, activation):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(features, 1)
    return torch.nn.Sequential(layer, torch.nn.Tanh()) if activation else layer, {}


def flax_module(features, activation):
    jax = pytest.importorskip("jax")
    nnx = pytest.importorskip("flax.nnx")
    layer = nnx.Linear(features, 1, rngs=nnx.Rngs(0))
    return nnx.Sequential(layer, jax.numpy.tanh) if activation else layer, {}


def equinox_module(features, activation):
    jax = pytest.importorskip("jax")
    nn = pytest.importorskip("equinox.nn")
    layer = nn.Linear(features, 1, key=jax.random.key(0))
    model = nn.Sequential([layer, nn.Lambda(jax.numpy.tanh)]) if activation else layer
    return model, {"vmap": True}


def keras_model(features, activation):
    pytest.importorskip("tensorflow")
    import keras

    layer = keras.layers.Dense(1, activation=activation)
    return keras.Sequential([keras.Input((features,)), layer]), {}


def tensorflow_module(features, activation):
    tf = pytest.importorskip("tensorflow")

    class Layer(tf.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = tf.Variable(tf.ones((features, 1))), tf.Variable(tf.zeros(1))

        def __call__(self, x):
            y = x @ self.weight + self.bias
            return tf.tanh(y) if activation else y

    return Layer(), {}


MODELS = (torch_module, flax_module, equinox_module, keras_model, tensorflow_module)
each_model = pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)


def columns(layout, x):
    """What each number of the flat vector is multiplied by: a column of x, or 1 for the bias. (rows, P)."""
    return np.hstack([np.ones((len(x), 1)) if "bias" in name else x for name in layout.names])


@each_model
def test_value_gradient_and_second_derivative_are_the_closed_form(make):
    model, options = make(3, "tanh")
    f = gb.bridge(model, dtype="float64", **options)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 3))
    a, p = columns(f.layout, x), rng.normal(size=4)
    t = np.tanh(a @ p)
    slope, bend = 1 - t**2, -2 * t * (1 - t**2)
    assert f(p, x).dtype == np.float64
    np.testing.assert_allclose(f(p, x), t[:, None], rtol=1e-13)
    np.testing.assert_allclose(grad(lambda p: f(p, x).sum())(p), slope @ a, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        hessian(lambda p: f(p, x).sum())(p), a.T @ (bend[:, None] * a), rtol=1e-11, atol=1e-13
    )


@each_model
def test_the_real_engine_trains_it_as_it_trains_its_own_model(make):
    pytest.importorskip("seldonian")
    from seldonian.models.models import LinearRegressionModel
    from seldonian.seldonian_algorithm import SeldonianAlgorithm
    from seldonian.utils.tutorial_utils import make_synthetic_regression_dataset

    from gradbridge_seldonian import SeldonianModel, supervised_spec

    model, options = make(1, None)
    bridged = SeldonianModel(gb.bridge(model, dtype="float64", **options))
    paths = []
    for trained in (bridged, LinearRegressionModel()):
        np.random.seed(0)  # noqa: NPY002, the engine's generator draws from it
        data = make_synthetic_regression_dataset(num_points=200)
        constraints, deltas = ["Mean_Squared_Error >= 1.25", "Mean_Squared_Error <= 2.0"], [0.1, 0.1]
        spec = supervised_spec(data, trained, constraints, deltas, initial_solution=np.zeros(2), num_iters=25)
        algorithm = SeldonianAlgorithm(spec)
        algorithm.run()
        paths.append(algorithm.cs_result)
    ours, engines = paths
    # The engine's own model has its intercept first, ours where the framework lists its bias.
    theirs = [0 if "bias" in name else 1 for name in bridged.bridge.layout.names]
    assert not np.allclose(engines["candidate_solution"], 0)
    np.testing.assert_allclose(
        ours["candidate_solution"], engines["candidate_solution"][theirs], rtol=1e-9, atol=1e-9
    )
    for key in ("f_vals", "g_vals", "lamb_vals"):
        np.testing.assert_allclose(ours[key], engines[key], rtol=1e-9, atol=1e-9)
