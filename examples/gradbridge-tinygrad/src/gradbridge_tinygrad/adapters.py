"""The four steps over tensors, and the pullback, which is an adapter over tensors again."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from tinygrad import Tensor

from gradbridge import trees
from gradbridge.errors import GradbridgeError, GuestError, NotDifferentiableError, OutputError
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Adapter, Array, Signature
from gradbridge_tinygrad.tensors import DTYPES, dtype_of, is_constant, make, quiet, read


class TensorAdapter(Adapter):
    """A function of tensors: whoever says how to compute it has forward, backward and pullback."""

    def __init__(
        self, label: str, layout: ParameterLayout, dtype: str | None, device: str, training: bool
    ) -> None:
        self.label, self.layout = label, layout
        self._dtype, self._device, self._training = dtype, device, training
        self._dtypes = [dtype or (own if own in DTYPES else "float64") for own in layout.dtypes]

    @abstractmethod
    def compute(self, pieces: list[Tensor], leaves: list[Any], signature: Signature) -> Any:
        """Outputs, a tree of tensors, from one tensor per parameter and the input leaves."""

    def tensor(self, index: int, leaf: Any) -> Any:
        """An input leaf as the function takes it; what is no array of numbers goes through."""
        return make(leaf, self._dtype, self._device) if _is_numbers(leaf) else leaf

    def update(self, params: Array) -> list[Tensor]:
        """See `Adapter.update`: one tensor per parameter."""
        arrays = self.layout.unravel(params).values()
        return [make(array, dtype, self._device) for array, dtype in zip(arrays, self._dtypes)]

    def forward(
        self, loaded: list[Tensor], inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        """See `Adapter.forward`. tinygrad's tensors are their own graph, so the residuals are the tensors."""
        with quiet(self.label, self._training):
            leaves = [self.tensor(i, leaf) for i, leaf in enumerate(inputs)]
            try:
                outputs, structure = trees.flatten(self.compute(loaded, list(leaves), signature))
                self._check(outputs)
                arrays = [self._read(output) for output in outputs]
            except GradbridgeError:
                raise
            except Exception as error:
                shapes = ", ".join(str(getattr(x, "shape", type(x).__name__)) for x in inputs)
                raise GuestError(
                    f"{self.label} failed on inputs {shapes}: {type(error).__name__}: {error}"
                ) from error
        return trees.unflatten(structure, arrays), (_Residuals(outputs, loaded, leaves) if wrt else None)

    def backward(
        self, residuals: _Residuals, cotangents: Sequence[Array], wrt: tuple[int, ...]
    ) -> list[Array]:
        """See `Adapter.backward`."""
        with quiet(self.label, self._training):
            pulled = [
                make(c, dtype_of(output), self._device) if output.is_floating_point() else None
                for output, c in zip(residuals.outputs, cotangents)
            ]
            found = iter(self.gradients(residuals.outputs, pulled, residuals.at(wrt)))
            return [
                np.concatenate(
                    [np.empty(0), *(self._gradient(next(found), t).ravel() for t in residuals.pieces)]
                )
                if position == 0
                else self._gradient(next(found), residuals.leaves[position - 1])
                for position in wrt
            ]

    def pullback(self, signature: Signature, wrt: tuple[int, ...]) -> PullbackAdapter:
        """See `Adapter.pullback`: tinygrad's gradients are tensors like any other."""
        return PullbackAdapter(self, signature, wrt)

    def gradients(
        self, outputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], targets: Sequence[Tensor]
    ) -> list[Tensor]:
        """One tensor per target: Σ ⟨cotangent, output⟩, differentiated.

        Raises:
            NotDifferentiableError: an operation has no derivative.
        """
        terms = [(y * c).sum() for y, c in zip(outputs, cotangents) if c is not None]
        if not terms or not targets:
            return [target.zeros_like() for target in targets]
        try:
            return sum(terms[1:], terms[0]).gradient(*targets)
        except RuntimeError as error:
            raise NotDifferentiableError(
                f"tinygrad has no derivative of {self.label}: {str(error).splitlines()[0]}; write the model without "
                f"the operation that it names"
            ) from error

    def _check(self, outputs: Sequence[Any]) -> None:
        for index, leaf in enumerate(outputs):
            if not isinstance(leaf, Tensor):
                raise OutputError(
                    f"output {index} of {self.label} is a {type(leaf).__name__}; return tinygrad tensors only"
                )

    def _read(self, output: Tensor) -> Array:
        # A constant lies on no device, and would be computed on the default one.
        return (
            read(output + make(np.zeros(output.shape), dtype_of(output), self._device))
            if is_constant(output)
            else read(output)
        )

    def _gradient(self, gradient: Tensor, target: Tensor) -> Array:
        # Every gradient depends on its cotangent, which is no constant; so a constant is the zero of no influence.
        return np.zeros(target.shape) if is_constant(gradient) else read(gradient)


class PullbackAdapter(TensorAdapter):
    """The VJP of an adapter: ``(params, *inputs, *cotangents) ↦ gradients``."""

    def __init__(self, parent: TensorAdapter, signature: Signature, wrt: tuple[int, ...]) -> None:
        super().__init__(
            f"gradient of {parent.label}", parent.layout, parent._dtype, parent._device, parent._training
        )
        self._parent, self._signature, self._wrt = parent, signature, wrt

    def params(self) -> Array:
        """See `Adapter.params`."""
        return self._parent.params()

    def model(self, params: Array) -> Any:
        """See `Adapter.model`: the model that this is a derivative of."""
        return self._parent.model(params)

    def tensor(self, index: int, leaf: Any) -> Any:
        """Inputs as the parent takes them; cotangents as they come, until their outputs are known."""
        count = self._signature.count
        return self._parent.tensor(index, leaf) if index < count else make(leaf, None, self._device)

    def compute(self, pieces: list[Tensor], leaves: list[Any], signature: Signature) -> Any:
        """The gradients, as tensors."""
        count = self._signature.count
        primals, cotangents = leaves[:count], leaves[count:]
        outputs, _ = trees.flatten(self._parent.compute(pieces, list(primals), self._signature))
        pulled = [c.cast(y.dtype) if y.is_floating_point() else None for y, c in zip(outputs, cotangents)]
        held = _Residuals(outputs, pieces, primals)
        found = iter(self._parent.gradients(outputs, pulled, held.at(self._wrt)))
        return tuple(_joined([next(found) for _ in pieces]) if p == 0 else next(found) for p in self._wrt)


class _Residuals:
    """What one forward keeps: its outputs, and the tensors that they were computed from."""

    __slots__ = ("leaves", "outputs", "pieces")

    def __init__(self, outputs: list[Tensor], pieces: list[Tensor], leaves: list[Any]) -> None:
        self.outputs, self.pieces, self.leaves = outputs, pieces, leaves

    def at(self, wrt: tuple[int, ...]) -> list[Tensor]:
        """The tensors at these positions, the parameters one by one."""
        return [t for p in wrt for t in (self.pieces if p == 0 else [self.leaves[p - 1]])]


def _joined(gradients: list[Tensor]) -> Tensor:
    flat = [gradient.reshape(-1) for gradient in gradients]
    return flat[0].cat(*flat[1:]) if flat else Tensor.zeros(0)


def _is_numbers(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fiub"
