"""tinygrad's autodiff, as gradbridge asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType

from gradbridge.extend import (
    Array,
    Computation,
    Form,
    Framework,
    Function,
    InputError,
    NotDifferentiableError,
    TapeProgram,
    Traits,
    floating_name,
    owned,
)
from gradbridge_tinygrad.isolation import turns

#: What a model may compute in, by its name in NumPy.
DTYPES = {"float64": dtypes.float64, "float32": dtypes.float32, "float16": dtypes.float16}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TinygradFramework(Framework):
    """Tensors are their own graph, and so are their gradients: there is nothing to record.

    Args:
        device: where arrays are put.
    """

    traits = Traits(has_higher_orders=True)

    def __init__(self, device: str) -> None:
        self.device = device

    def asarray(self, array: Any, dtype: DType | None) -> Tensor:
        own = owned(array, _NAMES.get(dtype))
        if own.dtype.kind not in "fiub":
            raise InputError(f"tinygrad has no numbers of dtype {own.dtype}; pass real ones")
        # A buffer even without axes: tinygrad would make a constant of it, and two equal constants are
        # one node, so that a gradient would go to both.
        tensor = Tensor(own.reshape(-1), device=self.device).reshape(own.shape)
        return tensor if dtype is None or own.dtype.kind != "f" else tensor.cast(dtype)

    def asnumpy(self, native: Tensor) -> Array:
        with turns:
            return np.array(
                self.computed(native.float() if native.dtype == dtypes.bfloat16 else native).numpy()
            )

    def computed(self, tensor: Tensor) -> Tensor:
        """A tensor's numbers, as another tensor: the first keeps its graph."""
        if (
            tensor.uop.device is None
        ):  # made of literals alone: it lies nowhere, and would be computed anywhere
            tensor = tensor + self.zeros(tensor.shape, tensor)
        return tensor.contiguous().realize()

    def is_array(self, value: Any) -> bool:
        return isinstance(value, Tensor)

    def is_inexact(self, native: Tensor) -> bool:
        return native.is_floating_point()

    def dtype_name(self, native: Tensor) -> str:
        return _NAMES.get(native.dtype, str(native.dtype).removeprefix("dtypes."))

    def floating_dtype(self, name: str) -> DType:
        return DTYPES[str(floating_name(name, tuple(DTYPES)))]

    def cast(self, native: Tensor, like: Tensor) -> Tensor:
        return native.cast(like.dtype)

    def trace(
        self, fn: Computation, places: tuple[int, ...], reusable: bool, rows: Sequence[int]
    ) -> ComputedProgram:
        return ComputedProgram(self, fn, places)

    def vjp(
        self, fn: Function, primals: list[Tensor]
    ) -> tuple[list[Tensor], Callable[[list[Tensor]], list[Tensor | None]]]:
        outputs = fn(primals)

        def pull(cotangents: list[Tensor]) -> list[Tensor | None]:
            terms = [(output * cotangent).sum() for output, cotangent in zip(outputs, cotangents)]
            try:
                gradients = sum(terms[1:], terms[0]).gradient(*primals)
            except RuntimeError as error:
                raise NotDifferentiableError(
                    f"tinygrad has no derivative here: {str(error).splitlines()[0]}; write the model without the "
                    f"operation that it names"
                ) from error
            # A gradient depends on the cotangent, which is no constant; so a constant is the zero of no influence.
            return [None if gradient.uop.device is None else gradient for gradient in gradients]

        return outputs, pull


class ComputedProgram(TapeProgram):
    """What a run or a pull gives is computed within it: tinygrad would wait until somebody reads it."""

    def __init__(self, framework: TinygradFramework, fn: Computation, places: tuple[int, ...]) -> None:
        super().__init__(framework.vjp, fn, places)
        self._computed = framework.computed

    def run(self, leaves: list[Tensor]) -> tuple[list[Tensor], list[Tensor], Form, Sequence[Any], Any]:
        floats, others, form, after, kept = super().run(leaves)
        return list(map(self._computed, floats)), list(map(self._computed, others)), form, after, kept

    def pull(
        self, kept: Any, cotangents: Sequence[Tensor], wanted: Sequence[int], many: bool = False
    ) -> list[Tensor | None]:
        gradients = super().pull(kept, cotangents, wanted, many)
        return [None if gradient is None else self._computed(gradient) for gradient in gradients]
