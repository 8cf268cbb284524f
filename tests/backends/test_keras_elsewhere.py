"""Keras models on each of Keras' own backends go to the right guest; each needs a process of its own."""

import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("keras")

SCRIPT = """
import os, numpy as np, keras, gradbridge as gb
from autograd import grad, hessian
import autograd.numpy as anp
backend = os.environ["KERAS_BACKEND"]
keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, activation="tanh"),
                          keras.layers.BatchNormalization(), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
assert gb.default_registry().match(model) == backend
f = gb.bridge(model)
X = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
w = [np.asarray(keras.ops.convert_to_numpy(v), "float64") for v in model.trainable_variables]
assert np.allclose(f.params, np.concatenate([v.ravel() for v in w]))
assert np.allclose(f(f.params, X), model.predict(X, verbose=0), atol=1e-5)

def closed(p, x):
    parts, start = [], 0
    for v in w:
        parts.append(p[start:start + v.size].reshape(v.shape)); start += v.size
    k, b, gamma, beta, K, B = parts
    h = np.tanh(x @ k + b) if False else anp.tanh(anp.dot(x, k) + b)
    return anp.dot(h / np.sqrt(1 + 1e-3) * gamma + beta, K) + B

loss = lambda g: lambda p: anp.sum(anp.sin(g(p, X)))
assert np.allclose(grad(loss(f))(f.params), grad(loss(closed))(f.params), atol=1e-4)
assert np.allclose(hessian(loss(f))(f.params), hessian(loss(closed))(f.params), atol=1e-3)
before = [np.array(keras.ops.convert_to_numpy(v)) for v in model.variables]
twin = f.model(2 * f.params)
assert np.allclose(twin.predict(X, verbose=0), f(2 * f.params, X), atol=1e-4)
assert all(np.array_equal(a, keras.ops.convert_to_numpy(b)) for a, b in zip(before, model.variables))
others = {"torch", "jax", "tensorflow"} - {backend}
for other in others:
    try:
        gb.bridge(model, backend=other)
    except gb.errors.UnknownModelError as error:
        assert backend in str(error)
    except gb.errors.BackendUnavailableError:
        pass
    else:
        raise AssertionError(other)
print("fine")
"""


@pytest.mark.parametrize("backend", ["torch", "jax", "tensorflow"])
def test_a_keras_model_goes_to_the_guest_of_the_backend_that_it_runs_on(backend):
    pytest.importorskip(backend)
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip().endswith("fine"), run.stderr[-2000:]


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_models_are_bridged_alike_on_every_backend_of_keras(backend):
    pytest.importorskip(backend)
    file = pathlib.Path(__file__).with_name("test_keras_models.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:]


GRAPHS = """
import copy, os, pickle, tempfile
import autograd.numpy as anp, keras, numpy as np
from autograd import grad
import gradbridge as gb
layers = keras.layers
keras.utils.set_random_seed(0)

@keras.saving.register_keras_serializable("gradbridge_tests")
class Twice(keras.Model):  # its config leaves out everything
    def __init__(self, **kwargs):
        x, dense = keras.Input([3]), layers.Dense(4, "tanh", name="d")
        super().__init__(x, layers.Dense(1, name="o")(dense(x) + dense(2 * x)))

    def get_config(self):
        return {}

def within():
    x, a, b = keras.Input([3]), keras.Input([3]), keras.Input([3])
    inner = keras.Model(x, layers.Dense(4, "tanh")(x))
    return keras.Model([a, b], layers.Dense(1)(inner(a) + inner(2 * b)))

X = np.random.default_rng(0).normal(size=(5, 3))

def closed(p, x):
    def inner(x):
        return anp.tanh(anp.dot(x, p[:12].reshape(3, 4)) + p[12:16])
    return anp.dot(inner(x) + inner(2 * x), p[16:20].reshape(4, 1)) + p[20:]

loss = lambda g, x: lambda p: anp.sum(anp.sin(g(p, x)))
for model, x in ((Twice(), X), (within(), [X, X])):
    for dtype, atol in ((None, 1e-5), ("float64", 1e-12)):
        fresh, used = gb.bridge(model, dtype=dtype), gb.bridge(model, dtype=dtype)
        p = 1.5 * used.params
        grad(loss(used, x))(p)
        with tempfile.TemporaryDirectory() as folder:
            used.model(p).save(folder + "/m.keras")
            loaded = gb.bridge(keras.saving.load_model(folder + "/m.keras"), dtype=dtype)
        assert np.allclose(loaded.params, p, atol=1e-6)
        twins = [loaded, gb.bridge(pickle.loads(pickle.dumps(used.model(p))), dtype=dtype)]
        for f in (fresh, used):
            twins += [pickle.loads(pickle.dumps(f)), copy.deepcopy(f), pickle.loads(pickle.dumps(copy.deepcopy(f)))]
        for f in twins:
            assert np.allclose(f(p, x), closed(p, X), rtol=0, atol=atol), (model, dtype)
            assert np.allclose(grad(loss(f, x))(p), grad(loss(closed, X))(p), rtol=0, atol=10 * atol), (model, dtype)
print("fine")
"""


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_models_that_are_graphs_are_copied_pickled_and_saved_on_each_backend(backend):
    pytest.importorskip(backend)
    run = subprocess.run(
        [sys.executable, "-c", GRAPHS],
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.stdout.strip().endswith("fine"), run.stderr[-2000:]
