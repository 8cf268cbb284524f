"""Faults of values and first derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.layout import Array
from gradbridge.lifting import Node
from gradbridge.testing.hosts.faulty.catalogue import breaks
from gradbridge.testing.hosts.paper.arrays import Linear, PaperArray, Step, add, apply, total
from gradbridge.testing.hosts.paper.host import Lifted, PaperHost


@breaks("host_value", "outputs")
class _ForgetsTheTree(PaperHost):
    """Gives the leaves of a tree as a tuple."""

    def lift(self, node: Node, operands: Sequence[PaperArray]) -> Any:
        return tuple(apply(self.operation(node, ()), *operands))


@breaks("host_value")
class _HandsOutNumPy(PaperHost):
    """Gives NumPy's arrays where nobody differentiates."""

    def lift(self, node: Node, operands: Sequence[PaperArray]) -> Any:
        lifted = super().lift(node, operands)
        return lifted if any(x.is_followed for x in operands) else lifted.value


@breaks("host_gradients")
class _ParamsAlone(Lifted):
    """Thinks that the params are all that is differentiated: gradients of inputs are zeros."""

    def pull(self, step: Step, cotangents: Sequence[PaperArray]) -> Sequence[PaperArray | None]:
        return [*super().pull(step, cotangents)[:1], *(None for _ in step.operands[1:])]


@breaks("host_chain_rule")
class _OfTheSum(Lifted):
    """Pulls back ones, whatever the cotangent: right where a program ends with a sum of the outputs."""

    def pull(self, step: Step, cotangents: Sequence[PaperArray]) -> Sequence[PaperArray | None]:
        return super().pull(step, [PaperArray(np.ones_like(c.value)) for c in cotangents])


@breaks("host_integers_are_constants", "labels")
class _StraightThrough(PaperHost):
    """Pulls integers back as if they were numbers that move with the inputs."""

    def lift(self, node: Node, operands: Sequence[PaperArray]) -> Any:
        values, labels = super().lift(node, operands)
        shape, moving = labels.shape, total(operands[-1])
        still = add(moving, PaperArray(-moving.value))  # zero, and moves
        (zeros,) = apply(Linear(lambda a: np.broadcast_to(a, shape), np.sum), still)
        return values, add(PaperArray(labels.value.astype(np.float64)), zeros)


@breaks("host_complex_numbers", "wave")
class _Conjugated(Lifted):
    """Pulls back by the other convention of complex numbers than the program's."""

    def pull(self, step: Step, cotangents: Sequence[PaperArray]) -> Sequence[PaperArray | None]:
        return super().pull(step, [PaperArray(np.conj(c.value)) for c in cotangents])


@breaks("host_takes_numpy")
class _ReadsInSingle(PaperHost):
    """Takes NumPy's arrays in its own usual precision, which is float32."""

    def array(self, array: Array, is_own: bool = True) -> PaperArray:
        return PaperArray(array.astype(np.float32) if array.dtype == np.float64 else array)


@breaks("host_takes_numpy")
class _WritesToConstants(PaperHost):
    """Uses the memory of NumPy's arrays for its own once a call is made."""

    def array(self, array: Array, is_own: bool = True) -> PaperArray:
        own = super().array(array, is_own)
        if not is_own:
            array.flags.writeable = True
            array[...] = 0
        return own


@breaks("host_pulled_twice")
class _AddsUp(Lifted):
    """Adds gradients up from one pullback to the next."""

    _sums: Sequence[PaperArray] | None = None

    def gradient(
        self, operands: Sequence[PaperArray], cotangents: Sequence[PaperArray]
    ) -> Sequence[PaperArray]:
        fresh = super().gradient(operands, cotangents)
        self._sums = fresh if self._sums is None else [add(a, b) for a, b in zip(self._sums, fresh)]
        return self._sums


@breaks("host_arrays_intact")
class _SpendsCotangents(Lifted):
    """Uses the memory of a cotangent for its own once it was pulled back."""

    def pull(self, step: Step, cotangents: Sequence[PaperArray]) -> Sequence[PaperArray | None]:
        gradients = super().pull(step, cotangents)
        for c in cotangents:
            c.value[...] = 0
        return gradients


@breaks("host_no_influence", "unused")
class _Noise(Lifted):
    """Leaves a trace of its own arithmetic where there should be zeros."""

    def gradient(
        self, operands: Sequence[PaperArray], cotangents: Sequence[PaperArray]
    ) -> Sequence[PaperArray]:
        fresh = super().gradient(operands, cotangents)
        return [add(g, PaperArray(np.full_like(g.value, 1e-30))) for g in fresh]
