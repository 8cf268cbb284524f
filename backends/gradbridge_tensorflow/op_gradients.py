"""Gradients of operations that TensorFlow has wrong, or takes for zero, beyond the first order or at all.

TensorFlow looks the gradient of an operation up by its type. While a model is traced, the look-up is ours:

- Gradients that are linear in what is pulled back are declared not differentiable (bilinear resizing, fake
  quantization): they get the transposed map.
- The kernel of the second derivative of max pooling writes its result into the buffer that it reads, where
  nobody else holds that and the sizes are the same, and gives zeros: it never meets the same sizes.
- The gradient of softmax cross entropy leaves out that the first one depends on the labels.
- `tf.py_function` has a gradient of every order (`callbacks`).
- Whatever else is declared not differentiable, or by one of its arguments, raises where that depends on what
  is differentiated by: TensorFlow would go on with zeros.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import ops
from tensorflow.python.ops import gen_image_ops, gen_nn_ops

from gradbridge_tensorflow import callbacks
from gradbridge_tensorflow.tensors import is_inexact

_here = threading.local()
theirs: Any = ops._gradient_registry

# Declared not differentiable, and so they are: their derivative is zero wherever it exists, or they are
# steps of TensorFlow's own machinery.
_CONSTANT = {
    *("StopGradient", "ZerosLike", "OnesLike", "EditDistance", "LookupTableFind", "LookupTableFindV2"),
    *("StatelessRandomBinomial", "StatelessRandomPoisson", "CTCGreedyDecoder", "StackPush"),
    *("TensorArrayGradV3", "TensorArrayGradWithShape", "TPUReplicatedInput"),
}

# Floating inputs by which TensorFlow's gradients say None, as they do where there is no influence.
_LOST = {
    "Betainc": (0, 1),
    "Zeta": (0,),
    "Polygamma": (0,),
    "ScaleAndTranslate": (2, 3),
    "MatrixSolveLs": (2,),
    **dict.fromkeys(("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"), (3, 4)),
}

_IN_WORDS = {"PyFunc": "tf.numpy_function", "PyFuncStateless": "tf.numpy_function"}


class Registry:
    """TensorFlow's registry of gradients, with ours before it in threads that trace a model."""

    def __getattr__(self, name: str) -> Any:
        return getattr(theirs, name)

    def lookup(self, name: Any) -> Any:
        """The gradient of an operation type; None where it has none."""
        if is_here():
            name = name.decode() if isinstance(name, bytes) else name
            if name in _OURS:
                return _OURS[name]
            found = theirs.lookup(name)
            if found is None:
                return None if name in _CONSTANT else _refusing(name)
            return _complete(name, found) if name in _LOST else found
        return theirs.lookup(name)


@contextmanager
def own_gradients(sources: Sequence[Any] | None = None) -> Iterator[None]:
    """Let this thread differentiate by our gradients in a block.

    Args:
        sources: what is differentiated by; None where that is not known.
    """
    before = getattr(_here, "depth", 0), getattr(_here, "sources", None)
    _here.depth, _here.sources = before[0] + 1, sources
    try:
        yield
    finally:
        _here.depth, _here.sources = before


def is_here() -> bool:
    """Whether this thread is in such a block."""
    return getattr(_here, "depth", 0) > 0


def _refusing(name: str) -> Callable[..., Any]:
    def gradient(op: Any, *cotangents: Any) -> list[None]:
        if any(is_inexact(y.dtype) for y in op.outputs) and any(map(_depends, op.inputs)):
            raise NotImplementedError(
                f"{_IN_WORDS.get(name, name)}, which TensorFlow takes for a constant: it would give zeros"
            )
        return [None] * len(op.inputs)

    return gradient


def _complete(name: str, gradient: Callable[..., Any]) -> Callable[..., Any]:
    def checked(op: Any, *cotangents: Any) -> Any:
        gradients = gradient(op, *cotangents)
        for place in _LOST[name]:
            if gradients[place] is None and _depends(op.inputs[place]):
                raise NotImplementedError(
                    f"{name} by its argument {place}, where TensorFlow has none: it would give zeros"
                )
        return gradients

    return checked


