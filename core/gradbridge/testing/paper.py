"""The closed forms themselves as adapters, with no framework behind them.

They keep every law, and are what the kit's faulty adapters are faulty copies of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from gradbridge import trees
from gradbridge.arrays import as_numpy
from gradbridge.borders import host_dtype
from gradbridge.call_spec import CallSpec
from gradbridge.errors import GuestError, HigherOrderError
from gradbridge.layout import Array, ParameterLayout
from gradbridge.protocol import Adapter, ArraySpec, GuestOptions, Traits
from gradbridge.testing import derivatives, waves
from gradbridge.testing.scenario import Scenario
from gradbridge.testing.scenarios import BATCHNORM_TRAIN, DROPOUT_RATE


@dataclass
class PaperModel:
    """A "native" model of the reference backend: a scenario that holds parameters and statistics.

    Attributes:
        evaluations: how often its value was computed.
        outside: gives further inputs, which it reads from outside.
    """

    scenario: Scenario
    params: dict[str, Array]
    mean: Array | float = 0.0
    variance: Array | float = 1.0
    evaluations: int = 0
    outside: Callable[[], Sequence[Any]] = tuple


class ReferenceAdapter(Adapter):
    """A scenario's closed form as an adapter.

    Args:
        model: the scenario and its parameters.
        options: dtype and mode.
    """

    traits = Traits(takes_complex=True, has_forward_mode=True, has_vmap=True, packs=True)

    def __init__(self, model: PaperModel, options: GuestOptions) -> None:
        scenario = model.scenario
        self.label = scenario.name
        self.layout = ParameterLayout(
            tuple(scenario.shapes), tuple(scenario.shapes.values()), ("float64",) * len(scenario.shapes)
        )
        self.scenario, self._model = scenario, model
        self.dtype, self._options = np.dtype(options.dtype or "float64"), options
        self.train = options.mode == "train"
        self.mean, self.variance = model.mean, model.variance

    def weights(self) -> list[Array]:
        return [np.asarray(self._model.params[name], dtype=np.float64) for name in self.scenario.shapes]

    def model(self, weights: Sequence[Array]) -> PaperModel:
        arrays = {name: np.array(w) for name, w in zip(self.scenario.shapes, weights)}
        return PaperModel(self.scenario, arrays, self.mean, self.variance)

    def update(self, weights: Sequence[Array]) -> list[Array]:
        return self.load(weights)

    def update_flat(self, vector: Array, packed: bool) -> list[Array]:
        return self.load([vector] if packed else self.layout.cut(vector))

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        arrays = [self.cast(x) for x in (*inputs, *self.outside())]
        try:
            output = self.value(loaded, arrays, spec)
        except ValueError as error:
            raise GuestError(f"{self.label} failed on {[x.shape for x in arrays]}: {error}") from error
        if self.train and not spec.replay and self.scenario.name == "batchnorm":
            self.mean = 0.9 * self.mean + 0.1 * arrays[0].mean(0)
            self.variance = 0.9 * self.variance + 0.1 * arrays[0].var(0)
        outputs = _mapped(self.own, output)
        return outputs, (([w.copy() for w in loaded], arrays, spec) if wrt else None)

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        loaded, arrays, spec = residuals
        by_leaf = self.gradients(loaded, arrays, [self.cast(v) for v in cotangents], spec)
        return [self.own(by_leaf[leaf]) for leaf in wrt]

    def backward_merged(
        self,
        residuals: Any,
        cotangents: Sequence[Array],
        wrt: tuple[int, ...],
        left: Sequence[dict[int, Array]],
    ) -> list[Array]:
        """`backward`, with what pullbacks of this call left at its boundary."""
        gradients = self.backward(residuals, cotangents, wrt)
        return [sum((one[leaf] for one in left), gradient) for leaf, gradient in zip(wrt, gradients)]

    def backward_many(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        each = [self.backward(residuals, list(v), wrt) for v in zip(*cotangents)]
        return [np.stack(gradients) for gradients in zip(*each)]

    def row_jacobians(
        self,
        loaded: list[Array],
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        has_rows: tuple[bool, ...],
    ) -> list[list[Array]]:
        count = next(len(x) for x, yes in zip(inputs, has_rows) if yes)
        rows = []
        for row in range(count):
            alone = [x[row : row + 1] if yes else x for x, yes in zip(inputs, has_rows)]
            outputs, residuals = self.forward(loaded, alone, spec, wrt)
            leaves = trees.flatten(outputs)[0]
            rows.append([self._jacobian(residuals, leaves, i, wrt) for i in range(len(leaves))])
        return [[np.stack(blocks) for blocks in zip(*output)] for output in zip(*rows)]

    def _jacobian(self, residuals: Any, leaves: list[Array], index: int, wrt: tuple[int, ...]) -> list[Array]:
        """Of the only row of one output: (*its shape, *argument shape) for each argument."""
        units = np.eye(leaves[index].size).reshape(-1, *leaves[index].shape)
        many = [units if i == index else np.zeros((len(units), *y.shape)) for i, y in enumerate(leaves)]
        gradients = self.backward_many(residuals, many, wrt)
        return [g.reshape(*leaves[index].shape[1:], *g.shape[1:]) for g in gradients]

    def pushforward(
        self,
        loaded: list[Array],
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> tuple[Any, list[Array]]:
        outputs, _ = self.forward(loaded, inputs, spec, ())
        return outputs, self._pushed(loaded, inputs, spec, wrt, tangents)

    def pushforward_many(
        self,
        loaded: list[Array],
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> list[Array]:
        each = [self._pushed(loaded, inputs, spec, wrt, list(t)) for t in zip(*tangents)]
        return [np.stack(one) for one in zip(*each)]

    def _pushed(
        self,
        loaded: list[Array],
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> list[Array]:
        """Tangents of the outputs, by the complex step."""
        arguments = [*loaded, *map(self.cast, inputs)]
        full = [np.zeros_like(a) for a in arguments]
        for leaf, tangent in zip(wrt, tangents):
            full[leaf] = tangent
        count = len(loaded)
        if self.scenario.name == "wave":
            return waves.pushed(arguments[0], arguments[1:], full)

        def function(leaves: Sequence[Any]) -> list[Any]:
            return list(trees.flatten(self.value(leaves[:count], leaves[count:], spec))[0])

        return derivatives.pushforward(function, arguments, full)

    def pullback(self, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        return ReferencePullback(self, spec, wrt, residuals)

    def output_spec(self, inputs: Sequence[Any], spec: CallSpec) -> Any:
        zeros = [np.zeros(x.shape, x.dtype) for x in inputs]
        shapes = [(self.layout.size,)] if spec.packed else self.layout.shapes
        output = self.value(self.load([np.zeros(s) for s in shapes]), zeros, spec)
        return _mapped(lambda y: ArraySpec.of(self.own(y)), output)

    def in_dtype(self, name: str) -> Self:
        return self if self.dtype == name else type(self)(self._model, replace(self._options, dtype=name))

    def fresh(self) -> Self:
        return type(self)(self._model, self._options)

    # -- the closed form ----------------------------------------------------------------------

    def load(self, weights: Sequence[Array]) -> list[Array]:
        """Weights, or the vector of all of them, as the computation takes them."""
        return [np.array(as_numpy(w), self.dtype) for w in weights]

    def cast(self, array: Any) -> Any:
        """An array as the computation takes it: a copy; what is not an array as it is."""
        if not hasattr(array, "dtype"):
            return array
        array = as_numpy(array)
        return array.astype(host_dtype(array.dtype.newbyteorder("="), self.dtype))

    def own(self, array: Any) -> Array:
        """What is handed out: a new array in the dtype of the computation."""
        array = np.asarray(array)
        return np.array(array, dtype=host_dtype(array.dtype, self.dtype))

    def outside(self) -> Sequence[Any]:
        """What the model reads from outside, as it is now."""
        return [np.array(y) for y in self._model.outside()]

    def mask(self, x: Any, spec: CallSpec) -> Any:
        """The dropout mask of one call."""
        kept = np.random.default_rng(spec.noise).random(np.shape(x)) >= DROPOUT_RATE
        return kept / (1 - DROPOUT_RATE)

    def named(self, loaded: Sequence[Any], spec: CallSpec) -> dict[str, Any]:
        """Loaded weights by name."""
        return self.scenario.unravel(loaded[0]) if spec.packed else dict(zip(self.scenario.shapes, loaded))

    def value(self, loaded: Sequence[Any], inputs: Sequence[Any], spec: CallSpec) -> Any:
        """The scenario's value, in this adapter's mode."""
        self._model.evaluations += 1
        if self.scenario.name == "dropout" and self.train:
            return inputs[0] * self.mask(inputs[0], spec)
        if self.scenario.name == "batchnorm" and not self.train:
            inputs = [(inputs[0] - self.mean) / self._spread()]
        return self._formula().value(self.named(loaded, spec), inputs)

    def gradients(
        self, loaded: Sequence[Any], inputs: Sequence[Any], cotangents: Sequence[Any], spec: CallSpec
    ) -> dict[int, Any]:
        """The scenario's gradients by leaf, in this adapter's mode."""
        if self.scenario.name == "dropout" and self.train:
            return {0: cotangents[0] * self.mask(inputs[0], spec)}
        formula, spread = self._formula(), 1.0
        if self.scenario.name == "batchnorm" and not self.train:
            spread = self._spread()
            inputs = [(inputs[0] - self.mean) / spread]
        of_weights, of_inputs = formula.gradients(self.named(loaded, spec), inputs, cotangents)
        gradients = [self.scenario.ravel(of_weights)] if spec.packed else list(of_weights.values())
        return dict(enumerate([*gradients, *(None if g is None else g / spread for g in of_inputs)]))

    def _formula(self) -> Scenario:
        return BATCHNORM_TRAIN if self.train and self.scenario.name == "batchnorm" else self.scenario

    def _spread(self) -> Any:
        # The scenario divides by √(1 + ε) itself; this makes it √(variance + ε).
        epsilon = self.scenario.constants["epsilon"]
        return np.sqrt((self.variance + epsilon) / (1 + epsilon))


class ReferencePullback(Adapter):
    """The VJP of a reference adapter; its own VJP is taken by the complex step.

    Args:
        parent: the adapter.
        spec: of the call that is differentiated.
        wrt: leaves whose gradients it returns.
        residuals: of that call: where it is at hand, its arrays are read, and not the caller's.
    """

    traits = Traits(takes_complex=True, packs=True)

    def __init__(
        self, parent: ReferenceAdapter, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None
    ) -> None:
        self.label, self.layout = f"gradient of {parent.label}", parent.layout
        self.parent, self._spec, self._wrt, self._residuals = parent, spec, wrt, residuals
        self.step = "forward" if residuals is None else "backward"

    def weights(self) -> list[Array]:
        return self.parent.weights()

    def model(self, weights: Sequence[Array]) -> PaperModel:
        return self.parent.model(weights)

    def update(self, weights: Sequence[Array]) -> list[Array]:
        return self.parent.update(weights)

    def update_flat(self, vector: Array, packed: bool) -> list[Array]:
        return self.parent.update_flat(vector, packed)

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        count = self._spec.count
        cotangents = [self.parent.cast(v) for v in inputs[count:]]
        if self._residuals is None:
            arguments = [*(w.copy() for w in loaded), *map(self.parent.cast, inputs[:count]), *cotangents]
        else:
            arguments = [*self._residuals[0], *self._residuals[1], *cotangents]
        return tuple(self.parent.own(g) for g in self.function(arguments)), (arguments if wrt else None)

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        if self.parent.scenario.name == "wave":
            return self._of_wave(residuals, cotangents, wrt)
        return derivatives.pullback(self.function, residuals, cotangents, wrt)

    def pull_to_boundary(
        self, residuals: Any, cotangents: Sequence[Array]
    ) -> tuple[dict[int, Array], dict[int, Array]]:
        """(gradients of the cotangents alone, those of the call's own arguments, for `backward_merged`)."""
        first = (1 if self._spec.packed else len(self.layout)) + self._spec.count
        of_cotangents, of_arguments = range(first, len(residuals)), self._wrt
        both = (*of_cotangents, *of_arguments)
        gradients = dict(zip(both, self.backward(residuals, cotangents, both)))
        return {i: gradients[i] for i in of_cotangents}, {i: gradients[i] for i in of_arguments}

    def _of_wave(self, arguments: Any, directions: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        scale, x, z, *cotangents = arguments
        full = [np.zeros_like(scale), np.zeros_like(x), np.zeros_like(z)]
        for leaf, direction in zip(self._wrt, directions):
            full[leaf] = direction
        gradients = waves.pulled_again(scale, (x, z), cotangents, full)
        return [gradients[leaf] for leaf in wrt]

    def pullback(self, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        # The complex step can be taken once.
        raise HigherOrderError(
            f"a second derivative of {self.parent.label} is all that paper gives; use first and second order"
        )

    def output_spec(self, inputs: Sequence[Any], spec: CallSpec) -> Any:
        weights = [ArraySpec(shape, self.parent.dtype) for shape in self.layout.shapes]
        leaves = [*weights, *inputs]
        return tuple(
            ArraySpec(leaves[i].shape, host_dtype(leaves[i].dtype, self.parent.dtype)) for i in self._wrt
        )

    def function(self, arguments: Sequence[Any]) -> list[Any]:
        """(*weights, *inputs, *cotangents) ↦ gradients of the chosen leaves."""
        first = 1 if self._spec.packed else len(self.layout)
        count = first + self._spec.count
        gradients = self.parent.gradients(
            arguments[:first], arguments[first:count], arguments[count:], self._spec
        )
        return [gradients[leaf] for leaf in self._wrt]


def _mapped(function: Callable[[Any], Any], output: Any) -> Any:
    leaves, structure = trees.flatten(output)
    return trees.unflatten(structure, [function(leaf) for leaf in leaves])
