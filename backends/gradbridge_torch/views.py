"""The numbers of a tensor as an array of NumPy that shares its memory, and leaves the tensor as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import to_dlpack

from gradbridge.layout import Array

#: Tensors that are nothing more.
PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))

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
        RuntimeError, TypeError: NumPy could not have them.
    """
    if not tensor.is_cpu or type(tensor) not in PLAIN or tensor.layout is not torch.strided:
        array: Array = tensor.numpy(force=True)
        return array
    if tensor.is_conj() or tensor.is_neg():
        return numbers(tensor.resolve_conj().resolve_neg())
    if not tensor.data_ptr() and tensor.numel():
        if not tensor._is_zerotensor():  # type: ignore[attr-defined]
            raise RuntimeError("its memory was freed, or a transform keeps it apart")
        tensor = torch.zeros(tensor.shape, dtype=tensor.dtype)
    try:
        return np.from_dlpack(_Lent(tensor))  # type: ignore[arg-type]
    except (BufferError, RuntimeError, TypeError):
        array = tensor.numpy(force=True)  # which says why not
        return array
