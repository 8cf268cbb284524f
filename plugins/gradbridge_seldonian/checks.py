"""What `supervised_spec` checks before the engine starts."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradbridge.errors import BorderError
from gradbridge.notices import notice
from gradbridge_seldonian.rows import all_alike, can_share, independent

TRIED_ROWS = 4


class SpecError(BorderError, ValueError):
    """A specification whose parts do not fit each other."""


def checked_constraints(constraints: Any, deltas: Any, lambda_init: Any) -> np.ndarray:
    """The multipliers, one for each constraint."""
    if isinstance(constraints, str):
        raise SpecError("constraints must be a list of strings, got one string; put it in a list")
    if len(constraints) != len(deltas):
        raise SpecError(f"{len(constraints)} constraints need as many deltas, got {len(deltas)}")
    if not len(constraints):
        raise SpecError("the engine needs at least one constraint, got none")
    for delta in deltas:
        if not 0 < delta < 1:
            raise SpecError(f"a delta is a probability between 0 and 1, got {delta!r}")
    multipliers = np.asarray(lambda_init, dtype=np.float64)
    if multipliers.shape not in ((), (len(constraints),)):
        raise SpecError(
            f"lambda_init must be one number or one for each of the {len(constraints)} constraints, got shape "
            f"{multipliers.shape}"
        )
    return np.broadcast_to(multipliers, (len(constraints),)).copy()


def checked_start(model: Any, dataset: Any, initial: Any) -> np.ndarray:
    """(P,) float64 where training starts: `initial`, or the model's own parameters."""
    if initial is None:
        if not hasattr(model, "initial_solution"):
            raise SpecError(
                f"{type(model).__name__} does not say where to start; give initial_solution=, an array or a "
                f"function of (model, X, Y)"
            )
        initial = model.initial_solution
    start = initial(model, dataset.features, dataset.labels) if callable(initial) else initial
    start = np.array(start, dtype=np.float64)
    if not np.isfinite(start).all():
        raise SpecError(
            f"the initial solution has {int((~np.isfinite(start)).sum())} values that are not finite"
        )
    return start


def check_data(dataset: Any, sub_regime: str) -> None:
    """Refuse labels, features and groups that do not fit each other or the sub-regime."""
    X, Y = dataset.features, dataset.labels
    if Y.ndim != 1:
        raise SpecError(f"labels must be of shape (n,), got {Y.shape}; use class numbers, not one-hot rows")
    for what, array in [("features", x) for x in (X if type(X) is list else [X])] + [
        ("sensitive_attrs", dataset.sensitive_attrs)
    ]:
        if len(array) != len(Y) and not (what == "sensitive_attrs" and len(array) == 0):
            raise SpecError(
                f"features, labels and sensitive_attrs must have a row each for the same data points, got "
                f"{len(Y)} labels and {len(array)} rows of {what}"
            )
    if not np.isfinite(Y).all():
        raise SpecError(f"labels must be finite numbers, got {int((~np.isfinite(Y)).sum())} that are not")
    if sub_regime == "multiclass_classification":
        # The engine indexes columns with them, and its error rates do so without a cast.
        if Y.dtype.kind not in "iu" or (len(Y) and Y.min() < 0):
            raise SpecError(
                f"{sub_regime} needs integer labels 0, 1, 2 …, got dtype {Y.dtype} from {Y.min()} to {Y.max()}; "
                f"cast them with labels.astype(int)"
            )
    elif sub_regime != "regression" and not np.isin(Y, (0, 1)).all():
        raise SpecError(
            f"{sub_regime} needs labels 0 and 1, got {', '.join(map(str, np.unique(Y)[:5]))}; for more classes "
            f"the sub_regime is 'multiclass_classification'"
        )


def try_model(model: Any, dataset: Any, start: np.ndarray, sub_regime: str) -> tuple[int, ...]:
    """Predict a few rows, to see that the shapes fit; warn where all predictions are equal.

    Returns:
        The shape of one row's prediction, () or (classes,).
    """
    X, Y = dataset.features, dataset.labels
    few = [x[:TRIED_ROWS] for x in X] if type(X) is list else X[:TRIED_ROWS]
    rows = min(TRIED_ROWS, len(Y))
    tried = np.asarray(model.predict(start, few))
    shape = tried.shape
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
    if sub_regime != "regression" and all_alike(tried) and all_alike(model.predict(start, X)):
        notice(
            f"{type(model).__name__} predicts the same for all {len(Y)} rows at the initial solution. A constraint "
            f"on rates then has a standard deviation of zero, which has no gradient, and the engine gives up with "
            f"'NSF' at its first step; start elsewhere, e.g. at the model's own parameters",
        )
    return tuple(shape[1:])


def rows_are_independent(
    model: Any, dataset: Any, start: np.ndarray, rows: str, grouped: bool, batch_size: int | None
) -> bool:
    """Whether groups may take their predictions from those for all rows; see `supervised_spec`."""
    # Of a list of features groups are not shared: each is asked for by itself.
    useful = grouped and type(dataset.features) is not list and can_share(model)
    if rows == "together" or (rows == "auto" and not useful):
        return False
    if not can_share(model):
        raise SpecError(
            f"rows='independent' was asked for, so that groups take their predictions from those for all rows. "
            f"That needs a SeldonianModel with its own predict, in eval mode, that draws no random numbers and "
            f"remembers evaluations (reuse=1 or more), and {type(model).__name__} is none; leave rows= out"
        )
    found = independent(model, dataset.features, start, batch_size)
    if found is False and rows == "independent":
        raise SpecError(
            f"rows='independent' was asked for, and the rows of {type(model).__name__} over "
            f"{model.bridge.adapter.label} are not independent of each other: some of them are predicted "
            f"differently alone and among others, or have a gradient in others; leave rows= out"
        )
    return rows == "independent" or found is True
