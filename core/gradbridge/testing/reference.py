"""The reference backend: the closed forms themselves as adapters, with no framework behind them.

It keeps every law, and is what the kit's faulty adapters are faulty copies of.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradbridge import trees
from gradbridge.borders import host_dtype
from gradbridge.errors import GradbridgeWarning, GuestError, HigherOrderError
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Adapter, Array, GuestOptions, Signature
from gradbridge.testing import derivatives, waves
from gradbridge.testing.backend import BackendUnderTest
from gradbridge.testing.scenarios import BATCHNORM_TRAIN, DROPOUT_RATE, SCENARIOS, Scenario


@dataclass
class PaperModel:
    """A "native" model of the reference backend: a scenario that holds parameters and statistics."""

    scenario: Scenario
    params: dict[str, Array]
    mean: Array | float = 0.0
    variance: Array | float = 1.0


class ReferenceAdapter(Adapter):
    """A scenario's closed form as an adapter.

    Args:
        model: the scenario and its parameters.
        options: dtype and mode.
    """

    def __init__(self, model: PaperModel, options: GuestOptions) -> None:
        scenario = model.scenario
        self.label = scenario.name
        self.layout = ParameterLayout(
            tuple(scenario.shapes), tuple(scenario.shapes.values()), ("float64",) * len(scenario.shapes)
        )
        self.scenario, self._model = scenario, model
        self.dtype = np.dtype(options.dtype or "float64")
        self.train = options.mode == "train"
        self.mean, self.variance = model.mean, model.variance

    takes_complex = True

    def params(self) -> Array:
        """See `Adapter.params`."""
        return np.asarray(self.scenario.ravel(self._model.params), dtype=np.float64)

    def model(self, params: Array) -> PaperModel:
        """See `Adapter.model`."""
        arrays = {name: a.copy() for name, a in self.scenario.unravel(params).items()}
        return PaperModel(self.scenario, arrays, self.mean, self.variance)

    def update(self, params: Array) -> Array:
        """See `Adapter.update`."""
        return params.astype(self.dtype)

    def forward(
        self, loaded: Array, inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        """See `Adapter.forward`."""
        arrays = [self.cast(x) for x in inputs]
        try:
            output = self.value(loaded, arrays, signature)
        except ValueError as error:
            raise GuestError(f"{self.label} failed on {[x.shape for x in arrays]}: {error}") from error
        if self.train and not signature.replay and self.scenario.name == "batchnorm":
            self.mean = 0.9 * self.mean + 0.1 * arrays[0].mean(0)
            self.variance = 0.9 * self.variance + 0.1 * arrays[0].var(0)
        leaves, structure = trees.flatten(output)
        outputs = trees.unflatten(structure, [self.own(leaf) for leaf in leaves])
        if not trees.flatten(outputs)[0] or structure.num_nodes == 1:
            outputs = self.own(leaves[0])
        return outputs, ((loaded.copy(), arrays, signature) if wrt else None)

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        """See `Adapter.backward`."""
        loaded, arrays, signature = residuals
        by_position = self.gradients(loaded, arrays, [self.cast(v) for v in cotangents], signature)
        return [self.own(by_position[position]) for position in wrt]

    def backward_many(
        self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]
    ) -> list[Array] | None:
        """See `Adapter.backward_many`."""
        each = [self.backward(residuals, list(v), wrt) for v in zip(*cotangents)]
        return [np.stack(gradients) for gradients in zip(*each)]

    def row_jacobians(
        self,
        loaded: Any,
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        rowed: tuple[bool, ...],
    ) -> list[list[Array]] | None:
        """See `Adapter.row_jacobians`."""
        count = next(len(x) for x, yes in zip(inputs, rowed) if yes)
        rows = []
        for row in range(count):
            alone = [x[row : row + 1] if yes else x for x, yes in zip(inputs, rowed)]
            outputs, residuals = self.forward(loaded, alone, signature, wrt)
            leaves = trees.flatten(outputs)[0]
            rows.append([self._jacobian(residuals, leaves, i, wrt) for i in range(len(leaves))])
        return [[np.stack(blocks) for blocks in zip(*output)] for output in zip(*rows)]

    def _jacobian(self, residuals: Any, leaves: list[Array], index: int, wrt: tuple[int, ...]) -> list[Array]:
        """Of the only row of one output: (*its shape, *argument shape) for each position."""
        units = np.eye(leaves[index].size).reshape(-1, *leaves[index].shape)
        many = [units if i == index else np.zeros((len(units), *y.shape)) for i, y in enumerate(leaves)]
        found = self.backward_many(residuals, many, wrt) or []
        return [g.reshape(*leaves[index].shape[1:], *g.shape[1:]) for g in found]

    def pushforward(
        self,
        loaded: Any,
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> list[Array] | None:
        """See `Adapter.pushforward`: by the complex step."""
        arguments = [loaded, *map(self.cast, inputs)]
        moves = [np.zeros_like(a) for a in arguments]
        for position, tangent in zip(wrt, tangents):
            moves[position] = tangent
        if self.scenario.name == "wave":
            return waves.pushed(loaded, arguments[1:], moves)

        def function(moved: Sequence[Any]) -> list[Any]:
            return list(trees.flatten(self.value(moved[0], moved[1:], signature))[0])

        return derivatives.pushforward(function, arguments, moves)

    def pushforward_many(
        self,
        loaded: Any,
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> list[Array] | None:
        """See `Adapter.pushforward_many`."""
        each = [
            ReferenceAdapter.pushforward(self, loaded, inputs, signature, wrt, list(t))
            for t in zip(*tangents)
        ]
        return [np.stack(moved) for moved in zip(*(one or [] for one in each))]

    def pullback(self, signature: Signature, wrt: tuple[int, ...]) -> Adapter:
        """See `Adapter.pullback`."""
        return ReferencePullback(self, signature, wrt)

    # -- the closed form ----------------------------------------------------------------------

    def cast(self, array: Any) -> Any:
        """An array as the computation takes it."""
        array = np.asarray(array)
        return array.astype(host_dtype(array.dtype.newbyteorder("="), self.dtype))

    def own(self, array: Any) -> Array:
        """What is handed out: a new array in the dtype of the computation."""
        array = np.asarray(array)
        return np.array(array, dtype=host_dtype(array.dtype, self.dtype))

    def mask(self, x: Any, signature: Signature) -> Any:
        """The dropout mask of one call."""
        kept = np.random.default_rng(signature.noise).random(np.shape(x)) >= DROPOUT_RATE
        return kept / (1 - DROPOUT_RATE)

    def value(self, params: Any, inputs: Sequence[Any], signature: Signature) -> Any:
        """The scenario's value, in this adapter's mode."""
        if self.scenario.name == "dropout" and self.train:
            return inputs[0] * self.mask(inputs[0], signature)
        if self.scenario.name == "batchnorm" and not self.train:
            inputs = [(inputs[0] - self.mean) / self._spread()]
        return self._formula().value(self.scenario.unravel(params), inputs)

    def gradients(
        self, params: Any, inputs: Sequence[Any], cotangents: Sequence[Any], signature: Signature
    ) -> dict[int, Any]:
        """The scenario's gradients by position, in this adapter's mode."""
        if self.scenario.name == "dropout" and self.train:
            return {1: cotangents[0] * self.mask(inputs[0], signature)}
        formula, spread = self._formula(), 1.0
        if self.scenario.name == "batchnorm" and not self.train:
            spread = self._spread()
            inputs = [(inputs[0] - self.mean) / spread]
        of_params, of_inputs = formula.gradients(self.scenario.unravel(params), inputs, cotangents)
        found = {i: g / spread for i, g in enumerate(of_inputs, 1) if g is not None}
        if self.scenario.size:
            found[0] = self.scenario.ravel(of_params)
        return found

    def _formula(self) -> Scenario:
        return BATCHNORM_TRAIN if self.train and self.scenario.name == "batchnorm" else self.scenario

    def _spread(self) -> Any:
        # The scenario divides by √(1 + ε) itself; this makes it √(variance + ε).
        epsilon = self.scenario.constants["epsilon"]
        return np.sqrt((self.variance + epsilon) / (1 + epsilon))


class ReferencePullback(Adapter):
    """The VJP of a reference adapter; its own VJP is taken by the complex step."""

    def __init__(self, parent: ReferenceAdapter, signature: Signature, wrt: tuple[int, ...]) -> None:
        self.label, self.layout = f"gradient of {parent.label}", parent.layout
        self.parent, self._signature, self._wrt = parent, signature, wrt

    takes_complex = True

    def params(self) -> Array:
        """See `Adapter.params`."""
        return self.parent.params()

    def model(self, params: Array) -> PaperModel:
        """See `Adapter.model`."""
        return self.parent.model(params)

    def update(self, params: Array) -> Array:
        """See `Adapter.update`."""
        return self.parent.update(params)

    def forward(
        self, loaded: Array, inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        """See `Adapter.forward`."""
        arguments = [loaded.copy(), *map(self.parent.cast, inputs)]
        return tuple(np.array(g) for g in self.function(arguments)), (arguments if wrt else None)

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        """See `Adapter.backward`."""
        if self.parent.scenario.name == "wave":
            return self._of_wave(residuals, cotangents, wrt)
        return derivatives.pullback(self.function, residuals, cotangents, wrt)

    def _of_wave(self, arguments: Any, directions: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        scale, x, z, *cotangents = arguments
        full = [np.zeros_like(scale), np.zeros_like(x), np.zeros_like(z)]
        for position, direction in zip(self._wrt, directions):
            full[position] = direction
        found = waves.pulled_again(scale, (x, z), cotangents, full)
        return [found[position] for position in wrt]

    def pullback(self, signature: Signature, wrt: tuple[int, ...]) -> Adapter:
        """The complex step can be taken once.

        Raises:
            HigherOrderError: always.
        """
        raise HigherOrderError(
            f"a second derivative of {self.parent.label} is all that paper gives; use first and second order"
        )

    def function(self, arguments: Sequence[Any]) -> list[Any]:
        """(params, *inputs, *cotangents) ↦ gradients for the chosen positions."""
        count = 1 + self._signature.count
        found = self.parent.gradients(arguments[0], arguments[1:count], arguments[count:], self._signature)
        return [found[position] for position in self._wrt]


class Reference(BackendUnderTest):
    """The reference backend under test. It is in no registry."""

    def adapt(self, model: PaperModel, options: GuestOptions) -> Adapter:
        """See `BackendUnderTest.adapt`."""
        if model.scenario.name in ("dropout", "batchnorm") and options.mode == "eval":
            warnings.warn(f"{model.scenario.name} is evaluated in eval mode", GradbridgeWarning, stacklevel=2)
        return ReferenceAdapter(model, options)

    def state(self, model: PaperModel) -> Any:
        """See `BackendUnderTest.state`."""
        arrays = {name: array.tobytes() for name, array in model.params.items()}
        return arrays, np.asarray(model.mean).tobytes(), str(np.random.get_state())  # noqa: NPY002

    def surroundings(self) -> Any:
        """See `BackendUnderTest.surroundings`."""
        return [("under np.errstate", np.errstate(all="raise"))]

    @property
    def name(self) -> str:
        """See `BackendUnderTest.name`."""
        return "reference"


def _factory(scenario: Scenario) -> Any:
    def build(self: Reference, **arrays: Any) -> PaperModel:
        return PaperModel(scenario, {name: arrays[name] for name in scenario.shapes})

    build.__doc__ = f"See `BackendUnderTest.{scenario.name}`."
    return build


for _scenario in SCENARIOS.values():
    setattr(Reference, _scenario.name, _factory(_scenario))
