"""Programs of HIPS autograd, as the conformance kit for hosts writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import autograd
import autograd.numpy as anp
from autograd.builtins import tuple as boxed_tuple
from autograd.tracer import getval

from gradbridge.layout import Array
from gradbridge.testing.hosts import HostUnderTest


class UnderTest(HostUnderTest):
    """autograd, by its operators."""

    host: ClassVar[str] = "autograd"
    reasons: ClassVar[Mapping[str, str]] = {
        "vmap": "autograd maps nothing",
        "compiled": "autograd compiles nothing",
    }

    def array(self, array: Array) -> Array:
        return array.copy()

    def numpy(self, value: Any) -> Array:
        return anp.asarray(getval(value))

    def sin(self, x: Any) -> Any:
        return anp.sin(x)

    def sum(self, x: Any) -> Any:
        return anp.sum(x)

    def vjp(
        self, function: Callable[..., tuple[Any, ...]], arrays: Sequence[Any]
    ) -> tuple[Sequence[Any], Callable[[Sequence[Any]], Sequence[Any]]]:
        pull, outputs = autograd.make_vjp(_of_one(function, len(arrays)))(boxed_tuple(arrays))
        count = len(arrays)

        def pulled(cotangents: Sequence[Any]) -> Sequence[Any]:
            gradients = pull(boxed_tuple(cotangents))
            return [gradients[i] for i in range(count)]

        return [outputs[i] for i in range(len(outputs))], pulled

    def gradient(self, function: Callable[..., Any], argnums: tuple[int, ...] = (0,)) -> Callable[..., Any]:
        return autograd.grad(function, argnums)

    def jvp(
        self, function: Callable[..., Any], arrays: Sequence[Any], tangents: Sequence[Any]
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        outputs, moved = autograd.make_jvp(_of_one(function, len(arrays)))(boxed_tuple(arrays))(
            boxed_tuple(tangents)
        )
        return [outputs[i] for i in range(len(outputs))], [moved[i] for i in range(len(outputs))]

    def hessian(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return autograd.hessian(function)

    def changeable(self, array: Array) -> tuple[Array, Callable[[], None]]:
        own = array.copy()
        return own, lambda: own.fill(99.0)


def _of_one(function: Callable[..., tuple[Any, ...]], count: int) -> Callable[[Any], Any]:
    """A function of one tuple that gives a tuple, both of them autograd's."""
    return lambda arrays: boxed_tuple(function(*[arrays[i] for i in range(count)]))
