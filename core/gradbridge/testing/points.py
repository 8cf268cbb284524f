"""Where a scenario is evaluated, and the adapter's own steps there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradbridge import trees
from gradbridge.call_spec import CallSpec
from gradbridge.layout import Array
from gradbridge.protocol import Adapter


@dataclass(frozen=True)
class ScenarioPoint:
    """Where a scenario is evaluated.

    Attributes:
        params: (P,) in the order of the adapter's layout.
        inputs: the scenario's inputs.
        cotangents: one per output leaf.
    """

    params: Array
    inputs: tuple[Any, ...]
    cotangents: tuple[Array, ...]

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As a host has them: the params if there are any, then the inputs."""
        return (self.params, *self.inputs) if self.params.size else self.inputs


def forward(
    adapter: Adapter, point: ScenarioPoint, leaves: tuple[int, ...] = (), noise: int = 0
) -> tuple[Any, Any]:
    """Steps update and forward of the adapter itself, its weights as leaves: (outputs, residuals)."""
    loaded = adapter.update(adapter.layout.cut(point.params))
    return adapter.forward(loaded, point.inputs, CallSpec.of_arrays(len(point.inputs), noise), leaves)


def views(adapter: Adapter, outputs: Any) -> list[Array]:
    """Leaves of what an adapter's forward returned, as NumPy's arrays."""
    return [adapter.border.view(leaf) for leaf in trees.flatten(outputs)[0]]


def overwrite(arrays: Iterable[Array]) -> None:
    """Overwrite them, as a caller does that uses its buffers again."""
    for array in arrays:
        array[...] = 0 if array.dtype.kind in "iu" else 99.0


def drawn(like: Iterable[Array], seed: int) -> list[Array]:
    """Normal numbers in the shapes of some arrays, complex ones where these are."""
    rng = np.random.default_rng(seed)
    return [drawn_like(array, rng) for array in like]


def drawn_like(array: Array, rng: np.random.Generator) -> Array:
    """Normal numbers in the shape of an array, complex ones where that is."""
    drawn = rng.normal(size=array.shape)
    return drawn + 1j * rng.normal(size=array.shape) if array.dtype.kind == "c" else drawn
