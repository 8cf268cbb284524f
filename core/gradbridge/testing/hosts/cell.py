"""`HostCell`: one scenario of one guest, called by programs of one host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradbridge.borders import INEXACT, is_inexact
from gradbridge.bridge import Bridge
from gradbridge.layout import Array
from gradbridge.testing import derivatives
from gradbridge.testing.backend import NotOfferedError
from gradbridge.testing.closed_form import ClosedForm
from gradbridge.testing.compare import Gradients, expect_gradients, expect_outputs
from gradbridge.testing.hosts.guests import Built, Guest
from gradbridge.testing.hosts.under_test import ArrayFunction, Function, HostUnderTest
from gradbridge.testing.points import ScenarioPoint, drawn
from gradbridge.testing.scenarios import SCENARIOS
from gradbridge.testing.subject import Subject

#: Largest error, relative to the largest value (at least 1), by the order of the derivative, in float64.
TOLERANCES = {0: 1e-12, 1: 1e-12, 2: 1e-10, 3: 1e-8}

#: … of float32.
SINGLE = 2e-5


class HostCell(ClosedForm):
    """A scenario of a guest in a host. Arguments are counted as `ClosedForm` counts them.

    Args:
        host: the operations of the host.
        guest: where the scenario comes from.
        scenario: its name.
        function: that is called in place of the guest's; see `with_function`.
    """

    def __init__(
        self, host: HostUnderTest, guest: Guest, scenario: str, function: Callable[..., Any] | None = None
    ) -> None:
        self.host, self.guest, self.scenario = host, guest, SCENARIOS[scenario]
        self.built: Built = guest.built(scenario)
        self.order = self.built.order
        self.function = function if function is not None else self.built.function

    def with_function(self, function: Callable[..., Any]) -> HostCell:
        """The same cell around another function of the same arguments."""
        return HostCell(self.host, self.guest, self.scenario.name, function)

    def renewed(self) -> HostCell:
        """The same cell around a function that was never called."""
        return self.with_function(self.guest.build(self.scenario).function)

    @property
    def bridge(self) -> Bridge:
        """The bridge.

        Raises:
            NotOfferedError: the function is a native one.
        """
        if self.built.bridge is None:
            raise NotOfferedError(f"{self.guest.name}: there is no bridge in the program")
        return self.built.bridge

    @property
    def subject(self) -> Subject:
        """The scenario as the kit for guests has it.

        Raises:
            NotOfferedError: the function is a native one.
        """
        if self.built.subject is None:
            raise NotOfferedError(f"{self.guest.name}: there is no bridge in the program")
        return self.built.subject

    # -- programs -----------------------------------------------------------------------------

    def wrt(self, point: ScenarioPoint) -> tuple[int, ...]:
        """The arguments that are differentiated."""
        return self.differentiable(point.inputs)

    def arrays(self, point: ScenarioPoint) -> list[Any]:
        """The arguments that are differentiated, arrays of the host."""
        return [self.host.array(point.arguments[i]) for i in self.wrt(point)]

    def arguments(self, point: ScenarioPoint, arrays: Sequence[Any]) -> list[Any]:
        """All arguments of the call: these arrays, and constants of the host; None for arrays that are not given."""
        own: dict[int, Any] = dict.fromkeys(self.wrt(point)) | dict(zip(self.wrt(point), arrays))
        return [own[i] if i in own else self._constant(x) for i, x in enumerate(point.arguments)]

    def _constant(self, value: Any) -> Any:
        return self.host.array(value) if isinstance(value, np.ndarray) else value

    def floating(self, point: ScenarioPoint) -> Function:
        """The arguments that are differentiated ↦ the floating output leaves."""
        # Nothing but the host's own operations is within, since compilers look into it.
        function, places = self.function, self.floating_outputs(point)
        wrt, constants = self.wrt(point), self.arguments(point, ())

        def floating(*arrays: Any) -> tuple[Any, ...]:
            every = list(constants)
            for i, array in zip(wrt, arrays):
                every[i] = array
            leaves = _leaves(function(*every))
            return tuple([leaves[i] for i in places])

        return floating

    def scalar(self, point: ScenarioPoint) -> ArrayFunction:
        """The arguments that are differentiated ↦ Σ c y, the outputs weighted by the point's cotangents."""
        function, cotangents = self.floating(point), self.cotangents(point)

        def scalar(*arrays: Any) -> Any:
            return self.dot(function(*arrays), cotangents)

        return scalar

    def product(self, function: ArrayFunction, directions: Sequence[Array]) -> ArrayFunction:
        """Σ u ∇f for a function f without axes: its gradient is the Hessian times u."""
        own = [self.host.array(u) for u in directions]

        def product(*arrays: Any) -> Any:
            return self.dot(self.host.gradient(function, tuple(range(len(arrays))))(*arrays), own)

        return product

    def dot(self, arrays: Sequence[Any], weights: Sequence[Any]) -> Any:
        """Σ x w, an array of the host without axes."""
        host = self.host
        terms = [host.sum(host.multiply(x, w)) for x, w in zip(arrays, weights)]
        total = terms[0]
        for term in terms[1:]:
            total = host.add(total, term)
        return total

    def cotangents(self, point: ScenarioPoint) -> list[Any]:
        """Of the floating outputs, constants of the host."""
        return [self.host.array(point.cotangents[i]) for i in self.floating_outputs(point)]

    def floating_outputs(self, point: ScenarioPoint) -> list[int]:
        """Which output leaves are floating or complex."""
        return [i for i, y in enumerate(self.outputs_at(point)) if y.dtype.kind in INEXACT]

    def numpy(self, values: Sequence[Any]) -> list[Array]:
        """Arrays of the host as NumPy's."""
        return [np.asarray(self.host.numpy(value)) for value in values]

    def is_own(self, value: Any) -> bool:
        """Whether a value is an array of the host, as the registry has it; true of what a native function gives."""
        return (
            self.built.bridge is None
            or self.host.registry.host_of(type(value)) == self.host.registry.backend(self.host.host).name
        )

    # -- what is expected ---------------------------------------------------------------------

    def directions(self, point: ScenarioPoint, seed: int) -> list[Array]:
        """One direction for each argument that is differentiated."""
        return drawn([np.asarray(point.arguments[i]) for i in self.wrt(point)], seed)

    def moved(self, point: ScenarioPoint, directions: Sequence[Array]) -> list[Array]:
        """J t: tangents of all outputs, where the arguments move along directions."""
        full = [np.zeros(np.shape(a)) for a in point.arguments]
        for argument, direction in zip(self.wrt(point), directions):
            full[argument] = direction
        return derivatives.pushforward(self.value_function(), point.arguments, full)

    def second(self, point: ScenarioPoint, directions: Sequence[Array]) -> Gradients:
        """H u for the Hessian H of Σ c y by all arguments that are differentiated."""
        wrt = self.wrt(point)
        arguments = [*point.arguments, *point.cotangents]
        return self.gradients(wrt, derivatives.pullback(self.gradient_function(), arguments, directions, wrt))

    def third(self, point: ScenarioPoint, u: Sequence[Array], w: Sequence[Array]) -> Gradients:
        """∂ ⟨w, H u⟩, which is how H u moves along w."""
        wrt = self.wrt(point)
        shapes = [np.shape(point.arguments[i]) for i in wrt]
        cuts = np.cumsum([int(np.prod(s)) for s in shapes])[:-1]

        def product(flat: Array) -> Array:
            parts = [part.reshape(s) for part, s in zip(np.split(flat, cuts), shapes)]
            return _flat(list(self.second(self.at(point, parts), u).values()))

        # A short way: along all directions together a long one leaves where differences are right to 1e-12.
        moved = derivatives.slope(product, _flat([point.arguments[i] for i in wrt]), _flat(w) / 10) * 10
        return self.gradients(wrt, [part.reshape(s) for part, s in zip(np.split(moved, cuts), shapes)])

    def at(self, point: ScenarioPoint, arrays: Sequence[Array]) -> ScenarioPoint:
        """The point with other values of the arguments that are differentiated, the same cotangents."""
        every = dict(enumerate(point.arguments)) | dict(zip(self.wrt(point), arrays))
        arguments = [every[i] for i in sorted(every)]
        params = arguments[0] if self.first_input else point.params
        return replace(point, params=params, inputs=tuple(arguments[self.first_input :]))

    # -- comparisons --------------------------------------------------------------------------

    def expect_outputs(self, got: Sequence[Any], point: ScenarioPoint, when: str = "") -> None:
        """Floating outputs are the closed form's.

        Raises:
            AssertionError
        """
        expected = self.outputs_at(point)
        floating = [expected[i] for i in self.floating_outputs(point)]
        expect_outputs(self.numpy(got), floating, TOLERANCES[0], when)

    def expect(
        self, got: Sequence[Any], expected: Gradients, order: int, when: str = "", dtype: str = "float64"
    ) -> None:
        """Arrays of the host are these gradients, of this dtype.

        Args:
            got: one for each entry of `expected`, in order.
            expected: by argument.
            order: of the derivative.
            when: for the failure.
            dtype: that all must have, unless they are complex.

        Raises:
            AssertionError
        """
        arrays = self.numpy(got)
        assert len(arrays) == len(expected), f"expected {len(expected)} gradients {when}, got {len(arrays)}"
        gradients = self.gradients(list(expected), arrays)
        for argument, array in gradients.items():
            assert array.dtype.kind == "c" or array.dtype == dtype, (
                f"gradient of {gradients.name(argument)} {when}: expected {dtype}, got {array.dtype}"
            )
        expect_gradients(
            gradients, expected, TOLERANCES[order] if dtype == "float64" else SINGLE * 10 ** (order - 1), when
        )

    def expect_pulled(self, pull: Callable[..., Any], point: ScenarioPoint, when: str = "") -> None:
        """What a pullback gives for the point's cotangents is the closed form's.

        Raises:
            AssertionError
        """
        self.expect(pull(self.cotangents(point)), self.gradients_at(point), 1, when)


def single(point: ScenarioPoint) -> ScenarioPoint:
    """The point in float32, and the rounded values in it."""

    def rounded(x: Any) -> Any:
        return x.astype(np.float32) if is_inexact(x) else x

    inputs, cotangents = tuple(map(rounded, point.inputs)), tuple(map(rounded, point.cotangents))
    return ScenarioPoint(rounded(point.params), inputs, cotangents)


def _leaves(tree: Any) -> list[Any]:
    """The leaves of a scenario's outputs, in the order of `trees.flatten`, in Python that a compiler may read."""
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in _leaves(tree[key])]
    if isinstance(tree, tuple):
        return [leaf for part in tree for leaf in _leaves(part)]
    return [tree]


def _flat(arrays: Sequence[Array]) -> Array:
    return np.concatenate([np.ravel(a) for a in arrays])
