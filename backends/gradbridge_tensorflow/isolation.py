"""Computing and tracing whatever the caller is in the middle of (law 9)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import tensorflow as tf

T = TypeVar("T")


class _Tracing:
    """One trace at a time in the process: Keras' layers keep notes on the call under way.

    Held by a thread and by those that it waits for in `apart`: what is traced may call another bridge.
    """

    def __init__(self) -> None:
        self._lock, self._mine = threading.Lock(), threading.local()

    @property
    def depth(self) -> int:
        """How often this thread has entered it, with those that wait for it."""
        return getattr(self._mine, "depth", 0)

    @depth.setter
    def depth(self, depth: int) -> None:
        self._mine.depth = depth

    def __enter__(self) -> None:
        if not self.depth:
            self._lock.acquire()
        self.depth += 1

    def __exit__(self, *error: object) -> None:
        self.depth -= 1
        if not self.depth:
            self._lock.release()


tracing = _Tracing()


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
    depth = tracing.depth

    def here() -> T:
        tracing.depth = depth
        return step()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(here).result()
