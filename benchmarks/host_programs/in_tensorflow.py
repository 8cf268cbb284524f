"""TensorFlow with Keras, eager and within a `tf.function`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import gradbridge as gb
from benchmarks.host_programs.system import Guest, Step, System, Weights

tf.get_logger().setLevel("ERROR")  # it takes programs of many guests for one that is traced again and again


class TensorFlow(System):
    """Weights as variables."""

    name, label = "tensorflow", "TensorFlow"
    ways = ("eager", "tf.function")
    usual = "tf.function"
    layer = "gradbridge, as_layer"

    def guest(self, weights: Weights) -> Guest:
        f = gb.bridge(model(weights, "float32"))
        return Guest(f, f.layout.unravel(f.params))

    def alone(self, weights: Weights, X: np.ndarray, way: str) -> Step:
        network = model(weights, str(X.dtype))
        variables = [v.value for v in network.trainable_variables]
        return _step(lambda x: network(x, training=False), variables, tf.constant(X), way)

    def program(self, f: Callable[[Any, Any], Any], tree: Any, X: np.ndarray, way: str) -> Step:
        params = tf.nest.map_structure(tf.Variable, tree)
        return _step(lambda x: f(params, x), tf.nest.flatten(params), tf.constant(X), way)

    def empty(self, way: str) -> Step:
        p = tf.Variable(np.ones(3, self.dtype))
        return _step(lambda x: _empty(p), [p], p, way)

    def as_layer(self, bridge: gb.Bridge, X: np.ndarray) -> Step:
        layer = bridge.as_layer()
        data = tf.constant(X)
        layer(data)  # builds it
        return _step(layer, [v.value for v in layer.trainable_variables], data, "eager")


def model(weights: Weights, dtype: str) -> keras.Model:
    """An MLP with tanh between its layers."""
    last = len(weights) - 1
    network = keras.Sequential([keras.Input((len(weights[0][0]),), dtype=dtype)])
    for i, (_, bias) in enumerate(weights):
        network.add(keras.layers.Dense(len(bias), activation=None if i == last else "tanh", dtype=dtype))
    network.set_weights([array for layer in weights for array in layer])
    return network


def _step(f: Callable[[Any], Any], variables: list[Any], X: Any, way: str) -> Step:
    def value_and_gradient() -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(f(X) ** 2)
        return loss, tape.gradient(loss, variables)

    through = tf.function(value_and_gradient) if way == "tf.function" else value_and_gradient

    def step() -> tuple[Any, Any]:
        loss, gradients = through()
        return loss.numpy(), gradients

    return step


@tf.custom_gradient
def _empty(p: Any) -> Any:
    def identity(x: Any) -> Any:
        y = tf.numpy_function(lambda a: a, [x], x.dtype)
        y.set_shape(x.shape)
        return y

    return identity(p), identity
