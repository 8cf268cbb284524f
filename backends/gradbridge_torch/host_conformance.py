"""Programs of PyTorch, as the conformance kit for hosts writes them: by the tape, and by `torch.func`."""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch._dynamo import trace_rules

from gradbridge.layout import Array
from gradbridge.testing import hosts
from gradbridge.testing.hosts import HostUnderTest


class _Depth(threading.local):
    """How many functions that are differentiated this thread is within."""

    now = 0


class UnderTest(HostUnderTest):
    """`vjp` is the tape, as a training loop has it; gradients and transformations are those of `torch.func`."""

    host: ClassVar[str] = "torch"
    conjugates: ClassVar[bool] = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._depth = _Depth()

    def array(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(array.copy())

    def numpy(self, value: Any) -> Array:
        return value.numpy(force=True) if isinstance(value, torch.Tensor) else value

    def sin(self, x: Any) -> torch.Tensor:
        return torch.sin(x)

    def sum(self, x: Any) -> torch.Tensor:
        return torch.sum(x)

    def vjp(
        self, function: Callable[..., tuple[Any, ...]], arrays: Sequence[Any]
    ) -> tuple[Sequence[Any], Callable[[Sequence[Any]], Sequence[Any]]]:
        primals = [a if a.requires_grad else a.detach().requires_grad_() for a in arrays]
        self._depth.now += 1
        try:
            outputs = function(*primals)
        finally:
            self._depth.now -= 1

        def pull(cotangents: Sequence[Any]) -> Sequence[Any]:
            # What depends on nothing that moves is no part of torch's graph.
            moving = [(y, c) for y, c in zip(outputs, cotangents) if y.requires_grad]
            if not moving:
                return [torch.zeros_like(p) for p in primals]
            return torch.autograd.grad(
                [y for y, _ in moving],
                primals,
                [c for _, c in moving],
                retain_graph=True,
                create_graph=self._depth.now > 0,
                materialize_grads=True,
            )

        return outputs, pull

    def gradient(self, function: Callable[..., Any], argnums: tuple[int, ...] = (0,)) -> Callable[..., Any]:
        return torch.func.grad(function, argnums)

    def jvp(
        self, function: Callable[..., Any], arrays: Sequence[Any], tangents: Sequence[Any]
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        return torch.func.jvp(function, tuple(arrays), tuple(tangents))

    def hessian(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.func.hessian(function)

    def vmap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.func.vmap(function)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        # The compiler counts how often it has read a function of the kit, and for each bridge it reads it again.
        torch.compiler.reset()
        # The whole of it but its code generation, which takes seconds and needs a C++ compiler.
        return torch.compile(_of_a_user(function), fullgraph=True, backend="aot_eager")

    def changeable(self, array: Array) -> tuple[torch.Tensor, Callable[[], None]]:
        own = self.array(array).requires_grad_()

        def change() -> None:
            with torch.no_grad():
                own.fill_(99.0)

        return own, change


def _of_a_user(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a program of somebody else's, with the kit's own files among those that the compiler reads.

    It is told to read nothing of gradbridge but the lines that lead into a bridge.
    """
    read: set[str] = getattr(trace_rules, "BUILTIN_INLINE_WHEN_CALLED", set())
    read.update([str(pathlib.Path(hosts.__file__).parent), __file__])
    names = {"function": function}
    exec(compile("def program(*arrays):\n    return function(*arrays)\n", "<a program>", "exec"), names)
    return names["program"]
