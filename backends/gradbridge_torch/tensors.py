"""The border between NumPy arrays and tensors: the one place of this backend that casts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from gradbridge.errors import InputError, OptionError
from gradbridge.protocol import Array

FLOATING = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_ALIASES = {"double": "float64", "float": "float32", "half": "float16"}


def floating_dtype(name: str | None) -> torch.dtype | None:
    """The torch dtype of a name such as ``"float64"``.

    Raises:
        OptionError: not a floating dtype.
    """
    if name is None:
        return None
    dtype = FLOATING.get(_ALIASES.get(name, name))
    if dtype is None:
        raise OptionError(f"dtype must be one of {', '.join(FLOATING)}, got {name!r}")
    return dtype


def compute_device(device: Any) -> torch.device | None:
    """The torch device of an option, checked to exist.

    Raises:
        OptionError: torch does not know it or cannot use it here.
    """
    if device is None:
        return None
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise OptionError(
            f"device {device!r} cannot be used here: {first}; leave it out or use 'cpu'"
        ) from error
    if found.type == "meta":
        raise OptionError("device 'meta' holds no numbers, so nothing can be computed on it; use 'cpu'")
    return found


def to_tensor(array: Array, dtype: torch.dtype | None, device: torch.device | None) -> torch.Tensor:
    """A new tensor with the array's content; floating ones are cast to `dtype` if it is given.

    Complex ones are cast to the complex dtype of that precision, complex64 for less than float32.

    Always a copy: the caller may change its array, and the model may write to its input.

    Raises:
        InputError: torch has no such dtype.
    """
    if array.dtype.kind == "f":
        # NumPy casts while it copies, except to bfloat16, which it does not have.
        through = _NUMPY_FLOATING.get(dtype)
        if through is None:
            through = array.dtype.newbyteorder("=") if array.dtype.itemsize <= 8 else np.dtype(np.float64)
        tensor = torch.from_numpy(np.array(array, dtype=through, order="C"))
        if (dtype is None or tensor.dtype is dtype) and (device is None or device.type == "cpu"):
            return tensor
        return tensor.to(device=device, dtype=dtype)
    if array.dtype.kind == "c":
        wide = dtype in (torch.float64, torch.complex128) if dtype is not None else array.dtype.itemsize > 8
        tensor = torch.from_numpy(np.array(array, np.complex128 if wide else np.complex64, order="C"))
        return tensor if device is None else tensor.to(device)
    try:
        tensor = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    except TypeError as error:
        raise InputError(
            f"torch has no tensors of dtype {array.dtype}; convert the input of shape {array.shape} to numbers"
        ) from error
    return tensor if device is None else tensor.to(device)


_NUMPY_FLOATING: dict[torch.dtype | None, np.dtype[Any]] = {
    torch.float64: np.dtype(np.float64),
    torch.float32: np.dtype(np.float32),
    torch.float16: np.dtype(np.float16),
}


def is_inexact(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds floating or complex numbers: what can have a gradient."""
    return tensor.is_floating_point() or tensor.is_complex()


def turned(tensor: torch.Tensor) -> torch.Tensor:
    """A gradient from torch's convention to the protocol's, or back: its complex conjugate."""
    return tensor.conj() if tensor.is_complex() else tensor


def to_array(tensor: torch.Tensor) -> Array:
    """A new NumPy array with the tensor's content; bfloat16 widens to float32."""
    return np.array(view_of(tensor))


def view_of(tensor: torch.Tensor) -> Array:
    """A tensor's content as an array that may share its memory; bfloat16 widens to float32."""
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.float()
    array: Array = tensor.numpy(force=True)
    return array
