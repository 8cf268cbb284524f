"""Models written as five methods over one stateful native model, as the engine's tutorials do.

The methods load parameters into the one model, run it, and read the gradients that it gathered.
Nothing in them keeps two evaluations apart. So each evaluation travels with its parameters and
inputs, and is replayed under a lock when the model's state has moved on since.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.bridge import Bridge
from gradbridge.errors import NotDifferentiableError, OutputError, ParamsShapeError
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Adapter, Array, Signature
from gradbridge_seldonian.engine import SupervisedModel


class SupervisedStepsModel(SupervisedModel):
    """Base class: override the five methods, call `predict`.

    Subclasses set up what `create_model` needs before calling ``super().__init__``, or pass it
    as keyword arguments. The native model is `self.native_model`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.has_intercept = True
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
            bridge = self._bridge = Bridge(StepsAdapter(self, size), "autograd")
        return bridge

    def __getstate__(self) -> dict[str, Any]:
        # Predictions carry the native graph, which neither copies nor pickles.
        return {k: v for k, v in self.__dict__.items() if k not in ("_bridge", "predictions")}


class SupervisedPytorchBaseModel(SupervisedStepsModel):
    """The five methods over a torch module, `self.pytorch_model`.

    ``__init__(input_dim, output_dim, **kwargs)`` or, as later engines have it, ``__init__(device)``.
    All but `create_model` have defaults, which take theta in the order of ``module.parameters()``.
    """

    def __init__(self, input_dim: Any = None, output_dim: int | None = None, **kwargs: Any) -> None:
        by_device = isinstance(input_dim, str) or "device" in kwargs
        self.device = kwargs.pop("device", input_dim if by_device else "cpu")
        self.input_dim = None if isinstance(input_dim, str) else input_dim
        self.output_dim = output_dim
        super().__init__(**kwargs)
        self.native_model.to(self.device)

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
        return np.concatenate([_numpy(_gradient_of(p)).ravel() for p in self._trainable()])

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
        return np.concatenate([_numpy(p).ravel() for p in self._trainable()]).astype(np.float64)

    def _trainable(self) -> list[Any]:
        return [p for p in self.native_model.parameters() if p.requires_grad]


class StepsAdapter(Adapter):
    """Makes the five methods keep the laws: re-entrant and fresh by replay, zeroed before each backward."""

    def __init__(self, owner: SupervisedStepsModel, size: int) -> None:
        self.label = type(owner).__name__
        self.layout = ParameterLayout(("theta",), ((size,),), ("float64",))
        self._owner = owner
        self._lock = threading.RLock()
        self._moves = 0
        self._takes_predictions = len(inspect.signature(owner.backward_pass).parameters) >= 2

    def params(self) -> Array:
        """See `Adapter.params`: the owner's `initial_solution`, where it has one."""
        start: Array = np.array(self._owner.initial_solution(), dtype=np.float64)  # type: ignore[attr-defined]
        return start

    def model(self, params: Array) -> Any:
        """See `Adapter.model`."""
        import copy

        with self._lock:
            twin = copy.deepcopy(self._owner)
        twin.update_model_params(params)
        return twin.native_model

    def update(self, params: Array) -> Array:
        """See `Adapter.update`: a copy; the owner's model is loaded where it runs, under the lock."""
        return params.copy()

    def forward(
        self, loaded: Array, inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> tuple[Array, Any]:
        """See `Adapter.forward`.

        Raises:
            NotDifferentiableError: a derivative with respect to the features, which the five
                methods do not give.
        """
        if any(wrt):
            raise NotDifferentiableError(
                f"the derivative of {self.label} with respect to its features was asked for, and backward_pass "
                f"gives that of theta only; bridge the native model with gradbridge.bridge for both"
            )
        kept = [leaf.copy() if isinstance(leaf, np.ndarray) else leaf for leaf in inputs]
        record = _Evaluation(loaded, kept, signature)
        with self._lock:
            array = np.array(_numpy(self._run(record)))
        if array.dtype.kind not in "fiub":
            raise OutputError(f"forward_pass of {self.label} must return an array, got dtype {array.dtype}")
        return array, (record if wrt else None)

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        """See `Adapter.backward`: replays the evaluation if the owner's model has moved on."""
        owner = self._owner
        with self._lock:
            if residuals.stamp != self._stamp():
                self._run(residuals)
            predictions = owner.predictions = residuals.predictions
            owner.zero_gradients()
            cotangent = _like(cotangents[0], predictions)
            arguments = (predictions, cotangent) if self._takes_predictions else (cotangent,)
            try:
                gradient = owner.backward_pass(*arguments)
            except RuntimeError:
                # A backward that frees its graph can be done once; replayed, once more.
                predictions = self._run(residuals)
                owner.zero_gradients()
                arguments = (predictions, cotangent) if self._takes_predictions else (cotangent,)
                gradient = owner.backward_pass(*arguments)
            flat = np.array(_numpy(gradient), dtype=np.float64).reshape(-1)
        return [flat.copy() for _ in wrt]

    def _run(self, record: _Evaluation) -> Any:
        owner = self._owner
        (features, *rest), kwargs = record.signature.bind(record.inputs)
        owner.update_model_params(record.theta.copy(), **kwargs)
        owner.predictions = record.predictions = owner.forward_pass(features, *rest, **kwargs)
        self._moves += 1
        record.stamp = self._stamp()
        return record.predictions

    def _stamp(self) -> tuple[Any, ...]:
        """What tells whether the owner's state is still that of an evaluation."""
        parameters = getattr(self._owner.native_model, "parameters", None)
        versions = tuple(getattr(p, "_version", 0) for p in parameters()) if callable(parameters) else ()
        return (self._moves, *versions)


class _Evaluation:
    """One evaluation: what it was made of, and the owner's state that it left."""

    __slots__ = ("inputs", "predictions", "signature", "stamp", "theta")

    def __init__(self, theta: Array, inputs: list[Any], signature: Signature) -> None:
        self.theta, self.inputs, self.signature = theta, inputs, signature
        self.predictions: Any = None
        self.stamp: tuple[Any, ...] = ()


def _numpy(value: Any) -> Array:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value)


def _gradient_of(parameter: Any) -> Any:
    return parameter.grad if parameter.grad is not None else np.zeros(tuple(parameter.shape))


def _like(cotangent: Array, predictions: Any) -> Any:
    """The cotangent in the form of the predictions: a tensor for a tensor."""
    if not hasattr(predictions, "detach"):
        return cotangent.copy()
    import torch

    return torch.tensor(cotangent, dtype=predictions.dtype, device=predictions.device)
