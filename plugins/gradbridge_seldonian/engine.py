"""The Seldonian Engine itself: imported here, with a clear word when it cannot be."""

from __future__ import annotations

from gradbridge.errors import BackendUnavailableError

INSTALL = (
    'pip install cma graphviz "matplotlib>=3.8" "pandas>=2.1" pytest "scikit-learn>=1.4" "scipy>=1.11" tqdm '
    "&& pip install --no-deps seldonian-engine==0.8.11"
)

try:
    from seldonian.candidate_selection.candidate_selection import CandidateSelection
    from seldonian.dataset import CustomDataSet, RLDataSet, SupervisedDataSet
    from seldonian.models import objectives
    from seldonian.models.models import SeldonianModel as EngineModel
    from seldonian.models.models import SupervisedModel
    from seldonian.parse_tree import zhat_funcs
    from seldonian.parse_tree.nodes import BaseNode, custom_base_node_dict, subscriptable_measure_functions
    from seldonian.parse_tree.operators import bounds_required_dict, op_mapper
    from seldonian.parse_tree.parse_tree import ParseTree, make_parse_trees_from_constraints
    from seldonian.RL.Agents.Policies.Policy import Policy
    from seldonian.RL.RL_model import RL_model
    from seldonian.safety_test.safety_test import SafetyTest
    from seldonian.seldonian_algorithm import SeldonianAlgorithm
    from seldonian.spec import RLSpec, Spec, SupervisedSpec
    from seldonian.utils.stats_utils import tinv
except ImportError as error:
    raise BackendUnavailableError(
        f"the Seldonian plugin needs seldonian-engine, which does not import here ({error}); install it with: "
        f"{INSTALL} (without its dependencies, because it pins a matplotlib that does not build on Python 3.11)"
    ) from error

__all__ = [
    "INSTALL",
    "BaseNode",
    "CandidateSelection",
    "CustomDataSet",
    "EngineModel",
    "ParseTree",
    "Policy",
    "RLDataSet",
    "RLSpec",
    "RL_model",
    "SafetyTest",
    "SeldonianAlgorithm",
    "Spec",
    "SupervisedDataSet",
    "SupervisedModel",
    "SupervisedSpec",
    "bounds_required_dict",
    "custom_base_node_dict",
    "make_parse_trees_from_constraints",
    "objectives",
    "op_mapper",
    "subscriptable_measure_functions",
    "tinv",
    "zhat_funcs",
]
