"""Portable architectures: one flat vector, the same predictions and gradients on every framework."""

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad

import gradbridge as gb
from gradbridge import architectures
from gradbridge.errors import OptionError, UnknownBackendError

BUILDERS = [
    name
    for name in ("numpy", "torch", "tensorflow", "jax")
    if name in gb.backends() and gb.backends()[name].available
]
RNG = onp.random.default_rng(0)
IMAGES, ROWS = RNG.normal(size=(5, 8, 8, 1)), RNG.normal(size=(7, 4))
CASES = {
    "line": ("linear", {"features": 4}, ROWS),
    "logistic": ("linear", {"features": 4, "activation": "sigmoid"}, ROWS),
    "mlp": ("mlp", {"sizes": [4, 6, 3], "output": "softmax"}, ROWS),
    "relu mlp": ("mlp", {"sizes": [4, 5, 5, 1], "activation": "relu"}, ROWS),
    "cnn": ("cnn", {"image": (8, 8, 1), "channels": [3, 4], "classes": 3}, IMAGES),
}
PAIRS = [(c, b) for c in CASES for b in BUILDERS if not (b == "numpy" and c == "cnn")]


def reference(architecture, params, x):
    """The architecture in plain NumPy, straight from the table in its module."""
    parts = architecture.layout.unravel(params)
    for layer in architecture.layers:
        if layer.kind == "dense":
            x = x @ parts[f"{layer.name}.weight"] + parts[f"{layer.name}.bias"]
        elif layer.kind == "conv":
            w, k = parts[f"{layer.name}.weight"], layer.size
            padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)), mode="constant")
            h, v = x.shape[1], x.shape[2]
            x = parts[f"{layer.name}.bias"] + sum(
                np.dot(padded[:, i : i + h, j : j + v], w[i, j]) for i in range(k) for j in range(k)
            )
        elif layer.kind == "pool":
            s = layer.size
            corners = [x[:, i::s, j::s] for i in range(s) for j in range(s)]
            best = corners[0]
            for corner in corners[1:]:
                best = np.maximum(best, corner)
            x = best
        else:
            x = np.reshape(x, (x.shape[0], -1))
        if layer.activation == "tanh":
            x = np.tanh(x)
        elif layer.activation == "relu":
            x = np.maximum(x, 0)
        elif layer.activation == "sigmoid":
            x = 1 / (1 + np.exp(-x))
        elif layer.activation == "softmax":
            x = np.exp(x) / np.sum(np.exp(x), -1, keepdims=True)
    return x[..., 0] if architecture.squeeze else x


@pytest.mark.parametrize(("case", "backend"), PAIRS, ids=[f"{c}-{b}" for c, b in PAIRS])
def test_predictions_and_gradients_are_the_same_on_every_framework(case, backend):
    name, sizes, X = CASES[case]
    architecture = architectures.ARCHITECTURES[name](**sizes)
    f = gb.bridge(gb.build(name, **sizes, backend=backend, seed=3), dtype="float64")
    assert f.layout.shapes == architecture.layout.shapes
    # Biases off zero, so that no unit stands exactly on the kink of a relu.
    params = architecture.initial(7) + 0.1 * onp.random.default_rng(1).normal(size=architecture.layout.size)
    onp.testing.assert_allclose(f(params, X), reference(architecture, params, X), rtol=1e-12, atol=1e-14)
    loss = lambda g: lambda p, X: np.sum(np.sin(g(p, X)))
    got = grad(loss(f), (0, 1))(params, X)
    expected = grad(loss(lambda p, X: reference(architecture, p, X)), (0, 1))(params, X)
    for a, b in zip(got, expected):
        onp.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("case", "backend"), PAIRS, ids=[f"{c}-{b}" for c, b in PAIRS])
def test_in_single_precision_they_agree_to_its_rounding(case, backend):
    name, sizes, X = CASES[case]
    architecture = architectures.ARCHITECTURES[name](**sizes)
    f = gb.bridge(gb.build(name, **sizes, backend=backend))
    params = architecture.initial(7)
    onp.testing.assert_allclose(f(params, X), reference(architecture, params, X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BUILDERS)
def test_the_same_seed_starts_at_the_same_parameters(backend):
    f = gb.bridge(gb.build("mlp", [4, 3, 1], backend=backend, seed=5))
    onp.testing.assert_allclose(f.params, architectures.mlp([4, 3, 1]).initial(5), rtol=1e-6)


@pytest.mark.parametrize("backend", BUILDERS)
def test_the_params_of_a_line_read_intercept_then_slope(backend):
    f = gb.bridge(gb.build("linear", 2, backend=backend), dtype="float64")
    assert onp.allclose(f(onp.array([1.0, 10.0, 100.0]), onp.array([[1.0, 2.0]])), [211.0])


@pytest.mark.parametrize("backend", BUILDERS)
def test_a_vector_trained_on_one_loads_on_another(backend):
    first = gb.bridge(gb.build("mlp", [4, 3, 1], backend="numpy"))
    trained = first.params - 0.1 * grad(lambda p: np.sum(first(p, ROWS) ** 2))(first.params)
    other = gb.bridge(gb.build("mlp", [4, 3, 1], backend=backend), dtype="float64")
    native = gb.bridge(other.model(trained), dtype="float64")
    onp.testing.assert_allclose(native(native.params, ROWS), first(trained, ROWS), rtol=1e-12)


@pytest.mark.parametrize("backend", BUILDERS)
def test_the_environment_chooses_the_framework(backend, monkeypatch):
    monkeypatch.setenv("GRADBRIDGE_BACKEND", backend)
    model = gb.build("linear", 2)
    assert gb.default_registry().match(model) == backend


def test_numpy_refuses_convolutions_with_the_reason():
    with pytest.raises(OptionError, match="builds dense layers only, and cnn has conv"):
        gb.build("cnn", (8, 8, 1), [2], 3, backend="numpy")


@pytest.mark.parametrize(
    ("name", "sizes", "said"),
    [
        ("perceptron", {}, "there is no architecture 'perceptron'"),
        ("mlp", {"sizes": [3]}, "two at least, got"),
        ("mlp", {"sizes": [3, 0]}, "positive integers, got 0"),
        ("mlp", {"colour": 1}, "does not take this: .*colour"),
        ("linear", {"features": 2.5}, "features must be positive integers, got 2.5"),
        (
            "linear",
            {"features": 2, "activation": "swish"},
            "activation must be None or one of .*, got 'swish'",
        ),
        ("cnn", {"image": (8, 8), "channels": [1], "classes": 2}, r"image=\(height, width, channels\), got"),
        ("cnn", {"image": (8, 8, 1), "channels": [1], "classes": 2, "kernel": 4}, "kernel must be odd"),
        (
            "cnn",
            {"image": (2, 2, 1), "channels": [1, 1], "classes": 2},
            "has no pixels left after 2 poolings by 2",
        ),
    ],
)
def test_sizes_that_make_no_architecture_are_refused(name, sizes, said):
    with pytest.raises(OptionError, match=said):
        gb.build(name, backend="numpy", **sizes)


def test_an_unknown_framework_is_refused():
    with pytest.raises(UnknownBackendError, match="did you mean 'numpy'"):
        gb.build("linear", 2, backend="numpie")
