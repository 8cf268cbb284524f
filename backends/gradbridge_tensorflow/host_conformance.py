"""Programs of TensorFlow, as the conformance kit for hosts writes them: tapes, and `tf.function`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from gradbridge.layout import Array
from gradbridge.testing.hosts import HostUnderTest

_ZERO = tf.UnconnectedGradients.ZERO


class UnderTest(HostUnderTest):
    """TensorFlow, by its tapes."""

    host: ClassVar[str] = "tensorflow"
    conjugates: ClassVar[bool] = True

    def array(self, array: Array) -> tf.Tensor:
        return tf.constant(array)

    def numpy(self, value: Any) -> Array:
        return np.asarray(value)

    def sin(self, x: Any) -> tf.Tensor:
        return tf.sin(x)

    def sum(self, x: Any) -> tf.Tensor:
        return tf.reduce_sum(x)

    def multiply(self, x: Any, y: Any) -> tf.Tensor:
        return x * tf.cast(y, x.dtype)

    def vjp(
        self, function: Callable[..., tuple[Any, ...]], arrays: Sequence[Any]
    ) -> tuple[Sequence[Any], Callable[[Sequence[Any]], Sequence[Any]]]:
        primals = list(arrays)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(primals)
            outputs = list(function(*primals))

        def pull(cotangents: Sequence[Any]) -> Sequence[Any]:
            return tape.gradient(outputs, primals, list(cotangents), unconnected_gradients=_ZERO)

        return outputs, pull

    def gradient(self, function: Callable[..., Any], argnums: tuple[int, ...] = (0,)) -> Callable[..., Any]:
        def gradient(*arrays: Any) -> tuple[Any, ...]:
            wrt = [arrays[i] for i in argnums]
            with tf.GradientTape() as tape:
                tape.watch(wrt)
                value = function(*arrays)
            return tuple(tape.gradient(value, wrt, unconnected_gradients=_ZERO))

        return gradient

    def jvp(
        self, function: Callable[..., Any], arrays: Sequence[Any], tangents: Sequence[Any]
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        with tf.autodiff.ForwardAccumulator(list(arrays), list(tangents)) as accumulator:
            outputs = function(*arrays)
        return outputs, [accumulator.jvp(y, unconnected_gradients=_ZERO) for y in outputs]

    def hessian(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def hessian(x: Any) -> tf.Tensor:
            with tf.GradientTape() as tape:
                tape.watch(x)
                (gradient,) = self.gradient(function)(x)
            return tape.jacobian(gradient, x)

        return hessian

    def vmap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arrays: tf.vectorized_map(lambda each: function(*each), list(arrays))

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return tf.function(function)

    def changeable(self, array: Array) -> tuple[tf.Variable, Callable[[], None]]:
        own = tf.Variable(array)
        return own, lambda: own.assign(tf.fill(own.shape, tf.constant(99.0, own.dtype)))
