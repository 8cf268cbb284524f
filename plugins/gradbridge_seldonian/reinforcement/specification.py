"""`rl_spec`: a specification of reinforcement learning for the engine with what users get wrong set right."""

from __future__ import annotations

import functools
import inspect
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gradbridge.option_values import Takes
from gradbridge.wording import suggestion
from gradbridge_seldonian.engine import RL_model, RLSpec, objectives
from gradbridge_seldonian.outputs import SpecError
from gradbridge_seldonian.reinforcement.constraints import PREFIX, EpisodesTree
from gradbridge_seldonian.reinforcement.data import check_counts, check_data
from gradbridge_seldonian.reinforcement.distributions import PolicyError
from gradbridge_seldonian.reinforcement.episodes import Episodes
from gradbridge_seldonian.reinforcement.estimates import ESTIMATES, Estimate, SweptEstimate, ratios
from gradbridge_seldonian.reinforcement.policy import SeldonianPolicy
from gradbridge_seldonian.reinforcement.traced import numbers
from gradbridge_seldonian.specification import parsing
from gradbridge_seldonian.specification.checks import checked_additional
from gradbridge_seldonian.specification.hyperparams import (
    ENTRIES,
    check,
    hyperparams,
    optimizer_for,
    regularization,
)
from gradbridge_seldonian.specification.looks import FirstLook

_FRACTION = Takes("a number between 0 and 1", lambda v: isinstance(v, (int, float, np.number)) and 0 < v < 1)
_ELSEWHERE = {
    "batch_size_safety": "the engine's batches of a safety test fail for episodes; rows_per_chunk= of SeldonianPolicy "
    "bounds the memory",
    "custom_primary_gradient_fn": "the engine reads none for episodes",
    "use_builtin_primary_gradient_fn": "the engine has none for episodes",
}


