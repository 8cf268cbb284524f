"""Faults that show where many calls are made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from gradbridge.call_spec import CallSpec
from gradbridge.layout import Array
from gradbridge.protocol import Adapter, GuestOptions
from gradbridge.testing.faulty.catalogue import breaks
from gradbridge.testing.paper import PaperModel, ReferenceAdapter, ReferencePullback

_RING = 16


@breaks("many_in_flight")
class _RingOfResiduals(ReferenceAdapter):
    """Keeps residuals in a ring of sixteen buffers."""

    def __init__(self, model: PaperModel, options: GuestOptions) -> None:
        super().__init__(model, options)
        self._ring: dict[tuple[bool, int], Any] = {}
        self._count = 0

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        output, residuals = super().forward(loaded, inputs, spec, wrt)
        if not residuals:
            return output, None
        self._count += 1
        place = spec.packed, self._count % _RING
        self._ring[place] = residuals
        return output, place

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        return super().backward(self._ring[residuals], cotangents, wrt)


@breaks("many_in_flight")
class _RingOfOutputs(ReferenceAdapter):
    """Hands its outputs out in a ring of sixteen buffers, which a host may read late."""

    def __init__(self, model: PaperModel, options: GuestOptions) -> None:
        super().__init__(model, options)
        self._buffers: dict[tuple[int, ...], list[Array]] = {}

    def own(self, array: Any) -> Array:
        new = super().own(array)
        ring = self._buffers.setdefault(new.shape, [])
        if len(ring) < _RING:
            ring.append(new)
            return new
        ring.append(ring.pop(0))
        ring[-1][...] = new
        return ring[-1]


class _SharedDirections(ReferencePullback):
    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        tape = _TAPES.setdefault(id(self.parent), [])
        tape[:] = cotangents
        time.sleep(1e-4)
        return super().backward(residuals, list(tape), wrt)


_TAPES: dict[int, list[Array]] = {}


@breaks("second_order_in_threads")
class _OneTapeForAll(ReferenceAdapter):
    """Keeps the directions of a second derivative on the model for the time of its backward."""

    def pullback(self, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        return _SharedDirections(self, spec, wrt, residuals)
