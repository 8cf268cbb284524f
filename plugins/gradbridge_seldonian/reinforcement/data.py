"""The data of `rl_spec`: episodes that fit each other, the policy and the constraints, and enough of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge_seldonian.evaluation.shared import has_own_zhat
from gradbridge_seldonian.outputs import SpecError
from gradbridge_seldonian.reinforcement.constraints import PREFIX, EpisodesTree
from gradbridge_seldonian.reinforcement.distributions import PolicyError, Softmax
from gradbridge_seldonian.reinforcement.episodes import Episodes
from gradbridge_seldonian.reinforcement.estimates import ESTIMATES
from gradbridge_seldonian.specification.measures import check_rows


def check_data(model: Any, dataset: Any, trees: Sequence[EpisodesTree]) -> None:
    """Refuse episodes that do not fit each other, the policy or the constraints.

    Args:
        model: the engine's ``RL_model``.
        dataset: an ``RLDataSet``.
        trees: of the constraints.

    Raises:
        SpecError: sensitive attributes that do not fit, constraints that are not for this policy.
        PolicyError: episodes that do not fit.
    """
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
            if node.conditional_columns:
                _check_groups(node, dataset)
    for name, rewards in (("rewards", episodes.rewards), ("alt_rewards", episodes.alt_rewards)):
        if not np.isfinite(rewards).all():
            raise PolicyError(
                f"{name} must be finite numbers, got {int((~np.isfinite(rewards)).sum())} that are not"
            )
    if not hasattr(model.policy, "theta2crcf"):
        episodes.check_behavior(
            has_densities=not isinstance(getattr(model.policy, "distribution", None), Softmax)
        )


def check_counts(spec: Any) -> None:
    """Refuse constraints on so few episodes that the engine's bound is infinite.

    Args:
        spec: an ``RLSpec``, its parse trees `EpisodesTree`s.

    Raises:
        SpecError: names the constraint, the group and the part of the data.
    """
    for tree in spec.parse_trees:
        for node in {node.name: node for node in tree.base_nodes()}.values():
            method = spec.base_node_bound_method_dict.get(tree.constraint_str, {}).get(node.name)
            method = method or tree.base_node_dict[node.name]["bound_method"]
            if (
                not has_own_zhat(node)
                or node.measure_function_name.removeprefix(PREFIX) not in ESTIMATES
                or method in ("manual", "random")
            ):
                continue  # what it looks at is its own affair
            try:
                check_rows(node, spec, tree, _count, "episodes")
            except SpecError as error:
                raise SpecError(f"the constraint {tree.written!r}: {error}") from None


def _count(node: Any, dataset: Any) -> int:
    columns = node.conditional_columns
    return len(node.mask_data(dataset, columns) if columns else dataset.episodes)


def _check_groups(node: Any, dataset: Any) -> None:
    attributes, names = dataset.sensitive_attrs, list(dataset.sensitive_col_names or [])
    if not len(attributes):
        raise SpecError(
            f"{node.name} needs the data set's sensitive_attrs, a row for each episode; it has none"
        )
    missing = [column for column in node.conditional_columns if column not in names]
    if missing or not isinstance(attributes, np.ndarray) or attributes.shape[1:] != (len(names),):
        got = f"shape {attributes.shape}" if isinstance(attributes, np.ndarray) else type(attributes).__name__
        raise SpecError(
            f"{node.name} needs sensitive_attrs, an array of shape ({len(dataset.episodes)}, {len(names)}) with the "
            f"columns {', '.join(names) or 'none'}, ones where an episode belongs to the group; got {got}"
        )