def rl_spec(
    dataset: Any = None,
    model: Any = None,
    constraints: Sequence[str] | None = None,
    deltas: Sequence[float] | None = None,
    *,
    gamma: float | None = None,
    primary_objective: str | Callable[..., Any] = "IS",
    initial_solution: Any = None,
    parse_trees: Sequence[Any] | None = None,
    delta_vectors: Sequence[Any] | None = None,
    infl_factors: Any = None,
    base_node_bound_method_dict: Mapping[str, Mapping[str, str]] | None = None,
    frac_data_in_safety: float = 0.6,
    candidate_dataset: Any = None,
    safety_dataset: Any = None,
    additional_datasets: Mapping[str, Any] | None = None,
    optimization_technique: str = "gradient_descent",
    optimizer: str | None = None,
    optimization_hyperparams: Mapping[str, Any] | None = None,
    regularization_hyperparams: Mapping[str, Any] | None = None,
    verbose: bool = False,
    **entries: Any,
) -> Any:
    """Make the engine's `RLSpec` for a policy of ours, or any of the engine's.

    Set here, because each has a default in the engine that is slow, fails late or goes wrong in silence:

    - the policy is asked for all steps of all episodes at once, for the objective and each constraint alike, and once
      for their values and their gradients. The engine asks for each episode by itself, and twice;
    - products of ratios are sums of logarithms, so that long episodes do not overflow on the way;
    - a constraint on an alternate reward bounds that one. The engine's ``J_pi_new_PDIS_[2]`` bounds the primary one;
    - the discount factor must be said. The engine's models take 1 if nothing is said, whatever the environment has;
    - the gradient comes from autograd. The engine's default, a built-in one, fails when it runs;
    - episodes, policy and constraints are tried on each other before the engine starts;
    - the hyperparameters are a new dict, and the start a copy. The engine's are shared by all specs.

    Args:
        dataset: the engine's `RLDataSet`, episodes of the behavior policy.
        model: a `SeldonianPolicy`, another policy of the engine's, or an ``RL_model`` over one.
        constraints: such as ``"J_pi_new_IS >= 0.5"``, with IS, PDIS or WIS; ``J_pi_new_IS_[1]`` is the first alternate
            reward's.
        deltas: probability with which each constraint may fail, in (0, 1).
        gamma: the discount factor, in [0, 1]. With an ``RL_model``, leave it out: it has its own.
        primary_objective: ``"IS"``, ``"PDIS"`` or ``"WIS"``, an estimate of the return to be maximized; or
            ``f(model, theta, episodes, **kwargs)``.
        initial_solution: (P,) or a function of the data set; None takes the policy's parameters.
        parse_trees, delta_vectors, infl_factors, base_node_bound_method_dict: as in `supervised_spec`.
        frac_data_in_safety: fraction of the episodes that is kept for the safety test, in (0, 1).
        candidate_dataset, safety_dataset: instead of a data set that the engine splits.
        additional_datasets: ``{constraint: {base node: {"dataset": …}}}``; with gradient descent on all episodes.
        optimization_technique: ``"gradient_descent"``, or ``"barrier_function"``, which is CMA-ES.
        optimizer: ``"adam"`` or ``"CMA-ES"``.
        optimization_hyperparams, regularization_hyperparams: as in `supervised_spec`.
        verbose: whether the engine prints.
        **entries: of the hyperparameters, as in `supervised_spec`: ``num_iters``, or ``batch_size`` and ``n_epochs``
            for mini-batches of episodes, ``alpha_theta``, ``lambda_init``, ``maxiter`` …

    Returns:
        An `RLSpec`.

    Raises:
        SpecError: names, counts, values or options that do not fit.
        PolicyError: episodes that do not fit the policy, or each other.
    """
    known = inspect.signature(rl_spec).parameters
    for name in entries:
        if name in _ELSEWHERE:
            raise SpecError(f"rl_spec has no argument {name!r}: {_ELSEWHERE[name]}")
        if name not in ENTRIES:
            near = suggestion(name, [*list(known)[:-1], *ENTRIES])
            raise SpecError(f"rl_spec has no argument {name!r}; {near}".rstrip("; "))
    check("frac_data_in_safety", frac_data_in_safety, _FRACTION)
    model = _modelled(model, gamma)
    if (candidate_dataset is None) != (safety_dataset is None):
        raise SpecError("candidate_dataset and safety_dataset go together, and one of them is missing")
    read = [dataset] if candidate_dataset is None else [candidate_dataset, safety_dataset]
    for given in read:
        if not hasattr(given, "episodes"):
            raise SpecError(f"the data must be the engine's RLDataSet, got {type(given).__name__}")
    if optimizer is None and optimization_technique == "barrier_function":
        optimizer = "CMA-ES"
    optimizer = optimizer_for(optimization_technique, optimizer)
    if optimizer not in ("adam", "CMA-ES"):
        raise SpecError(f"optimizer={optimizer!r} is not one that the engine has for episodes; use 'CMA-ES'")
    trees = [
        EpisodesTree.of(tree)
        for tree in parsing.trees(
            (constraints, deltas, delta_vectors, infl_factors),
            parse_trees,
            parsing.Setting(
                "reinforcement_learning",
                "all",
                list(read[0].meta.sensitive_col_names or []),
                {},
                () if hasattr(model.policy, "theta2crcf") else (f"{PREFIX}US",),
            ),
        )
    ]
    told = hyperparams(
        optimization_technique, optimizer, entries, optimization_hyperparams, len(trees), verbose
    )
    more = checked_additional(
        additional_datasets, trees, read[0], "gradient_descent", None, frac_data_in_safety
    )
    if more and (told.get("use_batches") or optimizer != "adam"):
        raise SpecError(
            "the engine takes additional data sets of episodes with gradient descent on all episodes alone; use num_iters="
        )
    start = _start(model, read[0], initial_solution)
    if start.ndim != 1 and len(trees) > 1 and optimizer == "adam":
        raise SpecError(
            f"the engine's gradient descent takes several constraints where the policy's parameters are a vector, and "
            f"those of {type(model.policy).__name__} are of shape {start.shape}; use a SeldonianPolicy, or one constraint"
        )
    nodes = [entry for each in more.values() for entry in each.values()]
    sets = [*read, *(data for entry in nodes for data in entry.values() if hasattr(data, "episodes"))]
    for each in sets:
        check_data(model, each, trees)
    look = FirstLook(model.policy, functools.partial(_try, model, start, [each.episodes for each in sets]))
    made = RLSpec(
        dataset=dataset,
        model=model,
        parse_trees=trees,
        frac_data_in_safety=frac_data_in_safety,
        primary_objective=SweptEstimate(_objective(primary_objective), look),
        initial_solution_fn=_Start(start),
        base_node_bound_method_dict=parsing.bound_methods(base_node_bound_method_dict, trees),
        use_builtin_primary_gradient_fn=False,
        optimization_technique=optimization_technique,
        optimizer=optimizer,
        optimization_hyperparams=told,
        regularization_hyperparams=regularization(regularization_hyperparams, optimization_technique),
        candidate_dataset=candidate_dataset,
        safety_dataset=safety_dataset,
        additional_datasets=more,
        verbose=verbose,
    )
    check_counts(made)
    return made


