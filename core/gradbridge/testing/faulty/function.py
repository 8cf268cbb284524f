"""Faults of laws 8 and 9: forwards too many, noise and surroundings."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.layout import Array
from gradbridge.testing.faulty.catalogue import breaks
from gradbridge.testing.paper import ReferenceAdapter


@breaks("one_forward")
class _ForwardAgain(ReferenceAdapter):
    """Computes the forward again in backward."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        loaded, inputs, spec = residuals
        _, again = self.forward(loaded, inputs, spec, wrt)
        return super().backward(again, cotangents, wrt)


@breaks("same_again")
class _Jitter(ReferenceAdapter):
    """Adds noise of the size of rounding, from the call's seed."""

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        output, residuals = super().forward(loaded, inputs, spec, wrt)
        return output * (1 + 1e-13 * spec.noise), residuals


@breaks("nothing_kept")
class _AlwaysKeeps(ReferenceAdapter):
    """Records a graph for a call that nobody differentiates."""

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        return super().forward(loaded, inputs, spec, wrt or (0,))


_grad_mode = {"on": True}


@contextmanager
def _no_grad() -> Iterator[None]:
    _grad_mode["on"] = False
    try:
        yield
    finally:
        _grad_mode["on"] = True


@breaks("surroundings_do_not_matter", surroundings=(("under no_grad", _no_grad),))
class _TrustsGradMode(ReferenceAdapter):
    """Records no graph where the surroundings say so, and gives zeros."""

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        output, residuals = super().forward(loaded, inputs, spec, wrt)
        return output, (*residuals, _grad_mode["on"]) if residuals else None

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        gradients = super().backward(residuals[:3], cotangents, wrt)
        return gradients if residuals[3] else [np.zeros_like(g) for g in gradients]


@breaks("noise_is_the_calls", "dropout")
class _IgnoresNoise(ReferenceAdapter):
    """Draws from a random state of its own, whatever seed the call has."""

    def mask(self, x: Any, spec: CallSpec) -> Any:
        self._drawn = getattr(self, "_drawn", 0) + 1
        return super().mask(x, CallSpec.of_arrays(1, self._drawn))


@breaks("backward_uses_its_mask", "dropout")
class _NewMask(ReferenceAdapter):
    """Backward uses the mask that was drawn last."""

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        self._last = spec
        return super().forward(loaded, inputs, spec, wrt)

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        return super().backward((*residuals[:2], self._last), cotangents, wrt)


@breaks("noise_in_threads", "dropout")
class _SharedGenerator(ReferenceAdapter):
    """Seeds a shared generator, and draws from it a little later."""

    def mask(self, x: Any, spec: CallSpec) -> Any:
        self._seed = spec
        time.sleep(1e-3)
        return super().mask(x, self._seed)


@breaks("train_mode_normalizes", "batchnorm")
class _ConstantStatistics(ReferenceAdapter):
    """Takes the batch's statistics for constants when it differentiates."""

    def gradients(
        self, loaded: Sequence[Any], inputs: Sequence[Any], cotangents: Sequence[Any], spec: CallSpec
    ) -> dict[int, Any]:
        gradients = super().gradients(loaded, inputs, cotangents, spec)
        scale = self.named(loaded, spec)["scale"]
        return {**gradients, len(loaded): cotangents[0] * scale / np.sqrt(inputs[0].var(0) + 1e-3)}


@breaks("statistics_move_once", "batchnorm")
class _MovesOnReplay(ReferenceAdapter):
    """Moves the statistics on backward as well, because it runs the model again there."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        loaded, inputs, spec = residuals
        self.forward(loaded, inputs, spec, wrt)
        return super().backward(residuals, cotangents, wrt)


@breaks("copies_keep_their_state", "batchnorm")
class _SharesStatistics(ReferenceAdapter):
    """A copy that moves the statistics of its original as well."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = _Follower(self._model, self._options)
        twin.original = self
        twin.mean, twin.variance = self.mean, self.variance
        return twin


class _Follower(ReferenceAdapter):
    original: ReferenceAdapter

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        result = super().forward(loaded, inputs, spec, wrt)
        self.original.mean, self.original.variance = self.mean, self.variance
        return result


@breaks("copies_keep_their_state", "batchnorm")
class _CopiesAnew(ReferenceAdapter):
    """A copy that begins with the statistics of a new model."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return type(self)(self._model, self._options)
