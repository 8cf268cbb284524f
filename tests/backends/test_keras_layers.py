"""Bridges as Keras layers. Most of this file is run once more for each other backend of Keras, in a process of its own."""

import copy
import os
import subprocess
import sys

import numpy as np
import pytest

import gradbridge as gb
from gradbridge.errors import GradbridgeWarning, HostError, OptionError

keras = pytest.importorskip("keras")

RUNNING = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(70, 2))
Y = np.sum(X, 1, keepdims=True) ** 2
PARAMS = {"bias": np.zeros(3), "kernel": np.linspace(-1.0, 1.0, 6).reshape(2, 3)}


def model(p, x):
    import autograd.numpy as anp

    return anp.tanh(anp.dot(x, p["kernel"]) + p["bias"])


def rows(x):
    return (x.shape[0], 3), "float64"


def make():
    return gb.bridge(model, params=PARAMS, backend="autograd", outputs=rows)


@pytest.fixture
def f():
    return make()


def numpy(value):
    return keras.ops.convert_to_numpy(value)


def network(layer):
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(2), layer, keras.layers.Dense(1)])


def fitted(layer, **options):
    net = network(layer)
    net.compile(keras.optimizers.Adam(0.05), "mse", **options)
    return net, net.fit(X, Y, epochs=2, batch_size=32, verbose=0).history["loss"]


def test_its_weights_are_the_layouts_with_the_models_values(f):
    layer = f.as_layer(name="guest")
    assert [w.path for w in layer.weights] == ["guest/bias", "guest/kernel"]
    assert {w.dtype for w in layer.weights} == {"float32"}
    for weight, value in zip(layer.get_weights(), PARAMS.values()):
        np.testing.assert_allclose(weight, value, rtol=1e-6)
    np.testing.assert_allclose(numpy(layer(X)), f(f.params, X), rtol=1e-5, atol=1e-6)
    assert (layer.name, layer.built, layer.trainable) == ("guest", True, True)


def test_it_fits_evaluates_and_predicts(f):
    net, losses = fitted(f.as_layer())
    assert losses[1] < losses[0]
    assert net.output_shape == (None, 1)
    predicted = net.predict(X, batch_size=32, verbose=0)
    assert predicted.shape == (70, 1)
    loss = net.evaluate(X, Y, batch_size=32, verbose=0)
    np.testing.assert_allclose(loss, np.mean((predicted - Y) ** 2), rtol=1e-5)


def test_a_step_is_one_along_the_gradient(f):
    layer = f.as_layer()
    net = keras.Sequential([keras.Input((2,)), layer])
    net.compile(keras.optimizers.SGD(0.5), "mse")
    target = np.zeros((70, 3))
    net.fit(X, target, epochs=1, batch_size=70, verbose=0)
    gradient = f.vjp(f.params, X, cotangent=2 * f(f.params, X) / target.size)
    moved = np.concatenate([w.ravel() for w in layer.get_weights()])
    np.testing.assert_allclose(moved, f.params - 0.5 * gradient, rtol=1e-5, atol=1e-6)


def test_inputs_and_outputs_are_trees_as_the_model_has_them():
    @gb.primitive(outputs=lambda a, b, *, k: {"sum": (a.shape, a.dtype), "first": (a.shape[:1], "int64")})
    def both(a, b, *, k):
        return {"sum": a + k * b, "first": np.argmax(a, 1)}

    both.defvjp(lambda ans, a, b, *, k: lambda v: v["sum"], lambda ans, a, b, *, k: lambda v: k * v["sum"])
    a, b = keras.Input((2,)), keras.Input((2,))
    out = both.as_layer()(a, b, k=2.0)
    assert (out["sum"].shape, out["first"].shape) == ((None, 2), (None,))
    assert (out["sum"].dtype, out["first"].dtype) == ("float32", "int64")
    total = keras.Model([a, b], out["sum"]).predict([X, X], verbose=0)
    np.testing.assert_allclose(total, 3 * X, rtol=1e-5)


def test_a_written_rule_in_fit():
    sine = gb.primitive(lambda x: np.sin(x), outputs=lambda x: (x.shape, x.dtype))
    sine.defvjp(lambda ans, x: lambda v: v * np.cos(x))
    net, losses = fitted(sine.as_layer())
    assert losses[1] < losses[0]
    assert len(net.trainable_weights) == 4


def test_frozen_weights_stay(f):
    layer = f.as_layer(trainable=False)
    before = layer.get_weights()
    net, _ = fitted(layer)
    assert len(net.trainable_weights) == 4
    np.testing.assert_array_equal(layer.get_weights()[1], before[1])


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16", "float64"])
def test_the_dtype_policy_is_kept(f, policy):
    if (RUNNING, policy) == ("jax", "float64"):
        pytest.skip("JAX has no float64 here")
    layer = f.as_layer(dtype=policy)
    y = layer(X)
    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
    assert {w.dtype for w in layer.weights} == {layer.variable_dtype}
    assert layer(keras.Input((2,))).dtype == layer.compute_dtype
    coarse = {"mixed_float16": 2e-3, "bfloat16": 2e-2, "float64": 1e-12}[policy]
    np.testing.assert_allclose(numpy(keras.ops.cast(y, "float64")), f(f.params, X), atol=coarse)


