"""Faults of laws 3 and 4 about what a function reads from outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradbridge.layout import Array
from gradbridge.testing.faulty.catalogue import breaks
from gradbridge.testing.paper import ReferenceAdapter


@breaks("outside_is_fresh", "energy")
class _Compiled(ReferenceAdapter):
    """Keeps what its function read from outside when it was compiled, at the first call."""

    def outside(self) -> Sequence[Any]:
        if not hasattr(self, "_kept"):
            self._kept = super().outside()
        return self._kept


@breaks("outside_is_fresh", "energy")
class _SameObject(ReferenceAdapter):
    """Compiles anew for another object outside, and takes one that was changed in place for the same."""

    def outside(self) -> Sequence[Any]:
        values = self._model.outside()
        if [id(y) for y in values] != [id(y) for y in getattr(self, "_seen", ())]:
            self._seen, self._kept = values, super().outside()
        return self._kept


@breaks("outside_in_flight", "energy")
class _RunsAgain(ReferenceAdapter):
    """Pulls back by running the function again, which reads what is there by then."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        loaded, arrays, spec = residuals
        again = [*arrays[: spec.count], *self.outside()]
        return super().backward((loaded, again, spec), cotangents, wrt)
