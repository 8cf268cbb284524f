"""Classes of five methods over a small Keras network in double precision, and what its values are."""

import autograd.numpy as np
import numpy as onp
import tensorflow as tf

from gradbridge_seldonian import SupervisedTensorFlowBaseModel

layers = tf.keras.layers
X = onp.random.default_rng(0).normal(size=(6, 3))
THETA = onp.linspace(-1.0, 1.0, 11)


def truth(theta, X):
    return np.tanh(X @ theta[:6].reshape(3, 2) + theta[6:8]) @ theta[8:10] + theta[10]


class Net(SupervisedTensorFlowBaseModel):
    """With create_model alone, in double precision."""

    def create_model(self, hidden=2, dtype="float64", **kwargs):
        return tf.keras.Sequential(
            [
                layers.Input((3,), dtype=dtype),
                layers.Dense(hidden, activation="tanh", dtype=dtype),
                layers.Dense(1, dtype=dtype),
                layers.Reshape((), dtype=dtype),
            ]
        )


def variant(**methods):
    return type("Variant", (Net,), methods)


class Anew(Net):
    """Computes everything again on a tape of its own, in backward_pass."""

    change = staticmethod(lambda parts: parts)

    def forward_pass(self, X, **kwargs):
        self.X = tf.convert_to_tensor(X)
        return self.tensorflow_model(self.X)

    def backward_pass(self, v):
        with tf.GradientTape() as tape:
            again = self.tensorflow_model(self.X)
        parts = tape.gradient(again, self.tensorflow_model.trainable_weights, output_gradients=v)
        return onp.concatenate([x.numpy().ravel() for x in self.change(parts)])
