"""Replay: what makes five stateful methods an adapter that keeps the laws.

The methods load parameters into one native model, run it, and read the gradients that it
gathered. Nothing in them keeps two evaluations apart. So each evaluation travels with its
parameters and inputs, and is made again, under a lock, when the model's state has moved on since.
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.errors import (
    GradbridgeError,
    GradientShapeError,
    GuestError,
    NotDifferentiableError,
    OutputError,
)
from gradbridge.layout import Array, ParameterLayout
from gradbridge.protocol import Adapter


class StepsModel(Protocol):
    """The five methods, and what surrounds them."""

    native_model: Any
    predictions: Any

    def initial_solution(self) -> Any:
        """The start, theta."""

    def update_model_params(self, theta: Array, **kwargs: Any) -> None:
        """Load theta."""

    def zero_gradients(self) -> None:
        """Clear what was gathered."""

    def forward_pass(self, X: Any, **kwargs: Any) -> Any:
        """Predictions."""

    def backward_pass(self, external_grad: Any) -> Any:
        """The gradient of theta."""

    def surroundings(self, noise: int) -> AbstractContextManager[None]:
        """Entered around every run."""


class ModelLock:
    """The native model to one run at a time, and how many there were. A copy of the model has one of its own."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.count = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return (ModelLock, ())


class StepsAdapter(Adapter):
    """Makes the five methods keep the laws: re-entrant and fresh by replay, zeroed before each backward."""

    def __init__(self, owner: StepsModel, size: int, lock: ModelLock) -> None:
        self.label = type(owner).__name__
        self.layout = ParameterLayout(("theta",), ((size,),), ("float64",))
        self._owner = owner
        self._model_lock = lock
        self._takes_predictions = len(inspect.signature(owner.backward_pass).parameters) >= 2

    def weights(self) -> list[Array]:
        """The owner's `initial_solution`, where it has one."""
        return [np.array(self._owner.initial_solution(), dtype=np.float64)]

    def model(self, weights: Sequence[Array]) -> Any:
        with self._model_lock.lock:
            twin = copy.deepcopy(self._owner)
        twin.update_model_params(weights[0])
        return twin.native_model

    def update(self, weights: Sequence[Array]) -> Array:
        """A copy; the owner's model is loaded where it runs, under the lock."""
        return weights[0].copy()

    def forward(
        self, loaded: Array, inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Array, Any]:
        """Run under the lock, and keep what a replay needs.

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
        record = Run(loaded, kept, spec)
        with self._locked(spec.noise, "forward_pass"):
            self._run(record)
            array = np.array(to_numpy(record.predictions))
        if array.dtype.kind not in "fiub":
            raise OutputError(f"forward_pass of {self.label} must return an array, got dtype {array.dtype}")
        return array, (record if wrt else None)

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        """Pull back; replays the evaluation if the owner's model has moved on."""
        with self._locked(residuals.spec.noise, "backward_pass"):
            if residuals.stamp != self._stamp():
                self._run(residuals)
            try:
                gradient = self._pull(residuals, cotangents[0])
            except RuntimeError:
                # A backward that frees its graph can be done once; replayed, once more.
                self._run(residuals)
                gradient = self._pull(residuals, cotangents[0])
            flat = np.array(to_numpy(gradient), dtype=np.float64).reshape(-1)
        if flat.shape != residuals.theta.shape:
            raise GradientShapeError(
                f"backward_pass of {self.label} must return a gradient of theta, shape {residuals.theta.shape}, "
                f"got {flat.size} values; put the gradients of all parameters in theta's order"
            )
        return [flat.copy() for _ in wrt]

    def _pull(self, record: Run, cotangent: Array) -> Any:
        owner = self._owner
        owner.predictions = record.predictions
        owner.zero_gradients()
        external_grad = _like(cotangent, record.predictions)
        if self._takes_predictions:
            return owner.backward_pass(record.predictions, external_grad)  # type: ignore[call-arg]
        return owner.backward_pass(external_grad)

    def _run(self, record: Run) -> None:
        owner = self._owner
        # Copies: a forward_pass that writes into its X must not change what a replay gets.
        inputs = [x.copy() if isinstance(x, np.ndarray) else x for x in record.inputs]
        (features, *rest), kwargs = record.spec.bind(inputs)
        owner.update_model_params(record.theta.copy(), **kwargs)
        owner.predictions = record.predictions = owner.forward_pass(features, *rest, **kwargs)
        self._model_lock.count += 1
        record.stamp = self._stamp()

    @contextmanager
    def _locked(self, noise: int, method: str) -> Iterator[None]:
        """The native model to oneself, in pinned surroundings; a failure in there named."""
        try:
            with self._model_lock.lock, self._owner.surroundings(noise):
                yield
        except (GradbridgeError, NotImplementedError):
            raise
        except Exception as error:
            raise GuestError(f"{method} of {self.label} failed: {type(error).__name__}: {error}") from error

    def _stamp(self) -> tuple[Any, ...]:
        """What tells whether the owner's state is still that of an evaluation."""
        parameters = getattr(self._owner.native_model, "parameters", None)
        versions = tuple(getattr(p, "_version", 0) for p in parameters()) if callable(parameters) else ()
        return (self._model_lock.count, *versions)


class Run:
    """One run: what it was made of, and the owner's state that it left."""

    __slots__ = ("inputs", "predictions", "spec", "stamp", "theta")

    def __init__(self, theta: Array, inputs: list[Any], spec: CallSpec) -> None:
        self.theta, self.inputs, self.spec = theta, inputs, spec
        self.predictions: Any = None
        self.stamp: tuple[Any, ...] = ()


def to_numpy(value: Any) -> Array:
    """A tensor or array as a NumPy array, off its device and graph."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value)


def _like(cotangent: Array, predictions: Any) -> Any:
    """The cotangent in the form of the predictions: a tensor for a tensor."""
    if not hasattr(predictions, "detach"):
        return cotangent.copy()
    import torch

    return torch.tensor(cotangent, dtype=predictions.dtype, device=predictions.device)
