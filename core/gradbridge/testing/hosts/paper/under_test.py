"""The host on paper, as the kit's programs are written in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from gradbridge.layout import Array
from gradbridge.testing.hosts.paper import DECLARATION, PAPER, arrays
from gradbridge.testing.hosts.paper.arrays import PaperArray
from gradbridge.testing.hosts.under_test import ArrayFunction, Function, HostUnderTest
from gradbridge.testing.points import overwrite


class PaperHostUnderTest(HostUnderTest):
    """The tape on paper. It maps by a loop, and its compiler leaves functions as they are."""

    host: ClassVar[str] = PAPER
    declaration: ClassVar[Any] = DECLARATION

    def array(self, array: Array) -> PaperArray:
        return PaperArray(array.copy())

    def numpy(self, value: Any) -> Array:
        array: Array = value.value if isinstance(value, PaperArray) else value
        return array

    def sin(self, x: PaperArray) -> PaperArray:
        return arrays.sine(x)

    def sum(self, x: PaperArray) -> PaperArray:
        return arrays.total(x)

    def add(self, x: PaperArray, y: PaperArray) -> PaperArray:
        return arrays.add(x, y)

    def multiply(self, x: PaperArray, y: PaperArray) -> PaperArray:
        return arrays.multiply(x, y)

    def vjp(
        self, function: Function, arrays_: Sequence[PaperArray]
    ) -> tuple[Sequence[Any], Callable[[Sequence[Any]], Sequence[Any]]]:
        return arrays.vjp(function, arrays_)

    def gradient(self, function: ArrayFunction, argnums: tuple[int, ...] = (0,)) -> Function:
        def gradient(*every: PaperArray) -> tuple[Any, ...]:
            def of_some(*some: PaperArray) -> tuple[Any, ...]:
                full = list(every)
                for i, x in zip(argnums, some):
                    full[i] = x
                return (function(*full),)

            outputs, pull = arrays.vjp(of_some, [every[i] for i in argnums])
            return tuple(pull([PaperArray(np.ones((), outputs[0].dtype))]))

        return gradient

    def jvp(
        self, function: Function, arrays_: Sequence[Any], tangents: Sequence[Any]
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        return arrays.jvp(function, arrays_, tangents)

    def hessian(self, function: ArrayFunction) -> ArrayFunction:
        def hessian(x: PaperArray) -> PaperArray:
            _, pull = self.vjp(self.gradient(function), [x])
            units = np.eye(x.shape[0], dtype=x.dtype)
            return arrays.stacked([pull([PaperArray(unit)])[0] for unit in units])

        return hessian

    def vmap(self, function: Function) -> Function:
        def mapped(*stacks: PaperArray) -> tuple[Any, ...]:
            rows = [function(*(arrays.row(x, i) for x in stacks)) for i in range(stacks[0].shape[0])]
            return tuple(map(arrays.stacked, zip(*rows)))

        return mapped

    def compiled(self, function: Function) -> Function:
        return function

    def changeable(self, array: Array) -> tuple[PaperArray, Callable[[], None]]:
        own = PaperArray(array.copy())
        return own, lambda: overwrite([own.value])
