"""Faults of maps and of compiled programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.testing.hosts.faulty.catalogue import breaks
from gradbridge.testing.hosts.paper.arrays import PaperArray, row, stacked
from gradbridge.testing.hosts.paper.under_test import PaperHostUnderTest
from gradbridge.testing.hosts.under_test import Function


@breaks("host_vmap")
class _FirstRowForAll(PaperHostUnderTest):
    """Takes what does not depend on its mapped axis, as it thinks, out of the loop."""

    def vmap(self, function: Function) -> Function:
        def mapped(*stacks: PaperArray) -> tuple[Any, ...]:
            first = function(*(row(x, 0) for x in stacks))
            return tuple(stacked([y] * stacks[0].shape[0]) for y in first)

        return mapped


@breaks("host_vmap_of_gradients")
class _SumsGradients(PaperHostUnderTest):
    """Adds the gradients of all rows up, as if the arguments were not mapped."""

    def vmap(self, function: Function) -> Function:
        right = super().vmap(function)

        def mapped(*stacks: PaperArray) -> tuple[Any, ...]:
            outputs = right(*stacks)
            if [y.shape for y in outputs] != [x.shape for x in stacks]:
                return outputs
            return tuple(PaperArray(np.broadcast_to(y.value.sum(0), y.shape)) for y in outputs)

        return mapped


@breaks("host_gradient_of_vmap")
class _ConstantRows(PaperHostUnderTest):
    """Cuts rows out with an operation that has no derivative."""

    def vmap(self, function: Function) -> Function:
        def mapped(*stacks: PaperArray) -> tuple[Any, ...]:
            count = stacks[0].shape[0]
            rows = [function(*(PaperArray(x.value[i]) for x in stacks)) for i in range(count)]
            return tuple(map(stacked, zip(*rows)))

        return mapped


@breaks("host_compiled")
@breaks("host_compiled_gradient")
@breaks("host_compiled_second_order")
class _BakedIn(PaperHostUnderTest):
    """Its compiler takes the values of the first run for constants."""

    def compiled(self, function: Function) -> Function:
        first: list[tuple[Any, ...]] = []

        def compiled(*arrays: Any) -> tuple[Any, ...]:
            if not first:
                first.append(function(*arrays))
            return first[0]

        return compiled


@breaks("host_compiled")
class _NoGradientInside(PaperHostUnderTest):
    """What it compiled has no derivative, and says zero."""

    def compiled(self, function: Function) -> Function:
        return lambda *arrays: tuple(PaperArray(y.value) for y in function(*arrays))


@breaks("host_compiled_forward_mode")
class _StillWhenCompiled(PaperHostUnderTest):
    """Within a compiled program a custom operation has no forward mode, and says zero."""

    _is_compiled = False

    def compiled(self, function: Function) -> Function:
        def compiled(*arrays: Any) -> tuple[Any, ...]:
            self._is_compiled = True
            try:
                return function(*arrays)
            finally:
                self._is_compiled = False

        return compiled

    def jvp(
        self, function: Function, arrays_: Sequence[Any], tangents: Sequence[Any]
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        outputs, moved = super().jvp(function, arrays_, tangents)
        if self._is_compiled:
            moved = [PaperArray(np.zeros_like(t.value)) for t in moved]
        return outputs, moved
