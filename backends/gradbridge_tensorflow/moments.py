"""`tf.nn.moments` with its true derivatives, of every order.

TensorFlow computes a variance about a mean through which no gradient passes: the first derivative
is right, because that of the variance by the mean is zero, and all higher ones are wrong without a
word. All that normalizes by statistics goes through it: Keras' LayerNormalization,
GroupNormalization, and BatchNormalization in train mode.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tensorflow.python.ops import array_ops, nn_impl

_here = threading.local()


@contextmanager
def differentiable_moments() -> Iterator[None]:
    """Let gradients pass through the mean of `tf.nn.moments`, however it is reached, while a block runs.

    In this thread: elsewhere it stays as it is. All other uses of `tf.stop_gradient` do.
    """
    before = getattr(nn_impl, "array_ops", None), getattr(_here, "active", False)
    _here.active = True
    nn_impl.array_ops = _ArrayOps()
    try:
        yield
    finally:
        nn_impl.array_ops, _here.active = before


class _ArrayOps:
    """TensorFlow's module of that name as `tf.nn.moments` sees it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(array_ops, name)

    def stop_gradient(self, input: Any, name: str | None = None) -> Any:
        asked = sys._getframe(1).f_code
        if getattr(_here, "active", False) and asked.co_name == "moments":
            return input
        return array_ops.stop_gradient(input, name=name)


def lost_moments(nodes: Sequence[Any], returned: Sequence[str] = ()) -> Iterator[bool]:
    """The variances in a graph that have no derivatives beyond the first, by `tf.nn.moments` as it is.

    Known by their operations and the names that TensorFlow gives these, so that the same formula
    with a user's own `tf.stop_gradient` keeps its meaning.

    Args:
        nodes: of a graph or a function in it.
        returned: names of tensors that the function returns.

    Yields:
        For each, whether it has been differentiated once within these nodes.
    """
    by_name = {node.name: node for node in nodes}
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for edge in node.input:
            if not edge.startswith("^"):
                readers.setdefault(_source(edge), []).append(node)
    for stop in nodes:
        if stop.op != "StopGradient":
            continue
        mean = by_name.get(_source(stop.input[0]))
        if mean is None or mean.op != "Mean" or not _is_named(mean, "mean"):
            continue
        mine = readers.get(stop.name, [])
        squares = [
            node
            for node in mine
            if node.op == "SquaredDifference"
            and _source(node.input[0]) == _source(mean.input[0])
            and any(_is_named(reader, "variance") for reader in readers.get(node.name, ()))
        ]
        if squares:
            others = any(node not in squares for node in mine)
            yield others or any(_source(edge) == stop.name for edge in returned)


def _source(edge: str) -> str:
    return edge.split(":")[0]


def _is_named(node: Any, name: str) -> bool:
    return re.fullmatch(rf"(.*/)?{name}(_\d+)?", node.name) is not None
