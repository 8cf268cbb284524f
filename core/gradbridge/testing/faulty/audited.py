"""Faults in what an adapter tells about itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.inspection import Stranger
from gradbridge.layout import Array
from gradbridge.testing.faulty.catalogue import breaks
from gradbridge.testing.paper import ReferenceAdapter


@breaks("in_dtype")
class _CastsOutputsAlone(ReferenceAdapter):
    """Casts to float64 what it has computed in float32."""

    def in_dtype(self, name: str) -> Self:
        wide = super().in_dtype(name)
        if self._options.dtype == "float32":
            wide.dtype = np.dtype(np.float32)
        return wide


@breaks("in_dtype")
class _WidensItself(ReferenceAdapter):
    """Brings the adapter itself to the other dtype, and gives a twin."""

    def in_dtype(self, name: str) -> Self:
        self.dtype = np.dtype(name)
        return super().in_dtype(name)


@breaks("fresh_computes_the_same")
class _FreshWeights(ReferenceAdapter):
    """fresh() draws new weights, as the model's class does when it is made."""

    def fresh(self) -> Self:
        drawn = {name: np.ones(shape) for name, shape in self.scenario.shapes.items()}
        return type(self)(replace(self._model, params=drawn), self._options)


@breaks("fresh_computes_the_same")
class _FreshForgetsItsMode(ReferenceAdapter):
    """fresh() is not in the precision that was asked for."""

    def fresh(self) -> Self:
        return type(self)(self._model, replace(self._options, dtype="float32"))


@breaks("fresh_keeps_to_itself", "batchnorm")
class _FreshMovesMine(ReferenceAdapter):
    """fresh() moves the statistics of the adapter that it was made of as well."""

    original: ReferenceAdapter | None = None

    def fresh(self) -> Self:
        new = super().fresh()
        new.original = self
        return new

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        result = super().forward(loaded, inputs, spec, wrt)
        if self.original is not None:
            self.original.mean, self.original.variance = self.mean, self.variance
        return result


@breaks("isolated_calls")
class _IsolatesOnce(ReferenceAdapter):
    """Computes every call with the copy that it made for the first, and with that one's weights."""

    def isolate_calls(self) -> bool:
        self._isolated = True
        return True

    def load(self, weights: Sequence[Array]) -> list[Array]:
        loaded = super().load(weights)
        if not getattr(self, "_isolated", False):
            return loaded
        first: list[Array] = self.__dict__.setdefault(f"_first_{len(loaded)}", loaded)
        return first


@breaks("no_strangers")
class _NamesItsOwn(ReferenceAdapter):
    """Takes the weights of the call for strangers."""

    def strangers(self, residuals: Any) -> Sequence[Stranger]:
        return [Stranger(name, True) for name in self.layout.names]
