"""Gradients that TensorFlow's operations have wrong or leave out: the true ones, or an error."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

import gradbridge as gb
from gradbridge import errors

tf = pytest.importorskip("tensorflow")

X = np.array([1.0, 2.0, 4.0])
V = np.array([1.0, 0.0, 0.0])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: tf.image.hsv_to_rgb(tf.reshape(tf.sigmoid(x), (1, 1, 3))),
        lambda x: tf.one_hot([0, 1], 2, on_value=x[0], off_value=x[1]),
        lambda x: tf.math.betainc(x[0] + 1.0, x[1], tf.sigmoid(x)),
        lambda x: tf.math.zeta(x + 2.0, tf.ones_like(x)),
    ],
    ids=["HSVToRGB", "OneHot", "Betainc", "Zeta"],
)
def test_what_tensorflow_gives_no_derivative_is_refused_on_the_way_and_nowhere_else(function, close):
    f = gb.primitive(function, backend="tensorflow")
    with pytest.raises(errors.NotDifferentiableError, match="it would give zeros"):
        autograd.grad(lambda x: anp.sum(f(x) ** 2))(X)
    beside = gb.primitive(lambda x: x * tf.reduce_sum(function(tf.constant(X))), backend="tensorflow")
    close(autograd.grad(lambda x: anp.sum(beside(x)))(X), np.full(3, np.sum(f(X))))


def shaped(x):
    return tf.reshape(tf.concat([x, x[:1] * 2, tf.sin(5 * x), x[1:] * x[:2]], 0), (1, 3, 3, 1))


def windows(x):
    rows = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=-9.0)
    return tf.reduce_max(tf.stack([rows[:, i : i + 3, j : j + 3] for i in range(3) for j in range(3)]), 0)


def cross_entropy(x):
    labels, logits = tf.nn.softmax(x[None]), tf.sin(2 * x[None])
    return tf.nn.softmax_cross_entropy_with_logits(labels, logits)


def written_out(x):
    return -tf.reduce_sum(tf.nn.softmax(x[None]) * tf.nn.log_softmax(tf.sin(2 * x[None])), -1)


PAIRS = {
    "pooled over all": (lambda x: tf.nn.max_pool2d(shaped(x), 3, 1, "SAME"), lambda x: windows(shaped(x))),
    "pooled with paddings": (
        lambda x: tf.nn.max_pool2d(shaped(x), 3, 1, [[0, 0], [1, 1], [1, 1], [0, 0]]),
        lambda x: windows(shaped(x)),
    ),
    "pooled in one dimension": (
        lambda x: tf.nn.max_pool1d((x**2)[None, :, None], 2, 1, "SAME"),
        lambda x: tf.maximum(x**2, tf.concat([x[1:] ** 2, [-9.0]], 0)),
    ),
    "labels that depend on it": (cross_entropy, written_out),
}


@pytest.mark.parametrize("name", PAIRS)
def test_derivatives_are_those_of_the_same_function_in_other_operations(name, close):
    ours, same = (gb.primitive(function, backend="tensorflow") for function in PAIRS[name])
    x = np.array([0.3, -1.2, 2.1])
    loss = lambda f: lambda x: anp.sum(anp.sin(f(x)))
    second = lambda f: autograd.grad(lambda x: anp.sum(autograd.grad(loss(f))(x) * V))
    third = lambda f: autograd.grad(lambda x: anp.sum(second(f)(x) ** 2))
    for derivative in (lambda f: autograd.grad(loss(f)), second, third, lambda f: autograd.hessian(loss(f))):
        close(derivative(ours)(x), derivative(same)(x))
    push = lambda f: [autograd.make_jvp(loss(f))(x)(V)[1]]
    close(push(ours), push(same))
