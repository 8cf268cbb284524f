"""Functions of tensors as models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch

from gradbridge import trees
from gradbridge.errors import NotDifferentiableError
from gradbridge.functions import FunctionModel
from gradbridge.protocol import GuestOptions
from gradbridge_torch.framework import TorchFramework
from gradbridge_torch.isolation import TorchModel
from gradbridge_torch.tensors import compute_device, floating_dtype


class TensorFunction(FunctionModel, TorchModel):
    """A callable of tensors, with or without a tree of parameters as its first argument.

    Args:
        function: the callable.
        options: of the bridge.
    """

    def __init__(self, function: Callable[..., Any], options: GuestOptions) -> None:
        device = compute_device(options.device)
        if device is None and options.params is not None:
            tensors = [leaf for leaf in trees.flatten(options.params)[0] if isinstance(leaf, torch.Tensor)]
            device = tensors[0].device if tensors else None
        # A function may write to its arguments.
        self.primitives = TorchFramework(type(function).__name__, device, only_reads=False)
        super().__init__(self.primitives, function, options, floating_dtype(options.dtype))
        TorchModel.__init__(self, device, draws=False, watched=True)
        self.other_default = floating_dtype(options.dtype)

    def in_dtype(self, name: str) -> Self:
        twin = super().in_dtype(name)
        if twin is not self:
            twin.other_default = twin.dtype
        return twin

    def readers(self) -> Sequence[Any]:
        return (self._function,)

    def returned(self, output: Any) -> Any:
        if not isinstance(output, (float, int, complex)):
            return output
        if torch.is_grad_enabled():
            raise NotDifferentiableError(
                f"{self.label} returned a Python {type(output).__name__}, which torch cannot differentiate; "
                f"return the tensor itself, without .item() or float()"
            )
        return torch.as_tensor(output, dtype=None if isinstance(output, complex) else self.dtype)

    def _tree(self, weights: Sequence[Any]) -> Any:
        return super()._tree(self.tracked(weights) if self.differentiates else weights)
