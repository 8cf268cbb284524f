"""Replay: what makes five stateful methods an adapter that keeps the laws.

The methods load parameters into one native model, run it, and read the gradients that it
gathered. Nothing in them keeps two evaluations apart. So each evaluation travels with its
parameters and inputs, and is made again, under a lock, when the model's state has moved on since.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from gradbridge.errors import (
    GradbridgeError,
    GradientShapeError,
    GuestError,
    NotDifferentiableError,
    OutputError,
)
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Adapter, Array, Signature

if TYPE_CHECKING:
    from gradbridge_seldonian.steps import SupervisedStepsModel


class Turns:
    """Who has run the native model last. A copy of the model takes turns of its own."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.count = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return (Turns, ())


class StepsAdapter(Adapter):
    """Makes the five methods keep the laws: re-entrant and fresh by replay, zeroed before each backward."""

    def __init__(self, owner: SupervisedStepsModel, size: int, turns: Turns) -> None:
        self.label = type(owner).__name__
        self.layout = ParameterLayout(("theta",), ((size,),), ("float64",))
        self._owner = owner
        self._turns = turns
        self._takes_predictions = len(inspect.signature(owner.backward_pass).parameters) >= 2

    def params(self) -> Array:
        """See `Adapter.params`: the owner's `initial_solution`, where it has one."""
        start: Array = np.array(self._owner.initial_solution(), dtype=np.float64)  # type: ignore[attr-defined]
        return start

    def model(self, params: Array) -> Any:
        """See `Adapter.model`."""
        import copy

        with self._turns.lock:
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
        record = Evaluation(loaded, kept, signature)
        with self._turn(signature.noise, "forward_pass"):
            self._run(record)
            array = np.array(to_numpy(record.predictions))
        if array.dtype.kind not in "fiub":
            raise OutputError(f"forward_pass of {self.label} must return an array, got dtype {array.dtype}")
        return array, (record if wrt else None)

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        """See `Adapter.backward`: replays the evaluation if the owner's model has moved on."""
        with self._turn(residuals.signature.noise, "backward_pass"):
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

    def _pull(self, record: Evaluation, cotangent: Array) -> Any:
        owner = self._owner
        owner.predictions = record.predictions
        owner.zero_gradients()
        external_grad = _like(cotangent, record.predictions)
        if self._takes_predictions:
            return owner.backward_pass(record.predictions, external_grad)  # type: ignore[call-arg]
        return owner.backward_pass(external_grad)

    def _run(self, record: Evaluation) -> None:
        owner = self._owner
        # Copies: a forward_pass that writes into its X must not change what a replay gets.
        inputs = [x.copy() if isinstance(x, np.ndarray) else x for x in record.inputs]
        (features, *rest), kwargs = record.signature.bind(inputs)
        owner.update_model_params(record.theta.copy(), **kwargs)
        owner.predictions = record.predictions = owner.forward_pass(features, *rest, **kwargs)
        self._turns.count += 1
        record.stamp = self._stamp()

    @contextmanager
    def _turn(self, noise: int, method: str) -> Iterator[None]:
        """The native model to oneself, in pinned surroundings; a failure in there named."""
        try:
            with self._turns.lock, self._owner.surroundings(noise):
                yield
        except (GradbridgeError, NotImplementedError):
            raise
        except Exception as error:
            raise GuestError(f"{method} of {self.label} failed: {type(error).__name__}: {error}") from error

    def _stamp(self) -> tuple[Any, ...]:
        """What tells whether the owner's state is still that of an evaluation."""
        parameters = getattr(self._owner.native_model, "parameters", None)
        versions = tuple(getattr(p, "_version", 0) for p in parameters()) if callable(parameters) else ()
        return (self._turns.count, *versions)


class Evaluation:
    """One evaluation: what it was made of, and the owner's state that it left."""

    __slots__ = ("inputs", "predictions", "signature", "stamp", "theta")

    def __init__(self, theta: Array, inputs: list[Any], signature: Signature) -> None:
        self.theta, self.inputs, self.signature = theta, inputs, signature
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
