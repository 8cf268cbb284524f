"""Faults of what a guest may do in one computation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.layout import Array
from gradbridge.testing.faulty.catalogue import breaks
from gradbridge.testing.paper import ReferenceAdapter


@breaks("many_cotangents")
class _FirstOfMany(ReferenceAdapter):
    """Answers all cotangents with what belongs to the first, as a map over the wrong axis does."""

    def backward_many(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        return super().backward_many(residuals, [np.broadcast_to(c[:1], c.shape) for c in cotangents], wrt)


@breaks("many_cotangents")
class _EightAtOnce(ReferenceAdapter):
    """Has room for eight cotangents, and zeros for the others."""

    def backward_many(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        gradients = super().backward_many(residuals, cotangents, wrt)
        for g in gradients:
            g[8:] = 0
        return gradients


@breaks("per_example_jacobians")
class _MixedRows(ReferenceAdapter):
    """Spreads what the rows have in common evenly over them."""

    def row_jacobians(
        self,
        loaded: list[Array],
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        has_rows: tuple[bool, ...],
    ) -> list[list[Array]]:
        jacobians = super().row_jacobians(loaded, inputs, spec, wrt, has_rows)
        return [[np.broadcast_to(g.mean(0), g.shape).copy() for g in output] for output in jacobians]


@breaks("forward_mode")
class _HeldArguments(ReferenceAdapter):
    """Pushes the tangent of the first argument alone; the others are held."""

    def pushforward(
        self,
        loaded: list[Array],
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> tuple[Any, list[Array]]:
        first, *rest = tangents
        held = [first, *(np.zeros_like(t) for t in rest)]
        return super().pushforward(loaded, inputs, spec, wrt, held)


@breaks("forward_mode_many")
class _Summed(ReferenceAdapter):
    """Adds the tangents up, and answers each with the sum."""

    def pushforward_many(
        self,
        loaded: list[Array],
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> list[Array]:
        summed = [np.broadcast_to(t.sum(0), t.shape) for t in tangents]
        return super().pushforward_many(loaded, inputs, spec, wrt, summed)


@breaks("forward_mode_many")
class _SixteenAtOnce(ReferenceAdapter):
    """Answers the tangents from the seventeenth on with those of the first ones."""

    def pushforward_many(
        self,
        loaded: list[Array],
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> list[Array]:
        around = [t[np.arange(len(t)) % 16] for t in tangents]
        return super().pushforward_many(loaded, inputs, spec, wrt, around)


@breaks("forward_mode_mask", "dropout")
class _AnotherMask(ReferenceAdapter):
    """Draws a new mask for the tangent."""

    def pushforward(
        self,
        loaded: list[Array],
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> tuple[Any, list[Array]]:
        another = replace(spec, noise=spec.noise + 1)
        return super().pushforward(loaded, inputs, another, wrt, tangents)
