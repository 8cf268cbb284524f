"""The reference backend: the scenarios on paper, whose adapters keep every law."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from gradbridge.architectures import Architecture
from gradbridge.errors import GradbridgeWarning
from gradbridge.layout import Array
from gradbridge.protocol import Adapter, GuestOptions
from gradbridge.testing.backend import BackendUnderTest, Native
from gradbridge.testing.outside import Outside
from gradbridge.testing.paper import PaperModel, ReferenceAdapter, ReferencePullback
from gradbridge.testing.scenario import Scenario
from gradbridge.testing.scenarios import SCENARIOS

__all__ = ["PaperModel", "Reference", "ReferenceAdapter", "ReferencePullback"]


class Reference(BackendUnderTest):
    """The reference backend under test. It is in no registry."""

    def adapt(self, model: PaperModel, options: GuestOptions) -> Adapter:
        if model.scenario.name in ("dropout", "batchnorm") and options.mode == "eval":
            warnings.warn(f"{model.scenario.name} is evaluated in eval mode", GradbridgeWarning, stacklevel=2)
        return ReferenceAdapter(model, options)

    def state(self, model: PaperModel) -> Any:
        arrays = {name: array.tobytes() for name, array in model.params.items()}
        return arrays, np.asarray(model.mean).tobytes(), str(np.random.get_state())  # noqa: NPY002

    def surroundings(self) -> Any:
        return [("under np.errstate", np.errstate(all="raise"))]

    def counted(self, native: Native) -> tuple[Native, Callable[[], int]]:
        return native, lambda: native.model.evaluations

    def reading(self, native: Native, outside: Outside) -> Native:
        return Native(replace(native.model, outside=lambda: (outside.read(),)))

    def portable(self, architecture: Architecture, params: Mapping[str, Array]) -> PaperModel:
        scenario = next(s for s in SCENARIOS.values() if s.architecture == architecture)
        return PaperModel(scenario, dict(params))

    @property
    def name(self) -> str:
        return "reference"


def _factory(scenario: Scenario) -> Any:
    def build(self: Reference, **arrays: Any) -> PaperModel:
        own = {name: arrays[name] for name in scenario.shapes}
        return PaperModel(replace(scenario, shapes={name: a.shape for name, a in own.items()}), own)

    return build


for _scenario in SCENARIOS.values():
    if not _scenario.factory and _scenario.architecture is None:
        setattr(Reference, _scenario.name, _factory(_scenario))
