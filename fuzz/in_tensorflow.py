"""TensorFlow: functions of trees, and Keras models."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from fuzz.built import Built, cast, function_of
from fuzz.interpreter import EPSILON, interpret
from fuzz.networks import WORDS, Layer, Network


class Words:
    """The operations of `interpreter`, TensorFlow's own where it has one."""

    tanh, exp, sin, sqrt, where, stack = (
        staticmethod(one) for one in (tf.tanh, tf.exp, tf.sin, tf.sqrt, tf.where, tf.stack)
    )
    reshape, concat = staticmethod(tf.reshape), staticmethod(tf.concat)
    sigmoid, softplus, relu = (staticmethod(one) for one in (tf.sigmoid, tf.nn.softplus, tf.nn.relu))

    @staticmethod
    def constant(array: Any, like: Any) -> Any:
        return tf.constant(array, like.dtype)

    @staticmethod
    def gelu(z: Any) -> Any:
        # tf.nn.gelu takes √2 in float32, whatever it computes in.
        return 0.5 * z * (1 + tf.math.erf(z * 0.5**0.5))

    @staticmethod
    def sum(z: Any, axis: Any, keepdims: bool = False) -> Any:
        return tf.reduce_sum(z, axis, keepdims=keepdims)

    @staticmethod
    def mean(z: Any, axis: Any, keepdims: bool) -> Any:
        return tf.reduce_mean(z, axis, keepdims=keepdims)

    @staticmethod
    def max(z: Any) -> Any:
        return tf.reduce_max(z, 1)

    @staticmethod
    def swapped(z: Any) -> Any:
        return tf.linalg.matrix_transpose(z)

    @staticmethod
    def take(table: Any, ids: Any) -> Any:
        return tf.gather(table, ids)

    @staticmethod
    def cumsum(z: Any) -> Any:
        return tf.cumsum(z, 1)

    @staticmethod
    def roll(z: Any) -> Any:
        return tf.roll(z, 1, 1)

    @staticmethod
    def argmax(z: Any) -> Any:
        return tf.argmax(z, -1)

    @staticmethod
    def logsumexp(z: Any, axis: int, keepdims: bool) -> Any:
        return tf.reduce_logsumexp(z, axis, keepdims=keepdims)

    @staticmethod
    def softmax(z: Any) -> Any:
        return tf.nn.softmax(z, -1)

    @staticmethod
    def attend(q: Any, k: Any, v: Any, scale: float) -> Any:
        return tf.nn.softmax(scale * tf.matmul(q, k, transpose_b=True), -1) @ v


def _layer_of(layer: Layer, network: Network, dtype: str) -> tuple[keras.layers.Layer, list[str]] | None:
    """Keras' own layer, and which weights it takes in its order; None where it has none."""
    b, bias, made = layer.outputs, layer.bias, keras.layers
    match layer.kind:
        case "linear":
            return made.Dense(b, use_bias=bias, dtype=dtype), ["w", "b"]
        case "conv":
            return made.Conv1D(b, int(layer.option), padding="same", use_bias=bias, dtype=dtype), ["w", "b"]
        case "layernorm" if bias:
            return made.LayerNormalization(epsilon=EPSILON, dtype=dtype), ["scale", "b"]
        case "groupnorm" if bias:
            return made.GroupNormalization(int(layer.option), epsilon=EPSILON, dtype=dtype), ["scale", "b"]
        case "batchnorm" if bias:
            return made.BatchNormalization(epsilon=EPSILON, dtype=dtype), ["scale", "b"]
        case "embedding":
            return made.Embedding(WORDS, b, dtype=dtype), ["table"]
        case _:
            return None


class DrawnModel(keras.Model):
    """A network as a subclassed Keras model."""

    def __init__(self, network: Network, weights: dict[str, Any], dtype: str, frozen: frozenset[str]) -> None:
        super().__init__(dtype=dtype)
        self._network, self._names = network, {}
        self._own: list[Any] = []
        self.dropout = keras.layers.Dropout(network.dropout, dtype=dtype) if network.dropout else None
        for layer in network.every_layer:
            own = {name: weights[name] for name in layer.shapes(network.length)}
            made = None if network.is_tied(layer) else _layer_of(layer, network, dtype)
            if made is not None:
                self._keep(layer, made, own)
                continue
            for name, array in own.items():
                variable = self.add_weight(
                    shape=array.shape,
                    name=name.replace(".", "_"),
                    initializer="zeros",
                    trainable=layer.name not in frozen,
                )
                variable.assign(array)
                self._names[name] = variable

    def _keep(self, layer: Layer, made: Any, own: dict[str, Any]) -> None:
        """Build Keras' own layer, and give it its weights."""
        kept, order = made
        is_sequence = self._network.form != "rows" and layer.kind != "embedding"
        before = [one for one in self._network.layers if one.kind == "pool"]
        names = [one.name for one in self._network.layers]
        if before and layer.name in names and names.index(layer.name) > names.index(before[0].name):
            is_sequence = False
        shape = (None, self._network.length, layer.inputs) if is_sequence else (None, layer.inputs)
        kept.build((None, self._network.length) if layer.kind == "embedding" else shape)
        values = [own[f"{layer.name}.{one}"] for one in order if f"{layer.name}.{one}" in own]
        if layer.kind == "batchnorm":
            values += list(self._network.statistics(layer))
        kept.set_weights(values)
        self._own.append(kept)
        self._names[layer.name] = kept

    def call(self, first: Any, second: Any = None, training: bool = False) -> Any:
        inputs = (first,) if second is None else (first, second)
        layers = {name: kept for name, kept in self._names.items() if "." not in name}
        drop = None if self.dropout is None else (lambda z: self.dropout(z, training=training))
        get = lambda name: tf.convert_to_tensor(self._names[name])  # noqa: E731
        return interpret(self._network, get, inputs, Words, layers, drop)


class TensorFlow:
    """The guest."""

    styles: tuple[str, ...] = ("function", "keras")
    queries = (2, 4)

    def build(self, network: Network, style: str, dtype: str, frozen: frozenset[str]) -> Built:
        weights = cast(network.weights(), dtype)
        if style == "keras":
            model = DrawnModel(network, weights, dtype, frozen)
            arrays = [tf.constant(x) for x in network.inputs(2, 0, dtype)]
            model(*arrays)
            return Built(model)
        return function_of(network, weights, Words, "tensorflow")
