"""Where a derivative is taken, and the derivative there as a linear function of tangents."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gradbridge import trees
from gradbridge.borders import INEXACT
from gradbridge.errors import GuestError, HigherOrderError, NotDifferentiableError, OptionError, Unsupported
from gradbridge.execution import batched
from gradbridge.execution.evaluation import Call, Evaluation
from gradbridge.layout import Array

if TYPE_CHECKING:
    from gradbridge.host import Host


@dataclass(frozen=True)
class EvaluationPoint:
    """A bridge at concrete arguments, not evaluated yet.

    Attributes:
        call: to evaluate.
        values: the arguments: the params as a vector where there are any, and the input leaves, admitted.
        is_eval_mode: whether the model was bridged in eval mode.
        constants: the arguments that are declared non-differentiable.
        strategies_used: by which Jacobians were computed here, in words.
        receiver: how many of the arguments are the object whose method is called; `wrt` counts after them.
        host: that asks; None for arrays of NumPy.
    """

    call: Call
    values: Sequence[Any]
    is_eval_mode: bool
    constants: frozenset[int] = frozenset()
    strategies_used: list[str] = field(default_factory=list)
    receiver: int = 0
    host: Host | None = None

    def in_host(self, tree: Any) -> Any:
        """Arrays of NumPy as those of who asks; None, and what is not an array, as it is."""
        host = self.host
        if host is None:
            return tree
        return trees.mapped(lambda leaf: host.array(leaf) if hasattr(leaf, "dtype") else leaf, tree)

    def given(self, tree: Any) -> Any:
        """Arrays of who asks as NumPy's.

        Raises:
            NotDifferentiableError: the host is differentiating one of them.
        """
        return tree if self.host is None else trees.mapped(self.host.numpy, tree)

    @property
    def label(self) -> str:
        """What errors call the model."""
        return self.call.adapter.label

    def evaluate(self, wrt: tuple[int, ...]) -> Evaluation:
        """Evaluate, keeping what it takes to pull back to these arguments."""
        return self.call.evaluate(self.values, wrt)

    def shape(self, argument: int) -> tuple[int, ...]:
        """Of an argument."""
        shape: tuple[int, ...] = np.shape(self.values[argument])
        return shape

    def arguments(self, wrt: Any) -> tuple[int, ...]:
        """`wrt` as the user gave it → arguments.

        Raises:
            OptionError: not one of the arguments, or one of them twice.
            NotDifferentiableError: one that is declared non-differentiable.
        """
        wanted = wrt if isinstance(wrt, tuple) else (wrt,)
        first, last = self.call.first_input, len(self.values) - 1 - self.receiver
        for argument in wanted:
            whole = isinstance(argument, (int, np.integer)) and not isinstance(argument, bool)
            if not whole or not 0 <= argument <= last:
                inputs = "it has no input arrays"
                if last >= first:
                    inputs = (
                        f"{last} is its input array"
                        if last == first
                        else f"{first} to {last} are its input arrays in order"
                    )
                params = "0 is its params, " if first else ""
                raise OptionError(f"wrt counts the arguments of {self.label}: {params}{inputs}; got {wrt!r}")
            if argument + self.receiver in self.constants:
                raise NotDifferentiableError(
                    f"a derivative with respect to argument {argument} of {self.label} was asked for, and it was "
                    f"made with nondiff=, which holds it constant; leave it out of one of them"
                )
        if len(set(wanted)) != len(wanted) or not wanted:
            raise OptionError(f"wrt names each argument once, at least one of them, got {wrt!r}")
        return tuple(int(argument) + self.receiver for argument in wanted)


class Linearization:
    """∂f/∂arguments at an evaluation, as a linear function of tangents.

    The guest's own forward mode; where it has none, the pullback of the pullback, which starts from what
    the evaluation recorded, is made once, and then costs one backward for each tangent.

    Args:
        evaluation: where.
        wrt: the arguments that move.

    Source:
        J. Townsend (2017), A new trick for calculating Jacobian-vector products.
    """

    def __init__(self, evaluation: Evaluation, wrt: tuple[int, ...]) -> None:
        self._evaluation, self._wrt = evaluation, wrt
        first = len(evaluation.values)
        self._cotangents = tuple(
            first + i for i, y in enumerate(evaluation.outputs) if y.dtype.kind in INEXACT
        )
        self._gradient: Evaluation | None = None

    def start_from_record(self) -> None:
        """Push through what was recorded, so that no further forward is made; where that can be."""
        if self._evaluation.residuals is None or self._evaluation.adapter.refusal("pullback"):
            return
        with suppress(HigherOrderError, GuestError):  # its forward mode may do it all the same
            self._pullback()

    def push(self, tangents: Sequence[Array], own: bool = True) -> list[Array]:
        """A tangent for each argument → one for each output; zeros for integer ones.

        Args:
            tangents: one per argument.
            own: whether the guest's forward mode is asked, at the price of another forward.

        Raises:
            HigherOrderError: the guest has no forward mode, and cannot differentiate its gradient.
        """
        if not self._evaluation.call.arguments.leaves(self._wrt):  # the params of a model without any
            return self._evaluation.zero_cotangents()
        if own and self._gradient is None:
            try:
                return batched.push(self._evaluation, self._wrt, tangents)
            except Unsupported:
                pass  # made from the derivative of the gradient, then
        moved = dict(zip(self._cotangents, self._pullback().pull(tangents, self._cotangents)))
        first = len(self._evaluation.values)
        return [moved.get(first + i, zero) for i, zero in enumerate(self._evaluation.zero_cotangents())]

    def push_many(self, tangents: Sequence[Array]) -> list[Array]:
        """The same with a leading axis, for the floating outputs.

        Raises:
            Unsupported: the guest cannot.
        """
        if self._gradient is None:
            try:
                pushed = batched.push_many(self._evaluation, self._wrt, tangents)
                return [t for t, y in zip(pushed, self._evaluation.outputs) if y.dtype.kind in INEXACT]
            except Unsupported:
                pass
        return batched.pull_many(self._pullback(), tangents, self._cotangents, "batched JVP")

    def _pullback(self) -> Evaluation:
        if self._gradient is None:
            evaluation = self._evaluation
            try:
                call = evaluation.differentiated(self._wrt, products=False)
            except HigherOrderError as error:
                raise HigherOrderError(
                    f"a Jacobian-vector product of {evaluation.adapter.label} was asked for; its backend has no "
                    f"forward mode for it, so it is made from the derivative of its gradient, and {error}"
                ) from error
            arguments = [*evaluation.values, *evaluation.zero_cotangents()]
            self._gradient = call.evaluate(arguments, self._cotangents)
        return self._gradient
