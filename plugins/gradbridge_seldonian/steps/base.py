"""Models written as five methods over one stateful native model, as the engine's tutorials do."""

from __future__ import annotations

import itertools
import math
from typing import Any, NoReturn

import numpy as np

from gradbridge.bridge import Bridge
from gradbridge.errors import GradbridgeError, GuestError, ParamsShapeError
from gradbridge.protocol import Array
from gradbridge_seldonian.runs import BridgedModel
from gradbridge_seldonian.steps.framework import (
    BACKWARD,
    CREATE,
    FORWARD,
    UPDATE,
    ZERO,
    MissingStepError,
    NotConstructedError,
    StepsFramework,
    is_inherited,
)
from gradbridge_seldonian.steps.placement import placement
from gradbridge_seldonian.steps.replay import ModelLock, StepsAdapter
from gradbridge_seldonian.steps.run import AsGiven

_MISSING = object()
_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.ndarray, np.generic)


class SupervisedStepsModel(BridgedModel):
    """Base class: override the five methods, call `predict`.

    Subclasses set up what `create_model` needs before calling ``super().__init__``, or pass it
    as keyword arguments. The native model is `self.native_model`.

    Attributes:
        native_model: what `create_model` returned.
        predictions: what `forward_pass` returned in the run that `backward_pass` is called for.
        audit: ``"first"`` looks at the first gradients: whether they repeat, and are how the predictions move;
            a class that sets ``"off"`` is taken as it is.
    """

    audit = "first"
    predictions: Any = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        try:
            self.native_model = self.create_model(**kwargs)
        except GradbridgeError:
            raise
        except Exception as error:
            raise GuestError(
                f"{CREATE} of {type(self).__name__} failed: {type(error).__name__}: {error}"
            ) from error
        self._steps_framework().check_native(self.native_model)

    def __getattr__(self, name: str) -> Any:
        if name == "native_model":
            raise NotConstructedError(
                f"{type(self).__name__} has no native model yet, which super().__init__ makes by {CREATE}: call "
                f"super().__init__(...) in its __init__ before anything that uses it"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def create_model(self, **kwargs: Any) -> Any:
        """Return the native model."""
        self._refuse_missing(CREATE)

    def update_model_params(self, theta: Array, **kwargs: Any) -> None:
        """Load (P,) float64 parameters into the native model."""
        self._refuse_missing(UPDATE)

    def zero_gradients(self) -> None:
        """Clear the gradients that the native model gathered."""
        self._refuse_missing(ZERO)

    def forward_pass(self, X: Array, **kwargs: Any) -> Any:
        """Return the native predictions for features X."""
        self._refuse_missing(FORWARD)

    def backward_pass(self, external_grad: Any) -> Any:
        """Return the gradient (P,) for a cotangent of the predictions.

        It may read `self.predictions`, or be written as ``backward_pass(predictions, external_grad)``.
        """
        self._refuse_missing(BACKWARD)

    def _refuse_missing(self, method: str) -> NoReturn:
        raise MissingStepError(
            f"{type(self).__name__} must override {method}, of which its base class has none to inherit"
        )

    def _steps_framework(self) -> StepsFramework:
        """How its framework is treated around the methods."""
        return StepsFramework(self)

    def _trainable_parameters(self) -> list[Any]:
        """The native model's trainable parameters, in its order, where its framework tells."""
        return []

    def get_num_params(self) -> int | None:
        """Length of theta, or None where any length will do."""
        return None

    def predict(self, theta: Any, X: Any, **kwargs: Any) -> Any:
        """Predictions, differentiable with respect to `theta`: (n,) or (n, k).

        Args:
            theta: (P,) real.
            X: features.
            **kwargs: of `update_model_params` and `forward_pass`.

        Raises:
            ParamsShapeError: theta is of another length than the native model takes.
            GuestError, OutputError, NotDifferentiableError, GradientShapeError: one of the methods failed, or
                returned something else than it should; it is named.
            AuditError: the gradient is not how the predictions move.
        """
        size = int(np.prod(theta.shape)) if hasattr(theta, "shape") else len(theta)
        kwargs = {k: AsGiven(v) if isinstance(v, float) else v for k, v in kwargs.items()}
        return self._bridge_of(size)(theta, X, **kwargs)

    def _check_size(self, size: int) -> None:
        """Refuse a theta of another length than `get_num_params`.

        Called once it was to be loaded: an update_model_params of the class's own may make another native model, or
        load some of its parameters.
        """
        known = self.get_num_params()
        if known is not None and known != size:
            self._refuse_size(known, size)

    def _refuse_size(self, known: int, size: int) -> NoReturn:
        raise ParamsShapeError(
            f"{UPDATE} of {type(self).__name__} expects theta of shape ({known},), got ({size},); the native model "
            f"has {known} trainable parameters"
        )

    def _bridge_of(self, size: int) -> Bridge:
        bridge: Bridge | None = self.__dict__.get("_bridge")
        if bridge is None or bridge.layout.size != size:
            # Two bridges may be made at once; they take the same turns, so it does no harm.
            bridge = self._bridge = Bridge(
                StepsAdapter(self, size, self._lock()), "autograd", audit=self.audit
            )
        return bridge

    def _lock(self) -> ModelLock:
        return self.__dict__.setdefault("_model_lock", ModelLock())  # type: ignore[no-any-return]

    def _note_run(self, before: dict[str, Any]) -> None:
        """Keep in mind which attributes a run has set, and what they were before the first one."""
        made = self.__dict__.setdefault("_made_by_runs", {})
        for name, value in list(vars(self).items()):
            if name not in made and before.get(name, _MISSING) is not value and not name.startswith("_made"):
                made[name] = before.get(name, _MISSING)

    def __getstate__(self) -> dict[str, Any]:
        # What runs leave (predictions, tapes, activations) carries the native graph, which neither copies nor
        # pickles. A copy is as if it had never run.
        state = {k: v for k, v in self.__dict__.items() if k not in ("_bridge", "_made_by_runs")}
        for name, earlier in self.__dict__.get("_made_by_runs", {}).items():
            if name not in state or isinstance(state[name], _PLAIN):
                continue
            if earlier is _MISSING:
                del state[name]
            else:
                state[name] = earlier
        return state


class SupervisedParametersModel(SupervisedStepsModel):
    """What the classes over a framework's own models have in common: theta in the order of its parameters.

    Attributes:
        param_sizes: sizes of the trainable parameters, in their order, as the engine's classes have it.
    """

    param_sizes: list[int]

    def _read_parameter(self, parameter: Any) -> Array:
        """A parameter's value as a new array."""
        raise NotImplementedError

    def _write_parameter(self, parameter: Any, value: Array) -> None:
        """Give a parameter another value, of its own shape."""
        raise NotImplementedError

    def get_param_sizes(self) -> list[int]:
        """Sizes of the trainable parameters, in their order."""
        return self._steps_framework().sizes()

    def get_num_params(self) -> int | None:
        """Number of trainable parameters; None where `update_model_params` loads another number of them."""
        total = sum(self._steps_framework().sizes())
        try:
            return total if self._theta_order() else None
        except GuestError:  # theta of this length does not suit it
            return None

    def _check_size(self, size: int) -> None:
        if size != sum(self._steps_framework().sizes()):
            super()._check_size(size)

    def get_model_params(self, *ignored: Any) -> Array:
        """The trainable parameters as they are, (P,) float64, in the model's order."""
        return self._steps_framework().parameters()

    def get_initial_weights(self, *ignored: Any) -> Array:
        """What early editions of the engine call `get_model_params`."""
        return self.get_model_params()

    def initial_solution(self, *ignored: Any) -> Array:
        """`get_model_params`, if it gives theta in the order that `update_model_params` takes it in.

        Raises:
            MissingStepError: that method is the class's own, and loads in an order of its own.
        """
        if is_inherited(self, "get_model_params") and self._theta_order() != "native":
            raise MissingStepError(
                f"{type(self).__name__} orders theta itself: its {UPDATE} does not load it in the order of the native "
                f"model's parameters. Write get_model_params(self, *args), which returns theta in that order, or "
                f"give supervised_spec an initial_solution"
            )
        return np.array(self.get_model_params(), dtype=np.float64).reshape(-1)

    def update_model_params(self, theta: Array, **kwargs: Any) -> None:
        """Cut theta into the native model's parameters, in their order.

        Raises:
            ParamsShapeError: it is of another length.
        """
        theta = np.asarray(theta).reshape(-1)
        parameters = self._trainable_parameters()
        shapes = [tuple(p.shape) for p in parameters]
        ends = list(itertools.accumulate(map(math.prod, shapes)))
        if theta.size != (ends[-1] if ends else 0):
            self._refuse_size(ends[-1] if ends else 0, theta.size)
        for parameter, shape, start, end in zip(parameters, shapes, [0, *ends], ends):
            self._write_parameter(parameter, theta[start:end].reshape(shape))

    def _theta_order(self) -> str:
        """How update_model_params reads theta: in the ``"native"`` order, its ``"own"``, or "" for other numbers."""
        if is_inherited(self, UPDATE):
            return "native"
        parameters = self._trainable_parameters()
        size = sum(self._steps_framework().sizes())
        known = self.__dict__.get("_order")
        if known is None or known[0] != size:
            known = self._order = (size, self._tried_order(parameters, size))
        return known[1]  # type: ignore[no-any-return]

    def _tried_order(self, parameters: list[Any], size: int) -> str:
        """Load distinct numbers, look where they have gone, and put back what was there."""
        lock = self._lock()
        with lock.lock:
            lock.count += 1
            before = [self._read_parameter(p) for p in parameters]
            try:
                places = placement(self.update_model_params, self._steps_framework().parameters, size)
            except GradbridgeError:
                raise
            except Exception as error:
                raise GuestError(
                    f"{UPDATE} of {type(self).__name__} failed: {type(error).__name__}: {error}. It was tried on theta "
                    f"of shape ({size},), as many numbers as the native model has; if it takes others, write "
                    f"get_model_params(self, *args), which returns the start"
                ) from error
            finally:
                for parameter, value in zip(parameters, before):
                    self._write_parameter(parameter, value)
        if places is None or not np.array_equal(np.sort(places), np.arange(size)):
            return ""
        return "native" if np.array_equal(places, np.arange(size)) else "own"
