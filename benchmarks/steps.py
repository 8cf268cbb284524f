"""Value and gradient through the bridge against the framework's own forward and backward, per guest."""

from __future__ import annotations

import autograd.numpy as anp
import numpy as np
from autograd import value_and_grad
from autograd.extend import defvjp, primitive

import gradbridge as gb
from benchmarks.figures import Report, count, ratio, seconds
from benchmarks.networks import SIZES, available, native, sum_of_squares
from benchmarks.timing import best_of_each, clock_name

# Most that the bridge may add on the tiny model, in autograd's own empty programs; and the largest
# ratio from 5 ms on.
ADDED = {"torch": 2.5, "jax": 3.0, "tensorflow": 8.0}
RATIO, FROM = 1.10, 5e-3


def run(report: Report) -> None:
    """Print tables for each framework that is installed: in the host's float64, as by default, and in float32."""
    for framework in available():
        for dtype in ("float64", "float32"):
            _table(report, framework, dtype)
        report.say("")


def _table(report: Report, framework: str, dtype: str) -> None:
    title = f"{framework}: value and gradient of a sum of squares, {dtype}, one thread, {clock_name()}"
    headings = ("MLP", "params", "rows", "native", "gradbridge", "ratio", "added", "÷ empty", "forwards")
    with report.table(title, *headings, of=framework) as table:
        floors = []
        for name, (_, rows) in SIZES.items():
            own, X = native(framework, name, dtype)
            f, params = own.bridge, own.bridge.params
            through = value_and_grad(sum_of_squares(f, X))
            through(params)  # the audit is of the first
            with gb.trace() as t:
                through(params)
            times = best_of_each(
                {
                    "native": own.step,
                    "bridge": lambda g=through, p=params: g(p),
                    "empty": lambda: _empty_program(np.ones(3)),
                }
            )
            added = times["bridge"] - times["native"]
            floors.append(times["empty"])
            table.row(
                name,
                count(f.layout.size, "params"),
                count(rows, "rows"),
                seconds(times["native"]),
                seconds(times["bridge"]),
                ratio(times["bridge"] / times["native"], at_most=RATIO if times["native"] >= FROM else None),
                seconds(added),
                ratio(added / times["empty"], at_most=ADDED[framework] if name == "tiny" else None),
                count(t.counts["forward"], "forwards", at_most=1),
            )
    report.line(f"{framework}: autograd's own program with an empty primitive", seconds(min(floors)))


@primitive
def _empty(p: np.ndarray) -> np.ndarray:
    return p


defvjp(_empty, lambda ans, p: lambda g: g)
_empty_program = value_and_grad(lambda p: anp.sum(_empty(p) ** 2))
