"""MyGrad as a host: a program of its tensors calls any guest, and `backward()` goes through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import mygrad as mg
import numpy as np
from mygrad.operation_base import Operation

from gradbridge.extend import Array, ArraySpec, LiftingHost, Node, NotDifferentiableError, Run, trees


class Lifted(Operation):
    """A call as one operation. It gives its floating outputs in one vector, since operations have one output."""

    run: Run
    wrt: tuple[int, ...]

    def __call__(self, *operands: mg.Tensor, node: Node, runs: list[Run]) -> Array:
        self.variables = operands
        self.wrt = tuple(i for i, x in enumerate(operands) if not x.constant and x.dtype.kind == "f")
        self.run = node.evaluate([x.data for x in operands], self.wrt)
        runs.append(self.run)
        return np.concatenate([np.ravel(y) for y in _floating(self.run)] or [np.empty(0)])

    def backward(self, grad: Array, **kwargs: Any) -> None:
        outputs = _floating(self.run)
        parts = np.split(grad, np.cumsum([y.size for y in outputs])[:-1])
        cotangents = [part.reshape(y.shape) for part, y in zip(parts, outputs)]
        self._pulled = dict(zip(self.wrt, self.run.pull(cotangents, self.wrt)))  # one backward for all
        super().backward(grad, **kwargs)

    def backward_var(self, grad: Array, index: int, **kwargs: Any) -> Array:
        return self._pulled[index]


class MyGradHost(LiftingHost):
    """Lifts calls into operations of MyGrad's graph: first derivatives, since its gradients are NumPy's arrays."""

    name: ClassVar[str] = "mygrad"

    def owns(self, value: Any) -> bool:
        return isinstance(value, mg.Tensor)

    def follows(self, value: Any) -> bool:
        return isinstance(value, mg.Tensor) and not value.constant

    def constant(self, value: Any) -> Any:
        return mg.tensor(value, constant=True) if self.owns(value) else value

    def array(self, array: Array, is_own: bool = True) -> mg.Tensor:
        return mg.tensor(array, constant=True, copy=not is_own)

    def numpy(self, value: Any) -> Any:
        if self.follows(value) and value.creator is not None:
            raise NotDifferentiableError("a tensor within a graph was to be read as NumPy's; detach it first")
        return value.data if self.owns(value) else value

    def spec(self, array: mg.Tensor) -> ArraySpec:
        return ArraySpec(array.shape, array.dtype)

    def lift(self, node: Node, operands: Sequence[mg.Tensor]) -> Any:
        runs: list[Run] = []
        vector = mg.execute_op(Lifted, *operands, op_kwargs={"node": node, "runs": runs})
        (run,), leaves, start = runs, [], 0
        for y, is_floating in zip(run.outputs, run.inexact):
            stop = start + y.size * is_floating
            own = vector[start:stop].reshape(y.shape) if is_floating else mg.tensor(y, constant=True)
            leaves, start = [*leaves, own], stop
        return leaves[0] if run.structure is None else trees.unflatten(run.structure, leaves)


def _floating(run: Run) -> list[Array]:
    return [y for y, yes in zip(run.outputs, run.inexact) if yes]