def _modelled(model: Any, gamma: float | None) -> Any:
    if isinstance(model, RL_model):
        own = model.env_kwargs.get("gamma", 1.0)
        if gamma is not None:
            raise SpecError(f"an RL_model has its own discount factor, {own}; leave gamma= out")
        _check_gamma(own)
        return model
    _check_gamma(gamma)
    for name in ("get_params", "set_new_params", "get_probs_from_observations_and_actions"):
        if not hasattr(model, name):
            raise SpecError(
                f"{type(model).__name__} is not a policy of the engine's, it has no {name}; make it one with "
                f"SeldonianPolicy(model, encode=…)"
            )
    return RL_model(model, {"gamma": float(gamma)})


def _check_gamma(gamma: Any) -> None:
    is_number = isinstance(gamma, (int, float, np.integer, np.floating)) and not isinstance(gamma, bool)
    if not is_number or not 0 <= gamma <= 1:
        raise SpecError(f"gamma must be the environment's discount factor, from 0 to 1, got {gamma!r}")


def _objective(objective: Any) -> Callable[..., Any]:
    for kind in ESTIMATES:
        if objective in (kind, f"{PREFIX}{kind}") or objective is getattr(objectives, f"{kind}_estimate"):
            return Estimate(kind)
    if not callable(objective):
        raise SpecError(
            f"primary_objective must be {', '.join(map(repr, ESTIMATES))} or a function of (model, theta, episodes), "
            f"got {objective!r}"
        )
    return objective


def _start(model: Any, dataset: Any, initial: Any) -> np.ndarray:
    """float64 where training starts, of the policy's shape."""
    own = numbers(model.policy.get_params())  # traced still, where a trace ended by an error
    start = own if initial is None else initial(dataset) if callable(initial) else initial
    try:
        start = np.array(start, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SpecError(f"the initial solution must be numbers, got {reprlib.repr(start)}") from error
    if start.shape != np.shape(own) or not np.isfinite(start).all():
        raise SpecError(
            f"the initial solution must be finite numbers of the policy's shape {np.shape(own)}, got shape "
            f"{start.shape}, {int((~np.isfinite(start)).sum())} not finite"
        )
    return start


class _Start:
    """An initial solution function that gives a new array each time: the optimizer writes into it."""

    def __init__(self, start: np.ndarray) -> None:
        self._start = start

    def __call__(self, dataset: Any) -> np.ndarray:
        return self._start.copy()


def _try(model: Any, start: np.ndarray, sets: Sequence[Any]) -> bool:
    """Evaluate the policy on all episodes at the start, to see that it fits them."""
    for episodes in [] if hasattr(model.policy, "theta2crcf") else sets:
        if isinstance(model.policy, SeldonianPolicy):
            model.policy.look_again()
        found = ratios(model, start, Episodes(episodes)).logs
        if np.isnan(found).any():
            raise PolicyError(
                f"at the initial solution, the policy gives no number as the probability of "
                f"{int(np.isnan(found).sum())} of {len(found)} actions"
            )
    return True
