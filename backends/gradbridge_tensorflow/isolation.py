"""Computing and tracing whatever the caller is in the middle of (law 9)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import tensorflow as tf

T = TypeVar("T")

#: One trace at a time in the process: Keras' layers keep notes on the call under way.
tracing = threading.RLock()


def eagerly(device: str | None, step: Callable[[], T]) -> T:
    """Run a step where tensors have values, on its device.

    Args:
        device: where it computes; None leaves it to TensorFlow.
        step: the work.
    """
    if not tf.executing_eagerly():
        return apart(lambda: eagerly(device, step))
    if device is None:
        return step()
    with tf.device(device):
        return step()


def apart(step: Callable[[], T]) -> T:
    """Run a step in a thread of its own, where nothing is under way.

    Graphs, tapes, name scopes and Keras' scopes belong to a thread. A caller within
    ``tape.stop_recording()`` or `tf.init_scope` would have every gradient traced as zero.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(step).result()
