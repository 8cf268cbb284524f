"""Derivatives of derivatives where TensorFlow's own are wrong without a word: the true one, or an error."""

import threading

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

import gradbridge as gb
from gradbridge import errors

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
layers = keras.layers

from tensorflow.nn import moments as imported_early  # noqa: E402

E = np.empty(0)
X = np.array([1.0, 2.0, 4.0])
V = np.array([1.0, 0.0, 0.0])
SLOPE = 2 / 3 * (X - X.mean())
CURVATURE = 2 / 3 * (np.eye(3) - 1 / 3)


def variance(x):
    return tf.nn.moments(x, [0])[1]


def bridged(function):
    return gb.bridge(function, backend="tensorflow")


def gradient(f):
    return autograd.grad(lambda x: anp.sum(f(E, x)))


def product(f, v=V):
    return autograd.grad(lambda x: anp.sum(gradient(f)(x) * v))


def check_variance(f):
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
    close(gradient(f)(X), SLOPE)
    close(product(f)(X), CURVATURE @ V)
    close(autograd.make_jvp(gradient(f))(X)(V)[1], CURVATURE @ V)
    close(autograd.jacobian(gradient(f))(X), CURVATURE)
    close(f.jvp(E, X, tangent=V, wrt=1), SLOPE @ V)
    close(f.jacobian(E, X, wrt=1), SLOPE)
    close(autograd.grad(lambda x: anp.sum(product(f)(x) ** 2))(X), np.zeros(3))


@pytest.mark.parametrize(
    "function",
    [
        variance,
        tf.function(variance),
        lambda x: imported_early(x, [0])[1],
        lambda x: tf.compat.v1.nn.moments(x, [0])[1],
        lambda x: tf.nn.moments(x[None], [1], keepdims=True, name="mine")[1][0, 0],
        lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: variance(x), lambda: x[0]),
        lambda x: tf.while_loop(lambda i, y: i < 1, lambda i, y: (i + 1, y + variance(x)), (0, x[0] * 0))[1],
    ],
    ids=["plain", "tf.function", "imported", "v1", "named", "cond", "while"],
)
def test_variances_have_their_derivatives_of_every_order(function):
    check_variance(bridged(function))


def test_a_scaled_output_without_axes_has_its_second_derivative():
    """The cotangent is a bare number there, of NumPy's own class, which no array library takes."""
    energy = gb.primitive(backend="tensorflow")(lambda x: tf.reduce_sum(x**3))
    gradient = autograd.grad(lambda x: energy(x) * 0.5)
    np.testing.assert_allclose(autograd.jacobian(gradient)(X), np.diag(3 * X), rtol=1e-14)


