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

    from gradbridge_seldonian.model import SeldonianModel
    from gradbridge_seldonian.pictures import plot_candidate_selection, plot_comparison
    from gradbridge_seldonian.pytorch_model import SupervisedPytorchBaseModel
    from gradbridge_seldonian.spec import supervised_spec
    from gradbridge_seldonian.steps import SupervisedStepsModel
    from gradbridge_seldonian.tensorflow_model import SupervisedTensorFlowBaseModel
    from gradbridge_seldonian.workers import over_workers

_HOMES = {
    "SeldonianModel": "model",
    "supervised_spec": "spec",
    "SupervisedStepsModel": "steps",
    "SupervisedPytorchBaseModel": "pytorch_model",
    "SupervisedTensorFlowBaseModel": "tensorflow_model",
    "plot_candidate_selection": "pictures",
    "plot_comparison": "pictures",
    "over_workers": "workers",
}
__all__ = [
    "SeldonianModel",
    "SupervisedPytorchBaseModel",
    "SupervisedStepsModel",
    "SupervisedTensorFlowBaseModel",
    "over_workers",
    "plot_candidate_selection",
    "plot_comparison",
    "supervised_spec",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"gradbridge_seldonian.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gradbridge_seldonian' has no attribute {name!r}")


@hookimpl
def gradbridge_commands(cli: click.Group) -> None:
    """Add `gradbridge demo`."""
    from gradbridge_seldonian.command import demo

    cli.add_command(demo)
