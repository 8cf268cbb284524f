"""`rl_spec`: a specification of reinforcement learning for the engine with what users get wrong set right."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradbridge_seldonian.checks import SpecError, checked_constraints
from gradbridge_seldonian.distributions import PolicyError, Softmax
from gradbridge_seldonian.engine import RL_model, RLSpec, make_parse_trees_from_constraints, objectives
from gradbridge_seldonian.episode_trees import PREFIX, EpisodesTree
from gradbridge_seldonian.episodes import (
    ESTIMATES,
    Episodes,
    Estimate,
    SweptEstimate,
    gamma_of,
    log_ratios,
    numbers,
)


def rl_spec(
    dataset: Any,
    model: Any,
    constraints: Sequence[str],
    deltas: Sequence[float],
    *,
    gamma: float | None = None,
    primary_objective: str | Callable[..., Any] = "IS",
    initial_solution: Any = None,
    lambda_init: float | Sequence[float] = 0.5,
    num_iters: int | None = None,
    batch_size: int | None = None,
    n_epochs: int | None = None,
    alpha_theta: float = 0.005,
    alpha_lamb: float = 0.005,
    beta_velocity: float = 0.9,
    beta_rmsprop: float = 0.95,
    optimization_hyperparams: dict[str, Any] | None = None,
    verbose: bool = False,
    **spec: Any,
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
        lambda_init: initial multipliers, one for all or one each.
        num_iters: steps of gradient descent on all episodes; 200 if nothing is said.
        batch_size, n_epochs: mini-batches of episodes instead.
        alpha_theta, alpha_lamb: step sizes of the parameters and the multipliers.
        beta_velocity, beta_rmsprop: decay of the optimizer's averages.
        optimization_hyperparams: further ones, e.g. CMA-ES's ``sigma0``, ``maxiter`` and ``seed``, or ``clip_theta``.
        verbose: whether the engine prints.
        **spec: further arguments of `RLSpec`, e.g. ``frac_data_in_safety``.

    Returns:
        An `RLSpec`.

    Raises:
        SpecError: counts, values or options that do not fit.
        PolicyError: episodes that do not fit the policy, or each other.
    """
    multipliers = checked_constraints(constraints, deltas, lambda_init)
    model = _modelled(model, gamma)
    if (batch_size is None) != (n_epochs is None) or (num_iters is not None and batch_size is not None):
        raise SpecError("give either num_iters, or both batch_size and n_epochs")
    if spec.get("batch_size_safety") is not None:
        raise SpecError(
            "the engine's batches of a safety test fail for episodes; leave batch_size_safety out, and bound the "
            "memory with rows_per_chunk= of SeldonianPolicy"
        )
    if batch_size is not None and spec.get("additional_datasets"):
        raise SpecError(
            "the engine joins mini-batches of additional data sets in a way that fails for episodes; use num_iters="
        )
    trees = make_parse_trees_from_constraints(
        list(constraints),
        list(deltas),
        regime="reinforcement_learning",
        sub_regime="all",
        columns=list(dataset.meta.sensitive_col_names),
    )
    trees = list(map(EpisodesTree.of, trees))
    start = _start(model, dataset, initial_solution)
    if (
        start.ndim != 1
        and len(trees) > 1
        and spec.get("optimization_technique") in (None, "gradient_descent")
    ):
        raise SpecError(
            f"the engine's gradient descent takes several constraints where the policy's parameters are a vector, and "
            f"those of {type(model.policy).__name__} are of shape {start.shape}; use a SeldonianPolicy, or one constraint"
        )
    # A data set of one's own for candidate selection or the safety test need not be among the first.
    own = (spec.get("additional_datasets") or {}).values()
    nodes = [data for nodes in own for entry in nodes.values() for data in entry.values()]
    for given in (dataset, spec.get("candidate_dataset"), spec.get("safety_dataset"), *nodes):
        if hasattr(given, "episodes"):
            _try(model, given, start, trees)
    batches = (
        {"use_batches": False, "num_iters": 200 if num_iters is None else num_iters}
        if batch_size is None
        else {"use_batches": True, "batch_size": batch_size, "n_epochs": n_epochs}
    )
    return RLSpec(
        dataset=dataset,
        model=model,
        parse_trees=trees,
        primary_objective=SweptEstimate(_objective(primary_objective)),
        use_builtin_primary_gradient_fn=False,
        initial_solution_fn=functools.partial(_copy, start),
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
            **(optimization_hyperparams or {}),
        },
        verbose=verbose,
        **spec,
    )


def _modelled(model: Any, gamma: float | None) -> Any:
    if isinstance(model, RL_model):
        if gamma is not None:
            raise SpecError(f"an RL_model has its own discount factor, {gamma_of(model)}; leave gamma= out")
        return model
    if gamma is None or not 0 <= gamma <= 1:
        raise SpecError(f"gamma must be the environment's discount factor, from 0 to 1, got {gamma!r}")
    for name in ("get_params", "set_new_params", "get_probs_from_observations_and_actions"):
        if not hasattr(model, name):
            raise SpecError(
                f"{type(model).__name__} is no policy of the engine's, it has no {name}; make it one with "
                f"SeldonianPolicy(model, encode=…)"
            )
    return RL_model(model, {"gamma": float(gamma)})


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
    start = np.array(start, dtype=np.float64)
    if start.shape != np.shape(own) or not np.isfinite(start).all():
        raise SpecError(
            f"the initial solution must be finite numbers of the policy's shape {np.shape(own)}, got shape "
            f"{start.shape}, {int((~np.isfinite(start)).sum())} not finite"
        )
    return start


def _copy(start: np.ndarray, dataset: Any) -> np.ndarray:
    """The initial solution, a new array each time: the optimizer writes into it."""
    return start.copy()


def _try(model: Any, dataset: Any, start: np.ndarray, trees: Sequence[EpisodesTree]) -> None:
    """Evaluate the policy on all episodes at the start, to see that everything fits."""
    attributes = dataset.sensitive_attrs
    if len(attributes) not in (0, len(dataset.episodes)):
        raise SpecError(
            f"sensitive_attrs must have a row for each of the {len(dataset.episodes)} episodes, got {len(attributes)}"
        )
    episodes = Episodes(dataset.episodes)
    for tree in trees:
        for node in tree.base_nodes():
            kind = node.measure_function_name
            if kind.removeprefix(PREFIX) in ESTIMATES:
                episodes.discounted(1.0, getattr(node, "alt_reward_number", None))
            elif not hasattr(model.policy, "theta2crcf"):
                raise SpecError(
                    f"{kind} is for policies that say in which box of actions they act (theta2crcf), and "
                    f"{type(model.policy).__name__} does not; use one of {', '.join(PREFIX + e for e in ESTIMATES)}"
                )
            if node.conditional_columns and not len(attributes):
                raise SpecError(
                    f"{node.name} needs the data set's sensitive_attrs, a row for each episode; it has none"
                )
    for name, rewards in (("rewards", episodes.rewards), ("alt_rewards", episodes.alt_rewards)):
        if not np.isfinite(rewards).all():
            raise PolicyError(
                f"{name} must be finite numbers, got {int((~np.isfinite(rewards)).sum())} that are not"
            )
    if hasattr(model.policy, "theta2crcf"):
        return
    episodes.check_behavior(
        has_densities=not isinstance(getattr(model.policy, "distribution", None), Softmax)
    )
    ratios = log_ratios(model, start, episodes)
    if np.isnan(ratios).any():
        raise PolicyError(
            f"at the initial solution, the policy gives no number as the probability of {int(np.isnan(ratios).sum())} of "
            f"{len(ratios)} actions"
        )
