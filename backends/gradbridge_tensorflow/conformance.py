"""The scenarios of the conformance kit in TensorFlow: Keras models, tf.Modules and functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import keras
import tensorflow as tf

from gradbridge.layout import Array
from gradbridge.testing import BackendUnderTest


class UnderTest(BackendUnderTest):
    backend: ClassVar[str] = "tensorflow"
    builds = True

    def mlp(self, weight1: Array, bias1: Array, weight2: Array, bias2: Array) -> Any:
        layers = [
            keras.layers.Dense(weight1.shape[1], activation="tanh", dtype="float64"),
            keras.layers.Dense(weight2.shape[1], dtype="float64"),
        ]
        return _built([len(weight1)], layers, [weight1, bias1, weight2, bias2])

    def embedding(self, table: Array) -> Any:
        return _built([3], [keras.layers.Embedding(*table.shape, dtype="float64")], [table], "int64")

    def energy(self) -> Any:
        return lambda x, y: tf.reduce_sum(x**2 * y)

    def outputs(self, scale: Array) -> Any:
        return _Outputs(scale)

    def tied(self, weight: Array) -> Any:
        return _Tied(weight)

    def unused(self, weight: Array, spare: Array) -> Any:
        return _Unused(weight, spare)

    def dropout(self, rate: float) -> Any:
        return _built([8], [keras.layers.Dropout(rate, dtype="float64")], [])

    def batchnorm(self, scale: Array, shift: Array, epsilon: float) -> Any:
        layer = keras.layers.BatchNormalization(epsilon=epsilon, dtype="float64")
        return _built([len(scale)], [layer], [scale, shift])

    def wave(self, scale: Array) -> Any:
        return _Wave(scale)

    def broadcast(self, scale: Array) -> Any:
        return _Broadcast(scale)

    def masked(self) -> Any:
        return lambda x, m, k: tf.where(m, tf.cast(k, x.dtype) * x**2, x)

    def root(self, scale: Array) -> Any:
        return _Root(scale)

    def switch(self) -> Any:
        return lambda x, name, k: k * x**3 if name == "cube" else k * x**2

    def labels(self, scale: Array) -> Any:
        return _Labels(scale)

    def state(self, model: Any) -> Any:
        surroundings = (
            keras.config.floatx(),
            keras.config.dtype_policy().name,
            tf.random.get_global_generator().state.numpy().tobytes(),
            tf.config.functions_run_eagerly(),
        )
        if isinstance(model, keras.layers.Layer):
            variables = [(v.path, v.trainable, v.numpy().tobytes()) for v in model.variables]
            return surroundings, variables, model.trainable, len(model.losses)
        if isinstance(model, tf.Module):
            return surroundings, [(v.name, v.trainable, v.numpy().tobytes()) for v in model.variables]
        return surroundings

    def surroundings(self) -> Iterable[tuple[str, AbstractContextManager[Any]]]:
        yield "under keras floatx float16", _floatx("float16")
        yield "within a gradient tape", tf.GradientTape(persistent=True)
        yield "within tf.init_scope()", tf.init_scope()
        yield "under run_functions_eagerly", _run_eagerly()


class _Outputs(tf.Module):
    def __init__(self, scale: Array) -> None:
        super().__init__()
        self.scale = tf.Variable(scale)

    def __call__(self, x: tf.Tensor) -> dict[str, Any]:
        return {"scaled": x * self.scale, "rest": (x**2, tf.reduce_sum(self.scale**2))}


class _Tied(tf.Module):
    def __init__(self, weight: Array) -> None:
        super().__init__()
        self.encode = self.decode = tf.Variable(weight)

    @tf.function
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return tf.tanh(x @ self.encode) @ self.decode


class _Unused(tf.Module):
    def __init__(self, weight: Array, spare: Array) -> None:
        super().__init__()
        self.weight, self.spare = tf.Variable(weight), tf.Variable(spare)

    def __call__(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return tf.exp(x @ self.weight / 4)


class _Wave(tf.Module):
    def __init__(self, scale: Array) -> None:
        super().__init__()
        self.scale = tf.Variable(scale)

    def __call__(self, x: tf.Tensor, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        square = tf.math.real(z * tf.math.conj(z))
        phase = tf.complex(tf.cos(x), tf.sin(x))
        return tf.cast(self.scale * square, z.dtype) * phase * z, square


class _Broadcast(tf.Module):
    def __init__(self, scale: Array) -> None:
        super().__init__()
        self.scale = tf.Variable(scale)

    def __call__(self, t: tf.Tensor, x: tf.Tensor, m: tf.Tensor) -> tf.Tensor:
        return tf.tanh(self.scale * x + m) * t[:, None]


class _Root(tf.Module):
    def __init__(self, scale: Array) -> None:
        super().__init__()
        self.scale = tf.Variable(scale)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return self.scale * tf.sqrt(x)


class _Labels(tf.Module):
    def __init__(self, scale: Array) -> None:
        super().__init__()
        self.scale = tf.Variable(scale)

    def __call__(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return self.scale * x, tf.argmax(x, 1)


def _built(shape: list[int], layers: list[Any], trainable: list[Array], dtype: str = "float64") -> Any:
    model = keras.Sequential([keras.Input(shape, dtype=dtype), *layers])
    for variable, value in zip(model.trainable_variables, trainable):
        variable.assign(value)
    return model


@contextmanager
def _floatx(name: str) -> Iterator[None]:
    before = keras.config.floatx()
    keras.config.set_floatx(name)
    try:
        yield
    finally:
        keras.config.set_floatx(before)


@contextmanager
def _run_eagerly() -> Iterator[None]:
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)
