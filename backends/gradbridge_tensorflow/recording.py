"""What TensorFlow tells of its tapes and accumulators, and how it is told of operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import forwardprop_util, record


def is_recording() -> bool:
    """Whether there is a tape or an accumulator in this thread, and it is not stopped."""
    return bool(record.could_possibly_record())


def is_recorded(tensor: Any) -> bool:
    """Whether a tape or an accumulator follows a tensor."""
    if not record.could_possibly_record():
        return False
    return bool(record.should_record_backprop([tensor])) or is_pushed(tensor)


def is_pushed(tensor: Any) -> bool:
    """Whether an accumulator has a tangent of a tensor."""
    return bool(forwardprop_util.pack_tangents([tensor]).tangents)


def tell(
    outputs: Sequence[Any], inputs: Sequence[Any], back: Callable[[Sequence[Any], bool], list[Any]]
) -> None:
    """Tell tapes and accumulators of an operation.

    Args:
        outputs, inputs: tensors of it, floating or complex ones.
        back: (cotangents of the outputs, whether these are followed) ↦ gradients of the inputs. An accumulator asks
            for these at once, to pull them back in turn: by cotangents that no look at them tells to be followed.
    """
    is_told = False

    def pulled(*cotangents: Any) -> list[Any]:
        return back(cotangents, not is_told)

    record.record_operation("Gradbridge", outputs, inputs, pulled)
    is_told = True


def conjugated(tensor: Any) -> Any:
    """Between core's convention of complex gradients and TensorFlow's, either way."""
    return tf.math.conj(tensor) if tensor is not None and tensor.dtype.is_complex else tensor
