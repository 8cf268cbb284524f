"""The Seldonian Engine over bridges: models of any framework under behavioral constraints.

The names below import the engine when they are first used::

    from gradbridge_seldonian import SeldonianModel, supervised_spec
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gradbridge.hookspecs import hookimpl

if TYPE_CHECKING:
    import click

    from gradbridge_seldonian.evaluation.constraints import SweptTree
    from gradbridge_seldonian.model import SeldonianModel
    from gradbridge_seldonian.outputs import SpecError
    from gradbridge_seldonian.pictures import plot_candidate_selection, plot_comparison
    from gradbridge_seldonian.reinforcement.distributions import PolicyError
    from gradbridge_seldonian.reinforcement.policy import Gaussian, OneHot, SeldonianPolicy, Softmax
    from gradbridge_seldonian.reinforcement.specification import rl_spec
    from gradbridge_seldonian.runs import EngineError
    from gradbridge_seldonian.specification.supervised import supervised_spec
    from gradbridge_seldonian.steps.base import SupervisedStepsModel
    from gradbridge_seldonian.steps.pytorch import SupervisedPytorchBaseModel
    from gradbridge_seldonian.steps.tensorflow import SupervisedTensorFlowBaseModel
    from gradbridge_seldonian.workers import over_workers

_HOMES = {
    "SeldonianModel": "model",
    "supervised_spec": "specification.supervised",
    "SupervisedStepsModel": "steps.base",
    "SupervisedPytorchBaseModel": "steps.pytorch",
    "SupervisedTensorFlowBaseModel": "steps.tensorflow",
    "plot_candidate_selection": "pictures",
    "plot_comparison": "pictures",
    "SeldonianPolicy": "reinforcement.policy",
    "Softmax": "reinforcement.policy",
    "Gaussian": "reinforcement.policy",
    "OneHot": "reinforcement.policy",
    "rl_spec": "reinforcement.specification",
    "SpecError": "outputs",
    "EngineError": "runs",
    "PolicyError": "reinforcement.distributions",
    "SweptTree": "evaluation.constraints",
    "over_workers": "workers",
}
__all__ = [
    "EngineError",
    "Gaussian",
    "OneHot",
    "PolicyError",
    "SeldonianModel",
    "SeldonianPolicy",
    "Softmax",
    "SpecError",
    "SupervisedPytorchBaseModel",
    "SupervisedStepsModel",
    "SupervisedTensorFlowBaseModel",
    "SweptTree",
    "over_workers",
    "plot_candidate_selection",
    "plot_comparison",
    "rl_spec",
    "supervised_spec",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"gradbridge_seldonian.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gradbridge_seldonian' has no attribute {name!r}")


@hookimpl
def gradbridge_commands(cli: click.Group) -> None:
    """Add `gradbridge demo`."""
    from gradbridge_seldonian.demo.command import demo

    cli.add_command(demo)
