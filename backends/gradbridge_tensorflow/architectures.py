"""The portable architectures as Keras models, with the canonical parameter layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from gradbridge.errors import UnknownModelError
from gradbridge.layout import Array
from gradbridge_tensorflow.runtime import RUNTIME

if TYPE_CHECKING:
    from gradbridge.architectures import Architecture, Layer


def build(architecture: Architecture, params: Mapping[str, Array]) -> Any:
    """A float32 Keras model of the architecture, holding the parameters.

    Raises:
        UnknownModelError: Keras runs on another backend than TensorFlow.
    """
    RUNTIME.require()
    if keras.backend.backend() != "tensorflow":
        raise UnknownModelError(
            f"backend 'tensorflow' builds Keras models on TensorFlow, and Keras runs on {keras.backend.backend()} "
            f"here; start Python with KERAS_BACKEND=tensorflow"
        )
    first = next(layer for layer in architecture.layers if layer.shapes)
    shape = (first.inputs,) if first.kind == "dense" else (None, None, first.inputs)
    layers = [_made(layer) for layer in architecture.layers]
    if architecture.squeeze:
        layers.append(LastAxisDropped(dtype="float32"))
    model = keras.Sequential([keras.Input(shape, dtype="float32"), *layers], name=architecture.name)
    for variable, value in zip(model.trainable_variables, params.values()):
        variable.assign(value)
    return model


def _made(layer: Layer) -> Any:
    if layer.kind == "pool":
        return keras.layers.MaxPooling2D(layer.size, dtype="float32")
    if layer.kind == "flatten":
        return RowsFlattened(dtype="float32")
    kind = BiasFirstDense if layer.kind == "dense" else BiasFirstConv
    return kind(*layer.shapes[1], activation=layer.activation, dtype="float32")


class _BiasFirst(keras.layers.Layer):
    """A layer whose bias stands before its weight, as Keras' own layers do not."""

    def __init__(self, *shape: int, activation: str | None = None, shape_: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape_ = tuple(shape_ or shape)
        self.activation = activation
        self.bias = self.add_weight(name="bias", shape=self.shape_[-1:], initializer="zeros")
        self.weight = self.add_weight(name="weight", shape=self.shape_, initializer="zeros")
        self.built = True

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "shape_": self.shape_, "activation": self.activation}

    def activated(self, x: Any) -> Any:
        return x if self.activation is None else getattr(ops, self.activation)(x)


@keras.saving.register_keras_serializable("gradbridge")
class BiasFirstDense(_BiasFirst):
    """x @ weight + bias, weight (in, out)."""

    def call(self, x: Any) -> Any:
        return self.activated(ops.matmul(x, self.weight) + self.bias)


@keras.saving.register_keras_serializable("gradbridge")
class BiasFirstConv(_BiasFirst):
    """A padded convolution of (n, h, w, in), weight (k, k, in, out)."""

    def call(self, x: Any) -> Any:
        y = ops.conv(x, self.weight, padding="same", data_format="channels_last")
        return self.activated(y + self.bias)


@keras.saving.register_keras_serializable("gradbridge")
class RowsFlattened(keras.layers.Layer):
    """(n, …) → (n, all the rest), whatever the rest is."""

    def call(self, x: Any) -> Any:
        return ops.reshape(x, (ops.shape(x)[0], -1))


@keras.saving.register_keras_serializable("gradbridge")
class LastAxisDropped(keras.layers.Layer):
    """(n, 1) → (n,)."""

    def call(self, x: Any) -> Any:
        return x[..., 0]
