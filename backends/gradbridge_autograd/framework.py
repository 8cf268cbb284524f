"""HIPS autograd as a framework: recordings of functions of ``autograd.numpy``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.builtins import DictBox, SequenceBox
from autograd.tracer import getval, isbox

from gradbridge.borders import INEXACT, host_dtype
from gradbridge.errors import OutputError
from gradbridge.framework import Form, Framework, Function
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Traits
from gradbridge_autograd.traces import Recording

_NUMBERS = (np.ndarray, np.generic, float, int, complex)


class AutogradFramework(Framework):
    """autograd's arrays are NumPy's, and boxes of them inside of a recording."""

    traits = Traits(takes_complex=True, has_higher_orders=True)

    def asarray(self, array: Any, dtype: Any) -> np.ndarray[Any, Any]:
        if type(array) is not np.ndarray:
            array = np.from_dlpack(array) if not hasattr(array, "__array__") else np.asarray(array)
        if dtype is not None:
            dtype = host_dtype(array.dtype, np.dtype(dtype))
        return np.array(array, dtype)

    def asnumpy(self, native: Any) -> np.ndarray[Any, Any]:
        return np.asarray(plain(native))

    def is_array(self, value: Any) -> bool:
        return isinstance(value, np.ndarray) or (
            isbox(value) and not isinstance(value, (SequenceBox, DictBox))
        )

    def is_inexact(self, native: Any) -> bool:
        return native.dtype.kind in INEXACT

    def is_complex(self, native: Any) -> bool:
        return np.asarray(plain(native)).dtype.kind == "c"

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

    def reshape(self, native: Any, shape: tuple[int, ...]) -> Any:
        return anp.reshape(native, shape)

    def unpacked(self, vector: Any, layout: ParameterLayout) -> list[Any]:
        return layout.cut(vector)

    def vjp(self, fn: Function, primals: list[Any]) -> tuple[list[Any], Callable[[list[Any]], Sequence[Any]]]:
        recording = Recording(fn, primals)
        return recording.outputs, recording.pull


def plain(value: Any) -> Any:
    """What is in the innermost box."""
    while isbox(value):
        value = value._value
    return value


def opened(tree: Any) -> Any:
    """Boxes of tuples, lists and dicts → tuples, lists and dicts of boxes."""
    if type(tree) in (tuple, list):
        return type(tree)(map(opened, tree))
    if type(tree) is dict:
        return {key: opened(value) for key, value in tree.items()}
    if type(tree) is SequenceBox:
        items = [opened(tree[i]) for i in range(len(tree))]
        return type(tree._value)(items) if isinstance(getval(tree), (list, tuple)) else items
    if type(tree) is DictBox:
        return {key: opened(tree[key]) for key in tree}
    return tree
