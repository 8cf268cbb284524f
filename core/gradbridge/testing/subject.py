"""`Subject`: one scenario built on one backend, and calls of it that are in flight.

The checks speak to an adapter through `gradbridge.execution.evaluation.Call`, as host halves do, so
that no autodiff system is needed to test one. Arguments are counted as hosts count them: the flat
vector of params is argument 0 where the scenario has any, then come the inputs.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.execution.arguments import Arguments
from gradbridge.execution.evaluation import Call, Evaluation
from gradbridge.execution.settings import BridgeSettings
from gradbridge.layout import Array
from gradbridge.protocol import Adapter, GuestOptions
from gradbridge.testing.backend import BackendUnderTest, Native, NotOfferedError
from gradbridge.testing.closed_form import ClosedForm
from gradbridge.testing.compare import Gradients, expect_gradients, expect_outputs
from gradbridge.testing.points import ScenarioPoint, forward, views
from gradbridge.testing.scenario import Scenario

#: Largest error, relative to the largest value (at least 1), by the dtype of the computation.
TOLERANCES = {"float64": 1e-10, "float32": 2e-5}


class Subject(ClosedForm):
    """One scenario on one backend.

    Adapters in eval mode are shared by all checks: nothing may pass from one call to the next.

    Args:
        under_test: the author's factories.
        scenario: which model.
        mode: ``"eval"`` or ``"train"``.
    """

    def __init__(self, under_test: BackendUnderTest, scenario: Scenario, mode: str = "eval") -> None:
        self.under_test, self.scenario, self.mode = under_test, scenario, mode
        self._adapters: dict[str, Adapter] = {}
        self._building = threading.Lock()
        numbers = scenario.unravel(np.arange(float(scenario.size)))
        numbered = self.params_of(self.adapt(self.build(numbers), self.precision))
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
        scenario, copies = self.scenario, {name: np.array(array) for name, array in params.items()}
        if scenario.architecture is not None:
            return Native(self.under_test.portable(scenario.architecture, copies))
        factory = getattr(self.under_test, scenario.factory or scenario.name)
        built = factory(**copies, **scenario.constants)
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

    def ask_adapter(
        self,
        point: ScenarioPoint,
        cotangents: Sequence[Array] | None = None,
        adapter: Adapter | None = None,
    ) -> Gradients:
        """The four steps on the adapter itself, without what core does before, after or instead of them.

        Returns:
            Gradients by argument.
        """
        return self.steps(point, cotangents, adapter)[1]

    def steps(
        self,
        point: ScenarioPoint,
        cotangents: Sequence[Array] | None = None,
        adapter: Adapter | None = None,
    ) -> tuple[list[Array], Gradients]:
        """`ask_adapter`, and the outputs before."""
        adapter, wrt = adapter if adapter is not None else self.adapter(), self.differentiable(point.inputs)
        leaves = self.leaves(adapter, point, wrt)
        outputs, residuals = forward(adapter, point, leaves)
        arrays = [y.copy() for y in views(adapter, outputs)]
        adapter.zero(residuals)
        pulled = list(point.cotangents if cotangents is None else cotangents)
        return arrays, self.joined(adapter, point, adapter.backward(residuals, pulled, leaves), wrt)

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

    def expect_right(self, when: str) -> None:
        """Outputs and gradients are those of the closed form.

        Raises:
            AssertionError
        """
        subject, point = self.subject, self.point
        expect_outputs(self.outputs, subject.outputs_at(point), subject.tolerance, when)
        expect_gradients(self.pull(), subject.gradients_at(point), subject.tolerance, when)


def expect_right(
    subject: Subject,
    point: ScenarioPoint,
    when: str,
    *,
    adapter: Adapter | None = None,
    at: ScenarioPoint | None = None,
    tolerance: float | None = None,
) -> None:
    """Outputs and gradients are those of the closed form, by core's way and by the adapter's own steps.

    Args:
        subject: the scenario and the backend.
        point: where it is computed.
        when: for the failure.
        adapter: by default the shared one.
        at: where the closed form is, if these are other arrays.
        tolerance: by default the subject's.

    Raises:
        AssertionError
    """
    at, tolerance = at or point, tolerance or subject.tolerance
    outputs, gradients = subject.outputs_at(at), subject.gradients_at(at)
    flight = subject.start(point, adapter=adapter)
    expect_outputs(flight.outputs, outputs, tolerance, when)
    expect_gradients(flight.pull(), gradients, tolerance, when)
    own, pulled = subject.steps(point, adapter=adapter)
    expect_outputs(own, outputs, tolerance, f"{when}, by the adapter's own steps")
    expect_gradients(pulled, gradients, tolerance, f"{when}, by the adapter's own steps")
