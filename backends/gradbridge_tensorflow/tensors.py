"""The border between tensors and the arrays of others: the one place of this backend that casts."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.ops import EagerTensor

from gradbridge.arrays import ALIGNED_FROM, ALIGNMENT, aligned_copy
from gradbridge.errors import InputError, OptionError
from gradbridge.layout import Array, ParameterLayout
from gradbridge.options import floating_name
from gradbridge.wording import first_line

FLOATING = {
    "float64": tf.float64,
    "float32": tf.float32,
    "float16": tf.float16,
    "bfloat16": tf.bfloat16,
}


def floating_dtype(name: str | None) -> tf.DType | None:
    """The TensorFlow dtype of a name such as ``"float64"``.

    Raises:
        OptionError: not a floating dtype.
    """
    full = floating_name(name, tuple(FLOATING))
    return None if full is None else FLOATING[full]


def compute_device(device: Any) -> str | None:
    """The name of a device, checked to exist.

    Raises:
        OptionError: TensorFlow does not know it or has none here.
    """
    if device is None:
        return None
    have = [d.name for d in tf.config.list_logical_devices()]
    try:
        with tf.device(device):
            placed = tf.constant(0.0).device
    except (RuntimeError, ValueError, TypeError, tf.errors.OpError) as error:
        raise OptionError(
            f"device {device!r} cannot be used here: {first_line(error)}; leave it out or use one of {', '.join(have)}"
        ) from error
    # Soft placement would put it elsewhere in silence.
    wanted = tf.DeviceSpec.from_string("/" + str(device).strip("/"))
    here = tf.DeviceSpec.from_string(placed)
    if (wanted.device_type, wanted.device_index or 0) != (here.device_type, here.device_index):
        raise OptionError(
            f"device {device!r} is not here (TensorFlow would use {placed}); leave it out or use one of "
            f"{', '.join(have)}"
        )
    return str(device)


def carrier(dtype: tf.DType) -> tf.DType:
    """The dtype in which a tensor crosses to NumPy, which has no bfloat16: that one widens to float32."""
    return tf.float32 if dtype == tf.bfloat16 else dtype


def to_tensor(array: Any, dtype: tf.DType | None, lent: bool = False) -> tf.Tensor:
    """An array as a tensor; floating ones are cast to `dtype` if it is given.

    Complex ones are cast to the complex dtype of that precision, complex64 for less than float32. A
    tensor is taken as it is: nobody can change it. All else is copied, once.

    Args:
        array: NumPy's, or any DLPack producer's.
        dtype: of floating numbers; None keeps theirs.
        lent: whether nobody changes the array as long as the tensor is used, so that it may be shared.

    Raises:
        InputError: TensorFlow has no such dtype.
    """
    if isinstance(array, tf.Tensor):
        return _cast(array, dtype)
    if type(array) is not np.ndarray:
        array = _imported(array)
        if isinstance(array, tf.Tensor):
            return _cast(array if lent else tf.raw_ops.DeepCopy(x=array), dtype)
    kind = array.dtype.kind
    if kind == "c":
        wide = dtype in (tf.float64, tf.complex128) if dtype is not None else array.dtype.itemsize > 8
        return _taken(array, np.dtype(np.complex128 if wide else np.complex64), lent)
    if kind == "f":
        through = array.dtype if dtype is None else _NUMPY[dtype]
        if through.itemsize > 8:
            through = np.dtype(np.float64)
        tensor = _taken(array, through.newbyteorder("="), lent)
        return tensor if dtype is None or tensor.dtype == dtype else tf.cast(tensor, dtype)
    try:
        return _taken(array, array.dtype.newbyteorder("="), lent)
    except (TypeError, ValueError, tf.errors.OpError) as error:
        raise InputError(
            f"tensorflow has no tensors of dtype {array.dtype}; convert the input of shape {array.shape} to "
            f"numbers"
        ) from error


def cut(vector: Array, layout: ParameterLayout, dtypes: Sequence[tf.DType]) -> list[tf.Tensor]:
    """The flat vector → a tensor per weight, all of them in one copy, each of them aligned in it."""
    one = dtypes[0] if len(set(dtypes)) == 1 else None
    small = one is None or one == tf.bfloat16 or vector.size * one.size < ALIGNED_FROM
    if small or type(vector) is not np.ndarray:
        return [to_tensor(weight, dtype) for weight, dtype in zip(layout.cut(vector), dtypes)]
    step = ALIGNMENT // one.size
    starts = [0, *itertools.accumulate(-(-size // step) * step for size in layout.sizes)]
    own = aligned(starts[-1], np.dtype(one.as_numpy_dtype))
    tensors = []
    for start, where, shape in zip(starts, layout.slices, layout.shapes):
        weight = own[start : start + where.stop - where.start]
        weight[...] = vector[where]
        tensors.append(_Tensor(weight.reshape(shape), _host(), None))
    return tensors


def is_inexact(dtype: tf.DType) -> bool:
    """Whether a dtype is of floating or complex numbers: what can have a gradient."""
    return bool(dtype.is_floating or dtype.is_complex)


def to_array(tensor: tf.Tensor) -> Array:
    """The content of an eager tensor, which may share its memory; bfloat16 widens to float32.

    Raises:
        InputError: it is a symbolic one, of a tf.function that is over.
    """
    if not isinstance(tensor, EagerTensor):
        raise InputError(
            f"{tensor.name!r} is a tensor that a tf.function was traced with, which has no numbers outside of it; return it "
            f"from that function, and use what a call of the function returns"
        )
    if tensor.dtype == tf.bfloat16:
        tensor = tf.cast(tensor, tf.float32)
    # Tensor.numpy() copies; the buffer protocol knows neither strings nor arrays without elements.
    if tensor.dtype == tf.string or 0 in tensor.shape:
        return np.asarray(tensor.numpy())
    return np.asarray(memoryview(tensor))


# Where bfloat16 crosses, NumPy has no such dtype.
_NUMPY = {dtype: np.dtype(carrier(dtype).as_numpy_dtype) for dtype in FLOATING.values()}
_NUMPY |= {tf.complex64: np.dtype(np.float32), tf.complex128: np.dtype(np.float64)}

# A tensor of its own class takes an array as it is, if it is aligned, and copies it otherwise. The
# class by its name: making a tensor to ask for its type would start TensorFlow when this is imported,
# and nobody could set its threads or devices after that.
_Tensor: Any = EagerTensor


def _imported(array: Any) -> Any:
    """Another library's array, sharing its memory: NumPy's where NumPy takes it, else a tensor."""
    try:
        return np.from_dlpack(array)
    except (BufferError, RuntimeError, TypeError, ValueError, AttributeError):
        pass  # it is on a device, or of a dtype that NumPy lacks
    try:
        return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    except (tf.errors.OpError, BufferError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"tensorflow cannot take a {type(array).__name__} of dtype {getattr(array, 'dtype', 'unknown')} "
            f"({first_line(error)}); convert it to a NumPy array"
        ) from error


def _cast(tensor: tf.Tensor, dtype: tf.DType | None) -> tf.Tensor:
    if dtype is None or tensor.dtype == dtype or not is_inexact(tensor.dtype):
        return tensor
    if tensor.dtype.is_complex and not dtype.is_complex:
        dtype = tf.complex128 if dtype == tf.float64 else tf.complex64
    return tf.cast(tensor, dtype)


@functools.cache
def _host() -> str:
    """Where arrays come in; TensorFlow moves them on to where it computes."""
    with tf.device("CPU:0"):
        name: str = tf.constant(0.0).device
    return name


def _taken(array: Array, dtype: np.dtype[Any], lent: bool) -> tf.Tensor:
    """An array as a tensor in a dtype, copied in one pass unless it is lent.

    `tf.constant` takes 15 µs longer, and copies twice more: once to be safe, once to align. With
    670 000 parameters each pass costs up to 1 ms in memory that is new to the caches.
    """
    if dtype.kind not in "fiubc":
        return tf.constant(array.astype(dtype, copy=False))
    if lent and array.dtype == dtype:
        return _Tensor(np.ascontiguousarray(array).reshape(array.shape), _host(), None)
    if (
        array.size * dtype.itemsize < ALIGNED_FROM
    ):  # as `aligned_copy` does; in place, since every call has some
        return _Tensor(np.array(array, dtype=dtype, order="C"), _host(), None)
    return _Tensor(aligned_copy(array, dtype), _host(), None)


def aligned(size: int, dtype: np.dtype[Any]) -> Array:
    """A new array that TensorFlow takes as it is."""
    raw = np.empty(size * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size * dtype.itemsize].view(dtype)
