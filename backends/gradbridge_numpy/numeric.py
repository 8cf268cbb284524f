"""Numeric gradients: central differences, which state their order and estimate their error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradbridge import trees
from gradbridge.errors import BackendUnavailableError, HigherOrderError
from gradbridge.protocol import Array, Signature
from gradbridge_numpy.called import CalledPoint, Plain
from gradbridge_numpy.forms import OUTPUTS
from gradbridge_numpy.pullbacks import Leaves

#: Calls the function on (params, args, kwargs) as the adapter does.
Called = Callable[[Array, tuple[Any, ...], dict[str, Any]], Any]

# One for all, because a lock of their own could not be copied with them.
_telling = threading.Lock()


@dataclass(frozen=True)
class NumericGradient:
    """How a numeric gradient is taken, and how large its error is estimated to be.

    Attributes:
        method: of the differences.
        order: of their error in the step, before extrapolation.
        step: that was asked for; None where the library chooses several and extrapolates.
        latest_error: largest estimated error of an entry of the latest Jacobian; None before the first.
        estimated_error: the same of all Jacobians so far.
    """

    method: str = "central"
    order: int = 2
    step: Any = None
    latest_error: float | None = None
    estimated_error: float | None = None

    def __str__(self) -> str:
        step = "" if self.step is None else f", step {self.step}"
        error = (
            "no error estimated yet"
            if self.estimated_error is None
            else f"largest estimated error so far {self.estimated_error:.0e}"
        )
        return f"numeric: {self.method} differences of order {self.order} with Richardson extrapolation{step}; {error}"


class Differences:
    """The numeric differentiation of one function; keeps account of the errors. Any number of threads.

    Args:
        options: ``step`` and ``order`` of numdifftools, those that were given.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._told = NumericGradient(order=options.get("order", 2), step=options.get("step"))

    @property
    def told(self) -> NumericGradient:
        """What is known of them now."""
        return self._told

    def jacobian(self, function: Callable[[Array], Array], point: Array) -> Array:
        """(outputs, numbers of the point) of a function of a vector.

        Source:
            P. Brodtkorb & J. D'Errico, numdifftools; J. N. Lyness & C. B. Moler (1967), Numerical
            differentiation of analytic functions, for the extrapolation.

        Raises:
            BackendUnavailableError: numdifftools is not installed.
        """
        try:
            import numdifftools
        except ImportError as error:
            raise BackendUnavailableError(
                "gradient='numeric' needs numdifftools, which is not installed; install it with: "
                'pip install "gradbridge[numeric]"'
            ) from error
        # Step sizes are chosen by the library, unless they were given.
        found = numdifftools.Jacobian(function, method="central", full_output=True, **self._options)(point)
        # Its releases differ in what stands beside the value and the estimate of its error.
        estimate = found if hasattr(found, "error_estimate") else found[1]
        self._tell(float(np.max(np.abs(estimate.error_estimate))))
        return np.asarray(found[0])

    def _tell(self, error: float) -> None:
        with _telling:
            told = self._told
            # A NaN stays: an error that is not known is not small.
            worst = error if told.estimated_error is None else float(np.maximum(told.estimated_error, error))
            self._told = NumericGradient(told.method, told.order, told.step, error, worst)


class NumericPoint(CalledPoint):
    """First derivatives from numeric Jacobians, each computed once when it is first asked for.

    Args:
        plain, params, leaves, signature, answer: see `CalledPoint`.
        call: calls the function.
        differences: takes the Jacobians.
    """

    def __init__(
        self,
        plain: Plain,
        params: Array,
        leaves: list[Any],
        signature: Signature,
        answer: Any,
        call: Called,
        differences: Differences,
    ) -> None:
        super().__init__(plain, params, leaves, signature, answer)
        self._call, self._differences = call, differences
        self._jacobians: dict[int, Array] = {}

    def form(
        self, places: tuple[int, ...], free: int, fills: Sequence[Leaves | None], wanted: Sequence[int]
    ) -> list[Array] | None:
        """See `Point.form`.

        Raises:
            HigherOrderError: it is not a first derivative.
        """
        self.require(places, free)
        argument = places[1]
        if free == 1:
            flat = np.concatenate([np.ravel(v) for v in self._filled(fills[0])])
            return [
                (flat @ self._jacobian(argument, leaf)).reshape(self.shape(argument, leaf)) for leaf in wanted
            ]
        moved = np.zeros(sum(np.size(leaf) for leaf in self.answer))
        for leaf, tangent in enumerate(fills[1] or ()):
            if tangent is not None:
                moved = moved + self._jacobian(argument, leaf) @ np.ravel(tangent)
        stops = np.cumsum([np.size(leaf) for leaf in self.answer])
        parts = np.split(moved, stops[:-1])
        return [
            (parts[i] if self.moves(OUTPUTS, i) else 0 * parts[i]).reshape(self.shape(OUTPUTS, i))
            for i in wanted
        ]

    def require(self, places: tuple[int, ...], free: int) -> None:
        """See `Point.require`."""
        if len(places) > 2:
            refuse_numeric(self.plain.label)

    def _filled(self, leaves: Leaves | None) -> list[Array]:
        return [
            np.zeros(self.shape(OUTPUTS, i)) if leaves is None or leaves[i] is None else np.asarray(leaves[i])
            for i in range(len(self.answer))
        ]

    def _jacobian(self, argument: int, leaf: int) -> Array:
        position = self.places[argument][leaf]
        found = self._jacobians.get(position)
        if found is None:
            found = self._jacobians[position] = self._computed(position)
        return found

    def _computed(self, position: int) -> Array:
        point = self.leaves[position - 1] if position else self.params
        size = int(np.size(point))
        outputs = sum(np.size(leaf) for leaf in self.answer)
        if size == 0 or outputs == 0:
            return np.zeros((outputs, size))

        def flat(x: Array) -> Array:
            leaves, params = list(self.leaves), self.params
            if position:
                leaves[position - 1] = x.reshape(np.shape(point)).astype(np.result_type(point, np.float64))
            else:
                params = x
            args, kwargs = self.signature.bind(leaves)
            result, _ = trees.flatten(self._call(params, args, kwargs))
            return np.concatenate([np.ravel(np.asarray(leaf, dtype=np.float64)) for leaf in result])

        jacobian = self._differences.jacobian(flat, np.ravel(point).astype(np.float64))
        return jacobian.reshape(outputs, size)


def refuse_numeric(label: str) -> None:
    """Say why a numeric gradient is not differentiated again.

    Raises:
        HigherOrderError: always.
    """
    raise HigherOrderError(
        f"a derivative of the numeric gradient of {label} was asked for; differences of differences would lose most "
        f"of their digits: write its gradient and the rules of that down with @{label}.defvjp, or write {label} in a "
        f"framework that has higher orders: @gradbridge.primitive(backend='torch')"
    )
