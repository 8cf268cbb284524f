"""Jacobians through TensorFlow guests, by every strategy, against autograd's row by row and the tape's own."""

import numpy as np
import pytest
from autograd import jacobian

tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import OptionError  # noqa: E402

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(24, 4))

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="Keras runs on another backend"
)


def close(found, truth, rtol=1e-10):
    assert found.shape == truth.shape
    np.testing.assert_allclose(found, truth, rtol=rtol, atol=rtol * np.abs(truth).max(initial=1e-300))


def how(t):
    return {step.bridge.partition(", ")[2] for step in t.steps} - {"", "JVP checked"}


def mlp(outputs=1, **options):
    return gb.bridge(gb.build("mlp", sizes=[4, 6, outputs], backend="tensorflow", seed=0), **options)


def of(function, size=4, **options):
    return gb.bridge(function, params=np.linspace(0.5, 1, size), backend="tensorflow", **options)


def sequential(*layers, shape=(4,), **options):
    keras.utils.set_random_seed(0)
    return gb.bridge(keras.Sequential([keras.Input(shape), *layers]), dtype="float64", **options)


@pytest.mark.parametrize("strategy", ["auto", "rows", "vjp", "jvp", "loop"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_every_strategy_gives_the_row_by_row_truth(strategy, outputs):
    f = mlp(outputs, dtype="float64")
    by_params, by_input = f.jacobian(f.params, X, wrt=(0, 1), strategy=strategy)
    close(by_params, jacobian(f)(f.params, X))
    close(by_input, jacobian(f, 1)(f.params, X))


def test_it_is_the_tapes_own():
    def waves(p, x):
        return tf.sin(tf.linalg.matvec(x, p))

    f = of(waves)
    p = tf.constant(f.params)
    with tf.GradientTape() as tape:
        tape.watch(p)
        output = waves(p, tf.constant(X))
    close(f.jacobian(f.params, X), tape.jacobian(output, p).numpy())


@pytest.mark.parametrize("last", [tf.sin, tf.cos, tf.math.log, tf.math.lgamma])
def test_a_gradient_that_waits_for_its_cotangent_is_fed_it(last):
    f = of(lambda p, x: last(tf.linalg.matvec(x, p)))
    positive = np.abs(X)
    close(f.jacobian(f.params, positive), jacobian(f)(f.params, positive))


def test_independent_rows_are_found_and_computed_apart():
    f = mlp(dtype="float64")
    with gb.trace() as t:
        f.jacobian(f.params, X)
    assert how(t) == {"per-example"}
    assert t.counts["forward"] == 1
    close(f.row_gradients(f.params, X), jacobian(f)(f.params, X))
    close(f.row_gradients(f.params, X[:13]), jacobian(f)(f.params, X[:13]))


def test_chunks_of_rows_and_of_cotangents_change_nothing():
    f = mlp(3, dtype="float64")
    truth = jacobian(f)(f.params, X)
    for strategy in ("rows", "vjp", "jvp"):
        close(f.jacobian(f.params, X, strategy=strategy, max_chunk=10_000), truth)


@pytest.mark.parametrize("weight", [1.0, 1e-9])
def test_attention_over_the_rows_is_not_computed_apart(weight):
    def attention(p, x):
        h = x * p
        return h + weight * tf.nn.softmax(h @ tf.transpose(h)) @ h

    f = of(attention)
    J = f.jacobian(f.params, X, wrt=(0, 1))
    close(J[0], jacobian(f)(f.params, X))
    close(J[1], jacobian(f, 1)(f.params, X))


def test_softmax_over_the_rows_is_not_computed_apart():
    f = of(lambda p, x: tf.nn.softmax(x * p, axis=0))
    close(f.jacobian(f.params, X), jacobian(f)(f.params, X))
    with pytest.raises(OptionError, match="not independent of each other"):
        f.jacobian(f.params, X, strategy="rows")


def test_batch_statistics_in_train_mode_are_never_computed_apart():
    layers = [keras.layers.Dense(3), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
    f = sequential(*layers, mode="train")
    truth = jacobian(sequential(*map(_again, layers), mode="train"))(f.params, X)
    with gb.trace() as t:
        J = f.jacobian(f.params, X)
    assert "per-example" not in how(t)
    close(J, truth)
    with pytest.raises(OptionError, match="'rows' was asked"):
        f.jacobian(f.params, X, strategy="rows")


def _again(layer):
    return type(layer).from_config(layer.get_config())


def test_batch_norm_in_eval_mode_has_independent_rows():
    f = sequential(
        keras.layers.Dense(3), keras.layers.BatchNormalization(), keras.layers.Dense(1, activation="relu")
    )
    with gb.trace() as t:
        J = f.jacobian(f.params, X)
    assert how(t) == {"per-example"}
    close(J, jacobian(f)(f.params, X))


def test_a_convolution_works():
    f = sequential(
        keras.layers.Conv2D(2, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(2),
        shape=(6, 6, 1),
    )
    images = DRAW.normal(size=(10, 6, 6, 1))
    J = f.jacobian(f.params, images, wrt=(0, 1))
    close(J[0], jacobian(f)(f.params, images))
    close(J[1], jacobian(f, 1)(f.params, images))


def test_integer_inputs_have_rows_too():
    f = of(lambda p, ids: tf.sin(tf.gather(p, ids)), size=7)
    ids = DRAW.integers(0, 7, size=20)
    J = f.jacobian(f.params, ids)
    close(J, jacobian(f)(f.params, ids))
    close(f.jacobian(f.params, ids, strategy="rows"), J)


def test_an_input_that_all_rows_share_and_keywords_are_arguments_too():
    def scaled(p, x, scale, power=1):
        return tf.tanh(tf.linalg.matvec(x, p)) * tf.reduce_sum(scale**power)

    f = of(scaled)
    scale = np.array([1.0, 2.0, -0.5])
    for strategy in ("rows", "vjp", "loop"):
        J = f.jacobian(f.params, X, scale, power=2, wrt=(0, 1, 2), strategy=strategy)
        close(J[0], jacobian(lambda p: f(p, X, scale, power=2))(f.params))
        close(J[1], jacobian(lambda x: f(f.params, x, scale, power=2))(X))
        close(J[2], jacobian(lambda s: f(f.params, X, s, power=2))(scale))


def test_several_outputs_come_as_a_tree():
    def two(p, x):
        return {
            "mean": tf.linalg.matvec(x, p),
            "spread": tf.stack([x[:, 0] * p[0], x[:, 1] ** 2], 1),
            "sign": x[:, 0] > 0,
        }

    f = of(two)
    for strategy in ("auto", "rows", "vjp", "jvp", "loop"):
        by_params, by_input = f.jacobian(f.params, X, wrt=(0, 1), strategy=strategy)
        for name in ("mean", "spread"):
            close(by_params[name], jacobian(lambda p, n=name: f(p, X)[n])(f.params))
            close(by_input[name], jacobian(lambda x, n=name: f(f.params, x)[n])(X))
        assert by_params["sign"] is None


def test_no_rows_one_row_and_float32():
    f = mlp()
    assert f.jacobian(f.params, X[:0]).shape == (0, f.layout.size)
    close(f.jacobian(f.params, X[:1]), jacobian(f)(f.params, X[:1]), 1e-6)
    with gb.trace() as t:
        J = f.jacobian(f.params.astype("f4"), X.astype("f4"))
    assert how(t) == {"per-example"}
    assert J.dtype == np.float32
    np.testing.assert_allclose(J, jacobian(f)(f.params, X), rtol=1e-4, atol=1e-6)


def test_products_with_the_jacobian():
    f = mlp(3, dtype="float64")
    J = f.jacobian(f.params, X)
    v, t = DRAW.normal(size=(24, 3)), DRAW.normal(size=f.params.shape)
    close(f.vjp(f.params, X, cotangent=v), np.tensordot(v, J, 2))
    close(f.jvp(f.params, X, tangent=t), J @ t)
    close(f.ggn(f.params, X, vector=t), np.tensordot(J @ t, J, 2))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_products_that_a_map_repeats_are_right_in_any_precision(dtype):
    """TensorFlow's float32 kernel for them writes past its memory, so there the map is refused."""
    draw = np.random.default_rng(0)
    params = {"e": draw.normal(size=(5, 2)), "q": draw.normal(size=(2, 2)), "k": draw.normal(size=(2, 2))}
    params = {name: value.astype(dtype) for name, value in params.items()}

    def attention(p, x):
        h = tf.gather(p["e"], x)
        return tf.reduce_sum(tf.nn.softmax(tf.matmul(h @ p["q"], h @ p["k"], transpose_b=True)) @ h, -1)

    f, x = (
        gb.bridge(attention, params=params, backend="tensorflow", dtype=dtype),
        np.array([[0, 1, 2, 3], [4, 3, 2, 1]]),
    )
    expected = f.jacobian(f.params, x, strategy="loop")
    for strategy in ("auto", "jvp"):
        found = f.jacobian(f.params, x, strategy=strategy)
        np.testing.assert_allclose(found, expected, atol=1e-12 if dtype == "float64" else 1e-5)
