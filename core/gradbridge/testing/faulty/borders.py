"""Faults of law 6: arrays that are read, cast or shaped wrongly on their way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.layout import Array
from gradbridge.testing.faulty.catalogue import HANDS_ON, breaks
from gradbridge.testing.paper import ReferenceAdapter


@breaks("arrays_leave")
class _OneVector(ReferenceAdapter):
    """Hands the gradients of all weights out as one vector, as an optimizer would want them."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        gradients = super().backward(residuals, cotangents, wrt)
        weights = [g for g, leaf in zip(gradients, wrt) if leaf < len(self.layout)]
        return [np.concatenate([np.ravel(w) for w in weights]), *gradients[len(weights) :]]


@breaks("host_dtype", core=HANDS_ON)
class _GuestDtype(ReferenceAdapter):
    """Leaves its outputs in the dtype that it computed in, where core does not cast them."""


@breaks("float32_inputs_are_exact")
class _LowestDtype(ReferenceAdapter):
    """Computes in the lowest dtype that it meets."""

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        low = np.result_type(np.float32, *(x.dtype for x in inputs))
        output, residuals = super().forward([w.astype(low) for w in loaded], inputs, spec, wrt)
        return output, residuals


@breaks("memory_layouts")
class _ReadsMemory(ReferenceAdapter):
    """Reads the buffer of an input as if it were contiguous, as a C library does."""

    def cast(self, array: Any) -> Any:
        array = np.asarray(array)
        return super().cast(np.ravel(array, order="K").reshape(array.shape))


@breaks("broadcast_cotangents")
class _ReadsCotangent(ReferenceAdapter):
    """Takes the first element of a cotangent's memory, and zeros where there are no more."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        seen = [v.copy() for v in cotangents]
        for copied, v in zip(seen, cotangents):
            if copied.size > 1 and 0 in v.strides:
                copied.flat[1:] = 0
        return super().backward(residuals, seen, wrt)


@breaks("zero_rows")
class _MeanOfNothing(ReferenceAdapter):
    """Divides by the number of rows and multiplies by it again."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        rows = np.float64(len(residuals[1][0]))
        with np.errstate(invalid="ignore"):
            return [g * (rows / rows) for g in super().backward(residuals, cotangents, wrt)]


@breaks("zero_dimensions", "energy")
class _AtLeastOne(ReferenceAdapter):
    """Gives every array a dimension."""

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        output, residuals = super().forward(loaded, inputs, spec, wrt)
        return np.atleast_1d(output), residuals


@breaks("integers_untouched", "embedding")
class _ScalesIntegers(ReferenceAdapter):
    """Scales narrow integers, as an image pipeline does with bytes."""

    def cast(self, array: Any) -> Any:
        array = super().cast(array)
        return array // 2 if array.dtype == np.int32 else array
