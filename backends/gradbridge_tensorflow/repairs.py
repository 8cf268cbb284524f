"""TensorFlow's derivatives where they are wrong beyond the first, made right while a model is traced.

`tf.nn.moments` computes a variance about a mean through which no gradient passes: the first
derivative is right, because that of the variance by the mean is zero, and all higher ones are wrong
without a word. All that normalizes by statistics goes through it: Keras' LayerNormalization,
GroupNormalization, and BatchNormalization in train mode.

`tf.recompute_grad` has no derivatives beyond the first, and the first only by what is passed as an
argument or is a variable: tensors that stand for a layer's variables are neither, and would get
zeros. What it wraps has them all, so nothing is recomputed in a bridge.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tensorflow.python.framework import ops
from tensorflow.python.ops import array_ops, custom_gradient, nn_impl

from gradbridge_tensorflow.inlining import Function, inlined, is_inlinable
from gradbridge_tensorflow.op_gradients import Registry, is_here, own_gradients


@contextmanager
def repaired_derivatives() -> Iterator[None]:
    """Let TensorFlow differentiate truly, however an operation is reached, while a block runs.

    In this thread: elsewhere all stays as it is. So does a user's own `tf.stop_gradient`.
    """
    put: list[tuple[Any, str, Any]] = [
        (nn_impl, "array_ops", _ArrayOps()),
        (ops, "gradient_registry", Registry()),
        (ops, "_gradient_registry", Registry()),
        (custom_gradient, "_graph_mode_decorator", _decorated),
        (Function, "__call__", _called),
    ]
    put = [(module, name, ours) for module, name, ours in put if hasattr(module, name)]
    found = [(module, name, getattr(module, name)) for module, name, _ in put]
    for module, name, ours in put:
        setattr(module, name, ours)
    try:
        with own_gradients():
            yield
    finally:
        for module, name, theirs in found:
            setattr(module, name, theirs)


class _ArrayOps:
    """TensorFlow's module of that name as `tf.nn.moments` sees it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(array_ops, name)

    def stop_gradient(self, input: Any, name: str | None = None) -> Any:
        asked = sys._getframe(1).f_code
        if is_here() and asked.co_name == "moments":
            return input
        return array_ops.stop_gradient(input, name=name)


# Private names, which another version may not have: then nothing is put in their place.
_their_decorated: Any = getattr(custom_gradient, "_graph_mode_decorator", None)


def _decorated(function: Any, args: Any, kwargs: Any) -> Any:
    """What a function with a gradient of its own does in a graph."""
    if is_here() and function.__qualname__ == "recompute_grad.<locals>.inner":
        within = dict(zip(function.__code__.co_freevars, function.__closure__))
        return within["f"].cell_contents(*args, **kwargs)
    return _their_decorated(function, args, kwargs)


_their_call = Function.__call__


def _called(self: Any, *args: Any, **kwargs: Any) -> Any:
    """What a `tf.function` does when it is called."""
    return (
        inlined(self, args, kwargs)
        if is_here() and is_inlinable(self)
        else _their_call(self, *args, **kwargs)
    )


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
    readers = _readers(nodes)
    for stop in nodes:
        if stop.op != "StopGradient":
            continue
        mean = by_name.get(_source(stop.input[0]))
        if mean is None or mean.op != "Mean" or not _is_named(mean, "mean"):
            continue
        consumers = readers.get(stop.name, [])
        squares = [
            node
            for node in consumers
            if node.op == "SquaredDifference"
            and _source(node.input[0]) == _source(mean.input[0])
            and any(_is_named(reader, "variance") for reader in readers.get(node.name, ()))
        ]
        if squares:
            others = any(node not in squares for node in consumers)
            yield others or any(_source(edge) == stop.name for edge in returned)


def _readers(nodes: Sequence[Any]) -> dict[str, list[Any]]:
    """{name of a node: those that read a tensor of it}."""
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for edge in node.input:
            if not edge.startswith("^"):
                readers.setdefault(_source(edge), []).append(node)
    return readers


def _source(edge: str) -> str:
    return edge.split(":")[0]


def _is_named(node: Any, name: str) -> bool:
    return re.fullmatch(rf"(.*/)?{name}(_\d+)?", node.name) is not None
