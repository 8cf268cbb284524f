"""Numeric derivatives of a function of a vector, with an error that covers what they lack.

Steps are relative to each number, as log and 1/x near zero need, and 1e14 does; where that gives
too few digits, other scales are tried, and the one of the smallest error is taken. The error of a
quotient is what it differs by from those of the neighbouring steps, and what rounding can do to it:
by the precision that the values show, which is float32's where the function computes in it.

Source:
    C. Ridders (1982), Accurate computation of F'(x) and F'(x)F''(x), for the choice by agreement.
    J. N. Lyness & C. B. Moler (1967), Numerical differentiation of analytic functions, for the extrapolation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gradbridge.errors import BackendUnavailableError
from gradbridge.layout import Array

#: A vector ↦ a vector; NaN where the function is not defined.
VectorFunction = Callable[[Array], Array]

#: The largest step for a number of size 1: no power of two, so that values show the precision they have.
_LARGEST = 0.11
_RATIO, _COUNT, _TERMS = 4.0, 10, 5
#: Where a step is given: that one, twice and four times as much.
_GIVEN_RATIO, _GIVEN_COUNT = 2.0, 3
#: A derivative that is so small beside that of another output need not have digits of its own.
_SMALL = 1e-3
#: What differs by more than its neighbours is several times as wrong where convergence is slow.
_SAFETY = 4.0
#: Relative, of what is computed here.
_ROUNDING = 1e-15
#: Relative steps at which a function that computes in float32 need not move.
_UNSEEN = 2.0**-20


class Estimate(NamedTuple):
    """Derivatives of all outputs by one number, each (outputs,).

    Attributes:
        value: the derivatives.
        error: bounds of their errors.
        is_settled: whether the finest steps agree, so that nothing goes on below them.
        is_one_sided: whether the function is defined on one side alone.
    """

    value: Array
    error: Array
    is_settled: Array
    is_one_sided: Array

    def or_better(self, other: Estimate) -> Estimate:
        """The one of the smaller error, output by output; two that contradict each other are as wrong as they differ.

        Args:
            other: by another scale, which was tried because this one was not good enough.
        """
        apart = np.abs(other.value - self.value)
        clash = apart > other.error + self.error
        # Finer steps see more, or are nearer to what the function cannot tell apart.
        knows = (other.is_settled & ~self.is_settled) | (self.is_one_sided & ~other.is_one_sided)
        knows &= np.isfinite(other.error)
        better = np.where(clash | (self.is_one_sided != other.is_one_sided), knows, other.error < self.error)
        value, error, settled, one_sided = (np.where(better, b, a) for a, b in zip(self, other))
        error = np.where(clash & ~knows, apart + np.maximum(self.error, other.error), error)
        return Estimate(value, error, settled, one_sided)


@dataclass(frozen=True)
class Ladder:
    """A function at steps up and down from one number of a point, the largest first.

    Attributes:
        base: what it is at the point, (outputs,).
        up, down: what it is there, (steps, outputs).
        up_by, down_by: the steps as they came out, (steps, 1).
        ratio: of a step to the next.
        size: of the number that is moved.
    """

    base: Array
    up: Array
    down: Array
    up_by: Array
    down_by: Array
    ratio: float
    size: float

    @classmethod
    def of(
        cls, function: VectorFunction, point: Array, base: Array, index: int, steps: Array, ratio: float
    ) -> Ladder:
        """Evaluate."""
        values, offsets = [], []
        for sign in (1, -1):
            for step in steps:
                moved = point.copy()
                moved[index] += sign * step
                by = sign * (float(moved[index]) - float(point[index]))
                usable = np.isfinite(moved[index]) and by > 0
                values.append(function(moved) if usable else np.full(base.shape, np.nan))
                offsets.append(by if usable else np.nan)
        count = len(steps)
        every, by = np.where(np.isfinite(values), values, np.nan), np.array(offsets)[:, None]
        return cls(
            base, every[:count], every[count:], by[:count], by[count:], ratio, abs(float(point[index]))
        )

    @property
    def range(self) -> Array:
        """How far the outputs move, (outputs,)."""
        return np.nanmax(np.abs(np.concatenate([self.up, self.down, self.base[None]]) - self.base), axis=0)

    def precision(self, least: Array) -> Array:
        """Of the values, relative, (outputs,): at least that of their dtype, and the one that they show."""
        varies = self.range > 0
        values = np.concatenate([self.up, self.down])[:, varies]
        for dtype in (np.float16, np.float32):
            if values.size and np.array_equal(_rounded(values, dtype), values, equal_nan=True):
                return np.maximum(least, np.finfo(dtype).eps)
        # A number that stays tells less: a half is one in any precision.
        narrow = (_rounded(self.base, np.float32) == self.base) & (
            _rounded(self.base, np.float16) != self.base
        )
        return np.where(narrow & ~varies, np.maximum(least, np.finfo(np.float32).eps), least)

    def estimate(self, precision: Array, first: int) -> Estimate:
        """The derivatives by central differences; by one-sided ones where that side alone is defined.

        Args:
            precision: of the values, (outputs,).
            first: the least number of terms that are extrapolated.
        """
        up, down = (self.up - self.base) / self.up_by, (self.base - self.down) / self.down_by
        both = self.up_by + self.down_by
        central = (self.up - self.down) / both
        sizes = np.fmax(np.fmax(np.abs(self.up), np.abs(self.down)), np.abs(self.base))
        slope = np.fmax(np.fmax(np.abs(up), np.abs(down)), 0)
        # Rounding of the values, and of what is computed of the number on the way to them.
        noise = 2 * precision * (sizes + self.size * slope)
        unseen = (self.up == self.down) & (both < 2 * _UNSEEN * self.size)
        steps = np.abs(np.diff(np.where(unseen, np.nan, central)[-4:], axis=0))
        last = len(steps)
        settled = np.all(
            steps <= np.fmax(30 * (noise / both)[-last:], 0.01 * np.abs(central[-last:])), axis=0
        )
        endless = _diverges(central, noise / both)
        # … and as much more as the finest steps show.
        noise = np.fmax(noise, np.max(np.nan_to_num(steps * both[-last:])[-2:], axis=0))
        value, error = self._best(central, np.where(unseen, np.inf, noise / both), 2, first)
        # What ought to vanish with the step: where the slopes of both sides differ there is a kink, and where
        # the values do there is no slope at all.
        kink, known = self._best(up - down, noise / self.up_by + noise / self.down_by, 1, 0)
        error = np.where(np.abs(kink) > known, np.maximum(error, (np.abs(kink) + known) / 2), error)
        jump, known = self._best(self.up - self.down, noise, 1, 0)
        error = np.where((np.abs(jump) > known) | endless, np.inf, error)
        is_one_sided = np.isfinite(central).sum(0) < 2
        for slopes, by in ((up, self.up_by), (down, self.down_by)):
            side, its = self._best(slopes, noise / by, 1, first)
            its = np.where(_diverges(slopes, noise / by), np.inf, its)
            takes = is_one_sided & (its < error)
            value, error = np.where(takes, side, value), np.where(takes, its, error)
        return Estimate(value, error, settled, is_one_sided)

    def _best(self, quotients: Array, noise: Array, power: int, first: int) -> tuple[Array, Array]:
        """Of the extrapolations of quotients, the one that agrees best with those of other steps.

        Args:
            quotients: (steps, outputs); their error is a series in steps to the power 1 or 2.
            noise: what rounding does to them.
            power: which.
            first: the least number of terms.

        Returns:
            (value, error), both (outputs,).
        """
        values, errors, coarser = [], [], quotients
        # No finer quotient may say more than that its noise is larger.
        known = np.where(np.isfinite(quotients + noise), quotients, np.nan)
        most = np.fmin.accumulate((known + 4 * noise)[::-1], axis=0)[::-1]
        least = np.fmax.accumulate((known - 4 * noise)[::-1], axis=0)[::-1]
        for terms in range(min(_TERMS, len(quotients))):
            rule = _rule(self.ratio, power, terms)
            rows = len(quotients) - terms
            column = sum(w * quotients[i : i + rows] for i, w in enumerate(rule))
            rounding = sum(abs(w) * noise[i : i + rows] for i, w in enumerate(rule))
            between = np.abs(np.diff(column, axis=0))
            before, after = (np.full(column.shape, np.nan) for _ in "ab")
            before[1:], after[:-1] = between, between
            lone = np.isnan(before) | np.isnan(after)
            parent = np.abs(column - coarser[-rows:]) if terms else np.full(column.shape, np.inf)
            agree = np.fmax(np.fmax(before, after), np.where(lone, parent, 0))
            if terms >= first:
                values.append(column)
                off = np.zeros(column.shape)
                off[:-1] = np.fmax(
                    np.fmax(column[:-1] - most[terms + 1 :], least[terms + 1 :] - column[:-1]), 0
                )
                errors.append(_SAFETY * agree + rounding + _ROUNDING * np.abs(column) + off)
            coarser = column
        every = np.concatenate(values)
        error = np.concatenate(errors)
        error = np.where(np.isfinite(every) & np.isfinite(error), error, np.inf)
        chosen = np.argmin(error, axis=0)[None]
        return np.take_along_axis(every, chosen, 0)[0], np.take_along_axis(error, chosen, 0)[0]


def column(
    function: VectorFunction,
    point: Array,
    base: Array,
    index: int,
    precision: Array,
    step: float | None,
    order: int,
) -> tuple[Estimate, Array]:
    """The derivatives by one number of a point.

    Args:
        function: of a vector.
        point: (numbers,) floating, finite.
        base: what the function is there, (outputs,) float64, finite.
        index: of the number.
        precision: of the outputs' dtypes, relative, (outputs,).
        step: that was asked for; None tries several.
        order: of the error in the step, before extrapolation.

    Returns:
        (the estimate, where not even the first digit is certain).

    Raises:
        BackendUnavailableError: numdifftools is not installed.
    """
    first = (order + 1) // 2 - 1
    ladders: list[Ladder] = []
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for scale, steps, ratio, good in _ladders(float(point[index]), step):
            ladders.append(Ladder.of(function, point, base, index, steps, ratio))
            precision = ladders[-1].precision(precision)
            estimates = [ladder.estimate(precision, first) for ladder in ladders]
            best = functools.reduce(Estimate.or_better, estimates)
            slopes = np.abs(best.value)
            largest = np.max(slopes, initial=0.0, where=np.isfinite(best.error))
            is_still = (ladders[-1].range == 0) & (scale >= 1)
            enough = best.is_settled & (best.error <= good * np.maximum(slopes, _SMALL * largest))
            if np.all(enough | is_still):
                break
        first_step = np.nanmax(ladders[0].up_by, initial=0.0)
        moved = ladders[0].range
        vague = (best.error > 0.5 * slopes) & (best.error * first_step > 0.05 * moved) & (moved > 0)
    return best, vague | np.isinf(best.error)


def _ladders(at: float, step: float | None) -> Iterator[tuple[float, Array, float, float]]:
    """(scale, steps, their ratio, the relative error that is small enough), those first that are likely to do."""
    if step is not None:
        yield step, step * _GIVEN_RATIO ** np.arange(_GIVEN_COUNT - 1.0, -1, -1), _GIVEN_RATIO, 0.0
        return
    own = abs(at) or 1.0
    scales = [(own, 1e-3)]
    if not 2.0**-4 <= own <= 2.0**4:
        scales = [(own, 1e-6), (1.0, 1e-3)]  # near zero by chance, or far from it
    for scale, good in (*scales, (own * 2.0**-18, 0.0)):  # and a narrow feature
        yield scale, scale * _LARGEST * _RATIO ** -np.arange(float(_COUNT)), _RATIO, good


def _rounded(values: Array, dtype: Any) -> Array:
    return values.astype(dtype).astype(np.float64)


def _diverges(quotients: Array, noise: Array) -> Array:
    """Whether they go on growing with ever finer steps, more than rounding does: the slope is infinite, (outputs,)."""
    steps = np.diff(quotients[-5:], axis=0)
    sizes = np.abs(steps)
    growth = sizes[1:] / sizes[:-1]
    goes_on = np.all((growth > 0.9) & (growth < 3) & (steps[1:] * steps[:-1] > 0), axis=0)
    return goes_on & np.all(sizes > 10 * noise[-len(sizes) :], axis=0) & (len(sizes) == 4)


@functools.lru_cache(maxsize=64)
def _rule(ratio: float, power: int, terms: int) -> Any:
    """The weights of Richardson's extrapolation, for quotients of the largest step first."""
    try:
        from numdifftools.extrapolation import Richardson
    except ImportError as error:
        raise BackendUnavailableError(
            "gradient='numeric' needs numdifftools, which is not installed; install it with: "
            'pip install "numdifftools>=0.9.41"'
        ) from error
    return tuple(map(float, Richardson(step_ratio=ratio, step=power, order=power, num_terms=terms).rule()))
