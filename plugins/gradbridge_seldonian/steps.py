"""Models written as five methods over one stateful native model, as the engine's tutorials do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gradbridge.bridge import Bridge
from gradbridge.errors import ParamsShapeError
from gradbridge.notices import notice
from gradbridge.protocol import Array
from gradbridge_seldonian.replay import ModelLock, StepsAdapter, to_numpy
from gradbridge_seldonian.runs import BridgedModel


class SupervisedStepsModel(BridgedModel):
    """Base class: override the five methods, call `predict`.

    Subclasses set up what `create_model` needs before calling ``super().__init__``, or pass it
    as keyword arguments. The native model is `self.native_model`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self._model_lock = ModelLock()
        self.native_model = self.create_model(**kwargs)

    def create_model(self, **kwargs: Any) -> Any:
        """Return the native model."""
        raise NotImplementedError(f"{type(self).__name__} must override create_model")

    def update_model_params(self, theta: Array, **kwargs: Any) -> None:
        """Load (P,) float64 parameters into the native model."""
        raise NotImplementedError(f"{type(self).__name__} must override update_model_params")

    def zero_gradients(self) -> None:
        """Clear the gradients that the native model gathered."""
        raise NotImplementedError(f"{type(self).__name__} must override zero_gradients")

    def forward_pass(self, X: Array, **kwargs: Any) -> Any:
        """Return the native predictions for features X."""
        raise NotImplementedError(f"{type(self).__name__} must override forward_pass")

    def backward_pass(self, external_grad: Any) -> Any:
        """Return the gradient (P,) for a cotangent of the predictions.

        It may read `self.predictions`, or be written as ``backward_pass(predictions, external_grad)``.
        """
        raise NotImplementedError(f"{type(self).__name__} must override backward_pass")

    def get_num_params(self) -> int | None:
        """Length of theta, or None where any length will do."""
        return None

    @contextmanager
    def surroundings(self, noise: int) -> Iterator[None]:
        """Entered around every run of the methods; where a framework's global state is pinned.

        Args:
            noise: seed of the evaluation's random numbers; the same when it is replayed.
        """
        yield

    def predict(self, theta: Any, X: Any, **kwargs: Any) -> Any:
        """Predictions, differentiable with respect to `theta`: (n,) or (n, k)."""
        size = int(np.prod(theta.shape)) if hasattr(theta, "shape") else len(theta)
        return self._bridge_of(size)(theta, X, **kwargs)

    def _bridge_of(self, size: int) -> Bridge:
        known = self.get_num_params()
        if known is not None and known != size:
            raise ParamsShapeError(
                f"{type(self).__name__} expects theta of shape ({known},), got ({size},); the native model has "
                f"{known} trainable parameters"
            )
        bridge: Bridge | None = self.__dict__.get("_bridge")
        if bridge is None or bridge.layout.size != size:
            # Two bridges may be made at once; they take the same turns, so it does no harm.
            bridge = self._bridge = Bridge(StepsAdapter(self, size, self._model_lock), "autograd")
        return bridge

    def __getstate__(self) -> dict[str, Any]:
        # Predictions carry the native graph, which neither copies nor pickles.
        return {k: v for k, v in self.__dict__.items() if k not in ("_bridge", "predictions")}


class SupervisedPytorchBaseModel(SupervisedStepsModel):
    """The five methods over a torch module, `self.pytorch_model`.

    ``__init__(input_dim, output_dim, **kwargs)`` or, as later engines have it, ``__init__(device)``.
    All but `create_model` have defaults, which take theta in the order of ``module.parameters()``.

    The module is put in eval mode: a gradient must belong to the value that was returned. Where
    ``self.pytorch_model.train()`` is called afterwards, an evaluation and its replay draw the same masks.
    """

    def __init__(self, input_dim: Any = None, output_dim: int | None = None, **kwargs: Any) -> None:
        first_is_device = isinstance(input_dim, str) or hasattr(input_dim, "type")
        self.device = kwargs.pop("device", input_dim if first_is_device else "cpu")
        self.input_dim = None if first_is_device else input_dim
        self.output_dim = output_dim
        super().__init__(**kwargs)
        self.native_model.to(self.device)
        _set_eval(self.native_model, type(self).__name__)

    @property
    def pytorch_model(self) -> Any:
        """The torch module."""
        return self.native_model

    def get_num_params(self) -> int:
        """Number of trainable parameters of the module."""
        return sum(p.numel() for p in self._trainable())

    def update_model_params(self, theta: Array, **kwargs: Any) -> None:
        """Cut theta into the module's parameters, in their order."""
        import torch

        start = 0
        with torch.no_grad():
            for p in self._trainable():
                piece = theta[start : start + p.numel()]
                p.copy_(torch.as_tensor(piece, dtype=p.dtype).view(p.shape))
                start += p.numel()

    def zero_gradients(self) -> None:
        """Zero the gradients of all parameters."""
        self.native_model.zero_grad(set_to_none=False)

    def forward_pass(self, X: Array, **kwargs: Any) -> Any:
        """Run the module on X in the dtype of its parameters."""
        import torch

        dtype = next((p.dtype for p in self._trainable()), None)
        return self.native_model(torch.tensor(X, dtype=dtype, device=self.device))

    def backward_pass(self, external_grad: Any) -> Any:
        """Gather the gradients of all parameters, in their order."""
        self.predictions.backward(gradient=external_grad, retain_graph=True)
        return np.concatenate([to_numpy(_gradient_of(p)).ravel() for p in self._trainable()])

    def initial_solution(self, *ignored: Any) -> Array:
        """The module's parameters, if `update_model_params` takes them in the module's order.

        Raises:
            NotImplementedError: the class overrides that method, so that the order is its own.
        """
        if type(self).update_model_params is not SupervisedPytorchBaseModel.update_model_params:
            raise NotImplementedError(
                f"{type(self).__name__} orders theta itself; override initial_solution, or give supervised_spec "
                f"an initial_solution"
            )
        return np.concatenate([to_numpy(p).ravel() for p in self._trainable()]).astype(np.float64)

    def get_model_params(self, *ignored: Any) -> Array:
        """The engine's own name for `initial_solution`."""
        return self.initial_solution()

    @contextmanager
    def surroundings(self, noise: int) -> Iterator[None]:
        """Record gradients whatever the caller's grad mode, and draw random numbers from `noise` alone."""
        import torch

        from gradbridge_torch.isolation import seeded

        with torch.inference_mode(False), torch.enable_grad(), seeded(noise, torch.device(self.device)):
            yield

    def _trainable(self) -> list[Any]:
        return [p for p in self.native_model.parameters() if p.requires_grad]


def _set_eval(module: Any, label: str) -> None:
    """Put a torch module in eval mode, with a word where that changes what it computes."""
    changed = sorted(
        {type(m).__name__ for m in module.modules() if m.training and _depends_on_mode(type(m).__name__)}
    )
    module.eval()
    if changed:
        notice(
            f"{label} has {', '.join(changed)} and is evaluated in eval mode, without random masks and with the "
            f"stored statistics; call self.pytorch_model.train() after super().__init__ for the other",
        )


def _depends_on_mode(name: str) -> bool:
    return "Dropout" in name or "BatchNorm" in name


def _gradient_of(parameter: Any) -> Any:
    return parameter.grad if parameter.grad is not None else np.zeros(tuple(parameter.shape))
