"""Laws 1, 6 and 9 over the shapes and constants of a call: long and short batches, squares, axes of size one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gradbridge.testing.checks.catalogue import PLAIN, SHAPED, check
from gradbridge.testing.subject import Subject, expect_right


@check(1, (*PLAIN, *SHAPED))
def one_row(subject: Subject) -> None:
    """A batch of one row is a batch: nothing loses the axis, or takes it for something else."""
    expect_right(subject, subject.point(130, rows=1), "of one row")


@check(1, (*PLAIN, *SHAPED))
def two_hundred_rows(subject: Subject) -> None:
    """A long batch is right to its last row."""
    expect_right(subject, subject.point(131, rows=200), "of two hundred rows")


@check(1, (*PLAIN, "broadcast"))
def square_arrays(subject: Subject) -> None:
    """Where there are as many rows as columns, in an input or an output, nothing is transposed."""
    for rows in (2, 3):
        point = subject.point(132, rows=rows)
        shapes = [np.shape(array) for array in (*point.inputs, *point.cotangents)]
        if (rows, rows) in shapes:
            expect_right(subject, point, f"of {rows} rows")


@check(6, ("energy",))
def every_shape(subject: Subject) -> None:
    """An array of any number of axes, of size one or more, keeps each of them, and so does its gradient."""
    rng = np.random.default_rng(133)
    for shape in _SHAPES:
        inputs = (rng.normal(size=shape), rng.normal(size=shape))
        point = subject.with_cotangents(replace(subject.point(133), inputs=inputs), 133)
        expect_right(subject, point, f"of inputs of shape {shape}")


@check(1, ("energy",))
def same_array_twice(subject: Subject) -> None:
    """f(x, x): one array as two arguments has a gradient as each of them, and so have two views of one memory."""
    x = np.random.default_rng(134).normal(size=(4, 2))
    base, memory = subject.point(134), np.random.default_rng(135).normal(size=(5, 2))
    for inputs, when in (
        ((x, x), "at f(x, x)"),
        ((x, x[::-1]), "at f(x, x backwards)"),
        ((memory[:4], memory[1:]), "at two views that overlap"),
    ):
        expect_right(subject, replace(base, inputs=inputs), when)


@check(9, ("switch",))
def constants_vary(subject: Subject) -> None:
    """What is not an array (a string, a Python integer) is that of the call: it may be another one in the next."""
    base = subject.point(136)
    calls = [("cube", 2), ("square", 2), ("cube", 3), ("square", 7), ("cube", 2)]
    points = [replace(base, inputs=(base.inputs[0], name, times)) for name, times in calls]
    flights = [subject.start(point) for point in points]
    for flight, (name, times) in zip(flights, calls):
        flight.expect_right(f"of f(x, {name!r}, {times}), with others in flight")
        expect_right(subject, flight.point, f"of f(x, {name!r}, {times})")


_SHAPES = ((), (1,), (5,), (1, 1), (4, 1), (1, 4), (3, 3), (2, 3, 4), (2, 1, 3), (1, 1, 1, 2))
