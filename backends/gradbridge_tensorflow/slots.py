"""Variables that stand for tensors: what a tf.Module's private copy holds in place of its own.

A `tf.Module` reads its variables wherever it likes. A slot is a variable for it in every way, and
reads as the tensor that the trace under way has put there. Assigning to one replaces the tensor,
so that a module's moving state becomes an output of the compiled function.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
from tensorflow.python.ops.resource_variable_ops import ResourceVariable

from gradbridge.errors import GuestError

_filled = threading.local()


@contextmanager
def filled(values: dict[int, tf.Tensor]) -> Iterator[None]:
    """Let slots read as tensors in this thread, while a block runs.

    Args:
        values: {id of slot: tensor}; assignments change it.
    """
    before = getattr(_filled, "values", None), getattr(_filled, "graph", None)
    _filled.values, _filled.graph = values, tf.compat.v1.get_default_graph()
    try:
        yield
    finally:
        _filled.values, _filled.graph = before


def slot(like: tf.Variable, dtype: tf.DType) -> tf.Variable:
    """A slot in place of a variable.

    Args:
        like: the variable.
        dtype: of the tensors that will stand here.
    """
    value = tf.cast(like.read_value(), dtype)
    name = like.name.split(":")[0]
    return _Slot(value, trainable=like.trainable, name=name, shape=like.shape)


class _Slot(ResourceVariable):  # type: ignore[misc]
    """A resource variable that reads as a tensor of the trace under way."""

    def value(self) -> Any:
        return self._standing()

    def read_value(self) -> Any:
        return self._standing()

    def _read_variable_op(self, no_copy: bool = False) -> Any:
        return self._standing()

    def sparse_read(self, indices: Any, name: str | None = None) -> Any:
        return tf.gather(self._standing(), indices, name=name)

    def gather_nd(self, indices: Any, name: str | None = None) -> Any:
        return tf.gather_nd(self._standing(), indices, name=name)

    def assign(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return self._replace(tf.cast(value, self.dtype))

    def assign_add(self, delta: Any, *args: Any, **kwargs: Any) -> Any:
        return self._replace(self._standing() + tf.cast(delta, self.dtype))

    def assign_sub(self, delta: Any, *args: Any, **kwargs: Any) -> Any:
        return self._replace(self._standing() - tf.cast(delta, self.dtype))

    def _standing(self) -> Any:
        values = getattr(_filled, "values", None)
        if values is None or id(self) not in values:
            return super().read_value()
        return values[id(self)]

    def _replace(self, value: Any) -> Any:
        values = getattr(_filled, "values", None)
        if values is None:
            return super().assign(value)
        if value.graph is not _filled.graph:
            raise GuestError(
                f"variable {self.name!r} is assigned within a tf.function, a loop or a branch of its own, from "
                f"where its new value cannot be followed; assign it in the module's __call__ itself"
            )
        values[id(self)] = value
        return value
