"""The border between arrays of other kinds and tensors: the one place of this backend that casts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from gradbridge.errors import InputError, OptionError, OutputError
from gradbridge.layout import Array
from gradbridge.options import floating_name
from gradbridge.wording import first_line
from gradbridge_torch.surroundings import dispatch_modes, function_modes, recording, set_aside, transform
from gradbridge_torch.views import numbers

FLOATING = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

#: What NumPy casts to while it copies; bfloat16 it does not have.
NUMPY_DTYPES: dict[torch.dtype | None, np.dtype[Any]] = {
    torch.float64: np.dtype(np.float64),
    torch.float32: np.dtype(np.float32),
    torch.float16: np.dtype(np.float16),
    torch.complex128: np.dtype(np.complex128),
    torch.complex64: np.dtype(np.complex64),
}

# Libraries whose arrays nobody can change in place.
_IMMUTABLE = ("jax", "jaxlib", "tensorflow")


def floating_dtype(name: str | None) -> torch.dtype | None:
    """The torch dtype of a name such as ``"float64"``.

    Raises:
        OptionError: not a floating dtype.
    """
    full = floating_name(name)
    return None if full is None else FLOATING[full]


def in_precision(dtype: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    """What a tensor of a dtype is cast to where floating ones go to `wanted`: complex ones in that precision."""
    if wanted is None:
        return dtype
    if dtype.is_complex:
        return torch.complex128 if wanted in (torch.float64, torch.complex128) else torch.complex64
    return wanted if dtype.is_floating_point else dtype


def compute_device(device: Any) -> torch.device | None:
    """The torch device of an option, checked to exist.

    Raises:
        OptionError: torch does not know it or cannot use it here.
    """
    if device is None:
        return None
    try:
        usable = torch.device(device)
        torch.empty(0, device=usable)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise OptionError(
            f"device {device!r} cannot be used here: {first_line(error)}; leave it out or use 'cpu'"
        ) from error
    if usable.type == "meta":
        raise OptionError("device 'meta' holds no numbers, so nothing can be computed on it; use 'cpu'")
    return usable


def to_tensor(array: Any, dtype: torch.dtype | None, device: torch.device | None, lend: bool) -> torch.Tensor:
    """A tensor with an array's content, in one copy at most.

    Args:
        array: NumPy's, or any DLPack producer's, tensors among them.
        dtype: what floating ones are cast to, and complex ones in that precision; None keeps theirs.
        device: where it is to be; None is where it is.
        lend: whether memory may be shared with an array that nobody can change in place, because
            nothing writes to the tensor.

    Raises:
        InputError: torch has no such dtype.
    """
    if isinstance(array, np.ndarray):
        return _of_numpy(array, dtype, device)
    if isinstance(array, torch.Tensor):
        tensor = array.detach()
    else:
        try:
            tensor = torch.from_dlpack(array)
        except (BufferError, RuntimeError, TypeError):  # a dtype that DLPack or this library's does not know
            return _of_numpy(np.asarray(array), dtype, device)
    moved = tensor.to(device=device, dtype=in_precision(tensor.dtype, dtype))
    if moved is not tensor or (lend and type(array).__module__.partition(".")[0] in _IMMUTABLE):
        return moved
    return moved.clone()


def _of_numpy(array: Array, dtype: torch.dtype | None, device: torch.device | None) -> torch.Tensor:
    """Always a copy: the caller may change its array, and the model may write to its input."""
    through = array.dtype.newbyteorder("=")
    if array.dtype.kind == "f":
        wide = np.dtype(np.float64) if array.dtype.itemsize > 8 else through
        through = NUMPY_DTYPES.get(dtype, wide)
    elif array.dtype.kind == "c":
        default = torch.float64 if array.dtype.itemsize > 8 else torch.float32
        through = NUMPY_DTYPES[in_precision(torch.complex128, dtype or default)]
    try:
        tensor = torch.from_numpy(np.array(array, through, order="C"))
    except TypeError as error:
        raise InputError(
            f"torch has no tensors of dtype {array.dtype}; convert the input of shape {array.shape} to numbers"
        ) from error
    return tensor.to(device=device, dtype=dtype if dtype is torch.bfloat16 and through.kind == "f" else None)


def view_of(tensor: torch.Tensor) -> Array:
    """A tensor's content as an array that may share its memory; what NumPy does not have widens to single precision.

    Raises:
        OutputError: it has no numbers in rows and columns that NumPy could have.
    """
    if transform() is not None or dispatch_modes() or function_modes() or recording() is not None:
        with set_aside():
            return view_of(tensor)
    try:
        if tensor.layout is not torch.strided:
            tensor = tensor.to_dense()
        if tensor.dtype is torch.complex32:
            tensor = tensor.to(torch.complex64)
        elif tensor.is_floating_point() and tensor.dtype not in NUMPY_DTYPES:
            tensor = tensor.float()
        return numbers(tensor)
    except (RuntimeError, TypeError) as error:
        kind = f"{type(tensor).__name__} of layout {tensor.layout} and dtype {tensor.dtype}"
        raise OutputError(
            f"a {'nested ' if tensor.is_nested else ''}{kind} is not an array that NumPy could have ({first_line(error)}); "
            f"return a plain tensor with numbers: to_padded_tensor(0) of a nested one, dequantize() of a quantized "
            f"one, to_tensor(0) of a masked one"
        ) from error
