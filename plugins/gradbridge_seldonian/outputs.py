"""Whether a model's predictions are such as the engine takes."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradbridge.errors import BorderError
from gradbridge.layout import Array

TRIED_ROWS = 4


class SpecError(BorderError, ValueError):
    """A specification whose parts do not fit each other."""


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
