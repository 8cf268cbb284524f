"""Comparisons that tell a fault from rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradbridge.borders import INEXACT
from gradbridge.layout import Array


def neighbour(value: Any, draw: np.random.Generator, precision: float) -> Any:
    """The same argument, each number some units in the last place away: what differs there is rounding.

    Args:
        value: an array that is floating; anything else stays as it is.
        draw: of the units.
        precision: of one unit, that of the dtype that is computed in; the value's own where that is coarser.
    """
    if not isinstance(value, np.ndarray) or value.dtype.kind not in INEXACT:
        return value
    unit = max(precision, float(np.finfo(value.dtype).eps))
    return (value * (1 + draw.integers(-4, 5, size=value.shape) * unit)).astype(value.dtype)


def agree(ours: Sequence[Array], theirs: Sequence[Array], tolerance: float) -> bool:
    """Whether arrays are the same to a tolerance that is relative to the largest number of each; NaN equals itself."""
    return len(ours) == len(theirs) and all(map(_agree, ours, theirs, [tolerance] * len(ours)))


def precision_of(evaluation: Any) -> float:
    """The coarsest that an evaluation went through, by its dtypes and by what its model was seen to compute in."""
    return max(float(evaluation.call.settings.audit.precision), _precision_of_dtypes(evaluation))


def tolerance_of(evaluation: Any) -> float:
    """Half of the digits that the dtypes of an evaluation have, for what repeats the same steps."""
    return float(_precision_of_dtypes(evaluation) ** 0.5)


def difference(ours: Sequence[Array], theirs: Sequence[Array]) -> float:
    """The largest difference, relative to the largest number; infinite where shapes differ."""
    if [np.shape(x) for x in ours] != [np.shape(x) for x in theirs]:
        return float("inf")
    scale = max((float(np.max(np.abs(x), initial=0.0)) for x in (*ours, *theirs)), default=0.0)
    most = max((float(np.max(distances(a, b), initial=0.0)) for a, b in zip(ours, theirs)), default=0.0)
    return most / scale if scale else 0.0


def distances(a: Array, b: Array) -> Array:
    """Number by number; booleans are numbers here, and unsigned ones do not wrap around."""
    is_exact = a.dtype.kind in "biu"
    return np.abs(np.subtract(a, b, dtype=np.float64 if is_exact else None))


def rounding(
    compute: Callable[[list[Any], list[Any]], Sequence[Array]],
    values: Sequence[Any],
    cotangents: Sequence[Any],
    here: Sequence[Array],
    precision: float,
    draw: np.random.Generator,
    count: int,
) -> list[Array]:
    """How far rounding moves results, number by number: what is zero but for rounding shows there.

    Args:
        compute: (values, cotangents) ↦ results.
        values, cotangents: whose neighbours it is called with.
        here: the results at these themselves.
        precision: as for `neighbour`.
        draw: of the neighbours.
        count: of the neighbours.
    """
    noise = [np.zeros(x.shape) for x in here]
    for _ in range(count):
        moved, pulled = ([neighbour(x, draw, precision) for x in some] for some in (values, cotangents))
        near = compute(moved, pulled)
        noise = [np.maximum(n, distances(a, b)) for n, a, b in zip(noise, near, here)]
    return noise


def both_sides(ahead: Sequence[Array], back: Sequence[Array]) -> tuple[float, float, float]:
    """(⟨v, J t⟩, ⟨Jᵀ v, t⟩, the size of all terms that they are summed up from).

    Args:
        ahead, back: the terms of each; their imaginary parts are left out.
    """
    terms = [[np.real(x) for x in side] for side in (ahead, back)]
    a, b = (sum(float(np.sum(x)) for x in side) for side in terms)
    return a, b, sum(float(np.sum(np.abs(x))) for side in terms for x in side)


def _precision_of_dtypes(evaluation: Any) -> float:
    """In the guest and at the host's border: 2⁻⁵² for float64."""
    dtypes = [d for d in (*evaluation.guest_dtypes, evaluation.dtype) if d.kind in INEXACT]
    return max(2.0**-52, *(float(np.finfo(d).eps) for d in dtypes))


def _agree(a: Array, b: Array, tolerance: float) -> bool:
    if a.shape != b.shape:
        return False
    if a.dtype.kind not in INEXACT:
        return bool(np.array_equal(a, b))
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return False
    if finite.all():
        scale = max(float(np.max(np.abs(a), initial=0.0)), float(np.max(np.abs(b), initial=0.0)))
        return bool(np.all(np.abs(a - b) <= tolerance * scale))
    return _agree(a[finite], b[finite], tolerance) and np.array_equal(a[~finite], b[~finite], equal_nan=True)
