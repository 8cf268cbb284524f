"""Faults that show in the numbers of a call: large, small, infinite, and of every width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.layout import Array
from gradbridge.testing.faulty.catalogue import breaks
from gradbridge.testing.paper import ReferenceAdapter


@breaks("extreme_cotangents")
class _ClipsGradients(ReferenceAdapter):
    """Clips gradients, as a trainer does."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        return [np.clip(g, -1e4, 1e4) for g in super().backward(residuals, cotangents, wrt)]


@breaks("extreme_cotangents")
class _AddsEpsilon(ReferenceAdapter):
    """Adds a little something that keeps a quotient finite."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        return [g + 1e-12 for g in super().backward(residuals, cotangents, wrt)]


@breaks("not_finite", "root")
class _NoInfinities(ReferenceAdapter):
    """Makes large numbers of infinite ones, and zeros of NaN."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        return [np.nan_to_num(g) for g in super().backward(residuals, cotangents, wrt)]


@breaks("not_finite", "root")
class _MasksByMultiplying(ReferenceAdapter):
    """Pads its rows with others and multiplies these by zero, which infinity and NaN survive."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        gradients = super().backward(residuals, cotangents, wrt)
        return [g + 0 * g.sum(0) for g in gradients]


@breaks("float16_inputs_are_exact")
class _HalfIsSingle(ReferenceAdapter):
    """Computes with half-precision inputs in half precision's own arithmetic first."""

    def cast(self, array: Any) -> Any:
        array = np.asarray(array)
        return super().cast(array * np.float16(3) / np.float16(3) if array.dtype == np.float16 else array)


@breaks("every_integer", "masked")
class _SignedBytes(ReferenceAdapter):
    """Reads every byte as a signed one."""

    def cast(self, array: Any) -> Any:
        return super().cast(array.view(np.int8) if array.dtype == np.uint8 else array)


@breaks("every_integer", "masked")
class _BooleansAreSigns(ReferenceAdapter):
    """Takes a boolean mask by its size in bytes: as one number for eight."""

    def cast(self, array: Any) -> Any:
        return super().cast(np.ones_like(array) if array.dtype == bool else array)
