"""`SeldonianModel`: any bridge as a supervised model of the Seldonian Engine."""

from __future__ import annotations

from typing import Any

import autograd.numpy as np
import numpy as onp

import gradbridge
from gradbridge.errors import OptionError, OutputError
from gradbridge.protocol import Array
from gradbridge_seldonian.runs import BridgedModel

OUTPUTS = ("as_is", "logits")
DOUBLE = "float64"

#: Evaluations that a model remembers: an iteration of candidate selection asks for the objective
#: and each constraint at one point, for their values and again for their gradients.
REUSE = 8


class SeldonianModel(BridgedModel):
    """A model of any framework, trained by the engine through a bridge.

    ::

        model = SeldonianModel(torch.nn.Sequential(torch.nn.Linear(9, 1), torch.nn.Sigmoid()))

    It copies, pickles and forks as the engine asks of its models.

    Args:
        model: a native model, or a `gradbridge.Bridge`.
        backend: the guest's backend; None finds it from the model's class.
        dtype: the dtype to compute in; None is the engine's float64, ``"model"`` the model's own. A Bridge is as it was made.
        output: ``"as_is"``, or ``"logits"`` for a classifier that returns logits: a sigmoid
            (one output) or a softmax (several) is applied.
        reuse: how many evaluations to remember; see `gradbridge.bridge`. Random models get 0.
        **options: of `gradbridge.bridge`.

    Attributes:
        bridge: the bridge underneath.
    """

    def __init__(
        self,
        model: Any,
        backend: str | None = None,
        dtype: Any = None,
        *,
        output: str = "as_is",
        reuse: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise OptionError(f"output must be one of {', '.join(map(repr, OUTPUTS))}, got {output!r}")
        if isinstance(model, gradbridge.Bridge):
            if options or backend is not None or reuse is not None or dtype is not None:
                raise OptionError("a Bridge is complete: give its options where it is made")
            self.bridge = model
        else:
            if reuse is None:
                reuse = 0 if options.get("mode") == "train" else REUSE
            self.bridge = gradbridge.bridge(model, backend=backend, dtype=dtype, reuse=reuse, **options)
        self._output = output

    def predict(self, theta: Any, X: Any, **kwargs: Any) -> Any:
        """Predictions, differentiable with respect to `theta`.

        Args:
            theta: (P,) parameters, `self.bridge.layout` says which is which.
            X: features, (n, …); or a list of such arrays for a model of several inputs.
            **kwargs: keyword arguments of the model.

        Returns:
            (n,) for a regression or a binary classifier, (n, k) for k > 1 outputs.

        Raises:
            OutputError: the model returns several arrays.
        """
        inputs = X if type(X) is list else [X]
        predictions = self.bridge(theta, *inputs, **kwargs)
        if not hasattr(predictions, "shape"):
            raise OutputError(
                f"the model returned a {type(predictions).__name__}, and the engine takes one array of "
                f"predictions; bridge a model that returns its predictions alone"
            )
        if len(predictions.shape) > 1 and predictions.shape[-1] == 1:
            predictions = np.reshape(predictions, predictions.shape[:-1])
        if self._output == "logits":
            return _probabilities(predictions)
        return predictions

    def initial_solution(self, *ignored: Any) -> Array:
        """The model's own parameters, (P,) float64, as an `initial_solution_fn` gives them.

        A new array each time: the engine's optimizer writes into it.
        """
        return self.bridge.params

    def native(self, theta: Any) -> Any:
        """A native model of the framework with these parameters in it."""
        return self.bridge.model(theta)


def _probabilities(logits: Any) -> Any:
    if len(logits.shape) == 1:
        return 0.5 * (np.tanh(0.5 * logits) + 1.0)  # the sigmoid, without overflow
    values = logits
    while hasattr(values, "_value"):  # subtracting a constant changes nothing, so it needs no derivative
        values = values._value
    exponentials = np.exp(logits - onp.max(values, axis=-1, keepdims=True))
    return exponentials / np.sum(exponentials, axis=-1, keepdims=True)