def _depends(tensor: Any) -> bool:
    """Whether a tensor may depend on the sources by floating numbers."""
    sources = getattr(_here, "sources", None)
    home, names = (sources[0].graph, {s.name for s in sources}) if sources else (None, set())
    todo, seen = [tensor], set()
    while todo:
        x = todo.pop()
        if isinstance(x, ops.EagerTensor) or id(x) in seen or not is_inexact(x.dtype):
            continue
        seen.add(id(x))
        # What comes into a function or a loop may be anything.
        if (x.name in names) if x.graph is home else (x.op.type == "Placeholder"):
            return True
        todo += x.op.inputs
    return False


def _text(op: Any, name: str) -> str:
    value: Any = op.get_attr(name)
    return value.decode() if isinstance(value, bytes) else value


def _resized_back(op: Any, moved: Any) -> list[Any]:
    how = {name: op.get_attr(name) for name in ("align_corners", "half_pixel_centers")}
    back = gen_image_ops.resize_bilinear(moved, tf.shape(op.inputs[0])[1:3], **how)
    return [tf.cast(back, op.inputs[0].dtype), None]


def _masked(op: Any, moved: Any, *_: Any) -> list[Any]:
    how = {name: op.get_attr(name) for name in ("min", "max", "num_bits", "narrow_range")}
    # A mask, which is its own transposed.
    return [tf.quantization.fake_quant_with_min_max_args_gradient(moved, op.inputs[1], **how), None]


def _pooled(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The gradient of the gradient of max pooling: at each place, what moves the largest value around it."""

    def gradient(op: Any, moved: Any) -> list[Any]:
        primal, pooled = op.inputs[:2]
        sizes, strides, padding = op.get_attr("ksize"), op.get_attr("strides"), _text(op, "padding")
        around = [[0, 0]] * len(sizes)
        if padding == "EXPLICIT":
            flat = op.get_attr("explicit_paddings")
            around = [list(pair) for pair in zip(flat[::2], flat[1::2])]
        elif padding == "SAME" and set(strides) == {1}:
            around = [[(k - 1) // 2, k // 2] for k in sizes]
        zeros = [tf.zeros_like(primal), tf.zeros_like(pooled)]
        if set(sizes) == {1} and set(strides) == {1}:
            return [*zeros, moved]
        if any(map(any, around)):
            padding = "VALID"
            primal = tf.pad(primal, around, constant_values=primal.dtype.min)
            moved = tf.pad(moved, around)
        how = {"padding": padding, "data_format": _text(op, "data_format")}
        return [*zeros, kernel(primal, pooled, moved, sizes, strides, **how)]

    return gradient


def _cross_entropy(op: Any, by_loss: Any, by_slope: Any) -> list[Any]:
    """Of (losses, softmax of the logits less the labels)."""
    logits = op.inputs[0]
    by_logits, by_labels = by_loss[:, None] * op.outputs[1], -by_loss[:, None] * tf.nn.log_softmax(logits)
    if by_slope is not None and not getattr(by_slope, "_is_zeros_tensor", False):
        softmax = tf.nn.softmax(logits)
        by_logits += (by_slope - tf.reduce_sum(by_slope * softmax, 1, keepdims=True)) * softmax
        by_labels -= by_slope
    return [by_logits, by_labels]


_OURS: dict[str, Callable[..., Any]] = {
    "EagerPyFunc": callbacks.gradient,
    "ResizeBilinearGrad": _resized_back,
    "FakeQuantWithMinMaxArgsGradient": _masked,
    "MaxPoolGrad": _pooled(gen_nn_ops.max_pool_grad_grad),
    "MaxPool3DGrad": _pooled(gen_nn_ops.max_pool3d_grad_grad),
    "SoftmaxCrossEntropyWithLogits": _cross_entropy,
}
