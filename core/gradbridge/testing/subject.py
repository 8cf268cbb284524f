"""`Subject`: one scenario built on one backend, and calls of it that are in flight.

The checks speak to an adapter through `gradbridge.execution.evaluation.Call`, as host halves do, so
that no autodiff system is needed to test one. Arguments are counted as hosts count them: the flat
vector of params is argument 0 where the scenario has any, then come the inputs.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradbridge import trees
from gradbridge.borders import INEXACT
from gradbridge.call_spec import CallSpec
from gradbridge.execution.arguments import Arguments
from gradbridge.execution.evaluation import Call, Evaluation
from gradbridge.execution.settings import BridgeSettings
from gradbridge.layout import Array
from gradbridge.protocol import Adapter, GuestOptions
from gradbridge.testing.backend import BackendUnderTest, Native, NotOfferedError
from gradbridge.testing.compare import Gradients
from gradbridge.testing.derivatives import ArrayFunction
from gradbridge.testing.scenarios import Scenario

#: Largest error, relative to the largest value (at least 1), by the dtype of the computation.
TOLERANCES = {"float64": 1e-10, "float32": 2e-5}

ROWS = 4


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


class Subject:
    """One scenario on one backend.

    Adapters in eval mode are shared by all checks: nothing may pass from one call to the next.

    Args:
        under_test: the author's factories.
        scenario: which model.
        mode: ``"eval"`` or ``"train"``.
    """

    def __init__(self, under_test: BackendUnderTest, scenario: Scenario, mode: str = "eval") -> None:
        self.under_test, self.scenario, self.mode = under_test, scenario, mode
        #: The argument that is the first input, after the params.
        self.first_input = 1 if scenario.size else 0
        self._adapters: dict[str, Adapter] = {}
        self._building = threading.Lock()
        numbers = scenario.unravel(np.arange(float(scenario.size)))
        numbered = self.params_of(self.adapt(self.build(numbers), self.precision))
        #: params in the layout's order = params in the scenario's order [order]
        self.order = numbered.astype(int)
        if sorted(self.order.tolist()) != list(range(scenario.size)):
            raise AssertionError(
                f"law 5: weights() of {scenario.name} must hold the {scenario.size} numbers that the model "
                f"holds, each once: a model built with 0, 1, … {scenario.size - 1} has weights {numbered}"
            )

    @property
    def precision(self) -> str:
        """The dtype that laws are checked in."""
        return self.under_test.dtypes[0]

    @property
    def tolerance(self) -> float:
        """Largest relative error that `precision` allows."""
        return TOLERANCES[self.precision]

    def build(self, params: dict[str, Array]) -> Native:
        """The native model holding these arrays, as the author's factory makes it."""
        factory = getattr(self.under_test, self.scenario.name)
        copies = {name: np.array(array) for name, array in params.items()}
        built = factory(**copies, **self.scenario.constants)
        return built if isinstance(built, Native) else Native(built)

    def adapt(self, native: Native, dtype: str | None, mode: str | None = None) -> Adapter:
        """An adapter over a native model."""
        options = GuestOptions(native.params, dtype, None, mode or self.mode, dict(native.options))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that eval mode is not the model's own is meant here
            return self.under_test.adapt(native.model, options)

    def initial(self) -> dict[str, Array]:
        """The arrays that models are built with: float32 can hold them, so that no backend rounds them."""
        rng = np.random.default_rng(0)
        return {name: rng.integers(-8, 9, shape) / 8.0 for name, shape in self.scenario.shapes.items()}

    def fresh(self, dtype: str | None = None) -> Adapter:
        """A new adapter over a new model."""
        return self.adapt(self.build(self.initial()), dtype or self.precision)

    def adapter(self, dtype: str | None = None) -> Adapter:
        """The shared adapter that computes in a dtype.

        Raises:
            NotOfferedError: the backend does not compute in it.
        """
        dtype = dtype or self.precision
        if dtype not in self.under_test.dtypes:
            raise NotOfferedError(f"{self.under_test.name}: does not compute in {dtype}")
        with self._building:
            if dtype not in self._adapters:
                self._adapters[dtype] = self.fresh(dtype)
            return self._adapters[dtype]

    @staticmethod
    def params_of(adapter: Adapter) -> Array:
        """The model's present weights as one flat vector, new."""
        return adapter.layout.join([adapter.border.view(w) for w in adapter.weights()])

    # -- the closed form ----------------------------------------------------------------------

    def point(self, seed: int = 0, rows: int = ROWS) -> ScenarioPoint:
        """A random point; equal seeds give equal points."""
        rng = np.random.default_rng(seed)
        params = self.scenario.ravel(self.scenario.draw_params(rng))[self.order]
        inputs = self.scenario.inputs(rng, rows)
        return self.with_cotangents(ScenarioPoint(params, inputs, ()), seed)

    def with_cotangents(self, point: ScenarioPoint, seed: int) -> ScenarioPoint:
        """The point with random cotangents that fit its outputs."""
        rng = np.random.default_rng(seed + 1000)
        return replace(point, cotangents=tuple(drawn_like(y, rng) for y in self.outputs_at(point)))

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
        inexact = (i for i, x in enumerate(inputs, self.first_input) if x.dtype.kind in INEXACT)
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

    # -- calls --------------------------------------------------------------------------------

    def call(
        self,
        point: ScenarioPoint,
        *,
        adapter: Adapter | None = None,
        noise: int = 0,
        dtype: Any = np.float64,
        packed: bool | None = None,
    ) -> Call:
        """The call that a host with one flat vector of params makes.

        Args:
            point: where it will be evaluated; its inputs are counted.
            adapter: by default the shared one.
            noise: of the call.
            dtype: the host's.
            packed: whether the weights cross as one leaf; by default where the adapter would rather have it so.
        """
        adapter = adapter if adapter is not None else self.adapter()
        packed = bool(self.first_input and adapter.traits.packs) if packed is None else packed
        spec = replace(CallSpec.of_arrays(len(point.inputs), noise), packed=packed)
        arguments = Arguments.of(self._vectors(point), 1 if packed else len(adapter.layout))
        return Call(adapter, spec, arguments, np.dtype(dtype), BridgeSettings(self.under_test.registry))

    def start(
        self,
        point: ScenarioPoint,
        *,
        adapter: Adapter | None = None,
        wrt: tuple[int, ...] | None = None,
        noise: int = 0,
        dtype: Any = np.float64,
        packed: bool | None = None,
    ) -> Flight:
        """Make the steps update and forward; the result is in flight until it is pulled back.

        Args:
            point: where. Its arrays are passed as they are, not copied.
            wrt: arguments to keep residuals for; by default all that have a derivative.
            adapter, noise, dtype, packed: as for `call`.
        """
        call = self.call(point, adapter=adapter, noise=noise, dtype=dtype, packed=packed)
        wrt = self.differentiable(point.inputs) if wrt is None else wrt
        return Flight(self, point, call.evaluate(list(point.arguments), wrt))

    def leaves(self, adapter: Adapter, point: ScenarioPoint, wrt: tuple[int, ...]) -> tuple[int, ...]:
        """Arguments → the adapter's, which are leaves."""
        return Arguments.of(self._vectors(point), len(adapter.layout)).leaves(wrt)

    def ask_adapter(self, point: ScenarioPoint, cotangents: Sequence[Array] | None = None) -> Gradients:
        """The four steps on the adapter itself, without what core does before, after or instead of them.

        Returns:
            Gradients by argument.
        """
        adapter, wrt = self.adapter(), self.differentiable(point.inputs)
        leaves = self.leaves(adapter, point, wrt)
        _, residuals = forward(adapter, point, leaves)
        adapter.zero(residuals)
        natives = adapter.backward(
            residuals, list(point.cotangents if cotangents is None else cotangents), leaves
        )
        return self.joined(adapter, point, natives, wrt)

    def joined(
        self,
        adapter: Adapter,
        point: ScenarioPoint,
        natives: Sequence[Any],
        wrt: tuple[int, ...],
        lead: tuple[int, ...] = (),
    ) -> Gradients:
        """What an adapter gave for the leaves of some arguments → gradients by argument, of NumPy."""
        leaves = self.leaves(adapter, point, wrt)
        assert len(natives) == len(leaves), (
            f"expected {len(leaves)} gradients, for {leaves}, got {len(natives)}"
        )
        arguments = Arguments.of(self._vectors(point), len(adapter.layout))
        arrays = arguments.join([adapter.border.view(g) for g in natives], wrt, adapter.border, lead)
        return self.gradients(wrt, arrays)

    def _vectors(self, point: ScenarioPoint) -> tuple[bool, ...]:
        return (*(True,) * self.first_input, *(False,) * len(point.inputs))


class Flight:
    """One call in flight: what a host holds between forward and backward."""

    def __init__(self, subject: Subject, point: ScenarioPoint, evaluation: Evaluation) -> None:
        self.subject, self.point, self.evaluation = subject, point, evaluation
        self.outputs = list(evaluation.outputs)

    @property
    def tree(self) -> Any:
        """The outputs, in the structure that the model returned."""
        return self.evaluation.assemble(self.outputs)

    def pull(
        self, cotangents: Sequence[Array] | None = None, wrt: tuple[int, ...] | None = None
    ) -> Gradients:
        """Pull cotangents back, by default the point's to every argument: {argument: gradient}."""
        wrt = self.evaluation.wrt if wrt is None else wrt
        pulled = self.point.cotangents if cotangents is None else cotangents
        return self.subject.gradients(wrt, self.evaluation.pull(pulled, wrt))

    def differentiated(self) -> Call:
        """The call of its pullback, with respect to all that was asked for."""
        call: Call = self.evaluation.differentiated(self.evaluation.wrt)
        return call


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
