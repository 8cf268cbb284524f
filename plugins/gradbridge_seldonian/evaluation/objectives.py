"""The engine's primary objectives, vectorized: equal values and gradients, without a loop over rows.

The engine sums with Python's `sum`, so that autograd records a node for every row.
"""

from __future__ import annotations

from typing import Any

import autograd.numpy as np
import numpy as onp
from autograd.extend import Box, defjvp, defvjp, primitive

# What the engine adds inside its logarithms against predictions of exactly 0 or 1.
STABILITY = 1e-15


def Mean_Squared_Error(model: Any, theta: Any, X: Any, Y: Any, **kwargs: Any) -> Any:
    """Mean of (prediction − label)² over the n rows."""
    return np.sum((model.predict(theta, X) - Y) ** 2) / len(Y)


def Mean_Error(model: Any, theta: Any, X: Any, Y: Any, **kwargs: Any) -> Any:
    """Mean of prediction − label over the n rows."""
    return np.sum(model.predict(theta, X) - Y) / len(Y)


def binary_logistic_loss(model: Any, theta: Any, X: Any, Y: Any, **kwargs: Any) -> Any:
    """Mean logistic loss of probabilities (n,) against labels 0 and 1."""
    return _logistic(model.predict(theta, X), onp.asarray(Y, dtype=float))  # which has a minus


def multiclass_logistic_loss(model: Any, theta: Any, X: Any, Y: Any, **kwargs: Any) -> Any:
    """Mean of −log of the true class's probability, from (n, k) probabilities and n labels."""
    p = model.predict(theta, X)
    rows = np.arange(len(Y))
    return -1 / len(Y) * np.sum(np.log(p[rows, Y.astype("int")]))


def Error_Rate(model: Any, theta: Any, X: Any, Y: Any, **kwargs: Any) -> Any:
    """Mean probability of a wrong class, from (n,) or (n, k) probabilities."""
    p = model.predict(theta, X)
    if len(p.shape) == 2:
        return np.sum(1.0 - p[np.arange(len(Y)), Y.astype("int")]) / len(Y)
    return np.sum(Y * (1 - p) + (1 - Y) * p) / len(Y)


def confusion_matrix(model: Any, theta: Any, X: Any, Y: Any, l_i: int, l_k: int, **kwargs: Any) -> Any:
    """Mean probability of class `l_k` among the rows whose label is `l_i`."""
    p = model.predict(theta, X)
    mask = l_i == Y
    return np.sum(p[:, l_k][mask]) / np.sum(mask)


@primitive
def _logistic(p: Any, Y: Any) -> Any:
    """One step of autograd's in place of ten: on a small model they cost more than the model does."""
    return onp.mean(-Y * onp.log(p + STABILITY) - (1.0 - Y) * onp.log(1.0 - p + STABILITY))


def _logistic_slope(p: Any, Y: Any) -> Any:
    """∂ loss / ∂ p, of p's shape; differentiable again."""
    size = onp.size(p._value if isinstance(p, Box) else p)
    return (-Y / (p + STABILITY) + (1.0 - Y) / (1.0 - p + STABILITY)) / size


defvjp(_logistic, lambda answer, p, Y: lambda v: v * _logistic_slope(p, Y), None)
defjvp(_logistic, lambda t, answer, p, Y: np.sum(t * _logistic_slope(p, Y)), None)

PRIMARY = {
    "regression": Mean_Squared_Error,
    "classification": binary_logistic_loss,
    "binary_classification": binary_logistic_loss,
    "multiclass_classification": multiclass_logistic_loss,
}
