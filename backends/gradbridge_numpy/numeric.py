"""Numeric gradients: central differences, which state their order and estimate their error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradbridge import trees
from gradbridge.call_spec import CallSpec
from gradbridge.errors import BackendUnavailableError, HigherOrderError
from gradbridge.layout import Array
from gradbridge_numpy.called import CalledJet, PlainFunction, copies
from gradbridge_numpy.forms import OUTPUTS, Leaves

# One for all, because a lock of their own could not be copied with them.
_counting = threading.Lock()


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
        #: What is known of them now.
        self.account = NumericGradient(order=options.get("order", 2), step=options.get("step"))

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
        result = numdifftools.Jacobian(function, method="central", full_output=True, **self._options)(point)
        # Its releases differ in what stands beside the value and the estimate of its error.
        estimate = result if hasattr(result, "error_estimate") else result[1]
        latest = float(np.max(np.abs(estimate.error_estimate)))
        with _counting:
            worst = self.account.estimated_error
            # A NaN stays: an error that is not known is not small.
            worst = latest if worst is None else float(np.maximum(worst, latest))
            self.account = replace(self.account, latest_error=latest, estimated_error=worst)
        return np.asarray(result[0])


class NumericJet(CalledJet):
    """First derivatives from numeric Jacobians, each computed once when it is first asked for.

    Args:
        plain, leaves, spec: see `CalledJet`.
        differences: takes the Jacobians.
    """

    def __init__(
        self, plain: PlainFunction, leaves: list[Any], spec: CallSpec, differences: Differences
    ) -> None:
        super().__init__(plain, leaves, spec)
        self._differences = differences
        self._jacobians: dict[int, Array] = {}

    def form(
        self, places: tuple[int, ...], free: int, fills: Sequence[Leaves | None], wanted: Sequence[int]
    ) -> list[Array] | None:
        self.require(places, free)
        start, _ = self._arguments[places[1]]
        if free == 1:
            v = np.concatenate([np.ravel(np.asarray(c)) for c in fills[0] or ()])
            return [
                (v @ self._jacobian(start + leaf)).reshape(np.shape(self.leaves[start + leaf]))
                for leaf in wanted
            ]
        sizes = [np.size(leaf) for leaf in self.answer]
        moved = np.zeros(sum(sizes))
        for position, tangent in enumerate(fills[1] or (), start):
            if tangent is not None:
                moved = moved + self._jacobian(position) @ np.ravel(tangent)
        parts = np.split(moved, np.cumsum(sizes)[:-1])
        return [
            parts[i].reshape(np.shape(self.answer[i])) if self.moves(OUTPUTS, i) else self.zeros(OUTPUTS, i)
            for i in wanted
        ]

    def require(self, places: tuple[int, ...], free: int) -> None:
        if len(places) > 2:
            raise HigherOrderError(numeric_refusal(self.plain.label))

    def _jacobian(self, position: int) -> Array:
        if position not in self._jacobians:
            self._jacobians[position] = self._computed(position)
        return self._jacobians[position]

    def _computed(self, position: int) -> Array:
        point = self.leaves[position]
        size, outputs = int(np.size(point)), sum(np.size(leaf) for leaf in self.answer)
        if size == 0 or outputs == 0:
            return np.zeros((outputs, size))

        def flat(x: Array) -> Array:
            leaves = copies(self.leaves)
            leaves[position] = x.reshape(np.shape(point)).astype(np.result_type(point, np.float64))
            result, _ = trees.flatten(self.plain(leaves, self.spec))
            return np.concatenate([np.ravel(np.asarray(leaf, dtype=np.float64)) for leaf in result])

        jacobian = self._differences.jacobian(flat, np.ravel(point).astype(np.float64))
        return jacobian.reshape(outputs, size)


def numeric_refusal(label: str) -> str:
    """Why a numeric gradient is not differentiated again."""
    return (
        f"a derivative of the numeric gradient of {label} was asked for; differences of differences would lose most "
        f"of their digits: write its gradient and the rules of that down with @{label}.defvjp, or write {label} in a "
        f"framework that has higher orders: @gradbridge.primitive(backend='torch')"
    )
