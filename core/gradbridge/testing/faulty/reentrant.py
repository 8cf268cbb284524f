"""Faults of laws 3 and 4: state that passes from one call to another."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.layout import Array
from gradbridge.testing.faulty.catalogue import HANDS_ON, breaks
from gradbridge.testing.paper import ReferenceAdapter


@breaks("params_in_flight")
class _ParamsOnModel(ReferenceAdapter):
    """Keeps the weights on the model; the last update wins, for every call in flight."""

    def load(self, weights: Sequence[Array]) -> list[Array]:
        self._loaded = super().load(weights)
        return self._loaded

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        return super().backward((self._loaded, *residuals[1:]), cotangents, wrt)


@breaks("inputs_in_flight")
class _InputsOnModel(ReferenceAdapter):
    """Keeps the inputs on the model between forward and backward."""

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        output, residuals = super().forward(loaded, inputs, spec, wrt)
        self._inputs = [np.array(x) for x in inputs]
        return output, residuals

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        loaded, inputs, spec = residuals
        inputs = [a[: len(b)] for a, b in zip(self._inputs, inputs)]
        return super().backward((loaded, inputs, spec), cotangents[:], wrt)


@breaks("any_order")
class _Stack(ReferenceAdapter):
    """Keeps residuals on a stack, as a tape does: right only if calls are pulled back in reverse."""

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        output, residuals = super().forward(loaded, inputs, spec, wrt)
        self._stack = [*getattr(self, "_stack", []), residuals]
        return output, residuals

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        return super().backward(self._stack.pop(), cotangents, wrt)


@breaks("later_update")
class _SharedBuffer(ReferenceAdapter):
    """Loads all weights into the same buffers."""

    def load(self, weights: Sequence[Array]) -> list[Array]:
        self._buffers = getattr(self, "_buffers", {})
        buffers: list[Array] = self._buffers.setdefault(len(weights), super().load(weights))
        for buffer, weight in zip(buffers, weights):
            buffer[...] = weight
        return buffers


@breaks("results_stand", core=HANDS_ON)
class _OneOutputBuffer(ReferenceAdapter):
    """Hands out its one buffer for outputs, as a C library does, where core copies nothing."""

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        output, residuals = super().forward(loaded, inputs, spec, wrt)
        if getattr(self, "_buffer", output[:0]).shape != output.shape:
            self._buffer = output
        self._buffer[...] = output
        return self._buffer, residuals


@breaks("eight_threads")
class _SharedModule(ReferenceAdapter):
    """Fills one shared module with the call's parameters, computes, and is interrupted in between."""

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        self._slots = loaded
        time.sleep(1e-4)
        return super().forward(self._slots, inputs, spec, wrt)


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

    def load(self, weights: Sequence[Array]) -> list[Array]:
        if not hasattr(self, "_first"):
            self._first = super().load(weights)
        return self._first


@breaks("params_changed_in_place")
class _CachedByIdentity(ReferenceAdapter):
    """Loads weights again only if they are another array, which in-place updates never are."""

    def load(self, weights: Sequence[Array]) -> list[Array]:
        if getattr(self, "_seen", None) is not weights[0]:
            self._seen, self._loaded = weights[0], super().load(weights)
        return self._loaded
