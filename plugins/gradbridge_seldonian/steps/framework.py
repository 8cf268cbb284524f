"""What differs by the framework that five methods are written for; here for none: NumPy arrays."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gradbridge.errors import GuestError, OutputError, UnknownModelError
from gradbridge.layout import Array

CREATE, UPDATE, FORWARD, ZERO, BACKWARD = METHODS = (
    "create_model", "update_model_params", "forward_pass", "zero_gradients", "backward_pass",
)  # fmt: skip


class MissingStepError(GuestError, NotImplementedError):
    """One of the five methods was asked for, and the class does not have it."""


class NotConstructedError(GuestError, AttributeError):
    """The class has an `__init__` that does not call that of its base."""


def is_inherited(owner: Any, method: str) -> bool:
    """Whether a method is one of ours, rather than of the user's class or object."""
    function = getattr(getattr(owner, method), "__func__", None)
    return str(getattr(function, "__module__", "")).partition(".")[0] == "gradbridge_seldonian"


class StepsFramework:
    """How a framework's tensors and models are treated around the five methods.

    Args:
        owner: whose methods they are.
    """

    #: How many arguments a ``backward_pass(*args)`` gets: as many as in the framework's class of the engine.
    backward_arguments = 1

    def __init__(self, owner: Any) -> None:
        self.owner, self.label = owner, type(owner).__name__
        self._form: tuple[Any, bool] | None = None

    @contextmanager
    def surroundings(self, noise: int) -> Iterator[None]:
        """Entered around every run of the methods; where a framework's global state is pinned.

        Args:
            noise: seed of the evaluation's random numbers; the same when it is replayed.
        """
        yield

    def check_native(self, native: Any) -> None:
        """Refuse what create_model returned, where it is not a model.

        Raises:
            UnknownModelError
        """
        if native is None:
            raise UnknownModelError(
                f"{CREATE} of {self.label} returned None; it must return the model that it makes"
            )

    def check_predictions(self, predictions: Any) -> None:
        """Refuse what forward_pass returned, where they are not predictions.

        Raises:
            OutputError
        """
        if not hasattr(predictions, "shape") or not hasattr(predictions, "dtype"):
            self.refuse_predictions(predictions, "an array")

    def refuse_predictions(self, predictions: Any, expected: str) -> None:
        """Say what forward_pass should have returned.

        Raises:
            OutputError
        """
        came = "None" if predictions is None else f"a {type(predictions).__name__}"
        advice = "return the predictions" if predictions is None else "return the predictions alone"
        raise OutputError(
            f"{FORWARD} of {self.label} must return {expected}, its predictions for the rows of X, and returned "
            f"{came}; {advice}"
        )

    def begin(self) -> None:
        """Called before each forward_pass."""

    def check_recorded(self, predictions: Any, by_framework: bool) -> None:
        """Refuse predictions that cannot be pulled back.

        Args:
            predictions: of forward_pass.
            by_framework: whether backward_pass works by the framework's own record; else it may need none.

        Raises:
            NotDifferentiableError
        """

    def to_numpy(self, value: Any) -> Array:
        """An array of the framework as NumPy's, off its device and graph."""
        return np.asarray(value)

    def cotangent(self, cotangent: Array, predictions: Any) -> Any:
        """What backward_pass is handed, in the form that classes of the framework are written for."""
        return cotangent.copy()

    def state(self) -> Any:
        """What the native model keeps beside theta and may change in a run, opaque."""
        return None

    def restore(self, state: Any) -> None:
        """Put back what `state` told."""

    def own_gradient(self, run: Callable[[], Any], cotangent: Array) -> Array | None:
        """What the framework says that the gradient of a run is.

        Args:
            run: makes it, and returns its predictions.
            cotangent: of the predictions.

        Returns:
            (n,) by the native model's trainable parameters, in its order; None where they have no part in it.
        """
        return None

    def parameters(self) -> Array:
        """The numbers of the native model's trainable parameters, (n,) float64 in its order."""
        pieces = [self.owner._read_parameter(p).ravel() for p in self.owner._trainable_parameters()]
        return np.concatenate([np.empty(0), *pieces]).astype(np.float64)

    def sizes(self) -> list[int]:
        """Of the native model's trainable parameters, in its order."""
        return [math.prod(p.shape) for p in self.owner._trainable_parameters()]

    def clear(self) -> None:
        """Forget the gradients that the native model has gathered, whatever zero_gradients does."""

    def check_reached(self, predictions: Any) -> None:
        """Refuse predictions that none of the parameters has a part in, if that can be told.

        Raises:
            NotDifferentiableError
        """

    def snapshot(self) -> Any:
        """What a backward_pass may read of the native model, parameters and the rest, as it is: copies."""
        return None

    def is_as(self, snapshot: Any) -> bool:
        """Whether it still is, however it was changed."""
        return True

    def takes_predictions(self) -> bool:
        """Whether it is ``backward_pass(predictions, external_grad)``, or one argument, the cotangent.

        Raises:
            MissingStepError: it takes neither.
        """
        method = getattr(self.owner, BACKWARD)
        function = getattr(method, "__func__", method)
        if self._form is None or self._form[0] is not function:
            self._form = function, self._takes_predictions(method)
        return self._form[1]

    def _takes_predictions(self, method: Any) -> bool:
        try:
            parameters = list(inspect.signature(method).parameters.values())
        except (TypeError, ValueError):  # not written in Python
            return self.backward_arguments == 2
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        needed = [p.name for p in parameters if p.name in names and p.default is p.empty]
        swapped = len(needed) == 2 and needed[0] == "external_grad"
        nothing = not names and not any(p.kind is p.VAR_POSITIONAL for p in parameters)
        if len(needed) > 2 or swapped or nothing:
            raise MissingStepError(
                f"{BACKWARD} of {self.label} must take (external_grad), the cotangent of its predictions, or "
                f"(predictions, external_grad), and takes ({', '.join(p.name for p in parameters)})"
            )
        if not names:
            return self.backward_arguments == 2
        if "external_grad" in names[:2]:
            return names.index("external_grad") == 1
        return len(needed) == 2 or (not needed and len(names) > 1)
