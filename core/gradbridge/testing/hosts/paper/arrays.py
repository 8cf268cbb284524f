"""Arrays that know how they came about, and derivatives of what was computed with them.

An `Operation` says how it is run, pulled back and pushed forward; the last two in operations again, so that
derivatives are arrays of the same kind, to any order.
"""

from __future__ import annotations

import itertools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradbridge.layout import Array

_numbers = itertools.count()


class _Recording(threading.local):
    """How many functions that are differentiated this thread is within; steps are noted there alone."""

    depth = 0


_recording = _Recording()


class PaperArray:
    """A value, and the step that it came from; None where nobody differentiates it."""

    __slots__ = ("index", "step", "value")

    def __init__(self, value: Array, step: Step | None = None, index: int = 0) -> None:
        self.value, self.step, self.index = value, step, index

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the value."""
        return self.value.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the value."""
        return self.value.dtype

    @property
    def is_followed(self) -> bool:
        """Whether what is computed with it now is differentiated."""
        return self.step is not None and _recording.depth > 0


class Step:
    """One operation that was run.

    Attributes:
        operation: which.
        operands: what it was run on.
        outputs: what came.
        number: greater than those of the steps before.
    """

    __slots__ = ("number", "operands", "operation", "outputs")

    def __init__(self, operation: Operation, operands: Sequence[PaperArray]) -> None:
        self.operation, self.operands, self.number = operation, list(operands), next(_numbers)
        self.outputs: list[PaperArray] = []


class Operation(ABC):
    """A function of arrays, with its derivatives."""

    @abstractmethod
    def run(self, operands: Sequence[Array]) -> Sequence[Array]:
        """The outputs."""

    @abstractmethod
    def pull(self, step: Step, cotangents: Sequence[PaperArray]) -> Sequence[PaperArray | None]:
        """A gradient for each operand, None where there is none."""

    @abstractmethod
    def push(self, step: Step, tangents: Sequence[PaperArray | None]) -> Sequence[PaperArray]:
        """A tangent for each output; a tangent of an operand that does not move is None."""


def apply(operation: Operation, *operands: PaperArray) -> list[PaperArray]:
    """Run an operation, and note it where an operand is differentiated."""
    values = operation.run([x.value for x in operands])
    if not any(x.is_followed for x in operands):
        return [PaperArray(value) for value in values]
    step = Step(operation, operands)
    step.outputs = [PaperArray(value, step, i) for i, value in enumerate(values)]
    return step.outputs


# -- elementary operations --------------------------------------------------------------------


class Linear(Operation):
    """A linear map of one array, with its transposed one."""

    def __init__(self, run: Callable[[Array], Array], transposed: Callable[[Array], Array]) -> None:
        self._run, self._transposed = run, transposed

    def run(self, operands: Sequence[Array]) -> Sequence[Array]:
        return [np.array(self._run(operands[0]))]

    def pull(self, step: Step, cotangents: Sequence[PaperArray]) -> Sequence[PaperArray | None]:
        return apply(Linear(self._transposed, self._run), cotangents[0])

    def push(self, step: Step, tangents: Sequence[PaperArray | None]) -> Sequence[PaperArray]:
        assert tangents[0] is not None
        return apply(self, tangents[0])


class Sine(Operation):
    """sin(x + shift), so that the cosine is the sine a quarter turn on."""

    def __init__(self, shift: float = 0.0) -> None:
        self._shift = shift

    def run(self, operands: Sequence[Array]) -> Sequence[Array]:
        return [np.sin(operands[0] + operands[0].dtype.type(self._shift))]

    def pull(self, step: Step, cotangents: Sequence[PaperArray]) -> Sequence[PaperArray | None]:
        return [multiply(cotangents[0], *apply(Sine(self._shift + np.pi / 2), *step.operands))]

    def push(self, step: Step, tangents: Sequence[PaperArray | None]) -> Sequence[PaperArray]:
        assert tangents[0] is not None
        return [multiply(tangents[0], *apply(Sine(self._shift + np.pi / 2), *step.operands))]


class Sum(Operation):
    """Of two arrays of one shape."""

    def run(self, operands: Sequence[Array]) -> Sequence[Array]:
        return [np.asarray(operands[0] + operands[1])]

    def pull(self, step: Step, cotangents: Sequence[PaperArray]) -> Sequence[PaperArray | None]:
        return [cotangents[0], cotangents[0]]

    def push(self, step: Step, tangents: Sequence[PaperArray | None]) -> Sequence[PaperArray]:
        moving = [t for t in tangents if t is not None]
        return [add(*moving)] if len(moving) == 2 else moving


class Product(Operation):
    """Of two arrays of one shape."""

    def run(self, operands: Sequence[Array]) -> Sequence[Array]:
        return [np.asarray(operands[0] * operands[1])]

    def pull(self, step: Step, cotangents: Sequence[PaperArray]) -> Sequence[PaperArray | None]:
        x, y = step.operands
        return [multiply(cotangents[0], y), multiply(cotangents[0], x)]

    def push(self, step: Step, tangents: Sequence[PaperArray | None]) -> Sequence[PaperArray]:
        (x, y), (t, u) = step.operands, tangents
        moving = [multiply(a, b) for a, b in ((t, y), (u, x)) if a is not None]
        return [add(*moving)] if len(moving) == 2 else moving


