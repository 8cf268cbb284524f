"""A scenario's closed form with its arguments as a host has them: the flat vector of params, then the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradbridge import trees
from gradbridge.borders import is_inexact
from gradbridge.layout import Array
from gradbridge.testing.compare import Gradients
from gradbridge.testing.derivatives import ArrayFunction
from gradbridge.testing.points import ScenarioPoint, drawn_like
from gradbridge.testing.scenario import Scenario

ROWS = 4


class ClosedForm:
    """Values and gradients of a scenario, in the order of an adapter's layout.

    Attributes:
        scenario: which model.
        order: params in the layout's order = params in the scenario's order [order].
    """

    scenario: Scenario
    order: np.ndarray[Any, np.dtype[np.int_]]

    @property
    def first_input(self) -> int:
        """The argument that is the first input, after the params."""
        return 1 if self.scenario.size else 0

    def point(self, seed: int = 0, rows: int = ROWS) -> ScenarioPoint:
        """A random point; equal seeds give equal points."""
        rng = np.random.default_rng(seed)
        params = self.scenario.ravel(self.scenario.draw_params(rng))[self.order]
        inputs = self.scenario.inputs(rng, rows)
        return self.with_cotangents(ScenarioPoint(params, inputs, ()), seed)

    def with_cotangents(self, point: ScenarioPoint, seed: int) -> ScenarioPoint:
        """The point with random cotangents that fit its outputs; those of integers are zeros."""
        rng = np.random.default_rng(seed + 1000)
        outputs = self.outputs_at(point)
        cotangents = tuple(drawn_like(y, rng) if is_inexact(y) else np.zeros(y.shape) for y in outputs)
        return replace(point, cotangents=cotangents)

    def outputs_at(self, point: ScenarioPoint) -> list[Array]:
        """Closed-form output leaves."""
        return [np.asarray(leaf) for leaf in trees.flatten(self.value_at(point))[0]]

    def value_at(self, point: ScenarioPoint) -> Any:
        """Closed-form output, the tree."""
        return self.scenario.value(self.by_name(point.params), point.inputs)

    def gradients_at(self, point: ScenarioPoint) -> Gradients:
        """Closed-form gradients by argument; no entry where there is none."""
        gradients = self.gradient_function()([*point.arguments, *point.cotangents])
        return self.gradients(self.differentiable(point.inputs), gradients)

    def gradients(self, arguments: Sequence[int], gradients: Sequence[Array]) -> Gradients:
        """Gradients by argument."""
        return Gradients(zip(arguments, gradients, strict=True), self.first_input)

    def by_name(self, params: Any) -> dict[str, Any]:
        """Params in the layout's order → the scenario's arrays."""
        own = np.empty(self.scenario.size, np.asarray(params).dtype.newbyteorder("="))
        own[self.order] = params
        return self.scenario.unravel(own)

    def differentiable(self, inputs: Sequence[Any]) -> tuple[int, ...]:
        """Arguments that have a derivative: the params if there are any, and floating and complex inputs."""
        inexact = (i for i, x in enumerate(inputs, self.first_input) if is_inexact(x))
        return (*range(self.first_input), *inexact)

    def named(self, argument: int) -> str:
        """An argument in words; those of a pullback's adapter go on with the cotangents."""
        count = self.first_input + self._input_count
        names = Gradients((), self.first_input)
        return names.name(argument) if argument < count else f"cotangent {argument - count}"

    def value_function(self) -> ArrayFunction:
        """arguments ↦ output leaves, the closed form as one function of arrays."""

        def value(arrays: Sequence[Any]) -> list[Any]:
            params, inputs = self._split(arrays)
            return [
                np.asarray(y) for y in trees.flatten(self.scenario.value(self.by_name(params), inputs))[0]
            ]

        return value

    def gradient_function(self) -> ArrayFunction:
        """(*arguments, *cotangents) ↦ gradients for those that are `differentiable`, in closed form."""

        def gradients(arrays: Sequence[Any]) -> list[Any]:
            count = self.first_input + self._input_count
            params, inputs = self._split(arrays[:count])
            of_params, of_inputs = self.scenario.gradients(
                self.by_name(params), inputs, [np.asarray(v) for v in arrays[count:]]
            )
            flat = [self.scenario.ravel(of_params)[self.order]] if self.first_input else []
            return [*flat, *(g for g in of_inputs if g is not None)]

        return gradients

    def _split(self, arguments: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
        """Arguments → (params, inputs)."""
        params = arguments[0] if self.first_input else np.empty(0)
        return params, arguments[self.first_input :]

    @property
    def _input_count(self) -> int:
        return len(self.scenario.inputs(np.random.default_rng(0), 1))
