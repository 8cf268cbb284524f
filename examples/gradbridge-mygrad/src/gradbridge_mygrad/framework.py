"""MyGrad's autodiff, as gradbridge asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mygrad as mg
import numpy as np

from gradbridge.extend import Array, Framework, Function, RunAgain, owned


class MyGradFramework(Framework):
    """Tensors are MyGrad's. Constants, until `vjp` makes variables of them: so nothing is recorded but there."""

    # MyGrad's gradients are NumPy arrays: it cannot differentiate them again, so traits are left as they are.

    def asarray(self, array: Any, dtype: Any) -> mg.Tensor:
        return _constant(owned(array, dtype))

    def asnumpy(self, native: mg.Tensor) -> Array:
        return native.data

    def is_array(self, value: Any) -> bool:
        return isinstance(value, mg.Tensor)

    def is_inexact(self, native: mg.Tensor) -> bool:
        return native.dtype.kind == "f"

    def vjp(
        self, fn: Function, primals: list[mg.Tensor]
    ) -> tuple[list[mg.Tensor], Callable[[list[mg.Tensor]], list[mg.Tensor | None]]]:
        recorded = [[mg.Tensor(primal.data, copy=False, constant=False) for primal in primals]]
        outputs = fn(recorded[0])

        def pull(cotangents: list[mg.Tensor]) -> list[mg.Tensor | None]:
            if not recorded:  # MyGrad takes its graph apart on the way back
                raise RunAgain(outputs)
            variables = recorded.pop()
            total = sum((output * cotangent).sum() for output, cotangent in zip(outputs, cotangents))
            if not total.constant:
                total.backward()
            return [None if v.grad is None else _constant(v.grad) for v in variables]

        return outputs, pull


def _constant(array: np.ndarray[Any, Any]) -> mg.Tensor:
    return mg.Tensor(array, copy=False, constant=True)
