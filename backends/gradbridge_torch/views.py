"""The numbers of a tensor as an array of NumPy that shares its memory, and leaves the tensor as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import to_dlpack

from gradbridge.layout import Array

_CPU = (1, 0)  # as DLPack calls it


class _Lent:
    """What NumPy takes by DLPack. A storage that `Tensor.numpy` has shown can never be resized again, as FSDP does."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CPU

    def __dlpack__(self, **wishes: Any) -> Any:
        return to_dlpack(self.tensor.detach())


def numbers(tensor: torch.Tensor) -> Array:
    """A tensor's numbers, off its graph; a copy where they live elsewhere or are a lazy view.

    Raises:
        RuntimeError, TypeError: torch's, where NumPy could not have them.
    """
    if tensor.is_cpu:
        try:
            return np.from_dlpack(_Lent(tensor))  # type: ignore[arg-type]
        except (BufferError, RuntimeError, TypeError):
            pass  # a conjugate view, or what NumPy has no dtype or layout for: torch's words for that
    array: Array = tensor.numpy(force=True)
    return array
