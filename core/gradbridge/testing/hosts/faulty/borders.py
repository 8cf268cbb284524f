"""Faults at the border between host and guest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.layout import Array
from gradbridge.testing.hosts.faulty.catalogue import breaks
from gradbridge.testing.hosts.paper.arrays import PaperArray, Step
from gradbridge.testing.hosts.paper.host import Lifted, PaperHost


@breaks("host_float32")
class _WideOutputs(Lifted):
    """Gives outputs in float64, whatever the program computes in."""

    def run(self, operands: Sequence[Array]) -> Sequence[Array]:
        return [y.astype(np.float64) for y in super().run(operands)]


@breaks("host_float32")
class _WideGradients(Lifted):
    """Gives gradients in float64."""

    def pull(self, step: Step, cotangents: Sequence[PaperArray]) -> Sequence[PaperArray | None]:
        gradients = super().pull(step, cotangents)
        return [None if g is None else PaperArray(g.value.astype(np.float64)) for g in gradients]


@breaks("host_float32_second_order")
class _WideAgain(Lifted):
    """Gives gradients of gradients in float64."""

    def pull(self, step: Step, cotangents: Sequence[PaperArray]) -> Sequence[PaperArray | None]:
        gradients = super().pull(step, cotangents)
        if self.node.parent is None:
            return gradients
        return [None if g is None else PaperArray(g.value.astype(np.float64)) for g in gradients]


@breaks("host_trees")
class _FirstLeaf(Lifted):
    """Thinks that params are one array."""

    def pull(self, step: Step, cotangents: Sequence[PaperArray]) -> Sequence[PaperArray | None]:
        return [*super().pull(step, cotangents)[:1], *(None for _ in step.operands[1:])]


@breaks("host_named")
class _ParamsAsTheyAre(PaperHost):
    """Gives NumPy's array of the params, also where it was named as the host."""

    def array(self, array: Array, is_own: bool = True) -> Any:
        return array if is_own else super().array(array, is_own)


@breaks("host_two_hosts")
class _FollowsNothing(PaperHost):
    """Does not say which of its arrays are differentiated: another host in the call is believed."""

    def follows(self, value: Any) -> bool:
        return False
