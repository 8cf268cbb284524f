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
