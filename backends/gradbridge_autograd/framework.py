"""HIPS autograd as a framework: recordings of functions of ``autograd.numpy``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from autograd.builtins import DictBox, SequenceBox
from autograd.tracer import isbox

from gradbridge.arrays import owned
from gradbridge.borders import INEXACT
from gradbridge.errors import OutputError
from gradbridge.framework import Form, Framework, Function
from gradbridge.options import floating_name
from gradbridge.protocol import Traits
from gradbridge_autograd.traces import Recording, opened, plain

_NUMBERS = (np.ndarray, np.generic, float, int, complex)


class AutogradFramework(Framework):
    """autograd's arrays are NumPy's, and boxes of them inside of a recording."""

    traits = Traits(takes_complex=True, has_higher_orders=True)

    def asarray(self, array: Any, dtype: Any) -> np.ndarray[Any, Any]:
        return owned(array, dtype)

    def asnumpy(self, native: Any) -> np.ndarray[Any, Any]:
        return np.asarray(plain(native))

    def is_array(self, value: Any) -> bool:
        return isinstance(value, np.ndarray) or (
            isbox(value) and not isinstance(value, (SequenceBox, DictBox))
        )

    def is_inexact(self, native: Any) -> bool:
        return native.dtype.kind in INEXACT

    def floating_dtype(self, name: str) -> Any:
        return np.dtype(floating_name(name, ("float64", "float32", "float16")))

    def output(self, value: Any) -> Any:
        return np.asarray(value) if isinstance(value, _NUMBERS) else value if isbox(value) else None

    def split(self, output: Any, label: str) -> tuple[list[Any], list[Any], Form]:
        floats, others, form = super().split(opened(output), label)
        wrong = [leaf for leaf in others if plain(leaf).dtype.kind not in "iub"]
        if wrong:
            index = next(i for i, leaf in enumerate(form.merge(floats, others)) if leaf is wrong[0])
            raise OutputError(
                f"output {index} of {label} has dtype {plain(wrong[0]).dtype}; return arrays of numbers, made with "
                f"autograd.numpy rather than numpy"
            )
        return floats, others, form

    def cast(self, native: Any, like: Any) -> Any:
        return native if isbox(native) else np.asarray(native).astype(plain(like).dtype)

    def vjp(self, fn: Function, primals: list[Any]) -> tuple[list[Any], Callable[[list[Any]], Sequence[Any]]]:
        recording = Recording(fn, primals)
        return recording.outputs, recording.pull
