"""Calls lifted eagerly, closed under differentiation: `apply` runs a node, and its gradient is `pull`.

A pull is a node's gradient at what it recorded. Where that is followed in turn (by a tape around the tape, or by
an accumulator, which pulls in order to push), it is `apply` of the gradient as a node of its own, which starts
from the same record: so every order follows, and none makes a second forward. Arguments are handed on, never
closed over as constants: outer tapes find them.

A tape is told of an operation as `tf.custom_gradient` tells it. That one itself registers a gradient under a new
name for each call in a graph, for good, and with it the bridge and its model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from gradbridge.errors import HigherOrderError
from gradbridge.lifting import Node, Run
from gradbridge_tensorflow import graph_calls
from gradbridge_tensorflow.recording import conjugated, is_recorded, is_recording, tell
from gradbridge_tensorflow.tensors import is_inexact, to_array, to_tensor


def apply(
    node: Node, operands: Sequence[Any], parent: Run | None = None, followed: Sequence[int] = ()
) -> tuple[list[Any], Run]:
    """Run a node, and tell the tapes that follow its operands.

    Args:
        node: to run.
        operands: eager tensors.
        parent: of a gradient: what the node that it is the gradient of recorded at these operands.
        followed: operands that are followed, whatever tapes tell.

    Returns:
        (the output leaves, what was recorded).
    """
    wrt: tuple[int, ...] = ()
    if is_recording():
        wrt = tuple(
            [i for i, x in enumerate(operands) if is_inexact(x.dtype) and (i in followed or is_recorded(x))]
        )
    run = node.evaluate(list(map(to_array, operands)), wrt, parent)
    outputs = _tensors(run.outputs)
    if wrt:

        def back(cotangents: Sequence[Any], is_pushed: bool) -> list[Any]:
            return pull(run, wrt, operands, cotangents, is_pushed)

        tell([y for y, yes in zip(outputs, run.inexact) if yes], [operands[i] for i in wrt], back)
    return outputs, run


def pull(
    run: Run, wrt: tuple[int, ...], operands: Sequence[Any], cotangents: Sequence[Any], is_pushed: bool
) -> list[Any]:
    """Cotangents of the floating outputs → gradients of some operands, by TensorFlow's convention.

    Args:
        run: what was recorded.
        wrt: the operands.
        operands: that it was recorded at.
        cotangents: tensors, or slices of such.
        is_pushed: whether an accumulator follows the cotangents.
    """
    if not tf.executing_eagerly():  # a map over cotangents, say, is traced
        return graph_calls.pull(run.node, wrt, run.inexact, operands, cotangents, run, is_pushed=is_pushed)
    bars = [conjugated(tf.convert_to_tensor(c)) for c in cotangents]
    every = [*operands, *bars]
    followed = tuple(range(len(operands), len(every))) if is_pushed else ()
    is_followed = is_pushed or any(map(is_recorded, every))
    refusal = None
    if is_followed:
        try:
            gradients, _ = apply(run.node.derivative(wrt, run.inexact), every, run, followed)
            return list(map(conjugated, gradients))
        except HigherOrderError as error:  # a matter of whoever asks for the gradient of this one
            refusal = error
    gradients = _tensors(run.pull(list(map(to_array, bars)), wrt))
    if refusal is not None:

        def back(tangents: Sequence[Any], is_pushed: bool) -> list[Any]:
            if followed:  # by these it is linear: what is asked for is J t
                return list(
                    map(conjugated, _tensors(run.push([to_array(conjugated(t)) for t in tangents], wrt)))
                )
            raise refusal

        tell(gradients, bars if followed else [x for x in every if is_recorded(x)], back)
    return list(map(conjugated, gradients))


def _tensors(arrays: Sequence[Any]) -> list[Any]:
    """New arrays of NumPy as tensors, which share their memory."""
    return [to_tensor(array, None, lent=True) for array in arrays]
