"""`supervised_spec`: a specification for the engine with what users get wrong set right."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradbridge.errors import BorderError, GradbridgeWarning
from gradbridge_seldonian import objectives
from gradbridge_seldonian.constraints import SweptTree
from gradbridge_seldonian.engine import SupervisedSpec, make_parse_trees_from_constraints
from gradbridge_seldonian.rows import ROWS, can_share, independent
from gradbridge_seldonian.sweep import SweptObjective

TRIED_ROWS = 4


class SpecError(BorderError, ValueError):
    """A specification whose parts do not fit each other."""


def supervised_spec(
    dataset: Any,
    model: Any,
    constraints: Sequence[str],
    deltas: Sequence[float],
    *,
    primary_objective: Callable[..., Any] | None = None,
    initial_solution: Any = None,
    rows: str = "auto",
    lambda_init: float | Sequence[float] = 0.5,
    num_iters: int | None = None,
    batch_size: int | None = None,
    n_epochs: int | None = None,
    alpha_theta: float = 0.005,
    alpha_lamb: float = 0.005,
    beta_velocity: float = 0.9,
    beta_rmsprop: float = 0.95,
    verbose: bool = False,
    **spec: Any,
) -> Any:
    """Make the engine's `SupervisedSpec` for a model of ours.

    Set here, because each has a default in the engine that goes wrong in silence:

    - the gradient of the objective comes from autograd. The engine's built-in ones assume a
      linear model with the intercept first, whatever the model is;
    - the initial solution is the model's own and is tried before it is handed over. The engine
      swallows its failure and starts from zeros of a linear model's shape;
    - the objective is vectorized. The engine's own sums rows one by one under autograd;
    - the objective and the constraints are evaluated once in an iteration, for their values and
      their gradients together. The engine evaluates them twice;
    - where the rows of the model are independent of each other, the constraints take the predictions
      for their groups from the objective's evaluation. The engine asks for each group anew;
    - the hyperparameters are a new dict. The engine's default is one that all specs share.

    Args:
        dataset: the engine's `SupervisedDataSet`; its metadata says the sub-regime.
        model: a `SeldonianModel`, or another engine model with `initial_solution`.
        constraints: such as ``"Mean_Squared_Error <= 2.0"``; they may condition on the columns
            that the metadata names as sensitive.
        deltas: probability with which each constraint may fail, in (0, 1).
        primary_objective: ``f(model, theta, X, Y, **kwargs)``; None takes the sub-regime's.
        initial_solution: (P,) or a function of (model, X, Y); None takes the model's parameters.
        rows: whether each prediction depends on its own row of the features alone. ``"auto"`` looks,
            at some rows, at the initial solution and near it; ``"independent"`` declares it, where
            looking is not conclusive; ``"together"`` says no. Only a `SeldonianModel` in eval mode that
            remembers evaluations (``reuse=``) makes use of it.
        lambda_init: initial multipliers, one for all or one each.
        num_iters: steps of gradient descent on the full batch; 200 if nothing is said.
        batch_size, n_epochs: mini-batches instead.
        alpha_theta, alpha_lamb: step sizes of the parameters and the multipliers.
        beta_velocity, beta_rmsprop: decay of the optimizer's averages.
        verbose: whether the engine prints.
        **spec: further arguments of `SupervisedSpec`, e.g. ``frac_data_in_safety``.

    Returns:
        A `SupervisedSpec`.

    Raises:
        SpecError: counts, shapes or values that do not fit; rows declared independent that are not.
    """
    if rows not in ROWS:
        raise SpecError(f"rows must be one of {', '.join(map(repr, ROWS))}, got {rows!r}")
    sub_regime = dataset.meta.sub_regime
    if sub_regime not in objectives.PRIMARY:
        raise SpecError(f"sub_regime must be one of {', '.join(objectives.PRIMARY)}, got {sub_regime!r}")
    multipliers = _check_constraints(constraints, deltas, lambda_init)
    _check_data(dataset, sub_regime)
    start = _check_start(model, dataset, initial_solution)
    _try_model(model, dataset, start, sub_regime)
    if (batch_size is None) != (n_epochs is None) or (num_iters is not None and batch_size is not None):
        raise SpecError("give either num_iters, or both batch_size and n_epochs")
    batches = (
        {"use_batches": False, "num_iters": 200 if num_iters is None else num_iters}
        if batch_size is None
        else {"use_batches": True, "batch_size": batch_size, "n_epochs": n_epochs}
    )
    parse_trees = make_parse_trees_from_constraints(
        list(constraints),
        list(deltas),
        regime="supervised_learning",
        sub_regime=sub_regime,
        columns=list(dataset.meta.sensitive_col_names),
    )
    trees = list(map(SweptTree.of, parse_trees))
    grouped = any(node.conditional_columns for tree in trees for node in tree.base_nodes())
    if _rows_are_independent(model, dataset, start, rows, grouped):
        for tree in trees:
            tree.share_rows(model.bridge)
    return SupervisedSpec(
        dataset=dataset,
        model=model,
        parse_trees=trees,
        sub_regime=sub_regime,
        primary_objective=SweptObjective(primary_objective or objectives.PRIMARY[sub_regime]),
        use_builtin_primary_gradient_fn=False,
        initial_solution_fn=_Start(start),
        optimization_hyperparams={
            "lambda_init": multipliers,
            "alpha_theta": alpha_theta,
            "alpha_lamb": alpha_lamb,
            "beta_velocity": beta_velocity,
            "beta_rmsprop": beta_rmsprop,
            "gradient_library": "autograd",
            "hyper_search": None,
            "verbose": verbose,
            **batches,
        },
        verbose=verbose,
        **spec,
    )


class _Start:
    """An initial solution function that gives a new copy each time: the optimizer writes into it."""

    def __init__(self, start: np.ndarray) -> None:
        self._start = start

    def __call__(self, *ignored: Any) -> np.ndarray:
        return self._start.copy()


def _check_constraints(constraints: Any, deltas: Any, lambda_init: Any) -> np.ndarray:
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


def _check_start(model: Any, dataset: Any, initial: Any) -> np.ndarray:
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


def _check_data(dataset: Any, sub_regime: str) -> None:
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


def _try_model(model: Any, dataset: Any, start: np.ndarray, sub_regime: str) -> None:
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
    if sub_regime != "regression" and _all_equal(tried) and _all_equal(model.predict(start, X)):
        warnings.warn(
            f"{type(model).__name__} predicts the same for all {len(Y)} rows at the initial solution. A constraint "
            f"on rates then has a standard deviation of zero, which has no gradient, and the engine gives up with "
            f"'NSF' at its first step; start elsewhere, e.g. at the model's own parameters",
            GradbridgeWarning,
            stacklevel=3,
        )


def _rows_are_independent(model: Any, dataset: Any, start: np.ndarray, rows: str, grouped: bool) -> bool:
    if rows == "together" or (rows == "auto" and not (grouped and can_share(model))):
        return False
    if not can_share(model):
        raise SpecError(
            f"rows='independent' was asked for, so that groups take their predictions from those for all rows. "
            f"That needs a SeldonianModel with its own predict, in eval mode, that draws no random numbers and "
            f"remembers evaluations (reuse=1 or more), and {type(model).__name__} is none; leave rows= out"
        )
    found = independent(model, dataset.features, start)
    if found is False and rows == "independent":
        raise SpecError(
            f"rows='independent' was asked for, and the rows of {type(model).__name__} over "
            f"{model.bridge.adapter.label} are not independent of each other: some of them are predicted "
            f"differently alone and among others, or have a gradient in others; leave rows= out"
        )
    return rows == "independent" or found is True


def _all_equal(predictions: Any) -> bool:
    return bool(np.all(predictions == predictions[:1]))
