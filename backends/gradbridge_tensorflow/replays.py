"""The operations of a compiled function, one by one in another graph.

A tape around an accumulator does not find its way through a function that the accumulator has pushed tangents
through (seen in TensorFlow 2.21): it leaves out this part of the gradient, without a word. Through operations it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import execute


def replayed(function: Any, tensors: Sequence[Any]) -> list[Any]:
    """What a function returns, computed by its operations in the graph that is traced, and tapes are told of each.

    Args:
        function: a concrete one with a flat list of results.
        tensors: that it is called with.
    """
    source, graph = function.graph, tf.compat.v1.get_default_graph()
    for called in source._functions.values():
        graph._add_function_recursive(called)
    given = [*tensors, *function.captured_inputs]
    values = {inner.name: graph.capture(outer) for inner, outer in zip(function.inputs, given)}
    made: dict[str, Any] = {}
    for op in source.get_operations():
        if op.type == "Placeholder":
            continue
        attrs = op.node_def.attr
        with tf.control_dependencies([made[c.name] for c in op.control_inputs if c.name in made]):
            new = graph.create_op(
                op.type, [values[t.name] for t in op.inputs], [t.dtype for t in op.outputs], attrs=attrs
            )
        made[op.name] = new
        told = [part for name in attrs for part in (name, new.get_attr(name))]
        execute.record_gradient(op.type, new.inputs, tuple(told), new.outputs[:])
        for old, output in zip(op.outputs, new.outputs):
            output.set_shape(old.shape)
            values[old.name] = output
    return [values[t.name] for t in function.outputs]
