"""Tensors, modules and torch's global state around the five methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

import numpy as np

from gradbridge.errors import NotDifferentiableError, UnknownModelError
from gradbridge.protocol import Array
from gradbridge_seldonian.steps.framework import CREATE, FORWARD, METHODS, StepsFramework, is_inherited


class TorchSteps(StepsFramework):
    """Tensors, modules and torch's global state around the five methods."""

    backward_arguments = 2

    def __init__(self, owner: Any) -> None:
        super().__init__(owner)
        self._clones: dict[int, tuple[Any, Any]] = {}

    @contextmanager
    def surroundings(self, noise: int) -> Iterator[None]:
        """Record gradients whatever the caller's modes, and draw random numbers from `noise` alone."""
        import torch

        from gradbridge_torch.isolation import seeded

        with ExitStack() as stack:
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(seeded(noise, torch.device(getattr(self.owner, "device", "cpu"))))
            yield

    def check_native(self, native: Any) -> None:
        """Refuse what is not a module, unless all methods are the class's own."""
        import torch

        super().check_native(native)
        inherited = [name for name in METHODS[1:] if is_inherited(self.owner, name)]
        if not isinstance(native, torch.nn.Module):
            if inherited:
                raise UnknownModelError(
                    f"{CREATE} of {self.label} must return a torch.nn.Module, and returned a {type(native).__name__}; "
                    f"return a module, or override {', '.join(inherited)}, too"
                )
            return
        parameters = list(native.parameters())
        if any(map(torch.nn.parameter.is_lazy, parameters)):
            raise UnknownModelError(
                f"{CREATE} of {self.label} returned a module with parameters that are not made yet; call it once on an "
                f"example input there"
            )
        if "update_model_params" in inherited and not any(p.requires_grad for p in parameters):
            raise UnknownModelError(
                f"{CREATE} of {self.label} returned a {type(native).__name__} without trainable parameters; those with "
                f"requires_grad=False are none"
            )

    def check_predictions(self, predictions: Any) -> None:
        """Refuse what is not a tensor, unless backward_pass is the class's own."""
        import torch

        if not isinstance(predictions, torch.Tensor) and is_inherited(self.owner, "backward_pass"):
            self.refuse_predictions(predictions, "a torch.Tensor")
        super().check_predictions(predictions)

    def check_recorded(self, predictions: Any, by_framework: bool) -> None:
        """Refuse a tensor that has no graph."""
        import torch

        if by_framework and isinstance(predictions, torch.Tensor) and not predictions.requires_grad:
            raise NotDifferentiableError(
                f"{FORWARD} of {self.label} returned predictions without a graph (requires_grad is False), so no gradient "
                f"of theta can be had from them: they were detached (.detach(), .numpy(), torch.no_grad()), or none of "
                f"the parameters takes part; return the tensor as the module gave it"
            )

    def to_numpy(self, value: Any) -> Array:
        """A tensor off its device and graph; bfloat16, which NumPy lacks, widens."""
        return to_numpy(value)

    def cotangent(self, cotangent: Array, predictions: Any) -> Any:
        """A tensor for a tensor."""
        import torch

        if not isinstance(predictions, torch.Tensor):
            return cotangent.copy()
        return torch.tensor(cotangent, dtype=predictions.dtype, device=predictions.device)

    def state(self) -> Any:
        """The buffers of a module, and the parameters that are not trained: copies, made anew where they changed."""
        import torch

        native = self.owner.native_model
        if not isinstance(native, torch.nn.Module):
            return None
        clones: dict[int, tuple[Any, Any]] = {}
        state = []
        for module in native.modules():
            frozen = {k: p for k, p in module._parameters.items() if p is not None and not p.requires_grad}
            for store, tensors in ((module._buffers, module._buffers), (module._parameters, frozen)):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    # By the numbers: BatchNorm and `.data` change them without counting a version.
                    known = self._clones.get(id(tensor))
                    if known is None or known[0] is not tensor or not _same(tensor, known[1]):
                        known = (tensor, tensor.detach().clone())
                    clones[id(tensor)] = known
                    state.append((store, name, known))
        self._clones = clones
        return state

    def restore(self, state: Any) -> None:
        """Put back those that have changed."""
        import torch

        with torch.no_grad():
            for store, name, (tensor, clone) in state or ():
                store[name] = tensor
                if not _same(tensor, clone):
                    tensor.copy_(clone)

    def own_gradient(self, run: Callable[[], Any], cotangent: Array) -> Array | None:
        """See the base class."""
        import torch

        predictions = run()
        if not isinstance(predictions, torch.Tensor) or not predictions.requires_grad:
            return None
        return self._reached(predictions, self.cotangent(cotangent, predictions))

    def _reached(self, predictions: Any, external_grad: Any) -> Array | None:
        import torch

        parameters = self.owner._trainable_parameters()
        if not parameters:
            return None
        gradients = torch.autograd.grad(
            predictions, parameters, external_grad, retain_graph=True, allow_unused=True
        )
        if all(g is None for g in gradients):
            return None
        pieces = [np.zeros(p.numel()) if g is None else to_numpy(g) for p, g in zip(parameters, gradients)]
        return np.concatenate([x.ravel() for x in pieces]).astype(np.float64)

    def clear(self) -> None:
        """See the base class."""
        for parameter in self.owner._trainable_parameters():
            parameter.grad = None

    def check_reached(self, predictions: Any) -> None:
        """See the base class."""
        import torch

        if not isinstance(predictions, torch.Tensor) or not predictions.requires_grad:
            return
        try:
            reached = self._reached(predictions, torch.ones_like(predictions))
        except RuntimeError:  # the graph is freed
            return
        if reached is None and self.owner._trainable_parameters():
            self.refuse_unreached()

    def refuse_unreached(self) -> NoReturn:
        """Say that the graph leads nowhere.

        Raises:
            NotDifferentiableError
        """
        raise NotDifferentiableError(
            f"{FORWARD} of {self.label} returned predictions whose graph leads to none of the parameters that "
            f"theta is loaded into; compute them with self.pytorch_model, and detach nothing on the way"
        )

    def snapshot(self) -> Any:
        """Parameters that are trained, and the state."""
        trained = [p.detach().clone() for p in self.owner._trainable_parameters()]
        return trained, [known[1] for _, _, known in self.state() or ()]

    def is_as(self, snapshot: Any) -> bool:
        """By the numbers: `.data` and what shares memory count no versions."""
        trained, kept = snapshot
        parameters = self.owner._trainable_parameters()
        present = [known[1] for _, _, known in self.state() or ()]
        return (
            len(parameters) == len(trained)
            and len(present) == len(kept)
            and all(map(_same, parameters, trained))
            and all(a is b or _same(a, b) for a, b in zip(present, kept))
        )


def to_numpy(value: Any) -> Array:
    """A tensor or array as a NumPy array, off its device and graph; bfloat16, which NumPy lacks, widens."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    tensor = value.detach().cpu()
    return np.asarray(tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor)


def _same(a: Any, b: Any) -> bool:
    """Whether two tensors hold the same numbers in the same form."""
    import torch

    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
