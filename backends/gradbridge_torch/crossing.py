"""Tensors of a host's program as arrays of NumPy and back, sharing memory: where a program in torch meets any guest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from gradbridge.errors import InputError
from gradbridge.layout import Array
from gradbridge.wording import first_line
from gradbridge_torch.surroundings import dispatch_modes, function_modes, set_aside, transform
from gradbridge_torch.views import PLAIN as PLAIN
from gradbridge_torch.views import numbers

#: By versioned DLPack, the one way that takes memory which is marked as read-only.
_of_dlpack: Callable[[Any], torch.Tensor] = torch._C._from_dlpack


@lru_cache(maxsize=64)
def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """The dtype in which NumPy sees tensors of a dtype; what it does not have widens to single precision.

    Raises:
        InputError: they hold no plain numbers.
    """
    try:
        with set_aside():
            found: np.dtype[Any] = torch.empty(0, dtype=widened(dtype)).numpy().dtype
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"a tensor of dtype {dtype} is not an array that NumPy could have ({first_line(error)}); "
            f"hand over plain numbers (dequantize() of a quantized one)"
        ) from error
    return found


#: What NumPy has dtypes for.
_FLOATING = torch.float64, torch.float32, torch.float16, torch.complex128, torch.complex64
_WHOLE = torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64
CROSSING = frozenset((*_FLOATING, *_WHOLE, torch.uint8, torch.bool))
REAL = frozenset(dtype for dtype in CROSSING if not dtype.is_complex)


def crosses(tensor: torch.Tensor) -> bool:
    """Whether NumPy can see a tensor as it is."""
    return tensor.dtype in CROSSING and tensor.layout is torch.strided


def made_to_cross(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that NumPy can see, by operations of torch, which differentiates them."""
    if tensor.layout is not torch.strided and not tensor.is_nested:
        tensor = tensor.to_dense()
    dtype = widened(tensor.dtype)
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


@lru_cache(maxsize=64)
def widened(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which tensors of a dtype cross: itself, or single precision where NumPy has none of it."""
    if dtype is torch.complex32:
        return torch.complex64
    if dtype.is_floating_point and dtype not in (torch.float64, torch.float32, torch.float16):
        return torch.float32
    return dtype


def lent(tensors: Sequence[torch.Tensor]) -> list[Array]:
    """The memory of tensors as arrays, which nobody may write to; a copy where it lives elsewhere or is a lazy view.

    Args:
        tensors: of dtypes that cross as they are.

    Raises:
        InputError: one has no numbers in rows and columns.
    """
    if function_modes() or dispatch_modes() or transform() is not None:
        with set_aside():
            return [_lent(tensor) for tensor in tensors]
    try:
        return [numbers(tensor) for tensor in tensors]
    except (RuntimeError, TypeError):
        return [_lent(tensor) for tensor in tensors]  # says which


def _lent(tensor: torch.Tensor) -> Array:
    try:
        return numbers(tensor)
    except (RuntimeError, TypeError) as error:
        raise unreadable(tensor, error) from error


def unreadable(tensor: torch.Tensor, error: Exception) -> InputError:
    """The error of ours for one of torch's: a tensor has no numbers in rows and columns."""
    kind = "nested tensor" if tensor.is_nested else type(tensor).__name__
    cure = ", to_padded_tensor(0) of it, say" if tensor.is_nested else ""
    return InputError(
        f"a {kind} of layout {tensor.layout} and dtype {tensor.dtype} is not an array that NumPy could "
        f"have ({first_line(error)}); hand over a plain tensor with numbers{cure}"
    )


def taken(array: Array, device: torch.device | None = None) -> torch.Tensor:
    """An array that nobody else writes to as a tensor, without a copy on the CPU.

    Args:
        array: of numbers; it may be marked as read-only.
        device: where the tensor is to be; None is the CPU.
    """
    if not array.flags.writeable:
        tensor = _of_dlpack(array.__dlpack__(max_version=(1, 0)))
    else:
        tensor = torch.from_numpy(array)
    return tensor if device is None else tensor.to(device)


def copied(array: Array) -> torch.Tensor:
    """A tensor with an array's content, whatever its strides and byte order are.

    Raises:
        InputError: torch has no tensors of its dtype.
    """
    dtype = array.dtype.newbyteorder("=")
    if dtype.kind in "fc" and dtype.itemsize > (8 if dtype.kind == "f" else 16):
        dtype = np.dtype(np.float64 if dtype.kind == "f" else np.complex128)
    try:
        return torch.from_numpy(np.array(array, dtype, order="C"))
    except TypeError as error:
        raise InputError(f"torch has no tensors of dtype {array.dtype}; convert it to numbers") from error
