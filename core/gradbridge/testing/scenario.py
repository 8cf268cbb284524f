"""`Scenario`: a small model with its value and gradients written out by hand in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradbridge.architectures import Architecture
from gradbridge.layout import Array

Params = Mapping[str, Array]
#: (params by name, inputs) ↦ the pytree that the model returns.
Value = Callable[[Params, Sequence[Any]], Any]
#: (params by name, inputs, cotangent leaves) ↦ (gradients by name, a gradient or None per input).
Gradients = Callable[[Params, Sequence[Any], Sequence[Array]], tuple[dict[str, Array], list[Array | None]]]


@dataclass(frozen=True)
class Scenario:
    """A model on paper.

    Attributes:
        name: what checks call it; that of the factory that builds it, in `BackendUnderTest`, unless
            `factory` is given.
        shapes: of the parameters by name, in the order of the factory's arguments.
        inputs: draws the inputs, ``(rng, rows) ↦ arrays``.
        value: the closed form.
        gradients: its closed-form VJP.
        constants: further keyword arguments of the factory.
        factory: that builds it, where it is another one's with other arrays.
        architecture: what `gradbridge.build` makes of it, where no factory does.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    inputs: Callable[[np.random.Generator, int], tuple[Any, ...]]
    value: Value
    gradients: Gradients
    constants: Mapping[str, Any] = field(default_factory=dict)
    factory: str = ""
    architecture: Architecture | None = None

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    def unravel(self, vector: Any) -> dict[str, Any]:
        """Flat vector in the scenario's own order → arrays by name."""
        arrays, start = {}, 0
        for name, shape in self.shapes.items():
            stop = start + int(np.prod(shape))
            arrays[name] = vector[start:stop].reshape(shape)
            start = stop
        return arrays

    def ravel(self, arrays: Mapping[str, Any]) -> Any:
        """Arrays by name → flat vector in the scenario's own order."""
        return np.concatenate([np.empty(0), *(np.ravel(arrays[name]) for name in self.shapes)])

    def draw_params(self, rng: np.random.Generator) -> dict[str, Array]:
        """Parameters whose last bits matter: none of them is a float32."""
        return {name: rng.normal(size=shape) for name, shape in self.shapes.items()}
