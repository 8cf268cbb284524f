"""Arrays of any library as NumPy's: for frameworks that make their own from these."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradbridge.borders import host_dtype
from gradbridge.layout import Array


def as_numpy(array: Any) -> Array:
    """An array of NumPy, of another library, or of any DLPack producer, as NumPy's: a view where there is one."""
    if type(array) is np.ndarray:
        return array
    if hasattr(array, "__array__") or not hasattr(array, "__dlpack__"):
        return np.asarray(array)
    return np.from_dlpack(array)


#: Memory taken over as it is, rather than copied, begins at a multiple of so many bytes (XLA, TensorFlow).
ALIGNMENT = 64

#: Smaller arrays, in bytes, are copied a second time: that is quicker than to align them (1.5 µs).
ALIGNED_FROM = 1 << 16


def aligned_copy(array: Array, dtype: np.dtype[Any]) -> Array:
    """A new array, rows first, in a dtype; a large one where a framework can take it over as it is."""
    size = array.size * dtype.itemsize
    if size < ALIGNED_FROM:
        return np.array(array, dtype=dtype, order="C")
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy = memory[start : start + size].view(dtype).reshape(array.shape)
    copy[...] = array
    return copy


def owned(array: Any, dtype: Any = None) -> Array:
    """A new array that nobody else can write to: rows first, without strides, in this machine's byte order.

    Args:
        array: of any library.
        dtype: what floating numbers are cast to (complex ones: in that precision), as NumPy knows it;
            None keeps theirs.
    """
    array = as_numpy(array)
    kind = array.dtype if dtype is None else host_dtype(array.dtype, np.dtype(dtype))
    return np.array(array, kind.newbyteorder("="), order="C")
