"""Faults of law 7: zeros and numbers where an error is due, and the reverse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.layout import Array
from gradbridge.testing.faulty.catalogue import CHECKS_NOTHING, breaks, core_with
from gradbridge.testing.paper import ReferenceAdapter


@breaks(
    "integer_gradient_refused",
    "embedding",
    core=core_with("borders.admit_differentiated", lambda inputs, *rest: inputs),
)
class _ZerosForIntegers(ReferenceAdapter):
    """Zeros for the gradient of an integer, where core does not stop it."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        (table,) = super().backward(residuals, cotangents, (0,))
        return [table if leaf == 0 else np.zeros(np.shape(residuals[1][leaf - 1])) for leaf in wrt]


@breaks("no_influence_is_zero", "unused")
class _AlmostZero(ReferenceAdapter):
    """Something small, from a finite difference, where there is no influence."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        return [g + 1e-14 for g in super().backward(residuals, cotangents, wrt)]


@breaks("no_influence_alone", "unused", core=CHECKS_NOTHING)
class _NoneIsScalarZero(ReferenceAdapter):
    """A gradient of None becomes a zero without the argument's shape."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        gradients = super().backward(residuals, cotangents, wrt)
        return [g if np.any(g) else np.zeros(()) for g in gradients]


@breaks("unused_outputs", "outputs")
class _FirstOutputOnly(ReferenceAdapter):
    """Pulls back the outputs up to the first that does not matter."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        matters = True
        seen = []
        for v in cotangents:
            matters = matters and bool(np.any(v))
            seen.append(v if matters else np.zeros_like(v))
        return super().backward(residuals, seen, wrt)


@breaks("misfit_refused")
class _Trims(ReferenceAdapter):
    """Drops the columns that it does not know."""

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        return super().forward(loaded, [x[:, :3] for x in inputs], spec, wrt)
