"""Keras' own derivatives of an MLP: compiled, on tensors that are there already."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

import gradbridge as gb
from benchmarks.networks import Native


def make(sizes: tuple[int, ...], X: np.ndarray) -> Native:
    """A Keras MLP with tanh between its layers in the dtype of X, its step and Hessian-vector product there."""
    keras.utils.set_random_seed(0)
    dtype = str(X.dtype)
    layers = [keras.layers.Dense(n, activation="tanh", dtype=dtype) for n in sizes[1:-1]]
    layers.append(keras.layers.Dense(sizes[-1], dtype=dtype))
    model = keras.Sequential([keras.Input((sizes[0],), dtype=dtype), *layers])
    data = tf.constant(X)
    variables = [v.value for v in model.trainable_variables]

    @tf.function
    def value_and_gradient() -> object:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(data, training=False) ** 2)
        return loss, tape.gradient(loss, variables)

    @tf.function
    def hessian_vector_product(direction: list[tf.Tensor]) -> list[tf.Tensor]:
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                loss = tf.reduce_sum(model(data, training=False) ** 2)
            gradients = inner.gradient(loss, variables)
        return outer.gradient(gradients, variables, output_gradients=direction)

    def step() -> object:
        loss, gradients = value_and_gradient()
        return loss.numpy(), gradients

    f = gb.bridge(model, dtype=dtype)

    def product(direction: np.ndarray) -> Callable[[], Sequence[object]]:
        """By nested tapes, as TensorFlow's guide does it."""
        pieces = [tf.constant(v, dtype) for v in f.layout.unravel(direction).values()]

        def compute() -> Sequence[object]:
            products = hessian_vector_product(pieces)
            products[-1].numpy()  # waits for them
            return products

        return compute

    return Native(f, step, product)
