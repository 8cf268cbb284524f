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
from typing import Any

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
from gradbridge_seldonian.steps.framework import BACKWARD, FORWARD, UPDATE, ZERO, is_inherited
from gradbridge_seldonian.steps.looks import GradientLook
from gradbridge_seldonian.steps.run import Run, StepsModel


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
        self.owner = owner
        self.framework = owner._steps_framework()
        self._model_lock = lock
        self._left: Any = None
        self._check = GradientLook(self)

    def weights(self) -> list[Array]:
        """The owner's `initial_solution`, where it has one."""
        return [np.array(self.owner.initial_solution(), dtype=np.float64)]

    def model(self, weights: Sequence[Array]) -> Any:
        with self._model_lock.lock:
            twin = copy.deepcopy(self.owner)
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
        with self._model_lock.lock:
            record.native = self.owner.native_model
            if wrt or spec.replay:
                record.state = self.framework.state()
            self._run(record)
            array = self.array(record)
            if spec.replay:  # of what was called before: what the model keeps stays put
                self.framework.restore(record.state)
            if wrt:
                self._left = self.framework.snapshot()
        return array, (record if wrt else None)

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        """Pull back; replays the evaluation if the owner's model has moved on.

        Raises:
            NotDifferentiableError: the predictions have lost their graph.
            GradientShapeError: backward_pass returned no gradient of theta.
            AuditError: it returned another gradient than that of its predictions.
        """
        cotangent, record, present = cotangents[0], residuals, None
        self._check.refuse_known()
        with self._model_lock.lock, self._its_native(record):
            try:
                if record.stamp != self._model_lock.count or not self.framework.is_as(self._left):
                    present = self._replay(record)
                self.framework.check_recorded(record.predictions, is_inherited(self.owner, BACKWARD))
                try:
                    flat = self.gradient(record, cotangent)
                except GuestError as error:
                    self.framework.check_reached(record.predictions)
                    if not isinstance(error.__cause__, RuntimeError):
                        raise
                    self.framework.check_recorded(record.predictions, True)
                    # A backward that frees its graph can be done once; replayed, once more.
                    replayed = self._replay(record)
                    present = replayed if present is None else present
                    flat = self.gradient(record, cotangent)
                if self.owner.audit != "off":
                    self._check.look(record, cotangent, flat)
            finally:
                # Not before the pull: the graph may refer to what is put back.
                self.framework.restore(present)
        return [flat.copy() for _ in wrt]

    @contextmanager
    def _its_native(self, record: Run) -> Iterator[None]:
        """The native model that it was run with, where there is another one by now."""
        present = self.owner.native_model
        if present is record.left:
            yield
            return
        self.owner.native_model, record.stamp = record.native, 0
        try:
            yield
        finally:
            self.owner.native_model = present

    def gradient(self, record: Run, cotangent: Array) -> Array:
        """Pull back what was just run, (P,); anew at each call.

        Raises:
            GuestError: a method failed.
            GradientShapeError: it is not a gradient of theta.
        """
        with self.framework.surroundings(record.spec.noise):
            return self._checked_gradient(self._pull(record, cotangent), record.theta.size)

    def run_again(self, record: Run) -> Any:
        """Run it from the state that it found; returns the predictions."""
        self.framework.restore(record.state)
        self._run(record)
        return record.predictions

    def load(self, theta: Array, record: Run) -> None:
        """Load other parameters as a run would, which leaves none that can be pulled back."""
        self._model_lock.count += 1
        (_, *_), kwargs = record.arguments()
        self._load(theta, kwargs)

    def _pull(self, record: Run, cotangent: Array) -> Any:
        owner = self.owner
        takes_predictions = self.framework.takes_predictions()
        owner.predictions = record.predictions
        external_grad = self.framework.cotangent(cotangent, record.predictions)
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
        owner, before = self.owner, dict(vars(self.owner))
        (features, *rest), kwargs = record.arguments()
        self._model_lock.count += 1  # whatever comes of it, the model is no other run's any more
        try:
            with self.framework.surroundings(record.spec.noise):
                self._load(record.theta, kwargs)
                self.framework.begin()
                with self._step(FORWARD):
                    predictions = owner.forward_pass(features, *rest, **kwargs)
            self.framework.check_predictions(predictions)
            owner.predictions = record.predictions = predictions
        finally:
            owner._note_run(before)
        record.stamp, record.left = self._model_lock.count, owner.native_model

    def _load(self, theta: Array, kwargs: dict[str, Any]) -> None:
        try:
            with self._step(UPDATE):
                self.owner.update_model_params(theta.copy(), **kwargs)
        except GuestError:
            self.owner._check_size(theta.size)  # the reason, if theta is of another length
            raise
        if not is_inherited(self.owner, UPDATE):  # ours has looked
            self.owner._check_size(theta.size)

    def _replay(self, record: Run) -> Any:
        """The same run again, from the state that the first one found; returns the present one, to be put back."""
        present = self.framework.state()
        self.run_again(record)
        self._left = self.framework.snapshot()
        return present

    def array(self, record: Run) -> Array:
        """The predictions as an array.

        Raises:
            OutputError: they are not numbers.
        """
        array = np.array(self.framework.to_numpy(record.predictions))
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
            return np.array(self.framework.to_numpy(gradient), dtype=np.float64).reshape(-1)
        except (TypeError, ValueError, RuntimeError):  # parts of several shapes, or no numbers
            return None

    @contextmanager
    def _step(self, method: str) -> Iterator[None]:
        """A call of one of the user's methods; a failure in there named."""
        try:
            yield
        except GradbridgeError:
            raise
        except Exception as error:
            raise GuestError(f"{method} of {self.label} failed: {type(error).__name__}: {error}") from error
