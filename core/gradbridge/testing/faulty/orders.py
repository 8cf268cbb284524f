"""Faults of law 7 in derivatives of derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.layout import Array
from gradbridge.protocol import Adapter
from gradbridge.testing.faulty.catalogue import breaks
from gradbridge.testing.paper import ReferenceAdapter, ReferencePullback


class _ZeroPullback(ReferencePullback):
    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        return [np.zeros_like(g) for g in super().backward(residuals, cotangents, wrt)]


class _DoubledGradient(ReferencePullback):
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
        first = (1 if self._spec.packed else len(self.layout)) + self._spec.count
        gradients = super().backward(residuals, cotangents, wrt)
        return [np.zeros_like(g) if leaf >= first else g for leaf, g in zip(wrt, gradients)]


class _ConstantPullback(ReferencePullback):
    def pullback(self, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        return _Nothing(self, wrt)


class _Nothing(ReferencePullback):
    """The derivative of a second derivative that a framework took for a constant."""

    def __init__(self, parent: ReferencePullback, wrt: tuple[int, ...]) -> None:
        super().__init__(parent.parent, parent._spec, wrt)

    def function(self, arguments: Sequence[Any]) -> list[Any]:
        return [0 * arguments[leaf] for leaf in self._wrt]


@breaks("gradient_again")
class _DoubledPullback(ReferenceAdapter):
    """The pullback's adapter computes another gradient than backward."""

    def pullback(self, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        return _DoubledGradient(self, spec, wrt, residuals)


@breaks("second_order")
class _ZeroHessian(ReferenceAdapter):
    """Zeros for the second derivative: the gradient was a constant to whoever computed it."""

    def pullback(self, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        return _ZeroPullback(self, spec, wrt, residuals)


@breaks("hessian_symmetric")
class _SkewHessian(ReferenceAdapter):
    """A Hessian that weighs its rows differently."""

    def pullback(self, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        return _SkewPullback(self, spec, wrt, residuals)


@breaks("pushforward")
class _ConstantCotangent(ReferenceAdapter):
    """The cotangent is a constant to the pullback's adapter, so that every JVP is zero."""

    def pullback(self, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        return _DroppedCotangents(self, spec, wrt, residuals)


@breaks("third_order", "energy")
class _ZeroThird(ReferenceAdapter):
    """Right to second order, zeros in the third."""

    def pullback(self, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        return _ConstantPullback(self, spec, wrt, residuals)


@breaks("third_order_by_params", "unused")
class _ThirdWithoutParams(ReferenceAdapter):
    """The second derivative does not move with the params."""

    def pullback(self, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        return _ConstantPullback(self, spec, wrt, residuals)
