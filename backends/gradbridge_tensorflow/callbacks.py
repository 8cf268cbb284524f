"""The gradient of `tf.py_function`: of every order, and of any number of calls in flight.

TensorFlow's own takes the tape of the function's latest run, whichever that was, and has no derivative
itself. Here the gradient is a function of the inputs and cotangents, and a `tf.py_function` in turn: it
takes the tape of the latest run if that had the same inputs and nothing records this one; else it runs
the function again.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow.python.ops import script_ops

from gradbridge_tensorflow.tensors import is_inexact

#: Types of operations that call Python functions.
OPERATIONS = {"EagerPyFunc", "PyFunc", "PyFuncStateless"}


def gradient(op: Any, *cotangents: Any) -> list[Any]:
    """Of an ``EagerPyFunc``, as TensorFlow's registry of gradients has it."""
    key = op.get_attr("token")
    function = script_ops._py_funcs.get(key.decode())
    if function is None or function._is_grad_func:
        raise NotImplementedError("a tf.py_function whose gradient TensorFlow took before has no other one")
    function.set_support_graph_mode_gradient()  # its runs leave their tapes
    weakref.finalize(function, script_ops.tape_cache.pop, key, None)
    inputs, count = list(op.inputs), len(op.inputs)
    moved = [i for i, x in enumerate(inputs) if is_inexact(x.dtype)]
    heard = [
        (i, c)
        for i, (y, c) in enumerate(zip(op.outputs, cotangents))
        if c is not None and is_inexact(y.dtype)
    ]
    if not moved or not heard:
        return [None] * count
    places = [i for i, _ in heard]

    def pulled(*values: Any) -> list[Any]:
        primals, bars = list(values[:count]), list(values[count:])
        tape, primals, outputs = _taken(key, primals) or _run(function, primals)
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        zero = tf.UnconnectedGradients.ZERO
        wanted = [primals[i] for i in moved]
        gradients = tape.gradient([outputs[i] for i in places], wanted, bars, unconnected_gradients=zero)
        return [tf.convert_to_tensor(g) for g in gradients]

    # Its outputs depend on the cotangents, and TensorFlow runs nothing before its inputs are there.
    given = tf.py_function(pulled, [*inputs, *(c for _, c in heard)], [inputs[i].dtype for i in moved])
    gradients: list[Any] = [None] * count
    for i, g in zip(moved, given):
        g.set_shape(inputs[i].shape)
        gradients[i] = g
    return gradients


def functions_of(graphs: Iterable[Any]) -> list[Any]:
    """The Python functions behind the operations of graphs: held, they live as long as who holds them.

    TensorFlow ties them to the graph around a trace, which is gone with the thread of that.

    Args:
        graphs: definitions of nodes.
    """
    keys = {node.attr["token"].s.decode() for nodes in graphs for node in nodes if "token" in node.attr}
    return [function for key in keys if (function := script_ops._py_funcs.get(key)) is not None]


def _run(function: Any, primals: list[Any]) -> tuple[Any, list[Any], Any]:
    with tf.GradientTape() as tape:
        tape.watch([x for x in primals if is_inexact(x.dtype)])
        outputs = function._call(None, primals)
    return tape, primals, outputs


def _taken(key: bytes, primals: list[Any]) -> tuple[Any, list[Any], Any] | None:
    """The tape of the latest run, if that was of these primals: it can be pulled once."""
    if record.could_possibly_record():
        return None  # what it holds would be constants to whoever records
    found = script_ops.tape_cache.pop(key, None)
    if found is None or not all(_is_same(a, b) for a, b in zip(found[1], primals)):
        return None
    return found[0], list(found[1]), found[2]


def _is_same(a: Any, b: Any) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool(a.numpy().tobytes() == b.numpy().tobytes()) if a.dtype != tf.string else False