def test_weights_are_saved_and_loaded(f, tmp_path):
    net, _ = fitted(f.as_layer())
    net.save_weights(tmp_path / "net.weights.h5")
    other = network(make().as_layer())
    other.load_weights(tmp_path / "net.weights.h5")
    np.testing.assert_array_equal(net.predict(X, verbose=0), other.predict(X, verbose=0))


def test_a_whole_model_is_saved_with_a_function_that_makes_the_bridge_and_else_refused(f, tmp_path):
    with pytest.raises(HostError, match=r"save the weights alone \(save_weights\), or .*made_by=make"):
        network(f.as_layer()).save(tmp_path / "net.keras")
    net, _ = fitted(f.as_layer(made_by=make, name="guest"))
    net.save(tmp_path / "net.keras")
    with pytest.raises(TypeError, match="Could not locate function 'make'"):
        keras.saving.load_model(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras", custom_objects={"make": make})
    np.testing.assert_array_equal(net.predict(X, verbose=0), loaded.predict(X, verbose=0))
    assert loaded.get_layer("guest").get_config()["guest"] is make
    for wrong in (lambda: f, len, lambda: None):
        with pytest.raises((OptionError, TypeError)):
            f.as_layer(made_by=wrong)


def test_the_training_argument_decides_in_layers_of_bridges_in_train_mode():
    torch = pytest.importorskip("torch")
    native = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5))
    f, x = gb.bridge(native, mode="train"), X.astype("float32")
    layer = f.as_layer()
    net = keras.Sequential([keras.Input((2,)), layer])
    net.compile("sgd", "mse")
    predicted = []
    for _ in range(2):
        net.fit(x, np.zeros((70, 3)), batch_size=35, verbose=0)
        own = f.model(np.concatenate([w.ravel() for w in layer.get_weights()])).float().eval()
        expected = own(torch.from_numpy(x)).detach().numpy()
        predicted.append(net.predict(x, batch_size=70, verbose=0))
        for y in (predicted[-1], layer(x), layer(x, training=False), net(x)):
            np.testing.assert_allclose(numpy(y), expected, rtol=1e-5, atol=1e-5)
    assert not np.allclose(*predicted)
    masked = numpy(layer(x, training=True))
    assert (masked == 0).mean() > 0.3
    still = gb.bridge(native.eval()).as_layer()
    np.testing.assert_array_equal(numpy(still(x, training=True)), numpy(still(x)))


def test_a_layer_is_copied_with_weights_of_its_own(f):
    layer = f.as_layer(name="guest", dtype="float64", trainable=False)
    layer.set_weights([w + 1 for w in layer.get_weights()])
    before = numpy(layer(X))
    twin, same = copy.deepcopy([layer, layer])
    assert twin is same
    assert (twin.name, twin.dtype, twin.trainable) == ("guest", "float64", False)
    np.testing.assert_array_equal(numpy(twin(X)), before)
    twin.set_weights([0 * w for w in twin.get_weights()])
    assert not numpy(twin(X)).any()
    np.testing.assert_array_equal(numpy(layer(X)), before)
    with pytest.raises(HostError, match=r"For a copy: keras\.models\.clone_model, and set_weights"):
        copy.deepcopy(network(f.as_layer()))  # which Keras copies by way of a file


def test_models_are_cloned(f):
    net, _ = fitted(f.as_layer())
    twin = keras.models.clone_model(net)
    twin.set_weights(net.get_weights())
    np.testing.assert_array_equal(net.predict(X, verbose=0), twin.predict(X, verbose=0))
    assert twin.layers[1] is not net.layers[1]


def test_shapes_that_nobody_knows_before_a_run_are_found_at_ones():
    f = gb.bridge(model, params=PARAMS, backend="autograd")
    assert numpy(f.as_layer()(X)).shape == (70, 3)
    with pytest.warns(GradbridgeWarning, match="at arrays of ones"):
        assert f.as_layer()(keras.Input((2,), batch_size=5)).shape == (5, 3)
    assert f.as_layer()(keras.Input((2,))).shape == (None, 3)


def test_layers_around_it_are_told_its_shapes(f):
    each = keras.layers.TimeDistributed(f.as_layer())
    assert each.compute_output_shape((None, 7, 2)) == (None, 7, 3)
    steps = X.reshape(10, 7, 2)
    np.testing.assert_allclose(numpy(each(steps)).reshape(70, 3), f(f.params, X), rtol=1e-5, atol=1e-6)


def test_guests_of_the_frameworks():
    torch = pytest.importorskip("torch")
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "tanh")])
    for f in (gb.bridge(torch.nn.Linear(2, 3)), gb.bridge(network)):
        net, losses = fitted(f.as_layer())
        assert losses[1] < losses[0]
        assert net.output_shape == (None, 1)


def test_exports_are_refused(f, tmp_path):
    if RUNNING != "tensorflow":
        pytest.skip("a matter of TensorFlow's")
    with pytest.raises(HostError, match="a SavedModel has no Python in it"):
        fitted(f.as_layer())[0].export(tmp_path / "net", verbose=False)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_same_on_the_other_backends_of_keras(backend):
    if RUNNING != "tensorflow" or "GRADBRIDGE_TEST_KERAS" in os.environ:
        pytest.skip("asked from TensorFlow's process")
    pytest.importorskip(backend)
    env = {**os.environ, "KERAS_BACKEND": backend, "GRADBRIDGE_TEST_KERAS": "1"}
    some = "layouts or fits or step or trees or loaded or training or around"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", some, __file__]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