def test_a_gradient_of_a_variance_within_the_model():
    def force(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = variance(x)
        return tape.gradient(y, x)

    f = bridged(force)
    np.testing.assert_allclose(f(E, X), SLOPE, rtol=1e-12)
    for strategy in ("auto", "loop", "vjp", "jvp"):
        np.testing.assert_allclose(f.jacobian(E, X, wrt=1, strategy=strategy), CURVATURE, rtol=1e-12)
    np.testing.assert_allclose(f.jvp(E, X, tangent=V, wrt=1), CURVATURE @ V, rtol=1e-12)


SIGNATURE = [tf.TensorSpec([3], tf.float64)]


def traced_before(signature, is_concrete=False):
    function = tf.function(variance, input_signature=signature)
    if is_concrete:
        function = function.get_concrete_function()
    with tf.GradientTape() as tape:
        x = tf.constant(X)
        tape.watch(x)
        y = function(x)
    tape.gradient(y, x)
    return function


@pytest.mark.parametrize("signature", [None, SIGNATURE])
def test_a_function_that_was_called_before_has_its_derivatives_of_every_order(signature):
    check_variance(bridged(traced_before(signature)))


def test_a_graph_of_an_earlier_trace_has_first_derivatives_only():
    f = bridged(traced_before(SIGNATURE, True))
    np.testing.assert_allclose(gradient(f)(X), SLOPE, rtol=1e-12)
    np.testing.assert_allclose(f.jvp(E, X, tangent=V, wrt=1), SLOPE @ V, rtol=1e-12)
    np.testing.assert_allclose(f.jacobian(E, X, wrt=1), SLOPE, rtol=1e-12)
    for second in (product(f), lambda x: autograd.make_jvp(gradient(f))(x)(V)):
        with pytest.raises(errors.HigherOrderError, match=r"tf.nn.moments.*reduce_variance"):
            second(X)


def test_a_gradient_within_the_model_of_an_earlier_trace_is_refused():
    inner = traced_before(SIGNATURE, True)

    def force(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = inner(x)
        return tape.gradient(y, x)

    f = bridged(force)
    np.testing.assert_allclose(f(E, X), SLOPE, rtol=1e-12)
    with pytest.raises(errors.HigherOrderError, match="moments"):
        gradient(f)(X)
    with pytest.raises(errors.HigherOrderError, match="moments"):
        f.jvp(E, X, tangent=V, wrt=1)


def test_a_users_own_stop_gradient_means_what_it_says():
    def own(x):
        mean = tf.stop_gradient(tf.reduce_mean(x, keepdims=True))
        return tf.reduce_mean(tf.math.squared_difference(x, mean))

    f = bridged(own)
    np.testing.assert_allclose(gradient(f)(X), SLOPE, rtol=1e-12)
    np.testing.assert_allclose(product(f)(X), 2 / 3 * V, rtol=1e-12)


def test_tensorflow_stays_as_it_is_elsewhere():
    from tensorflow.python.eager.polymorphic_function.polymorphic_function import Function
    from tensorflow.python.framework import ops as registries
    from tensorflow.python.framework.tensor import Tensor
    from tensorflow.python.ops import array_ops, custom_gradient, nn_impl

    def patched():
        names = ("shape", "get_shape", "__len__", "__iter__")
        of_tensors = [vars(Tensor)[name] for name in names]
        return [*of_tensors, registries.gradient_registry, registries._gradient_registry, Function.__call__]

    found, decorated, before = [], custom_gradient._graph_mode_decorator, patched()

    def kinds():
        graph = tf.function(variance).get_concrete_function(tf.constant(X)).graph
        return [op.type for op in graph.get_operations()]

    def body(x):
        thread = threading.Thread(target=lambda: found.append(kinds()))
        thread.start()
        thread.join()
        return variance(x)

    bridged(body)(E, X)
    assert nn_impl.array_ops is array_ops
    assert patched() == before
    assert custom_gradient._graph_mode_decorator is decorated
    assert all("StopGradient" in ops for ops in (*found, kinds()))
    assert len(found) == 1


NORMALIZING = {
    "layer": lambda: layers.LayerNormalization(),
    "group": lambda: layers.GroupNormalization(2),
    "batch": lambda: layers.BatchNormalization(),
}


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", NORMALIZING)
def test_normalizing_layers_to_the_second_order(name, mode):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input([3]), layers.Dense(4, "tanh"), NORMALIZING[name](), layers.Dense(1)]
    )
    rows = np.random.default_rng(0).normal(size=(6, 3))
    f = gb.bridge(model, dtype="float64", mode=mode)
    p, rng = f.params, np.random.default_rng(1)
    weights, v, step = rng.normal(size=(6, 1)), rng.normal(size=p.size), 1e-5
    loss = lambda p: anp.sum(anp.sin(f(p, rows)) * weights)
    first = autograd.grad(loss)
    difference = lambda g: (g(p + step * v) - g(p - step * v)) / (2 * step)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    close(first(p) @ v, difference(loss))
    close(f.jvp(p, rows, tangent=v), difference(lambda p: f(p, rows)))
    close(autograd.grad(lambda p: anp.sum(first(p) * v))(p), difference(first))
    close(autograd.make_jvp(first)(p)(v)[1], difference(first))


def test_layer_normalization_to_the_third_order():
    model = keras.Sequential([keras.Input([3]), layers.LayerNormalization()])
    f = gb.bridge(model, dtype="float64")
    w = np.array([[1.0, -2.0, 0.5]])

    def closed(x):
        mean = anp.mean(x, 1, keepdims=True)
        return (x - mean) / anp.sqrt(anp.mean((x - mean) ** 2, 1, keepdims=True) + 1e-3)

    def third(function):
        loss = lambda x: anp.sum(function(x) * w)
        second = autograd.grad(lambda x: anp.sum(autograd.grad(loss)(x) * V))
        return autograd.grad(lambda x: anp.sum(second(x) ** 2))(X[None])

    np.testing.assert_allclose(third(lambda x: f(f.params, x)), third(closed), rtol=1e-9)


def rounded(x):
    return tf.cast(tf.quantization.fake_quant_with_min_max_args(tf.cast(x, tf.float32)), x.dtype)


def resized(x):
    return tf.image.resize(tf.cast(tf.reshape(x, (1, 3, 1, 1)), tf.float32), (2, 1))[0, :, 0, 0]


@pytest.mark.parametrize(
    ("function", "jacobian"),
    [(rounded, np.diag([1.0, 1.0, 0.0])), (resized, np.array([[0.75, 0.25, 0], [0, 0.25, 0.75]]))],
)
def test_linear_gradients_that_tensorflow_takes_for_constants(function, jacobian):
    f, x = bridged(function), np.array([0.3, 1.0, 9.0])
    v = np.array([1.0, 2.0, 3.0])
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6)
    for strategy in ("auto", "loop", "jvp"):
        close(f.jacobian(E, x, wrt=1, strategy=strategy), jacobian)
    close(f.jvp(E, x, tangent=v, wrt=1), jacobian @ v)
    gradient = autograd.grad(lambda x: anp.sum(f(E, x) ** 2))
    close(autograd.grad(lambda x: anp.sum(gradient(x) * v))(x), 2 * jacobian.T @ jacobian @ v)
    close(autograd.make_jvp(gradient)(x)(v)[1], 2 * jacobian.T @ jacobian @ v)


