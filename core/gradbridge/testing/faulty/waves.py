"""Faults of conjugation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.protocol import Adapter, Array, Signature
from gradbridge.testing.faulty.catalogue import breaks
from gradbridge.testing.reference import ReferenceAdapter, ReferencePullback


@breaks("complex_gradient", "wave")
class _Conjugated(ReferenceAdapter):
    """Hands cotangents and gradients on in the convention of PyTorch: all of them conjugated."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        found = super().backward(residuals, [np.conj(c) for c in cotangents], wrt)
        return [np.conj(g) for g in found]


@breaks("complex_second_order", "wave")
class _TurnedOnce(ReferenceAdapter):
    """Turns what its pullback returns, and forgets to when that is pulled back again."""

    def pullback(self, signature: Signature, wrt: tuple[int, ...]) -> Adapter:
        return _ConjugatedPullback(self, signature, wrt)


class _ConjugatedPullback(ReferencePullback):
    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        return super().backward(residuals, [np.conj(c) for c in cotangents], wrt)


@breaks("complex_tangent", "wave")
class _TurnedTangent(ReferenceAdapter):
    """Turns tangents, as if they were gradients."""

    def pushforward(
        self,
        loaded: Any,
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> list[Array] | None:
        return super().pushforward(loaded, inputs, signature, wrt, [np.conj(t) for t in tangents])
