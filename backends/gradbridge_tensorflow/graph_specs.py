"""What is known of a call's outputs when a graph is traced, and where a call cannot be in one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import optree
import tensorflow as tf
from tensorflow.python.eager.polymorphic_function import polymorphic_function
from tensorflow.python.saved_model import save_context

from gradbridge.errors import HostError, ReentryError, Unsupported
from gradbridge.lifting import Node, OpenSpec, open_outputs
from gradbridge_tensorflow.runtime import RUNTIME

_TENSORFLOWS = polymorphic_function.__file__


def output_specs(node: Node, operands: Sequence[Any]) -> tuple[list[tf.TensorSpec], optree.PyTreeSpec | None]:
    """Shapes and dtypes of a node's outputs, and their tree.

    Args:
        node: that will run.
        operands: tensors of the graph.

    Raises:
        HostError: nobody knows what comes out before it runs.
        GuestError, InputError: such operands do not fit.
    """
    if node.parent is not None:
        return [tf.TensorSpec(operands[i].shape, operands[i].dtype) for i in node.wrt], None
    given = [OpenSpec(tuple(x.shape.as_list()), np.dtype(x.dtype.as_numpy_dtype)) for x in operands]
    try:
        specs, structure = open_outputs(node.specs, given)
    except Unsupported as error:
        raise HostError(
            f"{node.call.adapter.label} was called in a tf.function, which must know how many outputs there are, and of which "
            f"dtypes, before anything runs, and {error}; say outputs=(shape, dtype), or a function of the inputs that "
            f"returns such, where you bridge it, or call it outside of tf.function"
        ) from error
    return [tf.TensorSpec(s.shape, s.dtype) for s in specs], structure


def refuse_where_it_cannot_run(call: Any) -> None:
    """Refuse a call in a graph that could not call back, or would be waited for by what it needs.

    Raises:
        ReentryError: the guest runs on TensorFlow, which waits for it.
        HostError: the graph is compiled by XLA, or is to be saved.
    """
    label = call.root.adapter.label
    if call.adapter.traits.runtime is RUNTIME:
        raise ReentryError(
            f"{label} is a model of TensorFlow that cannot be a part of the tf.function that calls it (it draws noise or moves "
            f"state, is computed in chunks of rows, or its params are checked), and called back from one TensorFlow could "
            f"wait for itself for ever. {RUNTIME.reentry_cure}"
        )
    if save_context.in_save_context():
        raise HostError(
            f"{label} was called in a function that is being saved, and a SavedModel has no Python in it to call back; save "
            f"the weights instead (f.save, save_weights)"
        )
    if any(function._jit_compile for function in _functions_traced()):
        raise HostError(
            f"{label} was called in a tf.function(jit_compile=True), and XLA compiles no calls back to Python; leave "
            f"jit_compile out there, or compile the parts before and after it"
        )


def _functions_traced() -> Iterator[Any]:
    """The tf.functions that this thread is tracing, from the innermost: no graph tells how it is compiled."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == _TENSORFLOWS:
            owner = frame.f_locals.get("self")
            if isinstance(owner, polymorphic_function.Function):
                yield owner
        frame = frame.f_back
