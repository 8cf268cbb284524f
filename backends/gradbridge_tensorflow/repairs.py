"""TensorFlow's derivatives where they are wrong beyond the first, made right while a model is traced.

`tf.nn.moments` computes a variance about a mean through which no gradient passes: the first
derivative is right, because that of the variance by the mean is zero, and all higher ones are wrong
without a word. All that normalizes by statistics goes through it: Keras' LayerNormalization,
GroupNormalization, and BatchNormalization in train mode.

The gradients of bilinear resizing and of fake quantization are linear in what is pulled back, and
declared not differentiable: tangents and second derivatives are zeros.

`tf.recompute_grad` has no derivatives beyond the first, and the first only by what is passed as an
argument or is a variable: tensors that stand for a layer's variables are neither, and would get
zeros. What it wraps has them all, so nothing is recomputed in a bridge.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import array_ops, custom_gradient, gen_image_ops, image_grad, nn_impl

_here = threading.local()


@contextmanager
def repaired_derivatives() -> Iterator[None]:
    """Let TensorFlow differentiate truly, however an operation is reached, while a block runs.

    In this thread: elsewhere all stays as it is. So does a user's own `tf.stop_gradient`.
    """
    before = _is_here()
    put: list[tuple[Any, str, Any]] = [
        (nn_impl, "array_ops", _ArrayOps()),
        (image_grad, "gen_image_ops", _ImageOps()),
        (array_ops, "fake_quant_with_min_max_args_gradient", _fake_quant_gradient),
        (custom_gradient, "_graph_mode_decorator", _decorated),
    ]
    put = [(module, name, mine) for module, name, mine in put if hasattr(module, name)]
    found = [(module, name, getattr(module, name)) for module, name, _ in put]
    for module, name, mine in put:
        setattr(module, name, mine)
    _here.active = True
    try:
        yield
    finally:
        _here.active = before
        for module, name, theirs in found:
            setattr(module, name, theirs)


def _is_here() -> bool:
    return getattr(_here, "active", False)


class _ArrayOps:
    """TensorFlow's module of that name as `tf.nn.moments` sees it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(array_ops, name)

    def stop_gradient(self, input: Any, name: str | None = None) -> Any:
        asked = sys._getframe(1).f_code
        if _is_here() and asked.co_name == "moments":
            return input
        return array_ops.stop_gradient(input, name=name)


class _ImageOps:
    """TensorFlow's module of that name as the gradients of image operations see it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(gen_image_ops, name)

    def resize_bilinear_grad(self, grads: Any, original_image: Any, **how: Any) -> Any:
        if not _is_here():
            return gen_image_ops.resize_bilinear_grad(grads, original_image, **how)

        @tf.custom_gradient
        def pulled(grads: Any) -> Any:
            size = tf.shape(grads)[1:3]

            def back(moved: Any) -> Any:
                return tf.cast(gen_image_ops.resize_bilinear(moved, size, **how), grads.dtype)

            return gen_image_ops.resize_bilinear_grad(grads, original_image, **how), back

        return pulled(grads)


# Private names, which another version may not have: then nothing is put in their place.
_their_fake_quant_gradient: Any = getattr(array_ops, "fake_quant_with_min_max_args_gradient", None)
_their_decorated: Any = getattr(custom_gradient, "_graph_mode_decorator", None)


def _fake_quant_gradient(gradients: Any, inputs: Any, *args: Any, **how: Any) -> Any:
    if not _is_here():
        return _their_fake_quant_gradient(gradients, inputs, *args, **how)

    @tf.custom_gradient
    def pulled(gradients: Any) -> Any:
        def back(moved: Any) -> Any:  # a mask, which is its own transposed
            return _fake_quant_gradient(moved, inputs, *args, **how)

        return _their_fake_quant_gradient(gradients, inputs, *args, **how), back

    return pulled(gradients)


def _decorated(function: Any, args: Any, kwargs: Any) -> Any:
    """What a function with a gradient of its own does in a graph."""
    if _is_here() and function.__qualname__ == "recompute_grad.<locals>.inner":
        within = dict(zip(function.__code__.co_freevars, function.__closure__))
        return within["f"].cell_contents(*args, **kwargs)
    return _their_decorated(function, args, kwargs)


# Gradients that are linear in what is pulled back, and that TensorFlow declares not differentiable.
_FLAT = {
    "FakeQuantWithMinMaxArgsGradient",
    "FakeQuantWithMinMaxVarsGradient",
    "FakeQuantWithMinMaxVarsPerChannelGradient",
    "ResizeBilinearGrad",
    "SparseAddGrad",
}


def flat_gradients(nodes: Sequence[Any]) -> Iterator[tuple[str, bool]]:
    """The gradients in a graph that TensorFlow takes for constants.

    Args:
        nodes: of a graph or a function in it.

    Yields:
        For each, its operation, and whether it is repaired.
    """
    flat = {node.name: node.op for node in nodes if node.op in _FLAT}
    readers = _readers(nodes) if flat else {}

    def is_behind_a_gradient(name: str) -> bool:
        return all(
            "_gradient_op_type" in node.attr or (node.op == "Identity" and is_behind_a_gradient(node.name))
            for node in readers.get(name, ())
        )

    for name, op in flat.items():
        yield op, is_behind_a_gradient(name)


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
