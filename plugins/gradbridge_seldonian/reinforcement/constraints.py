"""The engine's parse trees over episodes: estimates from one evaluation of the policy, bounds in one sweep."""

from __future__ import annotations

import copy
import functools
from typing import Any

import autograd.numpy as anp
import numpy as np

from gradbridge_seldonian.engine import ParseTree
from gradbridge_seldonian.evaluation.constraints import SweptTree
from gradbridge_seldonian.evaluation.shared import has_own_zhat
from gradbridge_seldonian.reinforcement.episodes import Episodes
from gradbridge_seldonian.reinforcement.estimates import ESTIMATES, gamma_of, ratios

PREFIX = "J_pi_new_"


class EpisodesTree(SweptTree):
    """A parse tree of the engine whose nodes take their samples of the return from all steps at once.

    A node of an alternate reward, such as ``J_pi_new_PDIS_[2]``, is bounded for that reward. The engine's PDIS takes
    the primary one, whichever was asked for.
    """

    @classmethod
    def of(cls, tree: Any) -> EpisodesTree:
        """The same tree; the nodes are shared, the given one is not used any more."""
        own = super().of(tree)
        assert isinstance(own, cls)
        for node in own.base_nodes():
            if _kind(node) in ESTIMATES and has_own_zhat(node):
                node.calculate_data_forbound = functools.partial(_data_of, node)
                node.zhat = functools.partial(_samples, node)
                node.calculate_value = functools.partial(_value, node)
        return own

    def propagate_bounds(self, **kwargs: Any) -> None:
        """See the engine. In candidate selection the upper bound of the root comes from the sweep."""
        if (
            kwargs.get("branch") != "candidate_selection"
            or "tree_dataset_dict" not in kwargs
            or self.root is None
            or self.root.will_lower_bound
        ):
            ParseTree.propagate_bounds(self, **kwargs)
            return
        model = kwargs["model"]
        data = [model, gamma_of(model), kwargs.get("n_safety")]
        joined = {}
        for name, dataset in kwargs["tree_dataset_dict"].items():
            joined[name] = copy.copy(dataset)
            joined[name].episodes = episodes = Episodes(dataset.episodes)
            data += [name, *episodes.arrays(), np.asarray(dataset.sensitive_attrs)]
        kwargs["tree_dataset_dict"] = joined
        self.root.upper = self._sweep(kwargs["theta"], data, lambda t: self._upper(t, kwargs))


def _kind(node: Any) -> str:
    return str(node.measure_function_name).removeprefix(PREFIX)


def _data_of(node: Any, **kwargs: Any) -> dict[str, Any]:
    """What the engine prepares for a bound: the node's episodes, and their returns in its reward."""
    dataset = kwargs["dataset"]
    columns = node.conditional_columns
    episodes = Episodes.of(node.mask_data(dataset, columns) if columns else dataset.episodes)
    returns = episodes.returns(gamma_of(kwargs["model"]), getattr(node, "alt_reward_number", None))
    return {"episodes": episodes, "weighted_returns": returns}


def _samples(node: Any, model: Any, theta: Any, data_dict: dict[str, Any], **kwargs: Any) -> Any:
    """(n,) samples of the return under the policy with parameters θ, one for each episode."""
    episodes = data_dict["episodes"]
    alt = getattr(node, "alt_reward_number", None)
    return ESTIMATES[_kind(node)](ratios(model, theta, episodes), episodes, gamma_of(model), alt)


def _value(node: Any, on_policy: bool = False, **kwargs: Any) -> Any:
    """The mean return: of the episodes themselves if the policy made them, else estimated."""
    return anp.mean(kwargs["data_dict"]["weighted_returns"] if on_policy else _samples(node, **kwargs))
