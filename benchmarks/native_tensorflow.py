"""Keras' own step on an MLP: one compiled forward and backward on tensors that are there already."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

import gradbridge as gb
from benchmarks.steps import Native


def make(sizes: tuple[int, ...], X: np.ndarray) -> Native:
    """A Keras MLP with tanh between its layers, and its native step on X."""
    if tf.config.threading.get_intra_op_parallelism_threads() != 1:
        tf.config.threading.set_intra_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(n, activation="tanh") for n in sizes[1:-1]] + [keras.layers.Dense(sizes[-1])]
    model = keras.Sequential([keras.Input((sizes[0],)), *layers])
    data, variables = tf.constant(X), model.trainable_variables

    @tf.function
    def compiled() -> object:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(data, training=False) ** 2)
        return loss, tape.gradient(loss, [v.value for v in variables])

    def step() -> object:
        loss, gradients = compiled()
        return loss.numpy(), gradients

    return Native(gb.bridge(model), step)
