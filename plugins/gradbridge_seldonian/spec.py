"""`supervised_spec`: a specification for the engine with what users get wrong set right."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradbridge_seldonian import objectives
from gradbridge_seldonian.checks import (
    SpecError,
    check_data,
    checked_constraints,
    checked_start,
    rows_are_independent,
    try_model,
)
from gradbridge_seldonian.constraints import SweptTree
from gradbridge_seldonian.engine import SupervisedSpec, make_parse_trees_from_constraints
from gradbridge_seldonian.rows import ROWS
from gradbridge_seldonian.sweep import SweptObjective

__all__ = ["SpecError", "SweptSpec", "supervised_spec"]


class SweptSpec(SupervisedSpec):
    """The engine's `SupervisedSpec`, whose objective's gradient is handed over as it was recorded.

    Otherwise autograd passes over the objective once more, only to find the record there.
    """

    @property
    def custom_primary_gradient_fn(self) -> Callable[..., Any] | None:
        """See the engine. Decided when it asks, because specifications are changed after they are made.

        A regularization is another term of what the engine minimizes, which autograd has to see.
        """
        objective = self.primary_objective
        if (
            self._given_gradient is not None
            or self.use_builtin_primary_gradient_fn
            or self.regularization_hyperparams
            or type(objective) is not SweptObjective
        ):
            return self._given_gradient
        # What the engine tells the objective, and not its gradient.
        return functools.partial(objective.gradient, sub_regime=self.dataset.meta.sub_regime)

    @custom_primary_gradient_fn.setter
    def custom_primary_gradient_fn(self, given: Callable[..., Any] | None) -> None:
        self._given_gradient = given


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
    multipliers = checked_constraints(constraints, deltas, lambda_init)
    check_data(dataset, sub_regime)
    start = checked_start(model, dataset, initial_solution)
    try_model(model, dataset, start, sub_regime)
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
    for tree, constraint in zip(trees, constraints):
        tree.written = constraint
    grouped = any(node.conditional_columns for tree in trees for node in tree.base_nodes())
    if rows_are_independent(model, dataset, start, rows, grouped, batch_size):
        for tree in trees:
            tree.share_rows(model.bridge)
    return SweptSpec(
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
