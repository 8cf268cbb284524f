"""Programs of MyGrad, as the conformance kit for hosts writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import mygrad as mg

from gradbridge.extend import Array
from gradbridge.testing.hosts import HostUnderTest

_FIRST_ORDER = "MyGrad's gradients are NumPy's arrays: it cannot differentiate them again"


class UnderTest(HostUnderTest):
    """MyGrad, by its tensors."""

    host: ClassVar[str] = "mygrad"
    reasons: ClassVar[dict[str, str]] = {
        "second order": _FIRST_ORDER,
        "third order": _FIRST_ORDER,
        "host_missing_order_is_refused": _FIRST_ORDER,
        "complex": "MyGrad has no complex numbers",
        "jvp": "MyGrad has no forward mode",
        "hessian": _FIRST_ORDER,
        "vmap": "MyGrad maps nothing",
        "compiled": "MyGrad compiles nothing",
        "changeable": "MyGrad locks arrays that are in a graph",
        "host_threads": "MyGrad is not made for threads: it switches its graph off for all of them while it walks back",
    }

    def array(self, array: Array) -> mg.Tensor:
        return mg.tensor(array, constant=True)

    def numpy(self, value: Any) -> Array:
        return value.data if isinstance(value, mg.Tensor) else value

    def sin(self, x: mg.Tensor) -> mg.Tensor:
        return mg.sin(x)

    def sum(self, x: mg.Tensor) -> mg.Tensor:
        return mg.sum(x)

    def vjp(
        self, function: Callable[..., tuple[Any, ...]], arrays: Sequence[mg.Tensor]
    ) -> tuple[Sequence[Any], Callable[[Sequence[Any]], Sequence[Any]]]:
        def record() -> tuple[list[mg.Tensor], tuple[Any, ...]]:
            variables = [mg.tensor(a.data, constant=False) for a in arrays]
            return variables, function(*variables)

        recorded = [record()]
        outputs = recorded[0][1]

        def pull(cotangents: Sequence[Any]) -> Sequence[Any]:
            # MyGrad takes its graph apart on the way back, so a second pull records it anew.
            variables, ends = recorded.pop() if recorded else record()
            sum((end * cotangent).sum() for end, cotangent in zip(ends, cotangents)).backward()
            return [0 * v.data if v.grad is None else v.grad for v in variables]

        return outputs, pull

    def gradient(self, function: Callable[..., Any], argnums: tuple[int, ...] = (0,)) -> Callable[..., Any]:
        def gradient(*arrays: mg.Tensor) -> tuple[Array, ...]:
            every = list(arrays)
            for i in argnums:
                every[i] = mg.tensor(arrays[i].data, constant=False)
            function(*every).backward()
            return tuple(0 * every[i].data if every[i].grad is None else every[i].grad for i in argnums)

        return gradient
