"""Faults of builders."""

from __future__ import annotations

from dataclasses import replace

from gradbridge.protocol import GuestOptions
from gradbridge.testing.faulty.catalogue import breaks
from gradbridge.testing.paper import PaperModel, ReferenceAdapter


@breaks("builder_is_canonical", "linear")
class _WeightsFirst(ReferenceAdapter):
    """Holds the weights of each layer before its bias, as most frameworks do."""

    def __init__(self, model: PaperModel, options: GuestOptions) -> None:
        names = sorted(
            model.scenario.shapes, key=lambda name: (name.partition(".")[0], name.endswith("bias"))
        )
        shapes = {name: model.scenario.shapes[name] for name in names}
        super().__init__(replace(model, scenario=replace(model.scenario, shapes=shapes)), options)


@breaks("builder_is_canonical", "perceptron")
class _LastLayerFirst(ReferenceAdapter):
    """Numbers its layers from the output."""

    def __init__(self, model: PaperModel, options: GuestOptions) -> None:
        shapes = dict(sorted(model.scenario.shapes.items(), key=lambda item: -int(item[0].partition(".")[0])))
        super().__init__(replace(model, scenario=replace(model.scenario, shapes=shapes)), options)
