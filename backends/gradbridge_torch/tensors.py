"""The border between arrays of other kinds and tensors: the one place of this backend that casts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from gradbridge.errors import InputError, OptionError
from gradbridge.layout import Array
from gradbridge_torch.surroundings import dispatch_modes, function_modes, recording, set_aside, transform

FLOATING = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_ALIASES = {"double": "float64", "float": "float32", "half": "float16"}

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
    if name is None:
        return None
    dtype = FLOATING.get(_ALIASES.get(name, name))
    if dtype is None:
        raise OptionError(f"dtype must be one of {', '.join(FLOATING)}, got {name!r}")
    return dtype


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
        first = str(error).splitlines()[0]
        raise OptionError(
            f"device {device!r} cannot be used here: {first}; leave it out or use 'cpu'"
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
    """A tensor's content as an array that may share its memory; bfloat16 widens to float32."""
    if transform() is not None or dispatch_modes() or function_modes() or recording() is not None:
        with set_aside():
            return view_of(tensor)
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.float()
    array: Array = tensor.numpy(force=True)
    return array
