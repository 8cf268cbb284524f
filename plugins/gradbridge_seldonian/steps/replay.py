"""Replay: what makes five stateful methods an adapter that keeps the laws.

The methods load parameters into one native model, run it, and read the gradients that it
gathered. Nothing in them keeps two evaluations apart. So each evaluation travels with its
parameters and inputs, and is made again, under a lock, when the model's state has moved on since.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.errors import (
    AuditError,
    GradbridgeError,
    GradientShapeError,
    GuestError,
    NotDifferentiableError,
    OutputError,
)
from gradbridge.layout import Array, ParameterLayout
from gradbridge.notices import notice
from gradbridge.protocol import Adapter
from gradbridge_seldonian.steps.framework import BACKWARD, FORWARD, UPDATE, ZERO, StepsFramework, is_inherited
from gradbridge_seldonian.steps.gradient_check import GradientCheck


class StepsModel(Protocol):
    """The five methods, and what is told about them."""

    native_model: Any
    predictions: Any
    audit: str

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

    def _steps_framework(self) -> StepsFramework:
        """How its framework is treated around them."""

    def _check_size(self, size: int) -> None:
        """Refuse a theta of another length than the one that was loaded."""

    def _note_run(self, before: dict[str, Any]) -> None:
        """Is told what its attributes were before a run."""


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
        self._framework = owner._steps_framework()
        self._check = GradientCheck()

    def weights(self) -> list[Array]:
        """The owner's `initial_solution`, where it has one."""
        return [np.array(self._owner.initial_solution(), dtype=np.float64)]

    def model(self, weights: Sequence[Array]) -> Any:
        with self._model_lock.lock:
            twin = copy.deepcopy(self._owner)
        with self._step(UPDATE):
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
            GuestError: one of the methods failed; it is named.
            OutputError: forward_pass returned no predictions.
        """
        if any(wrt):
            raise NotDifferentiableError(
                f"the derivative of {self.label} with respect to its features was asked for, and backward_pass "
                f"gives that of theta only; bridge the native model with gradbridge.bridge for both"
            )
        kept = [leaf.copy(order="K") if isinstance(leaf, np.ndarray) else leaf for leaf in inputs]
        record = Run(loaded, kept, spec)
        with self._alone(spec.noise):
            if wrt or spec.replay:
                record.state = self._framework.state()
            self._run(record)
            array = self._array(record)
            if spec.replay:  # of what was called before: what the model keeps stays put
                self._framework.restore(record.state)
        return array, (record if wrt else None)

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        """Pull back; replays the evaluation if the owner's model has moved on.

        Raises:
            NotDifferentiableError: the predictions have lost their graph.
            GradientShapeError: backward_pass returned no gradient of theta.
            AuditError: it returned another gradient than that of its predictions.
        """
        cotangent, record, present = cotangents[0], residuals, None
        with self._alone(record.spec.noise):
            try:
                if record.stamp != self._stamp():
                    present = self._replay(record)
                self._framework.check_recorded(record.predictions, is_inherited(self._owner, BACKWARD))
                try:
                    gradient = self._pull(record, cotangent)
                except GuestError as error:
                    if not isinstance(error.__cause__, RuntimeError):
                        raise
                    self._framework.check_recorded(record.predictions, True)
                    # A backward that frees its graph can be done once; replayed, once more.
                    replayed = self._replay(record)
                    present = replayed if present is None else present
                    gradient = self._pull(record, cotangent)
                flat = self._checked_gradient(gradient, record.theta.size)
                if self._owner.audit != "off":
                    self._look(record, cotangent, flat)
            finally:
                # Not before the pull: the graph may refer to what is put back.
                self._framework.restore(present)
        return [flat.copy() for _ in wrt]

    def _pull(self, record: Run, cotangent: Array) -> Any:
        owner = self._owner
        takes_predictions = self._framework.takes_predictions()
        owner.predictions = record.predictions
        external_grad = self._framework.cotangent(cotangent, record.predictions)
        before = dict(vars(owner))
        try:
            with self._step(ZERO):
                owner.zero_gradients()
            with self._step(BACKWARD):
                if takes_predictions:
                    return owner.backward_pass(record.predictions, external_grad)  # type: ignore[call-arg]
                return owner.backward_pass(external_grad)
        finally:
            owner._note_run(before)

    def _run(self, record: Run) -> None:
        owner, before = self._owner, dict(vars(self._owner))
        # Copies, for a forward_pass that writes into its X; in their layout, by which kernels and rounding differ.
        inputs = [x.copy(order="K") if isinstance(x, np.ndarray) else x for x in record.inputs]
        (features, *rest), kwargs = record.spec.bind(inputs)
        self._model_lock.count += 1  # whatever comes of it, the model is no other run's any more
        try:
            self._load(record.theta, kwargs)
            self._framework.begin()
            with self._step(FORWARD):
                predictions = owner.forward_pass(features, *rest, **kwargs)
            self._framework.check_predictions(predictions)
            owner.predictions = record.predictions = predictions
        finally:
            owner._note_run(before)
        record.stamp = self._stamp()

    def _load(self, theta: Array, kwargs: dict[str, Any]) -> None:
        try:
            with self._step(UPDATE):
                self._owner.update_model_params(theta.copy(), **kwargs)
        except GuestError:
            self._owner._check_size(theta.size)  # the reason, if theta is of another length
            raise
        if not is_inherited(self._owner, UPDATE):  # ours has looked
            self._owner._check_size(theta.size)

    def _replay(self, record: Run) -> Any:
        """The same run again, from the state that the first one found; returns the present one, to be put back."""
        present = self._framework.state()
        self._framework.restore(record.state)
        self._run(record)
        return present

    def _array(self, record: Run) -> Array:
        array = np.array(self._framework.to_numpy(record.predictions))
        if array.dtype.kind not in "fiub":
            raise OutputError(
                f"{FORWARD} of {self.label} must return an array of numbers, got dtype {array.dtype}"
            )
        return array

    def _checked_gradient(self, gradient: Any, size: int) -> Array:
        flat = None if gradient is None else self._flat(gradient)
        if flat is not None and flat.shape == (size,):
            return flat
        if flat is not None:
            came = f"{flat.size} values"
        else:
            parts = f" of {len(gradient)} parts" if isinstance(gradient, list | tuple) else ""
            came = "None" if gradient is None else f"a {type(gradient).__name__}{parts}"
        raise GradientShapeError(
            f"{BACKWARD} of {self.label} must return a gradient of theta, shape ({size},), got {came}; put the gradients "
            f"of all parameters in one flat array, in theta's order"
        )

    def _flat(self, gradient: Any) -> Array | None:
        try:
            return np.array(self._framework.to_numpy(gradient), dtype=np.float64).reshape(-1)
        except (TypeError, ValueError, RuntimeError):  # parts of several shapes, or no numbers
            return None

    def _look(self, record: Run, cotangent: Array, gradient: Array) -> None:
        """Hold the first gradients to how the predictions move; tell, or refuse, what is wrong by far."""
        if not self._check.failure and self._check.awaits(record.theta, cotangent):
            state = self._framework.state()
            apart = self._check.look(
                record.theta, self._array(record), cotangent, gradient, lambda t: self._elsewhere(record, t)
            )
            self._framework.restore(record.state)
            self._run(record)  # leaves theta in the native model
            self._framework.restore(state)
            if apart is not None:
                self._tell(apart)
        if self._check.failure:
            raise AuditError(self._check.failure)

    def _elsewhere(self, record: Run, theta: Array) -> Array | None:
        moved = Run(theta, record.inputs, record.spec)
        self._framework.restore(record.state)
        try:
            self._run(moved)
            array = self._array(moved)
        except GradbridgeError:
            return None
        return array.astype(np.float64) if np.isfinite(array).all() else None

    def _tell(self, apart: float) -> None:
        found = (
            f"the gradient that {self.label} gives is not how its predictions move with theta ({100 * apart:.0f} % "
            f"apart in random directions): "
        )
        leave = "audit = 'off' in the class takes a gradient that is meant to be another as it is"
        if is_inherited(self._owner, UPDATE) and is_inherited(self._owner, BACKWARD):
            # The framework's own gradient of what it recorded: a part that is held constant may be meant.
            notice(
                f"{found}a part of it is computed from detached values, without a record, or has a gradient of its "
                f"own, and is held constant; {leave}"
            )
            return
        self._check.failure = (
            f"{found}{BACKWARD} orders the parameters otherwise than {UPDATE} reads them from theta, leaves some out, "
            f"or works from other predictions than those of its run. Write both in the same order; {leave}"
        )

    @contextmanager
    def _alone(self, noise: int) -> Iterator[None]:
        """The native model to oneself, in pinned surroundings."""
        with self._model_lock.lock, self._framework.surroundings(noise):
            yield

    @contextmanager
    def _step(self, method: str) -> Iterator[None]:
        """A call of one of the user's methods; a failure in there named."""
        try:
            yield
        except GradbridgeError:
            raise
        except Exception as error:
            raise GuestError(f"{method} of {self.label} failed: {type(error).__name__}: {error}") from error

    def _stamp(self) -> tuple[Any, ...]:
        """What tells whether the owner's state is still that of an evaluation."""
        return (self._model_lock.count, *self._framework.versions())


class Run:
    """One run: what it was made of, and the owner's state that it found and left."""

    __slots__ = ("inputs", "predictions", "spec", "stamp", "state", "theta")

    def __init__(self, theta: Array, inputs: list[Any], spec: CallSpec) -> None:
        self.theta, self.inputs, self.spec = theta, inputs, spec
        self.predictions: Any = None
        self.state: Any = None
        self.stamp: tuple[Any, ...] = ()
