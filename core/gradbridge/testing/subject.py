"""`Subject`: one scenario built on one backend, and calls of it that are in flight.

The checks speak to an adapter through `gradbridge.call.Call`, as host halves do, so that no
autodiff system is needed to test one.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradbridge import trees
from gradbridge.borders import INEXACT
from gradbridge.call import Call
from gradbridge.protocol import Adapter, Array, GuestOptions, Signature
from gradbridge.testing.backend import BackendUnderTest, Native, NotOfferedError
from gradbridge.testing.derivatives import ArrayFunction
from gradbridge.testing.scenarios import Scenario

#: Largest error, relative to the largest value (at least 1), by the dtype of the computation.
TOLERANCES = {"float64": 1e-10, "float32": 2e-5}

ROWS = 4


@dataclass(frozen=True)
class Point:
    """Where a scenario is evaluated.

    Attributes:
        params: (P,) in the order of the adapter's layout.
        inputs: the scenario's inputs.
        cotangents: one per output leaf.
    """

    params: Array
    inputs: tuple[Array, ...]
    cotangents: tuple[Array, ...]


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
        self._adapters: dict[str, Adapter] = {}
        self._building = threading.Lock()
        numbers = scenario.unravel(np.arange(float(scenario.size)))
        numbered = self.adapt(self.build(numbers), self.precision).params()
        #: params in the layout's order = params in the scenario's order [order]
        self.order = np.asarray(numbered).astype(int)
        if sorted(self.order.tolist()) != list(range(scenario.size)):
            raise AssertionError(
                f"law 5: params() of {scenario.name} must hold the {scenario.size} numbers that the model "
                f"holds, each once: a model built with 0, 1, … {scenario.size - 1} has params {numbered}"
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

    def fresh(self, dtype: str | None = None, mode: str | None = None) -> Adapter:
        """A new adapter over a new model."""
        return self.adapt(self.build(self.initial()), dtype or self.precision, mode)

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

    # -- the closed form ----------------------------------------------------------------------

    def point(self, seed: int = 0, rows: int = ROWS) -> Point:
        """A random point; equal seeds give equal points."""
        rng = np.random.default_rng(seed)
        params = self.scenario.ravel(self.scenario.draw_params(rng))[self.order]
        inputs = self.scenario.inputs(rng, rows)
        return self.with_cotangents(Point(params, inputs, ()), seed)

    def with_cotangents(self, point: Point, seed: int) -> Point:
        """The point with random cotangents that fit its outputs."""
        rng = np.random.default_rng(seed + 1000)
        return replace(point, cotangents=tuple(drawn_like(y, rng) for y in self.outputs_at(point)))

    def outputs_at(self, point: Point) -> list[Array]:
        """Closed-form output leaves."""
        return [np.asarray(leaf) for leaf in trees.flatten(self.value_at(point))[0]]

    def value_at(self, point: Point) -> Any:
        """Closed-form output, the tree."""
        return self.scenario.value(self.by_name(point.params), point.inputs)

    def gradients_at(self, point: Point) -> dict[int, Array]:
        """Closed-form gradients by position; no entry where there is none."""
        found = self.gradient_function()([point.params, *point.inputs, *point.cotangents])
        return dict(zip(self.positions(point.inputs), found))

    def by_name(self, params: Any) -> dict[str, Any]:
        """Params in the layout's order → the scenario's arrays."""
        own = np.empty(self.scenario.size, np.asarray(params).dtype.newbyteorder("="))
        own[self.order] = params
        return self.scenario.unravel(own)

    def positions(self, inputs: Sequence[Array]) -> tuple[int, ...]:
        """Positions that have a derivative: the params if there are any, and floating and complex inputs."""
        floating = [i for i, x in enumerate(inputs, 1) if np.asarray(x).dtype.kind in INEXACT]
        return (0, *floating) if self.scenario.size else tuple(floating)

    def value_function(self) -> ArrayFunction:
        """(params, *inputs) ↦ output leaves, the closed form as one function of arrays."""
        return lambda a: [
            np.asarray(leaf) for leaf in trees.flatten(self.scenario.value(self.by_name(a[0]), a[1:]))[0]
        ]

    def gradient_function(self) -> ArrayFunction:
        """(params, *inputs, *cotangents) ↦ gradients for `positions`, in closed form."""

        def gradients(arrays: Sequence[Any]) -> list[Any]:
            count = 1 + self._input_count
            arguments, cotangents = arrays[:count], arrays[count:]
            params, inputs = self.scenario.gradients(
                self.by_name(arguments[0]), arguments[1:], [np.asarray(v) for v in cotangents]
            )
            flat = [self.scenario.ravel(params)[self.order]] if self.scenario.size else []
            return [*flat, *(g for g in inputs if g is not None)]

        return gradients

    @property
    def _input_count(self) -> int:
        return len(self.scenario.inputs(np.random.default_rng(0), 1))

    @staticmethod
    def leaves(outputs: Any) -> list[Array]:
        """Leaves of what an adapter's forward returned."""
        return list(trees.flatten(outputs)[0])

    # -- calls --------------------------------------------------------------------------------

    def start(
        self,
        point: Point,
        *,
        adapter: Adapter | None = None,
        wrt: tuple[int, ...] | None = None,
        noise: int = 0,
        dtype: Any = np.float64,
    ) -> Flight:
        """Make the steps update and forward; the result is in flight until it is pulled back.

        Args:
            point: where. Its arrays are passed as they are, not copied.
            adapter: by default the shared one.
            wrt: positions to keep residuals for; by default all that have a derivative.
            noise: of the call's signature.
            dtype: the host's.
        """
        adapter = adapter if adapter is not None else self.adapter()
        call = Call(
            adapter, Signature.flat(len(point.inputs), noise), np.dtype(dtype), self.under_test.registry
        )
        call.wrt = self.positions(point.inputs) if wrt is None else wrt
        leaves = call.run(point.params, point.inputs)
        return Flight(self, point, call, leaves)

    def ask_adapter(self, point: Point, cotangents: Sequence[Array] | None = None) -> dict[int, Array]:
        """The four steps on the adapter itself, without what core does before, after or instead of them.

        Returns:
            {position: gradient} as the adapter returned them.
        """
        adapter, positions = self.adapter(), self.positions(point.inputs)
        signature = Signature.flat(len(point.inputs))
        _, residuals = adapter.forward(adapter.update(point.params), point.inputs, signature, positions)
        adapter.zero(residuals)
        pulled = list(point.cotangents if cotangents is None else cotangents)
        return dict(zip(positions, adapter.backward(residuals, pulled, positions)))


def drawn_like(array: Array, rng: np.random.Generator) -> Array:
    """Normal numbers in the shape of an array, complex ones where that is."""
    drawn = rng.normal(size=array.shape)
    return drawn + 1j * rng.normal(size=array.shape) if array.dtype.kind == "c" else drawn


class Flight:
    """One call in flight: what a host holds between forward and backward."""

    def __init__(self, subject: Subject, point: Point, call: Call, outputs: list[Array]) -> None:
        self.subject, self.point, self.call, self.outputs = subject, point, call, outputs

    @property
    def tree(self) -> Any:
        """The outputs, in the structure that the model returned."""
        return self.call.assemble(self.outputs)

    def pull(
        self, cotangents: Sequence[Array] | None = None, wrt: tuple[int, ...] | None = None
    ) -> dict[int, Array]:
        """Pull cotangents back, by default the point's to every position: {position: gradient}."""
        wrt = self.call.wrt if wrt is None else wrt
        return dict(
            zip(wrt, self.call.pull(self.point.cotangents if cotangents is None else cotangents, wrt))
        )
