"""Noise, statistics and global state of the TensorFlow guest (laws 5 and 9)."""

import os
import subprocess
import sys

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

import gradbridge as gb
from gradbridge import errors
from gradbridge.errors import OptionError

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
layers = keras.layers

X = np.random.default_rng(0).normal(size=(40, 4))


def noisy():
    return keras.Sequential(
        [keras.Input([4]), layers.Dense(8), layers.Dropout(0.5), layers.GaussianNoise(0.1)]
    )


def normalized():
    return keras.Sequential([keras.Input([4]), layers.BatchNormalization(momentum=0.9), layers.Dense(2)])


def test_eval_mode_has_no_noise():
    f = gb.bridge(noisy())
    p = f.params
    np.testing.assert_allclose(f(p, X), X @ p[:32].reshape(4, 8) + p[32:], rtol=1e-5, atol=1e-6)


def test_frozen_noise_is_the_seeds_and_per_params_noise_changes_with_them():
    model = noisy()
    f, other = gb.bridge(model, mode="train"), gb.bridge(model, mode="train", seed=1)
    p = f.params
    np.testing.assert_array_equal(f(p, X), f(p, X))
    assert (f(p, X) != other(p, X)).any()
    g = gb.bridge(model, mode="train", noise="per_params")
    zero = lambda q: g(q, X) == 0
    np.testing.assert_array_equal(zero(p), zero(p))
    h = gb.bridge(model, mode="train", noise="per_call")
    assert (h(p, X) != h(p, X)).any()


def test_a_gradient_uses_the_mask_of_its_value():
    model = keras.Sequential([keras.Input([4]), layers.Dropout(0.5)])
    f = gb.bridge(model, mode="train", noise="per_call", dtype="float64")
    pull, y = autograd.make_vjp(lambda x: f(f.params, x))(X)
    f(f.params, X)
    np.testing.assert_allclose(pull(np.ones_like(X)), y / X, rtol=1e-12)
    second = autograd.make_hvp(lambda x: anp.sum(f(f.params, x) ** 2))(X)[0](np.ones_like(X))
    assert set(np.unique(second.round(9))) == {0.0, 8.0}


def test_statistics_move_once_per_forward_live_in_the_bridge_and_reach_the_model():
    model = normalized()
    f = gb.bridge(model, mode="train", dtype="float64")
    p = f.params
    f(p, X)
    autograd.hessian(lambda q: anp.sum(f(q, X) ** 2))(p)  # one forward, many replays
    mean = f.model(p).layers[0].moving_mean.numpy()
    np.testing.assert_allclose(mean, (1 - 0.9**2) * X.mean(0), rtol=1e-6)
    assert not model.layers[0].moving_mean.numpy().any()
    quiet = gb.bridge(model)
    np.testing.assert_array_equal(quiet(p, X), quiet(p, X))


def test_train_mode_batch_normalization_has_the_native_gradient():
    f = gb.bridge(normalized(), mode="train", dtype="float64")
    twin = f.model(f.params)
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(twin(x, training=True) ** 3)
    expected = tape.gradient(loss, x)
    found = autograd.grad(lambda x: anp.sum(f(f.params, x) ** 3))(X)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_the_global_random_state_is_neither_changed_nor_trusted():
    tf.random.set_seed(3)
    keras.utils.set_random_seed(3)
    expected = tf.random.uniform([4]).numpy(), keras.random.uniform([4]), np.random.random()  # noqa: NPY002
    answers = []
    for seed in (3, 3, 4):
        keras.utils.set_random_seed(3)
        model = noisy()
        keras.utils.set_random_seed(seed)
        f = gb.bridge(model, mode="train")
        answers.append(autograd.grad(lambda p: anp.sum(f(p, X) ** 2))(np.ones(40)))  # noqa: B023
        if seed == 3:
            after = tf.random.uniform([4]).numpy(), keras.random.uniform([4]), np.random.random()  # noqa: NPY002
            for a, b in zip(expected, after):
                np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], answers[2])


def test_functions_that_draw_from_the_global_state_are_refused():
    draw = gb.primitive(lambda x: x * tf.random.uniform([], dtype=x.dtype), backend="tensorflow")
    with pytest.raises(errors.GuestError, match=r"tf\.random\.stateless"):
        draw(X)


def test_layers_that_draw_from_keras_global_generator_are_refused():
    model = keras.Sequential([keras.Input([4]), layers.Lambda(lambda x: x * keras.random.uniform([1]))])
    f = gb.bridge(model)
    with pytest.raises(errors.GuestError, match="SeedGenerator"):
        f(f.params, X)


@pytest.mark.parametrize("running", ["torch", "jax"])
def test_keras_on_another_backend_is_refused_with_the_reason(running):
    pytest.importorskip(running)
    program = (
        "import keras, gradbridge as gb\n"
        "model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])\n"
        "try:\n"
        "    gb.bridge(model, backend='tensorflow')\n"
        "except gb.errors.UnknownModelError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "KERAS_BACKEND": running},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert f"on Keras' {running} backend" in done.stdout, done.stderr
    assert "KERAS_BACKEND=tensorflow" in done.stdout


def test_in_eval_mode_a_model_is_random_that_draws_there_not_one_that_could():
    class Always(layers.Dropout):
        def call(self, inputs, training=None):
            return super().call(inputs, training=True)

    x = np.random.default_rng(0).normal(size=(9, 4))
    for kind, draws in ((layers.Dropout, False), (Always, True)):
        model = keras.Sequential([keras.Input([4]), layers.Dense(8), kind(0.5)])
        f = gb.bridge(model, dtype="float64", reuse=2)
        whole = f(f.params, x)
        assert f.adapter.stochastic is draws
        chunked = gb.bridge(model, dtype="float64", rows_per_chunk=4)
        if draws:
            with pytest.raises(OptionError, match="draws random numbers"):
                chunked(f.params, x)
        else:
            np.testing.assert_allclose(chunked(f.params, x), whole, rtol=1e-14)


def test_statistics_move_on_in_whatever_precision_a_call_is():
    model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization(momentum=0.5)])
    f = gb.bridge(model, mode="train")
    x = np.array([[1.0, 2.0], [3.0, 6.0]])
    for dtype in ("float32", "float64", "float32"):
        f(f.params.astype(dtype), x)
    for dtype in ("float32", "float64"):
        found = f.model(f.params.astype(dtype)).layers[0]
        np.testing.assert_allclose(found.moving_mean.numpy(), [2 * 0.875, 4 * 0.875], rtol=1e-6)
