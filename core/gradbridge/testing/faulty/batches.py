"""Faults that show in the shapes and constants of a call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.layout import Array
from gradbridge.testing.faulty.catalogue import breaks
from gradbridge.testing.paper import ReferenceAdapter


@breaks("one_row")
class _MapsOneRow(ReferenceAdapter):
    """Takes the only row of a batch for what all rows share, and divides its gradient among them."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        gradients = super().backward(residuals, cotangents, wrt)
        return [g / 2 if g.shape[:1] == (1,) else g for g in gradients]


@breaks("one_row")
class _SqueezesTheBatch(ReferenceAdapter):
    """Gives the output for the row where there is one."""

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        output, residuals = super().forward(loaded, inputs, spec, wrt)
        return output[0] if len(output) == 1 else output, residuals


@breaks("two_hundred_rows")
class _FullTiles(ReferenceAdapter):
    """Sums over full tiles of sixty-four rows, and over all rows where there is no full one."""

    def gradients(
        self, loaded: Sequence[Any], inputs: Sequence[Any], cotangents: Sequence[Any], spec: CallSpec
    ) -> dict[int, Any]:
        v = np.array(cotangents[0])
        v[len(v) // 64 * 64 or len(v) :] = 0
        return super().gradients(loaded, inputs, [v], spec)


@breaks("square_arrays")
class _TransposedGradient(ReferenceAdapter):
    """Hands the gradient of an input out as a framework of columns has it; where it is square nobody sees."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        gradients = super().backward(residuals, cotangents, wrt)
        first = len(self.layout)
        return [g.T if leaf >= first and g.shape == g.T.shape else g for leaf, g in zip(wrt, gradients)]


@breaks("square_arrays")
class _TransposedOutput(ReferenceAdapter):
    """Reads its result column by column, whenever the shape fits."""

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        output, residuals = super().forward(loaded, inputs, spec, wrt)
        return output.T if output.shape == output.T.shape else output, residuals


@breaks("every_shape", "energy")
class _OnesAreBroadcast(ReferenceAdapter):
    """Takes an axis of size one for one along which it was broadcast, and sums over what it meets there."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        gradients = super().backward(residuals, cotangents, wrt)
        return [np.full_like(g, g.sum()) if 1 in g.shape else g for g in gradients]


@breaks("every_shape", "energy")
class _ThreeAxesAtMost(ReferenceAdapter):
    """Sums the gradient over all axes before the last two."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        gradients = super().backward(residuals, cotangents, wrt)
        return [np.broadcast_to(g.mean(0), g.shape).copy() if g.ndim > 2 else g for g in gradients]


@breaks("same_array_twice", "energy")
class _KnowsArraysByIdentity(ReferenceAdapter):
    """Adds up the gradients of arguments that are one array, and gives each the sum."""

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        output, residuals = super().forward(loaded, inputs, spec, wrt)
        return output, residuals and (*residuals, inputs[0] is inputs[1])

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        *residuals, same = residuals
        gradients = super().backward(residuals, cotangents, wrt)
        return [gradients[0] + gradients[-1] for _ in wrt] if same else gradients


@breaks("same_array_twice", "energy")
class _KnowsArraysByAddress(ReferenceAdapter):
    """Keeps one copy for all arrays that share memory."""

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        first, second = inputs
        if isinstance(first, np.ndarray) and np.may_share_memory(first, second):
            second = first
        return super().forward(loaded, [first, second], spec, wrt)


@breaks("constants_vary", "switch")
class _FirstConstants(ReferenceAdapter):
    """Compiles the strings and numbers of the first call into its code."""

    def cast(self, array: Any) -> Any:
        if isinstance(array, (str, int)):
            return self.__dict__.setdefault(f"_{type(array).__name__}", array)
        return super().cast(array)


@breaks("constants_vary", "switch")
class _LatestConstants(ReferenceAdapter):
    """Pulls back with the strings and numbers of the latest call."""

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        self._latest = list(inputs[1:])
        return super().forward(loaded, inputs, spec, wrt)

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        loaded, arrays, spec = residuals
        return super().backward((loaded, [arrays[0], *self._latest], spec), cotangents, wrt)
