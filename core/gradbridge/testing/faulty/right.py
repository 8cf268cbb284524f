"""Faults of laws 1 and 2: wrong numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.layout import Array
from gradbridge.protocol import GuestOptions
from gradbridge.testing.faulty.catalogue import breaks
from gradbridge.testing.paper import PaperModel, ReferenceAdapter


@breaks("value_is_right")
class _Float32Leak(ReferenceAdapter):
    """Computes in float32 although float64 was asked for, as an input layer that casts does."""

    def cast(self, array: Any) -> Any:
        array = super().cast(array)
        return array.astype(np.float32).astype(array.dtype) if array.dtype.kind == "f" else array


@breaks("gradient_is_right", "tied")
class _Transposed(ReferenceAdapter):
    """Hands the gradient out in another orientation than the parameters."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        weight, *rest = super().backward(residuals, cotangents, wrt)
        return [weight.reshape(self.layout.shapes[0]).T.reshape(weight.shape), *rest]


@breaks("each_argument_alone", "energy")
class _SortedArguments(ReferenceAdapter):
    """Returns gradients in its own order, not in that of `wrt`."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        return super().backward(residuals, cotangents, tuple(sorted(wrt)))


@breaks("layout_is_sound")
class _FlatWeights(ReferenceAdapter):
    """weights() come without their shapes."""

    def weights(self) -> list[Array]:
        return [np.ravel(w) for w in super().weights()]


@breaks("float32_is_rounding")
class _HalfPrecision(ReferenceAdapter):
    """Computes in half precision where float32 was asked for, as an autocast does."""

    def cast(self, array: Any) -> Any:
        array = super().cast(array)
        return array.astype(np.float16).astype(np.float32) if array.dtype == np.float32 else array


@breaks("own_dtype")
class _DefaultDtype(ReferenceAdapter):
    """Computes in some default of the framework where no dtype was asked for."""

    def __init__(self, model: PaperModel, options: GuestOptions) -> None:
        super().__init__(model, options)
        self.dtype = np.dtype(options.dtype or "float16")


@breaks("linear_in_cotangent")
class _ClippedGradient(ReferenceAdapter):
    """Clips the gradient, so that it is not linear in the cotangent."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        return [np.clip(g, -3, 3) for g in super().backward(residuals, cotangents, wrt)]


@breaks("backward_twice")
class _Accumulating(ReferenceAdapter):
    """Adds to the gradient of the backward before, as `.grad` does without `zero`."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        new = super().backward(residuals, cotangents, wrt)
        memory = residuals[1]  # travels with the call
        kept = getattr(self, "_kept", {})
        if id(memory) in kept:
            new = [a + b for a, b in zip(new, kept[id(memory)][1])]
        self._kept = {id(memory): (memory, new)}
        return [a.copy() for a in new]


@breaks("zero_cotangent")
class _Regularized(ReferenceAdapter):
    """Adds the gradient of a penalty, which no cotangent asked for."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        gradients = super().backward(residuals, cotangents, wrt)
        weights = residuals[0]
        return [g + 1e-3 * weights[leaf] if leaf < len(weights) else g for leaf, g in zip(wrt, gradients)]
