"""Faults of derivatives that start from a forward that was recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.layout import Array
from gradbridge.protocol import Adapter
from gradbridge.testing.faulty.catalogue import breaks
from gradbridge.testing.paper import ReferenceAdapter, ReferencePullback


class _EvaluatesAgain(ReferencePullback):
    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        self.parent.value(loaded, [self.parent.cast(x) for x in inputs[: self._spec.count]], self._spec)
        return super().forward(loaded, inputs, spec, wrt)


class _ReadsCaller(ReferencePullback):
    def __init__(
        self, parent: ReferenceAdapter, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None
    ) -> None:
        super().__init__(parent, spec, wrt)
        self.step = "backward"


class _ForgetsBoundary(ReferencePullback):
    def pull_to_boundary(self, residuals: Any, cotangents: Sequence[Array]) -> Any:
        gradients, left = super().pull_to_boundary(residuals, cotangents)
        return {leaf: np.zeros_like(g) for leaf, g in gradients.items()}, left


@breaks("one_walk")
class _TakesTheFirstAlong(ReferenceAdapter):
    """Takes along what the first derivative left, and forgets the others."""

    def backward_merged(
        self,
        residuals: Any,
        cotangents: Sequence[Array],
        wrt: tuple[int, ...],
        left: Sequence[dict[int, Array]],
    ) -> list[Array]:
        return super().backward_merged(residuals, cotangents, wrt, left[:1])


@breaks("one_walk")
class _StopsBefore(ReferenceAdapter):
    """Pulls a derivative back to the boundary, and leaves out the cotangents that lie on it."""

    def pullback(self, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        return _ForgetsBoundary(self, spec, wrt, residuals)


@breaks("one_forward_of_any_order")
class _SaysItIsRecorded(ReferenceAdapter):
    """Says that its pullback starts from what was recorded, and evaluates the model again."""

    def pullback(self, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        return _EvaluatesAgain(self, spec, wrt, residuals)


@breaks("arrays_changed_between_orders")
class _ValuesOfNow(ReferenceAdapter):
    """Its derivative of the derivative is taken at what the caller's arrays hold by then."""

    def pullback(self, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        return _ReadsCaller(self, spec, wrt, residuals)
