"""Where a derivative is taken, and the derivative there as a linear function of tangents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradbridge.borders import INEXACT
from gradbridge.call import Call
from gradbridge.errors import HigherOrderError, NotDifferentiableError, OptionError
from gradbridge.protocol import Array


@dataclass(frozen=True)
class Point:
    """A bridge at concrete arguments, not evaluated yet.

    Attributes:
        call: of the evaluation.
        params: (P,) real.
        leaves: the input leaves, admitted.
        steady: whether the model was bridged in eval mode.
        held: positions of the leaves that are declared non-differentiable.
        taken: the strategies that Jacobians were computed by here, in words.
        first: what the user counts the first input as: 1 after the params, 0 for a function of
            arrays alone.
    """

    call: Call
    params: Array
    leaves: list[Any]
    steady: bool
    held: frozenset[int] = frozenset()
    taken: list[str] = field(default_factory=list)
    first: int = 1

    @property
    def label(self) -> str:
        """What errors call the model."""
        return self.call.adapter.label

    def run(self, wrt: tuple[int, ...]) -> None:
        """Evaluate, keeping what it takes to pull back to these positions."""
        self.call.wrt = wrt
        self.call.run(self.params, self.leaves)

    def shape(self, position: int) -> tuple[int, ...]:
        """Of the argument at a position."""
        shape: tuple[int, ...] = np.shape(self.leaves[position - 1] if position else self.params)
        return shape

    def positions(self, wrt: Any) -> tuple[int, ...]:
        """`wrt` as the user gave it → positions.

        Raises:
            OptionError: not one of the arguments, or one of them twice.
            NotDifferentiableError: one that is declared non-differentiable.
        """
        wanted = wrt if isinstance(wrt, tuple) else (wrt,)
        last = len(self.leaves) - 1 + self.first
        for position in wanted:
            whole = isinstance(position, (int, np.integer)) and not isinstance(position, bool)
            if not whole or not 0 <= position <= last:
                inputs = "it has no input arrays"
                if self.leaves:
                    one = last == self.first
                    inputs = (
                        f"{last} is its input array"
                        if one
                        else f"{self.first} to {last} are its input arrays in order"
                    )
                params = "0 is its params, " if self.first else ""
                raise OptionError(f"wrt counts the arguments of {self.label}: {params}{inputs}; got {wrt!r}")
            if position + 1 - self.first in self.held:
                raise NotDifferentiableError(
                    f"a derivative with respect to argument {position} of {self.label} was asked for, and it was "
                    f"made with nondiff=, which holds it constant; leave it out of one of them"
                )
        if len(set(wanted)) != len(wanted) or not wanted:
            raise OptionError(f"wrt names each argument once, at least one of them, got {wrt!r}")
        return tuple(int(position) + 1 - self.first for position in wanted)


class Forward:
    """∂f/∂arguments as a linear function of tangents.

    The guest's own forward mode; where it has none, the pullback of the pullback, which is made
    once and then costs one backward for each tangent.

    Args:
        point: evaluated; what its call kept is not needed.
        positions: of the arguments that move.

    Source:
        J. Townsend (2017), A new trick for calculating Jacobian-vector products.
    """

    def __init__(self, point: Point, positions: tuple[int, ...]) -> None:
        self._point, self._positions = point, positions
        call = point.call
        first = len(point.leaves) + 1
        self._wrt = tuple(first + i for i, (_, dtype) in enumerate(call.outputs) if dtype.kind in INEXACT)
        self._gradient: Call | None = None

    def push(self, tangents: Sequence[Array]) -> list[Array]:
        """A tangent for each position → one for each output; zeros for integer ones.

        Raises:
            HigherOrderError: the guest has no forward mode, and cannot differentiate its gradient.
        """
        point = self._point
        if self._gradient is None:
            pushed = point.call.push(point.params, point.leaves, self._positions, tangents)
            if pushed is not None:
                return pushed
        found = dict(zip(self._wrt, self._pullback().pull(tangents, self._wrt)))
        first = len(point.leaves) + 1
        return [found.get(first + i, zero) for i, zero in enumerate(point.call.zero_cotangents())]

    def push_many(self, tangents: Sequence[Array]) -> list[Array] | None:
        """The same with a leading axis, for the floating outputs; None where the guest cannot."""
        point = self._point
        if self._gradient is None:
            pushed = point.call.push_many(point.params, point.leaves, self._positions, tangents)
            if pushed is not None:
                return [t for t, (_, dtype) in zip(pushed, point.call.outputs) if dtype.kind in INEXACT]
        return self._pullback().pull_many(tangents, self._wrt, "batched JVP")

    def _pullback(self) -> Call:
        if self._gradient is None:
            point = self._point
            try:
                gradient = point.call.differentiated(self._positions)
            except HigherOrderError as error:
                raise HigherOrderError(
                    f"a Jacobian-vector product of {point.label} was asked for; its backend has no forward mode "
                    f"for it, so it is made from the derivative of its gradient, and {error}"
                ) from error
            gradient.wrt = self._wrt
            gradient.run(point.params, [*point.leaves, *point.call.zero_cotangents()])
            self._gradient = gradient
        return self._gradient
