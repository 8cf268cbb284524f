"""Faults of law 7 in derivatives of derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.protocol import Adapter, Array, Signature
from gradbridge.testing.faulty.catalogue import breaks
from gradbridge.testing.reference import ReferenceAdapter, ReferencePullback


class _ZeroPullback(ReferencePullback):
    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        return [np.zeros_like(g) for g in super().backward(residuals, cotangents, wrt)]


class _SwappedPullback(ReferencePullback):
    def function(self, arguments: Sequence[Any]) -> list[Any]:
        return [2 * g for g in super().function(arguments)]


class _SkewPullback(ReferencePullback):
    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        return [
            g * np.linspace(0.5, 1.5, g.size).reshape(g.shape)
            for g in super().backward(residuals, cotangents, wrt)
        ]


class _DroppedCotangents(ReferencePullback):
    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        last = 1 + self._signature.count
        found = super().backward(residuals, cotangents, wrt)
        return [np.zeros_like(g) if p >= last else g for p, g in zip(wrt, found)]


class _ConstantPullback(ReferencePullback):
    def pullback(self, signature: Signature, wrt: tuple[int, ...]) -> Adapter:
        return _Nothing(self, wrt)


class _Nothing(ReferencePullback):
    """The derivative of a second derivative that a framework took for a constant."""

    def __init__(self, parent: ReferencePullback, wrt: tuple[int, ...]) -> None:
        self.label, self.layout, self.parent, self._wrt = parent.label, parent.layout, parent.parent, wrt

    def function(self, arguments: Sequence[Any]) -> list[Any]:
        return [0 * arguments[p] for p in self._wrt]


@breaks("gradient_again")
class _DoubledPullback(ReferenceAdapter):
    """The pullback's adapter computes another gradient than backward."""

    def pullback(self, signature: Signature, wrt: tuple[int, ...]) -> Adapter:
        return _SwappedPullback(self, signature, wrt)


@breaks("second_order")
class _ZeroHessian(ReferenceAdapter):
    """Zeros for the second derivative: the gradient was a constant to whoever computed it."""

    def pullback(self, signature: Signature, wrt: tuple[int, ...]) -> Adapter:
        return _ZeroPullback(self, signature, wrt)


@breaks("hessian_symmetric")
class _SkewHessian(ReferenceAdapter):
    """A Hessian that weighs its rows differently."""

    def pullback(self, signature: Signature, wrt: tuple[int, ...]) -> Adapter:
        return _SkewPullback(self, signature, wrt)


@breaks("pushforward")
class _ConstantCotangent(ReferenceAdapter):
    """The cotangent is a constant to the pullback's adapter, so that every JVP is zero."""

    def pullback(self, signature: Signature, wrt: tuple[int, ...]) -> Adapter:
        return _DroppedCotangents(self, signature, wrt)


@breaks("third_order", "energy")
class _ZeroThird(ReferenceAdapter):
    """Right to second order, zeros in the third."""

    def pullback(self, signature: Signature, wrt: tuple[int, ...]) -> Adapter:
        return _ConstantPullback(self, signature, wrt)
