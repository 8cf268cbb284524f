"""TensorFlow's primitives: what core makes adapters of. Whatever is computed is traced into graphs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, cast

import numpy as np
import tensorflow as tf

from gradbridge.constants import Same
from gradbridge.errors import HigherOrderError
from gradbridge.framework import Framework, FrameworkBorder
from gradbridge.layout import Array, ParameterLayout
from gradbridge.program import Computation, Form, Function, Program
from gradbridge.traits import ArraySpec, Traits
from gradbridge.wording import first_line
from gradbridge_tensorflow.derivatives import gradients, quiet
from gradbridge_tensorflow.explain import refuse_lost_tangents
from gradbridge_tensorflow.isolation import apart, tracing
from gradbridge_tensorflow.mapping import mapped
from gradbridge_tensorflow.open_sizes import Looks
from gradbridge_tensorflow.partition import compiled
from gradbridge_tensorflow.programs import TensorFlowProgram
from gradbridge_tensorflow.repairs import repaired_derivatives
from gradbridge_tensorflow.runtime import RUNTIME
from gradbridge_tensorflow.tensors import carrier, cut, floating_dtype, is_inexact, to_array, to_tensor


class TensorFlow(Framework):
    """Its primitives for one model.

    Args:
        label: what refusals call the model.
    """

    traits = Traits(
        takes_complex=True,
        conjugates=True,
        has_forward_mode=True,
        has_vmap=True,
        has_higher_orders=True,
        compiles=True,
        runtime=RUNTIME,
    )
    # A Keras MLP of 4 by 8 by 1, value and gradient: 506 µs with a tensor per weight, 480 µs with one vector.
    packs_below = 16384
    host = "tensorflow"

    def __init__(self, label: str) -> None:
        self.label, self._looks = label, Looks()

    # -- arrays -------------------------------------------------------------------------------

    def asarray(self, array: Any, dtype: Any) -> tf.Tensor:
        return to_tensor(array, dtype)

    def lend(self, array: Any, dtype: Any) -> tf.Tensor:
        return to_tensor(array, dtype, lent=True)

    def asnumpy(self, native: tf.Tensor) -> Array:
        return to_array(native)

    def native(self, array: tf.Tensor, dtype: tf.DType | None) -> tf.Tensor:
        return to_tensor(array, dtype)

    def part(self, computation: Computation, program: Callable[[], Program]) -> Computation:
        # As it was traced for its other callers: apart from the program that calls, and repaired.
        return lambda leaves: cast(TensorFlowProgram, program()).part(leaves)

    def border(self, layout: ParameterLayout, dtypes: Sequence[Any]) -> FrameworkBorder:
        return TensorFlowBorder(self, layout, dtypes)

    def is_array(self, value: Any) -> bool:
        return isinstance(value, tf.Tensor)

    def is_inexact(self, native: tf.Tensor) -> bool:
        return is_inexact(native.dtype)

    def is_complex(self, native: tf.Tensor) -> bool:
        return bool(native.dtype.is_complex)

    def output(self, value: Any) -> tf.Tensor | None:
        sparse = isinstance(value, (tf.RaggedTensor, tf.SparseTensor, tf.IndexedSlices))
        numbers = isinstance(value, (float, int, complex, tf.Variable, np.ndarray, np.generic))
        if sparse or not (numbers or hasattr(value, "__tf_tensor__")):
            return None
        return tf.convert_to_tensor(value)

    def conj(self, native: tf.Tensor) -> tf.Tensor:
        return tf.math.conj(native) if native.dtype.is_complex else native

    def floating_dtype(self, name: str) -> tf.DType | None:
        return floating_dtype(name)

    def cast(self, native: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
        return tf.cast(native, like.dtype)

    def reshape(self, native: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
        return tf.reshape(native, shape)

    def eye(self, size: int, like: tf.Tensor) -> tf.Tensor:
        return tf.eye(size, dtype=like.dtype)

    def zeros(self, shape: tuple[int, ...], like: tf.Tensor) -> tf.Tensor:
        # An open axis is one of the array's own: nobody else knows how long it is.
        return tf.zeros_like(like) if None in shape else tf.zeros(shape, like.dtype)

    def unpacked(self, vector: tf.Tensor, layout: ParameterLayout) -> list[tf.Tensor]:
        parts = tf.split(vector, list(layout.sizes)) if layout.sizes else []
        return [tf.reshape(part, shape) for part, shape in zip(parts, layout.shapes)]

    def constant_key(self, value: Any) -> Hashable | None:
        if isinstance(value, (tf.DType, tf.TensorShape, tf.TypeSpec)):
            return type(value), value
        if isinstance(value, (tf.Variable, tf.SparseTensor, tf.RaggedTensor, tf.IndexedSlices)):
            return Same(value)  # a trace reads a variable when it runs; the others never change
        return super().constant_key(value)

    # -- transforms ---------------------------------------------------------------------------

    def trace(
        self, fn: Computation, places: tuple[int, ...], reusable: bool, rows: Sequence[int]
    ) -> TensorFlowProgram:
        return TensorFlowProgram(self.label, fn, places, rows, self._looks)

    def vjp(
        self, fn: Function, primals: list[tf.Tensor]
    ) -> tuple[list[tf.Tensor], Callable[[list[tf.Tensor]], list[Any]]]:
        inner = [tf.identity(x) for x in primals]  # of this graph, and with no other way to the outputs
        outputs = fn(list(inner))
        return outputs, lambda cotangents: gradients(outputs, inner, cotangents, self.label)

    def jvp(
        self, fn: Function, primals: list[tf.Tensor], tangents: list[tf.Tensor], many: bool
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        def one(tangents: Sequence[tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
            # New tensors: an accumulator is told of a tensor once, and this may be traced twice.
            inner = [tf.identity(x) for x in primals]
            try:
                with tf.autodiff.ForwardAccumulator(inner, list(tangents)) as accumulator:
                    outputs = fn(inner)
            except NotImplementedError as error:  # by the gradient of an operation
                raise HigherOrderError(f"{self.label} has no forward mode: {first_line(error)}") from error
            zero = tf.UnconnectedGradients.ZERO
            # Some operations give slices of a tensor.
            moved = [tf.convert_to_tensor(accumulator.jvp(y, unconnected_gradients=zero)) for y in outputs]
            refuse_lost_tangents(tf.compat.v1.get_default_graph(), self.label, plain)
            return outputs, moved

        def plain() -> Any:
            return compiled(lambda *inner: fn(list(inner)), list(map(_spec, primals))).graph

        if not many:
            return one(tangents)
        moved = self._map(lambda tangents: one(tangents)[1], tangents)
        return fn(list(primals)), list(moved)

    def vmap(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *rows: self._map(lambda row: fn(*row), rows)

    def shapes(self, fn: Computation, specs: Sequence[ArraySpec]) -> tuple[list[ArraySpec], Form]:
        forms: list[Form] = []

        def outputs(*leaves: tf.Tensor) -> list[tf.Tensor]:
            floats, others, form, _ = fn(list(leaves))
            forms[:] = [form]
            return form.merge(floats, others)

        def traced() -> Any:
            with repaired_derivatives():
                return compiled(outputs, list(map(_spec, specs)))

        with tracing:
            results = apart(traced).structured_outputs
        dtypes = [np.dtype(carrier(t.dtype).as_numpy_dtype) for t in results]
        return [ArraySpec(tuple(t.shape.as_list()), d) for t, d in zip(results, dtypes)], forms[0]

    # -- private ------------------------------------------------------------------------------

    def _map(self, fn: Callable[..., Any], rows: Sequence[tf.Tensor]) -> Any:
        with quiet():
            return mapped(fn, list(rows))


class TensorFlowBorder(FrameworkBorder):
    """Weights are cut out of one aligned copy of the vector, which TensorFlow takes as it is."""

    def cut(self, vector: Any) -> list[tf.Tensor]:
        return cut(vector, self.layout, self.dtypes)


def _spec(array: Any) -> tf.TensorSpec:
    return tf.TensorSpec(array.shape, tf.as_dtype(array.dtype))
