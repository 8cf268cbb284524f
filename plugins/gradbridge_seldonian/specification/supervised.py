"""`supervised_spec`: a specification for the engine with what users get wrong set right."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gradbridge.option_values import FLAG, Takes, one_of, whole
from gradbridge.wording import suggestion
from gradbridge_seldonian.engine import Spec, SupervisedSpec
from gradbridge_seldonian.evaluation import objectives
from gradbridge_seldonian.evaluation.constraints import SweptTree
from gradbridge_seldonian.evaluation.rows import ROWS
from gradbridge_seldonian.evaluation.sweep import SweptObjective
from gradbridge_seldonian.model import SeldonianModel
from gradbridge_seldonian.outputs import SpecError
from gradbridge_seldonian.specification import parsing
from gradbridge_seldonian.specification.checks import (
    candidate_part,
    check_clipping,
    check_custom,
    check_data,
    check_gradient,
    check_model,
    checked_additional,
    checked_datasets,
    first_start,
)
from gradbridge_seldonian.specification.hyperparams import check, hyperparams, optimizer_for, regularization
from gradbridge_seldonian.specification.looks import FirstLook, Looked, look_at, look_at_custom
from gradbridge_seldonian.specification.measures import check_measures
from gradbridge_seldonian.specification.trials import Minimized, try_regularizer
from gradbridge_seldonian.workers import over_workers

__all__ = ["SpecError", "SweptSpec", "supervised_spec"]

_FRACTION = Takes("a number between 0 and 1", lambda v: isinstance(v, (int, float, np.number)) and 0 < v < 1)
_COUNT = whole("", 1)
_PIECES = Takes("None or a number of rows, 1 or more", lambda v: v is None or _COUNT.fits(v))
_WORKERS = Takes("None or a number of workers, 1 or more", _PIECES.fits)
_ELSEWHERE = {
    "regime": "the data set says it: a CustomDataSet is of the custom regime",
    "sub_regime": "the data set's metadata say it",
    "gradient_library": "it is an entry of optimization_hyperparams",
    "hyper_search": "it is an entry of optimization_hyperparams",
    "infl_factor_method": "infl_factors= says it: one number for all bounds, or one for each",
    "delta_weight_method": "delta_vectors= says it: None for equal shares",
}


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
        meta = (self.candidate_dataset or self.dataset).meta
        return functools.partial(objective.gradient, sub_regime=meta.sub_regime)

    @custom_primary_gradient_fn.setter
    def custom_primary_gradient_fn(self, given: Callable[..., Any] | None) -> None:
        self._given_gradient = given


def supervised_spec(
    dataset: Any = None,
    model: Any = None,
    constraints: Sequence[str] | None = None,
    deltas: Sequence[float] | None = None,
    *,
    parse_trees: Sequence[Any] | None = None,
    delta_vectors: Sequence[Any] | None = None,
    infl_factors: Any = None,
    custom_measure_functions: Mapping[str, Callable[..., Any]] | None = None,
    base_node_bound_method_dict: Mapping[str, Mapping[str, str]] | None = None,
    primary_objective: Callable[..., Any] | None = None,
    custom_primary_gradient_fn: Callable[..., Any] | None = None,
    use_builtin_primary_gradient_fn: bool = False,
    initial_solution: Any = None,
    rows: str = "auto",
    workers: int | None = None,
    frac_data_in_safety: float = 0.6,
    candidate_dataset: Any = None,
    safety_dataset: Any = None,
    additional_datasets: Mapping[str, Any] | None = None,
    batch_size_safety: int | None = None,
    optimization_technique: str = "gradient_descent",
    optimizer: str | None = None,
    lambda_init: float | Sequence[float] | None = None,
    num_iters: int | None = None,
    use_batches: bool | None = None,
    batch_size: int | None = None,
    n_epochs: int | None = None,
    alpha_theta: float | None = None,
    alpha_lamb: float | None = None,
    beta_velocity: float | None = None,
    beta_rmsprop: float | None = None,
    clip_theta: tuple[Any, Any] | None = None,
    maxiter: int | None = None,
    seed: int | None = None,
    sigma0: float | None = None,
    optimization_hyperparams: Mapping[str, Any] | None = None,
    regularization_hyperparams: Mapping[str, Any] | None = None,
    verbose: bool = False,
    **unknown: Any,
) -> Any:
    """Make the engine's `SupervisedSpec` for a model of ours.

    Set here, because each has a default in the engine that goes wrong in silence:

    - the gradient of the objective comes from autograd. The engine's built-in ones assume a
      linear model with the intercept first, whatever the model is;
    - the initial solution is the model's own and is tried before it is handed over, unless that would
      start JAX or TensorFlow, which do not survive a fork: then where the engine first computes. The
      engine swallows its failure and starts from zeros of a linear model's shape;
    - the objective is vectorized. The engine's own sums rows one by one under autograd;
    - the objective and the constraints are evaluated once in an iteration, for their values and
      their gradients together. The engine evaluates them twice;
    - where the rows of the model are independent of each other, the constraints take the predictions
      for their groups from the objective's evaluation. The engine asks for each group anew;
    - the hyperparameters are a new dict. The engine's default is one that all specs share.

    Args:
        dataset: the engine's `SupervisedDataSet`, whose metadata say the sub-regime, or `CustomDataSet`. None
            with `candidate_dataset` and `safety_dataset`.
        model: a `SeldonianModel`, or another engine model with `initial_solution`.
        constraints: such as ``"Mean_Squared_Error <= 2.0"``; they may condition on the columns
            that the metadata names as sensitive.
        deltas: probability with which each constraint may fail, in (0, 1).
        parse_trees: the engine's ready-made `ParseTree` objects, instead of all that says what trees to make:
            `constraints`, `deltas`, `delta_vectors`, `infl_factors`, `custom_measure_functions`. They are copied.
        delta_vectors: how each delta is shared out among the bounds of its constraint: one entry for each
            constraint, None for equal shares, or as many numbers as the constraint has bounds, whose softmax
            are the shares (the engine's `delta_vector`).
        infl_factors: by how much candidate selection widens its bounds: one number for all, or an entry for each
            constraint, which is None (2, the engine's default), a number, or one number for each of its bounds.
        custom_measure_functions: ``{name: f(model, theta, data, **kwargs)}``, (n,), the statistics of the custom
            regime that constraints name.
        base_node_bound_method_dict: ``{constraint: {base node: "ttest", "manual" or "random"}}``.
        primary_objective: ``f(model, theta, X, Y, **kwargs)``; None takes the sub-regime's. In the custom regime
            ``f(model, theta, data, **kwargs)``, and there is no default.
        custom_primary_gradient_fn: its gradient, with the same arguments by name; None for autograd's.
        use_builtin_primary_gradient_fn: True for the engine's formula, with a linear model of the engine's.
        initial_solution: (P,) or a function of (model, X, Y), or (model, data) in the custom regime, that is called
            with the candidate data in each run; None takes the model's parameters.
        rows: whether each prediction depends on its own row of the features alone. ``"auto"`` looks,
            at some rows, at the initial solution and near it; ``"independent"`` declares it, where
            looking is not conclusive; ``"together"`` says no. Only a `SeldonianModel` in eval mode that
            remembers evaluations (``reuse=``) makes use of it.
        workers: compute the model's rows by so many workers of a Ray cluster (`gradbridge_ray.shard_rows`); the
            specification's `model` is then a copy over them. None computes in this process.
        frac_data_in_safety: fraction of the data that is kept for the safety test, in (0, 1).
        candidate_dataset, safety_dataset: instead of a data set that the engine splits.
        additional_datasets: ``{constraint: {base node: {"dataset": …}}}``, or with "candidate_dataset" and
            "safety_dataset", and perhaps "batch_size": data of their own for statistics. Copied.
        batch_size_safety: rows that the safety test predicts at a time; None for all.
        optimization_technique: ``"gradient_descent"`` or ``"barrier_function"``.
        optimizer: ``"adam"`` for the first; ``"Powell"`` (the default), ``"CG"``, ``"Nelder-Mead"``, ``"BFGS"`` or
            ``"CMA-ES"`` for the second.
        lambda_init: initial multipliers, one for all (0.5 if nothing is said) or one each.
        num_iters: steps of gradient descent on the full batch; 200 if nothing is said.
        use_batches: whether `batch_size` and `n_epochs` hold; None if they are given.
        batch_size, n_epochs: mini-batches instead.
        alpha_theta, alpha_lamb: step sizes of the parameters and the multipliers; 0.005 each.
        beta_velocity, beta_rmsprop: decay of the optimizer's averages; 0.9 and 0.95.
        clip_theta: (least, most), numbers or arrays (P,), that the parameters are clipped to after each step.
        maxiter: iterations of the barrier function's optimizer.
        seed, sigma0: of CMA-ES: of its random numbers, and its first standard deviation (0.2).
        optimization_hyperparams: entries as in a specification of the engine's, under the arguments above. Those that
            this optimizer does not read are kept.
        regularization_hyperparams: ``{"reg_coef": …}``, and ``"reg_func"`` for the barrier function.
        verbose: whether the engine prints.
        **unknown: none; names that are not above are answered with the nearest one.

    Returns:
        A `SupervisedSpec`; for a `CustomDataSet`, a `Spec`.

    Raises:
        SpecError: names, counts, shapes or values that do not fit; rows declared independent that are not.
    """
    for name in unknown:
        near = _ELSEWHERE.get(name) or suggestion(
            name, list(inspect.signature(supervised_spec).parameters)[:-1]
        )
        raise SpecError(f"supervised_spec has no argument {name!r}; {near}".rstrip("; "))
    check("rows", rows, one_of(*ROWS))
    check("workers", workers, _WORKERS)
    check("verbose", verbose, FLAG)
    check("frac_data_in_safety", frac_data_in_safety, _FRACTION)
    read = checked_datasets(dataset, candidate_dataset, safety_dataset)
    meta, is_custom = read[0].meta, read[0].regime == "custom"
    check_model(model)
    trees = parsing.trees(
        (constraints, deltas, delta_vectors, infl_factors),
        parse_trees,
        parsing.Setting(
            meta.regime, meta.sub_regime, meta.sensitive_col_names or [], custom_measure_functions or {}
        ),
    )
    check("batch_size_safety", batch_size_safety, _PIECES)
    model = over_workers(model, workers)
    optimizer = optimizer_for(optimization_technique, optimizer)
    said = {
        "lambda_init": lambda_init, "num_iters": num_iters, "use_batches": use_batches, "batch_size": batch_size,
        "n_epochs": n_epochs, "alpha_theta": alpha_theta, "alpha_lamb": alpha_lamb, "beta_velocity": beta_velocity,
        "beta_rmsprop": beta_rmsprop, "clip_theta": clip_theta, "maxiter": maxiter, "seed": seed, "sigma0": sigma0,
    }  # fmt: skip
    entries = hyperparams(
        optimization_technique, optimizer, said, optimization_hyperparams, len(trees), verbose
    )
    batch_size = entries["batch_size"] if entries.get("use_batches") else None
    regularizers = regularization(regularization_hyperparams, optimization_technique)
    if not is_custom:
        for each in read:
            check_data(each, meta.sub_regime)
    seen = candidate_part(read[0], frac_data_in_safety if candidate_dataset is None else 0.0)
    start = first_start(model, seen, initial_solution, len(trees), optimization_technique)
    check_clipping(entries, start)
    in_batches = batch_size if batch_size is not None and batch_size < len(seen[-1]) else None
    settings = {
        "dataset": dataset,
        "model": model,
        "frac_data_in_safety": frac_data_in_safety,
        "initial_solution_fn": _Start(initial_solution if callable(initial_solution) else start),
        "base_node_bound_method_dict": parsing.bound_methods(base_node_bound_method_dict, trees),
        "use_builtin_primary_gradient_fn": use_builtin_primary_gradient_fn,
        "custom_primary_gradient_fn": custom_primary_gradient_fn,
        "optimization_technique": optimization_technique,
        "optimizer": optimizer,
        "optimization_hyperparams": entries,
        "regularization_hyperparams": regularizers,
        "batch_size_safety": batch_size_safety,
        "candidate_dataset": candidate_dataset,
        "safety_dataset": safety_dataset,
        "additional_datasets": checked_additional(
            additional_datasets, trees, read[0], optimization_technique, in_batches, frac_data_in_safety
        ),
        "verbose": verbose,
    }
    objective = primary_objective or objectives.PRIMARY.get(meta.sub_regime)
    minimized = Minimized(
        primary_objective,
        objective,
        check_gradient(settings, objective, seen),
        regularizers.get("reg_coef", 0.0),
        optimization_technique == "gradient_descent",
    )
    if "reg_func" in regularizers:
        try_regularizer(regularizers["reg_func"], start)
    if is_custom:
        check_custom(objective, optimization_technique, trees, read[0])
        look = FirstLook(
            model, functools.partial(look_at_custom, model, trees, read[0], start, seen, minimized)
        )
        return Spec(parse_trees=trees, primary_objective=Looked(objective, look), **settings)
    trees = list(map(SweptTree.of, trees))
    made = SweptSpec(parse_trees=trees, sub_regime=meta.sub_regime, primary_objective=objective, **settings)
    check_measures(made)
    grouped = any(node.conditional_columns for tree in trees for node in tree.base_nodes())
    at_once = (rows, grouped, batch_size)
    look = FirstLook(model, functools.partial(look_at, model, trees, read, start, seen, minimized, at_once))
    made.primary_objective = (SweptObjective if minimized.descends else Looked)(objective, look)
    if isinstance(model, SeldonianModel):
        for tree in trees:
            tree.share_rows(model.bridge, look)
    return made


class _Start:
    """An initial solution function that gives a new array each time: the optimizer writes into it."""

    def __init__(self, initial: Any) -> None:
        self._initial = initial

    def __call__(self, *data: Any) -> np.ndarray:
        return np.array(self._initial(*data) if callable(self._initial) else self._initial, dtype=np.float64)
