"""Faults at the leaves: forms in which they are not taken, shapes told wrongly, results that nobody checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.layout import Array
from gradbridge.protocol import ArraySpec
from gradbridge.testing.faulty.catalogue import CHECKS_NOTHING, breaks
from gradbridge.testing.paper import ReferenceAdapter


@breaks("foreign_arrays")
class _SharesMemory(ReferenceAdapter):
    """Takes inputs of another library as views of their memory, and copies NumPy's alone."""

    def cast(self, array: Any) -> Any:
        return super().cast(array) if hasattr(array, "__array__") else np.from_dlpack(array)


@breaks("weights_one_by_one")
class _SortedWeights(ReferenceAdapter):
    """Takes weights that come one by one in the order of their sizes."""

    def update(self, weights: Sequence[Array]) -> list[Array]:
        loaded = super().update(weights)
        sizes = sorted(range(len(loaded)), key=lambda i: loaded[i].size)
        flat = np.concatenate([np.ravel(loaded[i]) for i in sizes])
        return self.layout.cut(flat)


@breaks("packed_weights")
class _ForgetsOffset(ReferenceAdapter):
    """Cuts packed weights in the reverse order."""

    def named(self, loaded: Sequence[Any], spec: CallSpec) -> dict[str, Any]:
        return super().named([loaded[0][::-1]] if spec.packed else loaded, spec)


@breaks("shapes_ahead")
class _DtypeOfInputs(ReferenceAdapter):
    """Tells that outputs have the dtype of the inputs, which are cast on their way in."""

    def output_spec(self, inputs: Sequence[Any], spec: CallSpec) -> Any:
        told = super().output_spec(inputs, spec)
        return ArraySpec(told.shape, inputs[0].dtype)


@breaks("results_are_checked", "tied", core=CHECKS_NOTHING)
class _WrongShapes(ReferenceAdapter):
    """Returns what it is made to return, where core does not check it."""
