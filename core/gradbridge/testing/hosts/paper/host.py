"""The host half of the tape on paper: how it lifts any bridge's call. All of what a host must do is here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from gradbridge import trees
from gradbridge.borders import INEXACT
from gradbridge.errors import NotDifferentiableError
from gradbridge.layout import Array
from gradbridge.lifting import LiftingHost, Node, Run
from gradbridge.protocol import ArraySpec
from gradbridge.testing.hosts.paper.arrays import Operation, PaperArray, Step, apply


class Lifted(Operation):
    """A node as an operation of the tape: a bridge's call, or the gradient of one.

    Args:
        node: the function.
        wrt: operands that it may be pulled back to.
        parent: of a gradient: what was recorded by the node that it is the gradient of.
    """

    #: What it recorded, once it was run.
    recorded: Run

    def __init__(self, node: Node, wrt: tuple[int, ...], parent: Run | None = None) -> None:
        self.node, self.wrt, self.parent = node, wrt, parent

    def run(self, operands: Sequence[Array]) -> Sequence[Array]:
        self.recorded = self.node.evaluate(operands, self.wrt, self.parent)
        return self.recorded.outputs

    def pull(self, step: Step, cotangents: Sequence[PaperArray]) -> Sequence[PaperArray | None]:
        floating = [c for c, yes in zip(cotangents, self.recorded.inexact) if yes]
        gradients = iter(self.gradient(step.operands, floating))
        return [next(gradients) if i in self.wrt else None for i in range(len(step.operands))]

    def push(self, step: Step, tangents: Sequence[PaperArray | None]) -> Sequence[PaperArray]:
        wrt = tuple(i for i in self.wrt if tangents[i] is not None)
        moving = [t for t in tangents if t is not None]
        outputs, inexact = self.recorded.outputs, self.recorded.inexact
        if not any(x.is_followed for x in (*step.operands, *moving)):
            pushed = iter([PaperArray(t) for t in self.recorded.push([t.value for t in moving], wrt)])
        else:
            # cᵀJ is linear in c, so its own pullback there is J t: a node again, where this is differentiated.
            zeros = [PaperArray(np.zeros_like(y)) for y, yes in zip(outputs, inexact) if yes]
            cotangents = tuple(range(len(step.operands), len(step.operands) + len(zeros)))
            every = [*step.operands, *zeros]
            gradient = type(self)(self.node.derivative(wrt, inexact), cotangents, self.recorded)
            gradient.run([x.value for x in every])
            pushed = iter(gradient.gradient(every, moving))
        return [next(pushed) if yes else PaperArray(np.zeros_like(y)) for y, yes in zip(outputs, inexact)]

    def gradient(
        self, operands: Sequence[PaperArray], cotangents: Sequence[PaperArray]
    ) -> Sequence[PaperArray]:
        """cᵀJ for each of `wrt`; where it is differentiated itself, as a node that starts from what was recorded."""
        every = [*operands, *cotangents]
        if not any(x.is_followed for x in every):
            return list(map(PaperArray, self.recorded.pull([c.value for c in cotangents], self.wrt)))
        node = self.node.derivative(self.wrt, self.recorded.inexact)
        return apply(type(self)(node, followed(every), self.recorded), *every)


class PaperHost(LiftingHost):
    """Lifts nodes into operations of the tape."""

    name: ClassVar[str] = "paper"

    #: What a node becomes.
    operation: ClassVar[type[Lifted]] = Lifted

    def owns(self, value: Any) -> bool:
        return isinstance(value, PaperArray)

    def follows(self, value: Any) -> bool:
        return isinstance(value, PaperArray) and value.is_followed

    def constant(self, value: Any) -> Any:
        return PaperArray(value.value) if isinstance(value, PaperArray) else value

    def array(self, array: Array, is_own: bool = True) -> PaperArray:
        return PaperArray(array if is_own else array.copy())

    def numpy(self, value: Any) -> Any:
        if not isinstance(value, PaperArray):
            return value
        if value.is_followed:
            raise NotDifferentiableError("an array that the tape follows was to be read as NumPy's")
        return value.value

    def spec(self, array: PaperArray) -> ArraySpec:
        return ArraySpec(array.shape, array.dtype)

    def lift(self, node: Node, operands: Sequence[PaperArray]) -> Any:
        lifted = self.operation(node, followed(operands))
        leaves = apply(lifted, *operands)
        run = lifted.recorded
        leaves = [y if yes else PaperArray(y.value) for y, yes in zip(leaves, run.inexact)]
        return leaves[0] if run.structure is None else trees.unflatten(run.structure, leaves)


def followed(operands: Sequence[PaperArray]) -> tuple[int, ...]:
    """Which operands are differentiated."""
    return tuple(i for i, x in enumerate(operands) if x.is_followed and x.dtype.kind in INEXACT)
