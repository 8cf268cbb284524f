"""Numeric gradients: central differences, which state their order and estimate their error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradbridge import trees
from gradbridge.call_spec import CallSpec
from gradbridge.errors import (
    GuestError,
    HigherOrderError,
    NotDifferentiableError,
)
from gradbridge.forks import fork_safe_lock
from gradbridge.layout import Array
from gradbridge.notices import notice
from gradbridge_numpy.called import CalledJet, PlainFunction, copies
from gradbridge_numpy.differences import VectorFunction, column
from gradbridge_numpy.forms import OUTPUTS, Leaves

# One for all, because a lock of their own could not be copied with them.
_counting = fork_safe_lock()


@dataclass(frozen=True)
class NumericGradient:
    """How a numeric gradient is taken, and how large its error is estimated to be.

    Attributes:
        method: of the differences.
        order: of their error in the step, before extrapolation.
        step: that was asked for; None where several are tried, each relative to the number it is for.
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
        options: ``step`` and ``order``, those that were given.
        label: of the function.
    """

    def __init__(self, options: dict[str, Any], label: str) -> None:
        self._label, self._is_warned = label, False
        #: What is known of them now.
        self.account = NumericGradient(order=options.get("order", 2), step=options.get("step"))

    def jacobian(
        self, function: VectorFunction, point: Array, base: Array, precision: Array, what: str
    ) -> Array:
        """(outputs, numbers of the point) of a function of a vector; a warning once where it has no certain digit.

        Args:
            function: gives NaN where it is not defined.
            point: (numbers,) floating, finite.
            base: what it is there, finite.
            precision: of the outputs, relative.
            what: errors call the point.

        Raises:
            NotDifferentiableError: there is no slope.
            BackendUnavailableError: numdifftools is not installed.
        """
        jacobian = np.zeros((base.size, point.size))
        latest, vague = 0.0, 0
        for index in range(point.size):
            estimate, is_vague = column(
                function, point, base, index, precision, self.account.step, self.account.order
            )
            if not np.isfinite(estimate.error).all():
                raise NotDifferentiableError(
                    f"the numeric gradient of {self._label} with respect to {what} was asked for, and at number {index} "
                    f"of it, {point[index]}, no step gives a slope: it jumps there, rises infinitely, or is defined on "
                    f"neither side; differentiate elsewhere, or write the gradient down"
                )
            jacobian[:, index] = estimate.value
            latest, vague = max(latest, float(np.max(estimate.error))), vague + int(is_vague.sum())
        with _counting:
            worst = self.account.estimated_error
            worst = latest if worst is None else max(worst, latest)
            self.account = replace(self.account, latest_error=latest, estimated_error=worst)
            is_first, self._is_warned = vague and not self._is_warned, self._is_warned or bool(vague)
        if is_first:
            notice(
                f"{vague} of {jacobian.size} entries of the numeric Jacobian of {self._label} have no certain digit, "
                f"their estimated error is {latest:.0e}: there is a kink, a jump or noise, or rounding errors dominate at every step; "
                f"choose the step with step=, or write the gradient down"
            )
        return jacobian


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
        point = np.asarray(self.leaves[position])
        moving = [self.moves(OUTPUTS, i) for i in range(len(self.answer))]
        outputs = sum(np.size(leaf) for leaf in self.answer)
        if point.size == 0 or outputs == 0:
            return np.zeros((outputs, point.size))
        what = f"argument {self._named(position)}"
        self._require_finite(point, what)
        for leaf in self.answer:
            self._require_finite(np.asarray(leaf), "what it returns")
        answer = self._flat(self.answer, moving)

        def flat(x: Array) -> Array:
            leaves = copies(self.leaves)
            leaves[position] = x.reshape(point.shape)
            values = self._flat(trees.flatten(self.plain(leaves, self.spec))[0], moving)
            if values.shape != answer.shape:
                raise NotDifferentiableError(
                    f"the numeric gradient of {self.plain.label} was asked for, and {values.size} numbers come out of "
                    f"it where a step before {answer.size} did; it has a derivative where their count is fixed"
                )
            return values

        def defined(x: Array) -> Array:
            try:
                return flat(x)
            except GuestError as error:
                # As math.log does at -1; whatever else it raises is no matter of the place.
                if isinstance(error.__cause__, (ValueError, ArithmeticError)):
                    return np.full(answer.shape, np.nan)
                raise

        x = np.ravel(point).astype(np.result_type(point, np.float64))
        base = answer
        if x.dtype != point.dtype:
            # In double where the function takes it for the same numbers; it may read the memory of float32.
            base = defined(x)
            if not np.allclose(base, answer, 1e-2, 1e-2 * np.max(np.abs(answer), initial=0.0)):
                x, base = np.ravel(point), answer
        precision = np.concatenate(
            [
                np.full(np.size(leaf), _precision(leaf) if yes else 0.0)
                for leaf, yes in zip(self.answer, moving)
            ]
        )
        return self._differences.jacobian(defined, x, base, precision, what)

    def _flat(self, leaves: Sequence[Any], moving: Sequence[bool]) -> Array:
        """Output leaves as a vector, with zeros for those that have no derivative."""
        return np.concatenate(
            [
                np.ravel(np.asarray(leaf, np.float64)) if yes else np.zeros(np.size(leaf))
                for leaf, yes in zip(leaves, moving)
            ]
        )

    def _named(self, position: int) -> str:
        argument = next(
            a for a, (start, tree) in self._arguments.items() if 0 <= position - start < tree.num_leaves
        )
        return self.plain.rules.name(argument) if argument >= 0 else self.plain.keyword(argument, self.spec)

    def _require_finite(self, array: Array, what: str) -> None:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            first = int(np.argmin(np.isfinite(array).ravel()))
            where = f"[{', '.join(map(str, np.unravel_index(first, array.shape)))}]" if array.shape else ""
            raise NotDifferentiableError(
                f"the numeric gradient of {self.plain.label} was asked for at a point where {what} is not finite, "
                f"{array.flat[first]} at {where or 'its only number'}; no finite difference exists there: check the "
                f"step that computed it"
            )


def _precision(leaf: Any) -> float:
    dtype = np.asarray(leaf).dtype
    return float(np.finfo(dtype).eps) if dtype.kind == "f" else 0.0


def numeric_refusal(label: str) -> str:
    """Why a numeric gradient is not differentiated again."""
    return (
        f"a derivative of the numeric gradient of {label} was asked for; differences of differences would lose most "
        f"of their digits: write its gradient and the rules of that down with @{label}.defvjp, or write {label} in a "
        f"framework that has higher orders: @gradbridge.primitive(backend='torch')"
    )
