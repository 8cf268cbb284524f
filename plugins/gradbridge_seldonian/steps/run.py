"""One run of the five methods, and what makes it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.layout import Array
from gradbridge_seldonian.steps.framework import StepsFramework


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


class Run:
    """One run: what it was made of, and the owner's state that it found and left."""

    __slots__ = ("inputs", "left", "native", "predictions", "spec", "stamp", "state", "theta")

    def __init__(self, theta: Array, inputs: list[Any], spec: CallSpec) -> None:
        self.theta, self.inputs, self.spec = theta, inputs, spec
        self.predictions: Any = None
        self.state: Any = None
        self.stamp = 0  # which run of the model it was; none of them yet
        self.native: Any = None
        self.left: Any = None

    def anew(self, theta: Array | None = None) -> Run:
        """The same run, or with other parameters, to be made from the same state."""
        other = Run(self.theta if theta is None else theta, self.inputs, self.spec)
        other.state, other.native = self.state, self.native
        return other

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Of the call: copies, for a forward_pass that writes into its X."""
        # In their layout, by which kernels and rounding differ.
        inputs = [x.copy(order="K") if isinstance(x, np.ndarray) else x for x in self.inputs]
        args, kwargs = self.spec.bind(inputs)
        return args, {k: v.value if isinstance(v, AsGiven) else v for k, v in kwargs.items()}


class AsGiven:
    """A keyword argument that is to arrive as it was given, where a bridge would hand on an array.

    Args:
        value: it.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsGiven) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)


class Runner(Protocol):
    """Makes runs of one model, which somebody else has locked."""

    label: str
    owner: StepsModel
    framework: StepsFramework

    def run_again(self, record: Run) -> Any:
        """Run it from the state that it found; returns the predictions."""

    def array(self, record: Run) -> Array:
        """The predictions as an array."""

    def gradient(self, record: Run, cotangent: Array) -> Array:
        """Pull back what was just run, (P,)."""

    def load(self, theta: Array, record: Run) -> None:
        """Load other parameters as a run would."""
