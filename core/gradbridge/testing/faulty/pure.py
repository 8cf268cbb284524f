"""Faults of law 5: the user's model and arrays are written to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.layout import Array
from gradbridge.protocol import GuestOptions
from gradbridge.testing.faulty.catalogue import breaks, core_with
from gradbridge.testing.paper import PaperModel, ReferenceAdapter


@breaks("arrays_intact")
class _WritesToInput(ReferenceAdapter):
    """Normalizes its input in place."""

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        result = super().forward(loaded, inputs, spec, wrt)
        if inputs[0].flags.writeable:
            inputs[0][...] = 0
        return result


@breaks("caller_changes_arrays")
class _KeepsViews(ReferenceAdapter):
    """Keeps the caller's own arrays as residuals."""

    def cast(self, array: Any) -> Any:
        return np.asarray(array)


@breaks(
    "caller_owns_results",
    "outputs",
    core=core_with("borders.Border.copy", lambda border, native, *dtype: border.view(native)),
)
class _SameArrayAgain(ReferenceAdapter):
    """Hands the same gradient array out each time, where core copies nothing."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        if not hasattr(self, "_handed"):
            self._handed: dict[int, Any] = {}
        key = id(residuals[1])
        if key not in self._handed:
            self._handed[key] = (residuals, super().backward(residuals, cotangents, wrt))
        return list(self._handed[key][1])


@breaks("params_stay")
class _WritesToModel(ReferenceAdapter):
    """Loads params into the user's own model."""

    def update(self, weights: Sequence[Array]) -> list[Array]:
        self._model.params = {name: w.copy() for name, w in zip(self.layout.names, weights)}
        return super().update(weights)


@breaks("model_holds_params")
class _ForgetfulModel(ReferenceAdapter):
    """model(weights) gives a copy of the user's model and forgets to put the weights in."""

    def model(self, weights: Sequence[Array]) -> PaperModel:
        return super().model(self.weights())


@breaks("state_stays")
class _SeedsGlobally(ReferenceAdapter):
    """Seeds the global random state."""

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        np.random.seed(spec.noise + 12345)  # noqa: NPY002, it is the fault
        return super().forward(loaded, inputs, spec, wrt)


@breaks("copies_stand_alone")
class _ShallowCopy(ReferenceAdapter):
    """A copy that computes with the params that its original loaded last."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = _StaleTwin(self._model, GuestOptions(dtype=str(self.dtype)))
        twin.original = self.layout.join(self.weights())
        return twin


class _StaleTwin(ReferenceAdapter):
    original: Array

    def load(self, weights: Sequence[Array]) -> list[Array]:
        return super().load([self.original])
