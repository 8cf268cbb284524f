"""Laws 2, 6 and 7 over the numbers of a call: very large and very small ones, infinite ones, and every width."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gradbridge.errors import GradbridgeError
from gradbridge.testing.checks.catalogue import PLAIN, check
from gradbridge.testing.compare import Gradients, expect_close, expect_gradients, expect_outputs
from gradbridge.testing.points import ScenarioPoint
from gradbridge.testing.subject import Subject, expect_right


@check(2)
def extreme_cotangents(subject: Subject) -> None:
    """A cotangent of 1e8 or of 1e-8 is pulled back like one of 1: nothing is clipped, and nothing added."""
    base = subject.point(140)
    for scale in (1e8, 1e-8):
        point = replace(base, cotangents=tuple(np.asarray(scale * v) for v in base.cotangents))
        for gradients in (subject.start(point).pull(), subject.ask_adapter(point)):
            back = Gradients(((i, g / scale) for i, g in gradients.items()), subject.first_input)
            when = f"of cotangents of {scale:g}, divided by that"
            expect_gradients(back, subject.gradients_at(base), subject.tolerance, when)


@check(7, ("root",))
def not_finite(subject: Subject) -> None:
    """An infinite derivative is infinite and NaN is NaN, where they are and nowhere else; neither becomes a number."""
    point = subject.point(141)
    x, v = point.inputs[0], 1 + np.abs(point.cotangents[0])
    x[1, 0] = 0.0
    _expect_not_finite(subject, replace(point, cotangents=(v,)), "where one of them is 0")
    x[2, 1] = np.nan
    _expect_not_finite(subject, replace(point, cotangents=(v,)), "where one of them is 0 and one NaN")


def _expect_not_finite(subject: Subject, point: ScenarioPoint, when: str) -> None:
    with np.errstate(divide="ignore", invalid="ignore"):
        outputs, expected = subject.outputs_at(point), subject.gradients_at(point)
        flight = subject.start(point)
        pulled = (flight.pull(), subject.ask_adapter(point))
    expect_outputs(flight.outputs, outputs, subject.tolerance, when)
    for gradients in pulled:
        expect_gradients(gradients, expected, subject.tolerance, when)


@check(6, (*(name for name in PLAIN if name != "embedding"), "column", "broadcast"))
def float16_inputs_are_exact(subject: Subject) -> None:
    """A guest that computes in float64 takes float16 inputs at their exact value and loses nothing."""
    point = subject.point(142)
    narrow = tuple(x.astype(np.float16) for x in point.inputs)
    wide = replace(point, inputs=tuple(x.astype(np.float64) for x in narrow))
    expect_right(subject, replace(point, inputs=narrow), "of float16 inputs", at=wide)


@check(6, ("masked",))
def every_integer(subject: Subject) -> None:
    """Booleans are booleans, and integers of every width mean what they say, or are refused with an error of ours."""
    point = subject.point(143, rows=20)
    x, mask, _ = point.inputs
    for dtype in _INTEGERS:
        info = np.iinfo(dtype)
        few = [value for value in (-100, -1, 0, 1, 3, 100, 200, 40_000) if info.min <= value <= info.max]
        numbers = np.random.default_rng(144).choice(np.array(few, dtype), x.shape)
        at = replace(point, inputs=(x, mask, numbers))
        try:
            expect_right(subject, at, f"of {np.dtype(dtype)} inputs")
        except GradbridgeError:
            if dtype in (np.int64, np.int32):  # every framework has these
                raise
        expect_close(at.inputs[1], mask, "the booleans afterwards", 0.0)


_INTEGERS = (np.int64, np.int32, np.int16, np.int8, np.uint8, np.uint16, np.uint32, np.uint64)
