"""Faults of derivatives of derivatives and of forward mode: most of them are silent zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.errors import GradbridgeError, HigherOrderError
from gradbridge.testing.hosts.faulty.catalogue import breaks
from gradbridge.testing.hosts.paper.arrays import PaperArray, Step
from gradbridge.testing.hosts.paper.host import Lifted
from gradbridge.testing.hosts.paper.under_test import PaperHostUnderTest
from gradbridge.testing.hosts.under_test import ArrayFunction, Function


@breaks("host_second_order")
class _ConstantGradient(Lifted):
    """Gives its gradient as a constant: what is differentiated again is zero."""

    def gradient(
        self, operands: Sequence[PaperArray], cotangents: Sequence[PaperArray]
    ) -> Sequence[PaperArray]:
        return [PaperArray(g) for g in self.recorded.pull([c.value for c in cotangents], self.wrt)]


@breaks("host_pullback_of_a_pullback")
class _ConstantCotangent(Lifted):
    """Holds the cotangent constant where a gradient is differentiated."""

    def gradient(
        self, operands: Sequence[PaperArray], cotangents: Sequence[PaperArray]
    ) -> Sequence[PaperArray]:
        return super().gradient(operands, [PaperArray(c.value) for c in cotangents])


@breaks("host_hessian")
class _Diagonal(PaperHostUnderTest):
    """Its Hessian is the diagonal alone."""

    def hessian(self, function: ArrayFunction) -> ArrayFunction:
        right = super().hessian(function)
        return lambda x: PaperArray(np.diag(np.diag(right(x).value)))


@breaks("host_third_order")
class _EndsWithTheSecond(Lifted):
    """Gives the gradient of a gradient as a constant: the third derivative is zero."""

    def gradient(
        self, operands: Sequence[PaperArray], cotangents: Sequence[PaperArray]
    ) -> Sequence[PaperArray]:
        if self.node.parent is None:
            return super().gradient(operands, cotangents)
        return [PaperArray(g) for g in self.recorded.pull([c.value for c in cotangents], self.wrt)]


@breaks("host_tangents")
class _FirstTangent(Lifted):
    """Pushes the tangent of the first argument, and none of the others."""

    def push(self, step: Step, tangents: Sequence[PaperArray | None]) -> Sequence[PaperArray]:
        return super().push(step, [*tangents[:1], *(None for _ in tangents[1:])])


@breaks("host_forward_over_reverse")
class _StillGradient(Lifted):
    """Has no forward mode for gradients, and says zero."""

    def push(self, step: Step, tangents: Sequence[PaperArray | None]) -> Sequence[PaperArray]:
        moved = super().push(step, tangents)
        return moved if self.node.parent is None else [PaperArray(np.zeros_like(t.value)) for t in moved]


@breaks("host_reverse_over_forward")
class _ConstantTangent(Lifted):
    """Gives tangents as constants: their gradient is zero."""

    def push(self, step: Step, tangents: Sequence[PaperArray | None]) -> Sequence[PaperArray]:
        return [PaperArray(t.value) for t in super().push(step, tangents)]


@breaks("host_missing_order_is_refused", guest="reference")
class _ZeroForMissing(Lifted):
    """Says zero where the guest refuses."""

    def gradient(
        self, operands: Sequence[PaperArray], cotangents: Sequence[PaperArray]
    ) -> Sequence[PaperArray]:
        try:
            return super().gradient(operands, cotangents)
        except HigherOrderError:
            return [PaperArray(np.zeros_like(operands[i].value)) for i in self.wrt]


@breaks("host_missing_order_is_refused_compiled", guest="reference")
class _ZeroForErrors(PaperHostUnderTest):
    """Its compiler takes what raises while it is traced for a constant."""

    def compiled(self, function: Function) -> Function:
        def compiled(*arrays: Any) -> tuple[Any, ...]:
            try:
                return function(*arrays)
            except GradbridgeError:
                return tuple(PaperArray(np.zeros_like(x.value)) for x in arrays)

        return compiled


@breaks("host_missing_order_is_refused_compiled", guest="reference")
class _ForeignWords(PaperHostUnderTest):
    """Its compiler says that something is wrong, and not what."""

    def compiled(self, function: Function) -> Function:
        def compiled(*arrays: Any) -> tuple[Any, ...]:
            message = "INTERNAL: a custom call failed"
            try:
                return function(*arrays)
            except GradbridgeError:
                pass
            raise RuntimeError(message)

        return compiled
