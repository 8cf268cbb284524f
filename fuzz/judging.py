"""Runs one program, and says where its answers are not what is expected."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fuzz.asking import Asked
from fuzz.built import Guest
from fuzz.expecting import Expected
from fuzz.points import Point
from fuzz.programs import Program, Query

#: Most that an answer may be off by, relative to its largest entry.
TOLERANCE = {"float64": 1e-9, "float32": 1e-3}
#: And in units of what it moves by when its point moves by a rounding error.
ROUNDINGS = 300.0


@dataclass(frozen=True)
class Fault:
    """Something wrong.

    Attributes:
        query: what was asked; None where the bridge could not be made.
        expected, got: in words.
    """

    query: Query | None
    expected: str
    got: str


def fault_of(
    program: Program,
    guest: Guest,
    warned: Callable[[str], None] = lambda text: None,
) -> Fault | None:
    """The first thing in a program that is wrong, None if all is right.

    Args:
        program: which one.
        guest: its framework.
        warned: is told of each warning.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = _fault_of(program, guest)
    for warning in caught:
        if "gradbridge" in str(warning.category.__module__):
            warned(f"{warning.category.__name__}: {str(warning.message)[:150]}")
    return found


def _fault_of(program: Program, guest: Guest) -> Fault | None:
    try:
        asked = Asked(program, guest)
    except Exception:
        return Fault(None, "a bridge", traceback.format_exc())
    expected = Expected(program, asked.names, asked.arrays)
    with np.errstate(all="ignore"):
        for query in program.queries:
            found = _judged(program, query, asked, expected)
            if found is not None:
                return found
    return None


def _judged(program: Program, query: Query, asked: Any, expected: Expected) -> Fault | None:
    point = Point.of(program, query, asked.params)
    if query.wrt == "inputs" and not point.moving:
        return None
    before = [point.params.copy(), *(x.copy() for x in point.inputs)]
    reference = point.in_double
    try:
        got = asked.answer(query, point)
    except Exception:
        return Fault(query, _words(_expected(query, reference, asked, expected)), traceback.format_exc())
    for one, other in zip(before, (point.params, *point.inputs)):
        if not np.array_equal(one, other):
            return Fault(query, "the caller's arrays as they were", "they are changed")
    right = _expected(query, reference, asked, expected)
    if not all(np.isfinite(a).all() for a in right):
        return None  # the program itself overflows
    if len(right) != len(got):
        return Fault(query, _words(right), _words(got))
    for a, b in zip(right, got):
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape:
            return Fault(query, f"shape {a.shape}: {_words(right)}", f"shape {b.shape}: {_words(got)}")
        host = program.host_dtype
        if query.kind != "model" and b.dtype != host:
            return Fault(query, f"dtype {host}", f"dtype {b.dtype}")
    error = _apart(right, got)
    if error > TOLERANCE[program.precision]:
        room = ROUNDINGS * _moved_by_rounding(program, query, reference, asked, expected, right)
        if not error <= room:
            return Fault(query, _words(right), f"{_words(got)}, off by {error:.2g} (room {room:.1g})")
    return None


def _expected(query: Query, point: Point, asked: Any, expected: Expected) -> list[Any]:
    if query.kind.startswith("dropped"):
        return [] if asked.kept is None else expected.dropped(query, point, asked.kept)
    return expected.answer(query, point)


def _apart(right: list[Any], got: list[Any]) -> float:
    """Largest difference, relative to the largest entry of what is right, or to 1e-3 where that is less."""
    scale = max([1e-3, *(float(np.max(np.abs(a), initial=0.0)) for a in right)])
    errors = [float(np.max(np.abs(a - np.asarray(b)), initial=0.0)) for a, b in zip(right, got)]
    return max(errors, default=0.0) / scale if not np.isnan(errors).any() else float("inf")


def _moved_by_rounding(
    program: Program, query: Query, point: Point, asked: Any, expected: Expected, right: list[Any]
) -> float:
    """How far the right answer moves when its point does, by one rounding error of each number."""
    rng, worst = np.random.default_rng(0), 0.0
    small = np.finfo(program.precision).eps
    shaken = lambda a: a * (1 + small * rng.uniform(-1, 1, a.shape)) if a.dtype.kind == "f" else a  # noqa: E731
    for _ in range(5):
        other = replace(point, params=shaken(point.params), inputs=[shaken(x) for x in point.inputs])
        worst = max(worst, _apart(right, _expected(query, other, asked, expected)))
    return worst


def _words(answer: list[Any]) -> str:
    with np.printoptions(precision=8, threshold=20, linewidth=110):
        return "; ".join(f"{np.shape(a)} {np.ravel(a)}" for a in answer)
