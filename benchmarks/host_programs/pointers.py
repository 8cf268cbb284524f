"""Networks of torch and JAX that note where the arrays lie which they read and return, on the CPU."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import numpy as np
import torch

from benchmarks import native_jax

#: {what: addresses that the guest computed with}
seen: dict[str, set[int]] = {"weights": set(), "input": set(), "output": set()}


def pointer(array: Any) -> int:
    """Where an array of either system lies."""
    address: int = array.data_ptr() if isinstance(array, torch.Tensor) else array.unsafe_buffer_pointer()
    return address


@contextlib.contextmanager
def noting_layers() -> Iterator[None]:
    """torch's linear layers note. In the class: a module with code of one's own might write to what it is given."""
    forward = torch.nn.Linear.forward

    def noted(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        y = forward(self, x)
        if type(x) is not torch.Tensor:  # without numbers, to find out shapes
            return y
        seen["weights"] |= {self.weight.data_ptr(), self.bias.data_ptr()}
        seen["input"].add(x.data_ptr())
        seen["output"].add(y.data_ptr())
        return y

    with mock.patch.object(torch.nn.Linear, "forward", noted):
        yield


def network(params: Any, x: jax.Array) -> jax.Array:
    """`benchmarks.native_jax.network`, which notes."""
    y = native_jax.network(params, x)
    for what, arrays in (("weights", jax.tree.leaves(params)), ("input", [x]), ("output", [y])):
        _note(what, arrays)
    return y


def _note(what: str, arrays: list[jax.Array]) -> None:
    """Note when the compiled program runs; it hands over the buffers that it computes with, and no copies."""
    name = f"gradbridge_benchmarks_{what}_{len(arrays)}"
    if name not in _targets:
        _targets[name] = _target(name, what, len(arrays))

    @jax.custom_jvp
    def call(*operands: jax.Array) -> Any:
        shape = jax.ShapeDtypeStruct((), np.float32)
        return jax.ffi.ffi_call(name, shape, has_side_effect=True, custom_call_api_version=1)(*operands)

    call.defjvp(lambda primals, tangents: (call(*primals), np.float32(0.0)))
    call(*arrays)


def _target(name: str, what: str, count: int) -> Any:
    """An operation of XLA that notes where its operands lie, by the oldest of its interfaces: it needs no compiler."""

    @ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_float), ctypes.POINTER(ctypes.c_void_p))
    def note(result: Any, operands: Any) -> None:
        seen[what].update(operands[i] for i in range(count))
        result[0] = 0.0

    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    target = new(ctypes.cast(note, ctypes.c_void_p), b"xla._CUSTOM_CALL_TARGET", None)
    jax.ffi.register_ffi_target(name, target, platform="cpu", api_version=0)
    return note


#: XLA may call them as long as the process lives.
_targets: dict[str, Any] = {}
