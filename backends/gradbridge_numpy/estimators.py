"""Fitted scikit-learn estimators whose prediction is a stack of dense layers, with its gradient by hand.

Linear models of any kind, logistic regressions and multilayer perceptrons. scikit-learn itself is not imported:
the estimators are read by their fitted attributes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.architectures import Architecture, Layer
from gradbridge.errors import UnknownModelError
from gradbridge.layout import Array
from gradbridge.protocol import GuestOptions
from gradbridge_numpy import ESTIMATORS
from gradbridge_numpy.architectures import Network, NetworkAdapter

_ACTIVATIONS = {"identity": None, "logistic": "sigmoid", "tanh": "tanh", "relu": "relu", "softmax": "softmax"}


def is_estimator(model: Any) -> bool:
    """Whether the model is of one of `ESTIMATORS`, by its MRO."""
    return any(f"{cls.__module__}.{cls.__qualname__}" in ESTIMATORS for cls in type(model).__mro__)


class EstimatorAdapter(NetworkAdapter):
    """What a fitted estimator predicts: values, or probabilities for a classifier.

    A binary classifier gives the probability of its second class, (n,); one of k > 2 classes gives
    (n, k), in the order of ``classes_``. The params have the intercept of each layer before its
    coefficients, (features, outputs).
    """

    def __init__(self, estimator: Any, options: GuestOptions) -> None:
        self._estimator = estimator
        pairs = _coefficients(estimator)
        layers = [
            Layer("dense", str(i), *weight.shape, activation=name)
            for i, ((_, weight), name) in enumerate(zip(pairs, _activations(estimator, len(pairs))))
        ]
        architecture = Architecture(
            type(estimator).__name__, tuple(layers), squeeze=pairs[-1][1].shape[1] == 1
        )
        params = {}
        for i, (bias, weight) in enumerate(pairs):
            params[f"{i}.bias"], params[f"{i}.weight"] = bias, weight
        own = np.result_type(np.float16, *(np.asarray(weight).dtype for _, weight in _fitted(estimator)))
        super().__init__(Network(architecture, params), options, own)
        self.label = type(estimator).__name__

    def model(self, weights: Sequence[Array]) -> Any:
        """A copy of the estimator with these coefficients."""
        twin = copy.deepcopy(self._estimator)
        arrays = [np.array(weight) for weight in weights]
        biases, coefficients = arrays[::2], arrays[1::2]
        if hasattr(twin, "coefs_"):
            twin.intercepts_, twin.coefs_ = biases, coefficients
        else:
            twin.coef_ = coefficients[0].T.reshape(np.shape(twin.coef_))
            intercept = np.shape(twin.intercept_)
            twin.intercept_ = biases[0].reshape(intercept) if intercept else biases[0][0]
        return twin


def _fitted(estimator: Any) -> list[tuple[Any, Any]]:
    """(intercepts, coefficients) of each layer as they were fitted.

    Raises:
        UnknownModelError: the estimator is not fitted.
    """
    if hasattr(estimator, "coefs_"):
        return list(zip(estimator.intercepts_, estimator.coefs_))
    if not hasattr(estimator, "coef_"):
        raise UnknownModelError(
            f"{type(estimator).__name__} is not fitted, so it has no coefficients; call fit first"
        )
    return [(estimator.intercept_, estimator.coef_)]


def _coefficients(estimator: Any) -> list[tuple[Array, Array]]:
    """(bias (out,), weight (in, out)) of each layer in float64, copied."""
    pairs = [(np.array(b, float), np.array(w, float)) for b, w in _fitted(estimator)]
    if hasattr(estimator, "coefs_"):
        return pairs
    ((bias, weight),) = pairs
    weight = np.atleast_2d(weight).T
    return [(np.broadcast_to(bias, weight.shape[1]).copy(), weight)]


def _activations(estimator: Any, count: int) -> list[str | None]:
    if hasattr(estimator, "coefs_"):
        hidden = _ACTIVATIONS[estimator.activation]
        return [hidden] * (count - 1) + [_ACTIVATIONS[estimator.out_activation_]]
    if not hasattr(estimator, "classes_"):
        return [None]
    if not hasattr(estimator, "predict_proba"):
        raise UnknownModelError(
            f"{type(estimator).__name__} predicts classes and no probabilities, and classes have no derivative; bridge a "
            f"LogisticRegression, or a function of X, coef_ and intercept_ with gradbridge.primitive"
        )
    return ["sigmoid" if len(estimator.classes_) == 2 else "softmax"]
