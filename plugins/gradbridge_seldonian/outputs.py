"""Whether a model's predictions are such as the engine takes."""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np

from gradbridge.errors import BorderError
from gradbridge.layout import Array

TRIED_ROWS = 4


class SpecError(BorderError, ValueError):
    """A specification whose parts do not fit each other."""


def checked_start(start: Any, constraints: int, technique: str) -> Array:
    """Where training starts, as a new array of float64: the engine's optimizer writes into it.

    Args:
        start: what was given, or what a function of the user's returned.
        constraints: how many there are.
        technique: of the optimization.

    Raises:
        SpecError: no numbers, some that are not finite, or several dimensions where the engine would take their rows
            for constraints.
    """
    try:
        found = np.array(start, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"the initial solution must be an array of numbers, got {reprlib.repr(start)}"
        ) from error
    if not np.isfinite(found).all():
        raise SpecError(
            f"the initial solution has {int((~np.isfinite(found)).sum())} values that are not finite"
        )
    if found.ndim != 1 and (not found.ndim or constraints > 1 or technique != "gradient_descent"):
        raise SpecError(
            f"the initial solution must be of shape (P,), got {found.shape}: of several constraints the engine would take "
            f"rows of parameters for constraints. Give it flat, and let predict(theta, X) reshape theta"
        )
    return found


def tried(model: Any, dataset: Any, start: Array, sub_regime: str) -> Array:
    """Predictions for the first few rows of a supervised data set.

    Raises:
        SpecError: they are not of the shape that the engine takes.
    """
    X, Y = dataset.features, dataset.labels
    few = [x[:TRIED_ROWS] for x in X] if type(X) is list else X[:TRIED_ROWS]
    rows = min(TRIED_ROWS, len(Y))
    found = np.asarray(model.predict(start, few))
    shape = found.shape
    if sub_regime == "multiclass_classification":
        classes = int(Y.max()) + 1
        if len(shape) != 2 or shape[0] != rows or shape[1] < classes:
            raise SpecError(
                f"{sub_regime} with labels 0 to {classes - 1} needs predictions of shape (n, {classes}), one "
                f"probability per class; for {rows} rows the model returned {shape}"
            )
    elif shape != (rows,):
        raise SpecError(
            f"{sub_regime} needs predictions of shape (n,); for {rows} rows the model returned {shape}: give it "
            f"a single output"
        )
    return found
