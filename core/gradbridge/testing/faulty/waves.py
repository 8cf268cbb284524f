"""Faults of conjugation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.layout import Array
from gradbridge.protocol import Adapter
from gradbridge.testing.faulty.catalogue import breaks
from gradbridge.testing.paper import ReferenceAdapter, ReferencePullback


@breaks("complex_gradient", "wave")
class _Conjugated(ReferenceAdapter):
    """Hands cotangents and gradients on in the convention of PyTorch: all of them conjugated."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        gradients = super().backward(residuals, [np.conj(c) for c in cotangents], wrt)
        return [np.conj(g) for g in gradients]


@breaks("complex_second_order", "wave")
class _ConjugatedOnce(ReferenceAdapter):
    """Conjugates what its pullback returns, and forgets to when that is pulled back again."""

    def pullback(self, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        return _ConjugatedPullback(self, spec, wrt, residuals)


class _ConjugatedPullback(ReferencePullback):
    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        return super().backward(residuals, [np.conj(c) for c in cotangents], wrt)


@breaks("complex_tangent", "wave")
class _ConjugatedTangent(ReferenceAdapter):
    """Conjugates tangents, as if they were gradients."""

    def pushforward(
        self,
        loaded: list[Array],
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> tuple[Any, list[Array]]:
        return super().pushforward(loaded, inputs, spec, wrt, [np.conj(t) for t in tangents])