class Stack(Operation):
    """Arrays of one shape, along a new first axis."""

    def run(self, operands: Sequence[Array]) -> Sequence[Array]:
        return [np.stack(operands)]

    def pull(self, step: Step, cotangents: Sequence[PaperArray]) -> Sequence[PaperArray | None]:
        return [row(cotangents[0], i) for i in range(len(step.operands))]

    def push(self, step: Step, tangents: Sequence[PaperArray | None]) -> Sequence[PaperArray]:
        still = [PaperArray(np.zeros_like(x.value)) for x in step.operands]
        return apply(self, *(s if t is None else t for t, s in zip(tangents, still)))


_IDENTITY = Linear(np.positive, np.positive)


def add(x: PaperArray, y: PaperArray) -> PaperArray:
    """x + y, of one shape."""
    return apply(Sum(), x, y)[0]


def multiply(x: PaperArray, y: PaperArray) -> PaperArray:
    """x * y, of one shape, or y without axes."""
    if x.shape != y.shape:
        shape = x.shape
        (y,) = apply(Linear(lambda a: np.broadcast_to(a, shape), np.sum), y)
    if y.dtype.kind in "iub":
        y = PaperArray(y.value.astype(x.dtype))
    return apply(Product(), x, y)[0]


def sine(x: PaperArray) -> PaperArray:
    """sin(x)."""
    return apply(Sine(), x)[0]


def total(x: PaperArray) -> PaperArray:
    """Σ x."""
    shape = x.shape
    return apply(Linear(np.sum, lambda a: np.broadcast_to(a, shape)), x)[0]


def row(x: PaperArray, index: int) -> PaperArray:
    """x[index]."""
    shape = x.shape

    def placed(a: Array) -> Array:
        zeros = np.zeros(shape, a.dtype)
        zeros[index] = a
        return zeros

    return apply(Linear(lambda a: a[index], placed), x)[0]


def stacked(arrays: Sequence[PaperArray]) -> PaperArray:
    """Along a new first axis."""
    return apply(Stack(), *arrays)[0]


# -- derivatives ------------------------------------------------------------------------------


def recorded(
    function: Callable[..., Sequence[PaperArray]], arrays: Sequence[PaperArray]
) -> tuple[list[PaperArray], list[PaperArray], list[Step]]:
    """(variables in place of arrays, what the function makes of them, the steps in between, in order)."""
    variables = []
    for x in arrays:
        step = Step(_IDENTITY, [x])
        step.outputs = [PaperArray(x.value, step)]
        variables += step.outputs
    _recording.depth += 1
    try:
        outputs = list(function(*variables))
    finally:
        _recording.depth -= 1
    found: dict[int, Step] = {}
    first = min((v.step.number for v in variables if v.step is not None), default=0)
    pending = [y.step for y in outputs if y.step is not None]
    while pending:
        step = pending.pop()
        if step.number >= first and step.number not in found:
            found[step.number] = step
            pending += [x.step for x in step.operands if x.step is not None]
    for v in variables:
        assert v.step is not None
        found.pop(v.step.number, None)
    return variables, outputs, [found[number] for number in sorted(found)]


def vjp(
    function: Callable[..., Sequence[PaperArray]], arrays: Sequence[PaperArray]
) -> tuple[list[PaperArray], Callable[[Sequence[PaperArray]], list[PaperArray]]]:
    """(outputs, cotangents ↦ a gradient for each array)."""
    variables, outputs, steps = recorded(function, arrays)

    def pull(cotangents: Sequence[PaperArray]) -> list[PaperArray]:
        gathered: dict[tuple[int, int], PaperArray] = {}

        def gather(x: PaperArray, gradient: PaperArray | None) -> None:
            if x.step is not None and gradient is not None:
                key = x.step.number, x.index
                gathered[key] = add(gathered[key], gradient) if key in gathered else gradient

        for y, cotangent in zip(outputs, cotangents):
            gather(y, cotangent)
        for step in reversed(steps):
            own = [gathered.get((step.number, i)) for i in range(len(step.outputs))]
            if any(c is not None for c in own):
                every = [_zeros(y) if c is None else c for c, y in zip(own, step.outputs)]
                for x, gradient in zip(step.operands, step.operation.pull(step, every)):
                    gather(x, gradient)
        numbers = [v.step.number for v in variables if v.step is not None]
        return [gathered.get((number, 0), _zeros(v)) for number, v in zip(numbers, variables)]

    return outputs, pull


def jvp(
    function: Callable[..., Sequence[PaperArray]],
    arrays: Sequence[PaperArray],
    tangents: Sequence[PaperArray],
) -> tuple[list[PaperArray], list[PaperArray]]:
    """(outputs, their tangents)."""
    variables, outputs, steps = recorded(function, arrays)
    moving = {(v.step.number, 0): t for v, t in zip(variables, tangents) if v.step is not None}

    def tangent(x: PaperArray) -> PaperArray | None:
        return None if x.step is None else moving.get((x.step.number, x.index))

    for step in steps:
        own = [tangent(x) for x in step.operands]
        if any(t is not None for t in own):
            moving.update({(step.number, i): t for i, t in enumerate(step.operation.push(step, own))})
    pushed = [tangent(y) for y in outputs]
    return outputs, [_zeros(y) if t is None else t for y, t in zip(outputs, pushed)]


def _zeros(like: PaperArray) -> PaperArray:
    return PaperArray(np.zeros_like(like.value))
