"""TensorFlow as a host: every adapter as an operation that `tf.GradientTape` and its kin differentiate.

Eagerly a guest runs in the caller's thread, and what it recorded hangs on the tape (`lifted`). In a graph it is
an operation that calls back (`graph_calls`). A guest of TensorFlow is a part of the program that calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf
from tensorflow.python.autograph.core import config
from tensorflow.python.framework.ops import EagerTensor
from tensorflow.python.types import core

from gradbridge import trees
from gradbridge.audit import first_call
from gradbridge.errors import GradbridgeError, HostError, NotDifferentiableError
from gradbridge.execution.evaluation import Call
from gradbridge.host import Reading
from gradbridge.layout import Array, ParameterLayout
from gradbridge.lifting import LiftingHost, Node
from gradbridge.protocol import ArraySpec
from gradbridge_tensorflow import graph_calls, lifted
from gradbridge_tensorflow.graph_operations import CONSTANT
from gradbridge_tensorflow.recording import is_pushed, is_recorded, is_recording
from gradbridge_tensorflow.runtime import RUNTIME
from gradbridge_tensorflow.tensors import carrier, is_inexact, to_array, to_tensor

# AutoGraph rewrites what a tf.function calls, but for libraries: that took a second of each first trace.
config.CONVERSION_RULES = (
    *map(config.DoNotConvert, ("gradbridge", "gradbridge_tensorflow")),
    *config.CONVERSION_RULES,
)

# Raised while a tf.function is traced, an error would become one of AutoGraph's class.
GradbridgeError.ag_pass_through = True


class TensorFlowHost(LiftingHost):
    """Lifts adapters into operations on tensors, eager ones and those of graphs."""

    name: ClassVar[str] = "tensorflow"
    lends = (
        True  # no tensor can be written to, and a variable whose buffer somebody reads is written elsewhere
    )

    def owns(self, value: Any) -> bool:
        return isinstance(value, tf.Tensor)

    def follows(self, value: Any) -> bool:
        if isinstance(value, tf.Tensor):
            return not isinstance(value, EagerTensor) or is_recorded(value)
        # A variable, of TensorFlow or of Keras: a tape hears of it when it is read.
        return is_recording() and bool(value.trainable or is_recorded(tf.convert_to_tensor(value)))

    def constant(self, value: Any) -> Any:
        return tf.stop_gradient(value, name=CONSTANT)

    def array(self, array: Array, is_own: bool = True) -> Any:
        tensor = to_tensor(array, None, lent=is_own)
        return tensor if tf.executing_eagerly() else self.constant(tensor)

    def numpy(self, value: Any) -> Any:
        if not isinstance(value, core.Tensor):
            return value
        value = self._adopted(value)
        if not isinstance(value, EagerTensor):
            raise NotDifferentiableError(
                f"the numbers of {value.name!r} were asked for, a tensor that a tf.function is traced with, and it has none "
                f"yet; call this outside of it, with eager tensors"
            )
        return to_array(value)

    def read(self, arguments: list[Any]) -> Reading:
        arguments[:] = map(self._adopted, arguments)
        return super().read(arguments)

    def spec(self, array: Any) -> ArraySpec:
        if array.shape.rank is None:
            raise HostError(
                f"a bridge was called with {array.name!r}, a tensor of any number of axes; say how many they are, with "
                f"tf.ensure_shape(x, [None, 3]) say"
            )
        return ArraySpec(tuple(array.shape.as_list()), np.dtype(carrier(array.dtype).as_numpy_dtype))

    def cut(self, vector: Any, layout: ParameterLayout) -> list[Any]:
        parts = tf.split(vector, list(layout.sizes)) if layout.sizes else []
        return [tf.reshape(part, shape) for part, shape in zip(parts, layout.shapes)]

    def apply(self, call: Call, arguments: Sequence[Any], reading: Reading) -> Any:
        if not RUNTIME.is_settled:
            RUNTIME.require()
        if call.arguments.vectors[:1] == (True,) and None in reading.values[0].shape:
            size = call.adapter.layout.size
            arguments = [tf.ensure_shape(arguments[0], [size]), *arguments[1:]]
            reading = self.read(arguments)
        if call.adapter.traits.runtime is RUNTIME and tf.executing_eagerly():
            call = _looked_at(call, arguments, reading)
        return super().apply(call, arguments, reading)

    def inlines(self, call: Call, operands: Sequence[Any], constants: dict[int, Any]) -> bool:
        # See `gradbridge_tensorflow.replays`: what is called eagerly is called as any other guest there.
        is_called = tf.executing_eagerly() and is_recording() and any(map(is_pushed, operands))
        return super().inlines(call, operands, constants) and not is_called

    def lift(self, node: Node, operands: Sequence[Any]) -> Any:
        narrow = _narrowing(operands, node.call.first_input)
        wide = [tf.cast(x, tf.float32) if x.dtype == tf.bfloat16 else x for x in operands]
        if tf.executing_eagerly():
            outputs, run = lifted.apply(node, wide)
            return run.evaluation.assemble(list(map(narrow, outputs)))
        outputs, structure = graph_calls.apply(node, wide)
        outputs = list(map(narrow, outputs))
        return outputs[0] if structure is None else trees.unflatten(structure, outputs)

    def inline(self, call: Call, native: Callable[[Sequence[Any]], Any], leaves: Sequence[Any]) -> Any:
        weights = 1 if call.spec.packed else len(call.adapter.layout)
        dtype, narrow = tf.as_dtype(call.dtype), _narrowing(leaves, weights)

        def given(output: Any) -> Any:
            if not isinstance(output, tf.Tensor) or not is_inexact(output.dtype):
                return output
            wide = dtype
            if output.dtype.is_complex:
                wide = tf.complex128 if dtype == tf.float64 else tf.complex64
            return narrow(output if output.dtype == wide else tf.cast(output, wide))

        return trees.mapped(given, native(leaves))

    def _adopted(self, value: Any) -> Any:
        """A variable, of TensorFlow or of Keras, as a tensor: reading it is what a tape hears of."""
        if isinstance(value, tf.Tensor) or not isinstance(value, (core.Tensor, tf.IndexedSlices)):
            return value
        return tf.convert_to_tensor(value)


def _looked_at(call: Call, arguments: Sequence[Any], reading: Reading) -> Call:
    """The call after its first look at the model (law 10): what is inlined is not evaluated as other calls are.

    Raises:
        AuditError
    """
    wrt = tuple([i for i in reading.wrt if is_inexact(arguments[i].dtype) and is_recorded(arguments[i])])
    if not call.settings.audit.awaits_call(call.dtype.name, bool(wrt)):
        return call
    values = [to_array(x) if isinstance(x, tf.Tensor) else y for x, y in zip(arguments, reading.values)]
    prepared, values = call.prepared(values, wrt)
    looked_at: Call = first_call.looked_at(prepared, values, wrt)
    return call if looked_at.adapter is call.adapter else call.by(looked_at.adapter)


def _narrowing(arrays: Sequence[Any], weights: int) -> Callable[[Any], Any]:
    """What brings outputs to bfloat16, where the arrays that decide about a call's dtype are of that.

    NumPy has no such numbers: they are computed with as float32.

    Args:
        arrays: of the call.
        weights: how many of them are weights, which decide; where there are none all do.
    """
    dtypes = {x.dtype for x in arrays[: weights or None] if x.dtype.is_floating}
    if dtypes != {tf.bfloat16}:
        return lambda output: output
    return lambda output: tf.cast(output, tf.bfloat16) if output.dtype == tf.float32 else output
