"""Operations of a graph that call back, and have a gradient of their own.

Each is a ``PyFunc`` of TensorFlow whose gradient is ours, by the attribute that TensorFlow keeps for that. So it
holds whoever differentiates (a tape within the function, one around it, a loop, a map), and it is one entry in
TensorFlow's registry for all of them: `tf.custom_gradient` makes one for each call, for good, and with it the
bridge and its model; and `tf.vectorized_map` and forward accumulators lose it without a word.
"""

from __future__ import annotations

import itertools
import secrets
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2
from tensorflow.python.eager import record
from tensorflow.python.framework.func_graph import FuncGraph
from tensorflow.python.framework.ops import EagerTensor
from tensorflow.python.ops import script_ops

from gradbridge.errors import HostError
from gradbridge_tensorflow import records
from gradbridge_tensorflow.recording import is_recorded, tell
from gradbridge_tensorflow.runtime import RUNTIME
from gradbridge_tensorflow.tensors import is_inexact

#: Name of operations that make a constant of what they are given: nothing is pulled back to these.
CONSTANT = "gradbridge_constant"

_GRADIENT, _OURS = "GradbridgeGradient", "_gradbridge_operation"

_counter = itertools.count(1)
_operations: weakref.WeakValueDictionary[int, Operation] = weakref.WeakValueDictionary()

# Of this process. Who loads a graph into another one finds other functions, if any, by the names of ours.
_PROCESS = secrets.randbits(31)


class Operation(ABC):
    """What one operation does when it runs, and its gradient.

    Its inputs are arrays and a record, its outputs arrays and a record (`gradbridge_tensorflow.records`).
    """

    #: Whether each run is another one, in the order of the program.
    is_stateful: bool = False

    def __init__(self) -> None:
        self._id = _PROCESS << 32 | next(_counter)
        _operations[self._id] = self

    @property
    @abstractmethod
    def floating(self) -> Sequence[int]:
        """Its outputs that have a derivative."""

    @abstractmethod
    def computed(self, arrays: Sequence[Any], recorded: Any) -> tuple[Sequence[Any], Any]:
        """Run it: (arrays, record) ↦ (arrays, record, None for none)."""

    @abstractmethod
    def gradients(
        self,
        inputs: Sequence[Any],
        records: tuple[Any, Any],
        cotangents: Sequence[Any],
        wanted: tuple[int, ...],
        is_pushed: bool,
    ) -> Sequence[Any]:
        """Gradients of some inputs, by TensorFlow's convention of complex numbers.

        Args:
            inputs: the arrays, tensors of the graph that is traced.
            records: that it was given, and that it gave.
            cotangents: of its floating outputs.
            wanted: of the inputs.
            is_pushed: whether an accumulator follows the cotangents.
        """

    def vectorized(self, loop: Any) -> list[Any]:
        """What `tf.vectorized_map` is to do for all rows: its converter of the operation.

        Raises:
            ConversionNotImplementedError: one row after the other.
        """
        raise NotImplementedError

    def placed(
        self,
        inputs: Sequence[Any],
        recorded: Any,
        specs: Sequence[tf.TensorSpec],
        followed: Sequence[int] = (),
    ) -> list[Any]:
        """The operation in the graph that is traced.

        Args:
            inputs: tensors of that graph.
            recorded: a record that it starts from, if it is a tensor.
            specs: of its outputs.
            followed: inputs that are followed, whatever tapes tell.

        Returns:
            Its outputs, and the record of it.
        """
        graph = tf.compat.v1.get_default_graph()
        _hold(graph, self)
        given = recorded if isinstance(recorded, tf.Tensor) else tf.zeros([2], tf.int64)
        kind = "PyFunc" if self.is_stateful else "PyFuncStateless"
        with record.stop_recording(), graph.gradient_override_map({kind: _GRADIENT}):
            outputs = getattr(tf.raw_ops, kind)(
                input=[*inputs, given, tf.constant(self._id, tf.int64)],
                token=script_ops._py_funcs.insert(self),
                Tout=[s.dtype for s in (*specs, records.SPEC)],
                name="gradbridge_callback",
            )
        op = outputs[0].op
        op._set_attr(_OURS, attr_value_pb2.AttrValue(i=self._id))
        op.pfor_converter = self.vectorized
        for output, spec in zip(outputs, (*specs, records.SPEC)):
            output.set_shape(spec.shape)
        told = tuple([i for i in movable(inputs) if i in followed or is_recorded(inputs[i])])
        if told:

            def back(cotangents: Sequence[Any], is_pushed: bool) -> Sequence[Any]:
                return self.gradients(inputs, (given, outputs[-1]), cotangents, told, is_pushed)

            tell([outputs[i] for i in self.floating], [inputs[i] for i in told], back)
        return list(outputs)

    def __call__(self, *arrays: Any) -> list[Any]:
        *arrays, recorded, id = map(np.asarray, arrays)
        if int(id) != self._id:
            raise HostError(
                "a graph that calls a bridge was loaded from another process, and the bridge is not in it; save the "
                "weights instead (f.save, save_weights), and make the bridge and the function anew"
            )
        with RUNTIME.waiting():
            outputs, recorded = self.computed(arrays, recorded)
        return [*outputs, np.zeros(2, np.int64) if recorded is None else recorded]


@tf.RegisterGradient(_GRADIENT)
def _gradient(op: Any, *cotangents: Any) -> list[Any]:
    if not isinstance(op, tf.Operation):  # gradients are being saved, too
        raise HostError(
            "a function that calls a bridge is being saved, and a SavedModel has no Python in it to call back; save the "
            "weights instead (f.save, save_weights)"
        )
    operation = _operations[op.get_attr(_OURS)]
    inputs = list(op.inputs)[:-2]
    found: list[Any] = [None] * len(op.inputs)
    wanted = movable(inputs)
    if wanted and operation.floating:
        heard = [cotangents[i] for i in operation.floating]
        gradients = operation.gradients(inputs, (op.inputs[-2], op.outputs[-1]), heard, wanted, False)
        for i, gradient in zip(wanted, gradients):
            found[i] = gradient
    return found


def movable(tensors: Sequence[Any]) -> tuple[int, ...]:
    """Which tensors of a graph may be differentiated: no graph tells who will."""
    return tuple(
        [
            i
            for i, x in enumerate(tensors)
            if is_inexact(x.dtype) and not (x.op.type == "StopGradient" and CONSTANT in x.op.name)
        ]
    )


def local(tensors: Sequence[Any]) -> list[Any]:
    """Tensors as ones of the graph that is traced; tapes hear of it where one comes from outside."""
    graph = tf.compat.v1.get_default_graph()
    return [tf.identity(x) if isinstance(x, EagerTensor) or x.graph is not graph else x for x in tensors]


def _hold(graph: Any, operation: Operation) -> None:
    """Keep an operation as long as the function that it is traced for; `tf.numpy_function` keeps all for good."""
    while isinstance(graph, FuncGraph) and isinstance(graph.outer_graph, FuncGraph):
        graph = graph.outer_graph
    if not hasattr(graph, "_gradbridge_operations"):
        graph._gradbridge_operations = []
    graph._gradbridge_operations.append(operation)
