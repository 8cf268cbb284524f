"""Keras 3 models on TensorFlow: the user's own stays as it was, and copies have all that it has."""

import copy
import pickle

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

import gradbridge as gb

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
layers = keras.layers

X = np.random.default_rng(0).normal(size=(5, 3))


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)


def mlp():
    return keras.Sequential([keras.Input([3]), layers.Dense(4, "tanh"), layers.Dense(2)])


def test_the_users_model_stays_as_it_was():
    model = keras.Sequential(
        [
            keras.Input([3]),
            layers.Dense(4, activity_regularizer="l2"),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
        ]
    )
    before = [(v.path, v.trainable, v.numpy().tobytes()) for v in model.variables]
    flags = {
        layer.name: {k: v for k, v in vars(layer).items() if k != "_loss_ids"}.keys()
        for layer in model.layers
    }
    for options in ({}, {"mode": "train"}, {"dtype": "float64"}):
        f = gb.bridge(model, **options)
        autograd.grad(lambda p, f=f: anp.sum(f(p, X) ** 3))(2 * f.params)
        f.model(3 * f.params)
    assert [(v.path, v.trainable, v.numpy().tobytes()) for v in model.variables] == before
    assert {
        n: {k for k in vars(layer) if k != "_loss_ids"} for n, layer in ((x.name, x) for x in model.layers)
    } == flags
    assert all(isinstance(loss, type(tf.constant(0.0))) for loss in model.losses)


def test_a_native_model_holds_the_parameters():
    model = mlp()
    f = gb.bridge(model)
    twin = f.model(2 * f.params)
    assert isinstance(twin, keras.Sequential)
    np.testing.assert_allclose(gb.bridge(twin).params, 2 * f.params)
    np.testing.assert_allclose(twin(X), f(2 * f.params, X), rtol=1e-6)


def test_adapters_are_copied_and_pickled():
    f = gb.bridge(mlp(), mode="train")
    y = f(f.params, X)
    for twin in (copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
        np.testing.assert_array_equal(twin(f.params, X), y)


@keras.saving.register_keras_serializable("gradbridge_tests")
class Temperature(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.value = 1.0

    def call(self, x):
        return x / self.value


def test_pickles_keep_what_a_config_leaves_out_and_what_was_frozen_later():
    dense, temperature = layers.Dense(2), Temperature()
    model = keras.Sequential([keras.Input([3]), dense, temperature])
    temperature.value = 4.0
    f = gb.bridge(model, dtype="float64")
    dense.trainable = False
    twin = pickle.loads(pickle.dumps(f))
    np.testing.assert_array_equal(twin.params, f.params)
    expected = (X @ f.params[:6].reshape(3, 2) + f.params[6:]) / 4
    np.testing.assert_allclose(twin(f.params, X), expected, rtol=1e-12)


class Forgetful(keras.Model):
    """Its config leaves out the slope."""

    def __init__(self, slope=1.0, **kwargs):
        super().__init__(**kwargs)
        self.slope, self.dense = slope, layers.Dense(2)

    def get_config(self):
        return {}

    def call(self, x):
        return self.slope * self.dense(x)


def test_what_a_config_leaves_out_is_in_every_copy():
    model = Forgetful(3.0)
    model(X)
    for dtype, rtol in ((None, 1e-5), ("float64", 1e-12)):
        f = gb.bridge(model, dtype=dtype)
        expected = 3.0 * (X @ f.params[:6].reshape(3, 2) + f.params[6:])
        np.testing.assert_allclose(f(f.params, X), expected, rtol=rtol)
        np.testing.assert_allclose(f.model(f.params)(X), expected, rtol=rtol)


def twice_used():
    first, second, shared = keras.Input([3]), keras.Input([3]), layers.Dense(3, "tanh")
    both = layers.Concatenate()([shared(first), shared(shared(second)), first * second])
    return keras.Model([first, second], layers.Dense(1)(both))


def one_within_another():
    outer, x = keras.Input([3]), keras.Input([3])
    inner = keras.Model(x, layers.Dense(3, "tanh")(layers.Lambda(lambda t: 2.0 * t + 1.0)(x)))
    return keras.Model(outer, layers.Dense(1)(inner(inner(outer)) + inner(3.0 * outer)))


def the_middle_of_another():
    x = keras.Input([3])
    hidden = layers.Dense(4, "tanh")(x)
    whole = keras.Model(x, layers.Dense(1)(hidden))
    unused = keras.Input([3])
    return keras.Model([*whole.inputs, unused], {"hidden": whole.layers[1].output, "sum": hidden + 1.0})


@keras.saving.register_keras_serializable("gradbridge_tests")
def leaky(x, slope=0.25):
    return keras.ops.where(x > 0, x, slope * x)


@keras.saving.register_keras_serializable("gradbridge_tests")
class Holds(keras.Model):
    """A functional model as an attribute, called twice."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        x = keras.Input([3])
        self.part = keras.Model(x, layers.Dense(3, leaky)(x))

    def call(self, x):
        return self.part(x) + self.part(self.part(x))


def subclassed():
    model = Holds()
    model(X)
    return model


def outcome(f, p, x):
    """(outputs, gradient of the sum of their squares)."""

    def loss(p):
        y = f(p, x)
        return sum(anp.sum(part**2) for part in (y.values() if isinstance(y, dict) else [y]))

    return keras.tree.flatten(f(p, x)), autograd.grad(loss)(p)


def saved(model, path):
    model.save(path / "model.keras")
    return keras.saving.load_model(path / "model.keras", safe_mode=False)


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
@pytest.mark.parametrize("dtype", [None, "float64"])
@pytest.mark.parametrize("make", [twice_used, one_within_another, the_middle_of_another, subclassed])
def test_models_that_are_graphs_are_copied_pickled_and_saved(make, dtype, tmp_path):
    model = make()
    x = X if len(getattr(model, "inputs", None) or [X]) == 1 else [X, X[::-1].copy()]
    fresh, f = gb.bridge(model, dtype=dtype), gb.bridge(model, dtype=dtype)
    p = 1.5 * f.params
    values, gradient = outcome(f, p, x)
    native = f.model(p)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype is None else {"rtol": 1e-10, "atol": 1e-10}
    for bridge in (fresh, f):
        for twin in (pickle.loads(pickle.dumps(bridge)), pickle.loads(pickle.dumps(copy.deepcopy(bridge)))):
            np.testing.assert_array_equal(twin.params, f.params)
            ys, g = outcome(twin, p, x)
            np.testing.assert_allclose(g, gradient, **tolerance)
            for y, value in zip(ys, values, strict=True):
                np.testing.assert_allclose(y, value, **tolerance)
    for twin in (saved(native, tmp_path), pickle.loads(pickle.dumps(native)), copy.deepcopy(native)):
        twin = gb.bridge(twin, dtype=dtype)
        np.testing.assert_allclose(twin.params, p, rtol=1e-6)
        for y, value in zip(outcome(twin, twin.params, x)[0], values, strict=True):
            np.testing.assert_allclose(y, value, rtol=1e-5, atol=1e-5)
