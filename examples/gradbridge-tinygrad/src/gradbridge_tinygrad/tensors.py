"""Arrays to tensors and back, and the surroundings that tinygrad code runs in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from tinygrad import Tensor, dtypes
from tinygrad.helpers import Context

from gradbridge.errors import GuestError
from gradbridge.protocol import Array

DTYPES = {"float64": dtypes.float64, "float32": dtypes.float32, "float16": dtypes.float16}

# tinygrad's scheduler and its list of living tensors are global, so its code takes turns.
turns = threading.RLock()


@contextmanager
def quiet(label: str, training: bool) -> Iterator[None]:
    """Alone, in the mode that was asked for, and without random numbers: they are one global sequence.

    Raises:
        GuestError: some were drawn.
    """
    with turns, Context(TRAINING=int(training)):
        before = {device: counter.uop for device, counter in Tensor._device_rng_counters.items()}
        yield
        if {device: counter.uop for device, counter in Tensor._device_rng_counters.items()} == before:
            return
        for device in set(Tensor._device_rng_counters) - set(before):
            del Tensor._device_rng_counters[device], Tensor._device_seeds[device]
        for device, uop in before.items():
            Tensor._device_rng_counters[device].uop = uop
    raise GuestError(
        f"{label} draws tinygrad's random numbers, so that its gradient would belong to other ones than its value; "
        f"draw them outside and pass them as an input"
    )


def make(array: Array, dtype: str | None, device: str) -> Tensor:
    """A new tensor; a floating one in `dtype`, if one is given.

    It owns its numbers: a tensor shares them with the array until it is computed. And it is a
    buffer even with no axes: tinygrad would make a constant of it, and two equal constants are one
    node, so that a gradient would go to both.
    """
    kind = dtype if dtype is not None and array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    own = np.array(array, dtype=kind, order="C")
    return Tensor(own.reshape(-1), device=device).reshape(own.shape)


def read(tensor: Tensor) -> Array:
    """A tensor's numbers, a new array. The tensor keeps its graph: what is computed is a copy of it."""
    return np.array(tensor.contiguous().numpy())


def dtype_of(tensor: Tensor) -> str:
    """The dtype of a tensor as NumPy calls it."""
    for name, dtype in DTYPES.items():
        if tensor.dtype == dtype:
            return name
    return str(tensor.dtype).removeprefix("dtypes.")


def is_constant(tensor: Any) -> bool:
    """Whether a tensor is made of literals alone, so that it lies on no device."""
    return tensor.uop.device is None
