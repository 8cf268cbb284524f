"""A function of rows over arrays of rows, as `tf.vectorized_map` makes it, but for what its kernels get wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import tensorflow as tf


def mapped(fn: Callable[..., Any], rows: Any) -> Any:
    """Map a function over the first axis of its arguments, within a trace.

    Args:
        fn: of one row of each.
        rows: a tree of tensors.

    Raises:
        ValueError and others of TensorFlow's: it cannot map an operation.
    """
    result = tf.vectorized_map(fn, rows, fallback_to_while_loop=False)
    if os.environ.get("TF_ENABLE_ONEDNN_OPTS") != "0":
        _refuse_broadcast_products(tf.compat.v1.get_default_graph())
    return result


def _refuse_broadcast_products(graph: tf.Graph) -> None:
    """Products of float32 matrices of which one is there once and the other many times.

    TensorFlow's oneDNN kernel for these (seen in 2.21) writes past its memory: numbers are garbage, or the
    process ends. A map makes them of every product of what it maps with what it does not.
    """
    for op in graph.get_operations():
        if op.type.startswith("BatchMatMul") and op.inputs[0].dtype == tf.float32:
            left, right = (t.shape[:-2].as_list() if t.shape.rank else None for t in op.inputs)
            if (
                left is None
                or right is None
                or any(1 in pair and pair != (1, 1) for pair in zip(left, right))
            ):
                raise ValueError(
                    "TensorFlow's kernel for products of float32 matrices, one of them repeated, is not to be trusted; "
                    "compute in float64, or set TF_ENABLE_ONEDNN_OPTS=0 before TensorFlow is imported"
                )
