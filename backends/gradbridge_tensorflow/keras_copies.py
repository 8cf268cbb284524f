"""Whether a copy of a Keras model is the same function."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def same_outputs(ours: Sequence[tf.Tensor], theirs: Sequence[tf.Tensor]) -> bool:
    """Whether two models computed the same, to the rounding of the coarser one."""
    if len(ours) != len(theirs):
        return False
    for a, b in zip(ours, theirs):
        if a.shape != b.shape:
            return False
        if not a.dtype.is_floating:
            continue
        coarse = 0.1 if a.dtype.size < 4 or b.dtype.size < 4 else 1e-3
        a, b = tf.cast(a, tf.float64), tf.cast(b, tf.float64)
        finite = tf.math.is_finite(a) & tf.math.is_finite(b)
        scale = (
            tf.reduce_max(tf.where(finite, tf.abs(a), 0.0)) if tf.size(a) else tf.constant(0.0, tf.float64)
        )
        if tf.reduce_any(finite & (tf.abs(a - b) > coarse * (1.0 + scale))):
            return False
    return True