def test_gradients_that_would_be_taken_for_constants_are_refused():
    f = bridged(
        lambda x: tf.cast(
            tf.quantization.fake_quant_with_min_max_vars(tf.cast(x, tf.float32), -3.0, 3.0), x.dtype
        )
    )
    x = np.array([0.3, 1.0, 9.0])
    np.testing.assert_allclose(f.jacobian(E, x, wrt=1), np.diag([1.0, 1.0, 0.0]))
    for derivative in (
        lambda: f.jvp(E, x, tangent=np.ones(3), wrt=1),
        lambda: autograd.grad(lambda x: anp.sum(autograd.grad(lambda x: anp.sum(f(E, x) ** 2))(x)))(x),
    ):
        with pytest.raises(errors.HigherOrderError, match="takes for a constant"):
            derivative()


def test_what_is_recomputed_has_its_derivatives_of_every_order():
    inner = tf.recompute_grad(lambda x, w: tf.tanh(x * w))
    f = gb.bridge(
        lambda p, x: inner(x, p["w"]), params={"w": np.array([0.5, 1.0, 2.0])}, backend="tensorflow"
    )
    p = f.params
    closed = lambda p: anp.tanh(X * p)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8)
    loss, true = lambda p: anp.sum(f(p, X) ** 2), lambda p: anp.sum(closed(p) ** 2)
    close(autograd.grad(loss)(p), autograd.grad(true)(p))
    for strategy in ("auto", "loop", "vjp", "jvp"):
        close(f.jacobian(p, X, strategy=strategy), autograd.jacobian(closed)(p))
    close(f.jvp(p, X, tangent=V), autograd.jacobian(closed)(p) @ V)
    close(autograd.hessian(loss)(p), autograd.hessian(true)(p))
    close(autograd.make_jvp(autograd.grad(loss))(p)(V)[1], autograd.hessian(true)(p) @ V)


class Recomputed(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(2, "tanh", dtype="float64")

    def build(self, shape):
        self.inner.build(shape)
        self.built = True

    def call(self, x):
        return keras.remat(lambda z: self.inner(z))(x)


def test_recomputed_layers_have_gradients_by_their_variables():
    layer = Recomputed(dtype="float64")
    layer.build((None, 3))
    f = gb.bridge(layer)
    p, rows = f.params, np.random.default_rng(0).normal(size=(4, 3))
    closed = lambda p: anp.tanh(anp.dot(rows, anp.reshape(p[:6], (3, 2))) + p[6:])
    assert list(f.layout.shapes) == [(3, 2), (2,)]
    loss, true = lambda p: anp.sum(f(p, rows) ** 2), lambda p: anp.sum(closed(p) ** 2)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)
    close(autograd.grad(loss)(p), autograd.grad(true)(p))
    close(autograd.hessian(loss)(p), autograd.hessian(true)(p))
    close(f.jacobian(p, rows), autograd.jacobian(closed)(p))
    close(f.jvp(p, rows, tangent=np.arange(8.0)), autograd.jacobian(closed)(p) @ np.arange(8.0))


def test_a_trace_of_before_that_recomputes_has_first_derivatives_only():
    inner = tf.function(
        tf.recompute_grad(lambda x: tf.tanh(x)), input_signature=SIGNATURE
    ).get_concrete_function()
    inner(tf.constant(X))
    f = bridged(inner)
    slope = np.diag(1 / np.cosh(X) ** 2)
    np.testing.assert_allclose(f.jacobian(E, X, wrt=1), slope, rtol=1e-8)
    for derivative in (lambda: f.jvp(E, X, tangent=V, wrt=1), lambda: product(f)(X)):
        with pytest.raises(errors.HigherOrderError, match="recompute_grad"):
            derivative()


def test_the_operation_without_a_second_derivative_is_named():
    logits = np.random.default_rng(0).normal(size=(2, 6, 3)).astype("float32")

    def body(p, x):
        return tf.nn.ctc_loss(
            tf.constant([[1], [2]]),
            x * p["w"],
            tf.constant([1, 1]),
            tf.constant([6, 6]),
            logits_time_major=False,
            blank_index=0,
        )

    f = gb.bridge(body, params={"w": np.ones(3, "float32")}, backend="tensorflow")
    loss = lambda p: anp.sum(f(p, logits))
    assert autograd.grad(loss)(f.params).shape == (3,)
    with pytest.raises(errors.HigherOrderError, match=r"none for an operation.*ctc_loss"):
        autograd.grad(lambda p: anp.sum(autograd.grad(loss)(p) ** 2))(f.params)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool"])
def test_integers_where_floats_are_expected_say_how_to_cast(dtype):
    f = gb.bridge(lambda p, x: tf.linalg.matvec(x, p["w"]), params={"w": np.ones(3)}, backend="tensorflow")
    with pytest.raises(errors.InputError, match=r"cast them with X.astype\(float\)"):
        f(f.params, np.ones((2, 3), dtype))
