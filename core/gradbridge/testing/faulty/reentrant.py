"""Faults of laws 3 and 4: state that passes from one call to another."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.protocol import Array, Signature
from gradbridge.testing.faulty.catalogue import breaks
from gradbridge.testing.reference import ReferenceAdapter


@breaks("params_in_flight")
class _ParamsOnModel(ReferenceAdapter):
    """Keeps the parameters on the model; the last update wins, for every call in flight."""

    def update(self, params: Array) -> Array:
        self._loaded = super().update(params)
        return self._loaded

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        return super().backward((self._loaded, *residuals[1:]), cotangents, wrt)


@breaks("inputs_in_flight")
class _InputsOnModel(ReferenceAdapter):
    """Keeps the inputs on the model between forward and backward."""

    def forward(
        self, loaded: Array, inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        output, residuals = super().forward(loaded, inputs, signature, wrt)
        self._inputs = [np.array(x) for x in inputs]
        return output, residuals

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        loaded, inputs, signature = residuals
        inputs = [a[: len(b)] for a, b in zip(self._inputs, inputs)]
        return super().backward((loaded, inputs, signature), cotangents[:], wrt)


@breaks("any_order")
class _Stack(ReferenceAdapter):
    """Keeps residuals on a stack, as a tape does: right only if calls are pulled back in reverse."""

    def forward(
        self, loaded: Array, inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        output, residuals = super().forward(loaded, inputs, signature, wrt)
        self._stack = [*getattr(self, "_stack", []), residuals]
        return output, residuals

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        return super().backward(self._stack.pop(), cotangents, wrt)


@breaks("later_update")
class _SharedBuffer(ReferenceAdapter):
    """Loads every params vector into one buffer."""

    def update(self, params: Array) -> Array:
        if not hasattr(self, "_buffer"):
            self._buffer = super().update(params)
        self._buffer[...] = params
        return self._buffer


@breaks("results_stand")
class _OneOutputBuffer(ReferenceAdapter):
    """Hands out its one buffer for outputs, as a C library does; the next call writes over it."""

    def forward(
        self, loaded: Array, inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        output, residuals = super().forward(loaded, inputs, signature, wrt)
        if getattr(self, "_buffer", output[:0]).shape != output.shape:
            self._buffer = output
        self._buffer[...] = output
        return self._buffer, residuals


@breaks("eight_threads")
class _SharedModule(ReferenceAdapter):
    """Fills one shared module with the call's parameters, computes, and is interrupted in between."""

    def forward(
        self, loaded: Array, inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        self._slots = loaded
        time.sleep(1e-4)
        return super().forward(self._slots, inputs, signature, wrt)


@breaks("another_thread")
class _ThreadLocal(ReferenceAdapter):
    """Keeps what a backward needs in the thread that made the forward; another one finds nothing."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        if threading.current_thread() is not threading.main_thread():
            return [np.zeros_like(g) for g in super().backward(residuals, cotangents, wrt)]
        return super().backward(residuals, cotangents, wrt)


@breaks("fresh_params")
class _Memoized(ReferenceAdapter):
    """Remembers what it loaded first."""

    def update(self, params: Array) -> Array:
        if not hasattr(self, "_first"):
            self._first = super().update(params)
        return self._first


@breaks("params_changed_in_place")
class _CachedByIdentity(ReferenceAdapter):
    """Loads params again only if they are another array, which in-place updates never are."""

    def update(self, params: Array) -> Array:
        if getattr(self, "_seen", None) is not params:
            self._seen, self._loaded = params, super().update(params)
        return self._loaded
