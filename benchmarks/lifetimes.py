"""Memory over a long life: many calls of changing sizes, many input shapes, many bridges made and dropped.

What the framework itself keeps (compiled programs) is dropped before each look at the memory, where the
framework can be told to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd import grad

import gradbridge as gb
from benchmarks.figures import Report, mebibytes
from benchmarks.memory import trimmed
from benchmarks.networks import available

#: Value-and-gradients of changing batch sizes, input shapes that are met once, bridges that are dropped.
CALLS, SHAPES, DROPPED = 200_000, 500, 1_000
#: What is done before the first look: frameworks keep what they load and compile on first use.
WARMING = 0.1
BATCHES = (1, 2, 3, 5, 8, 13)
SIZES = [6, 4, 1]


def run(report: Report) -> None:
    """Print the resident memory before and after, for each guest that is here."""
    columns = ("guest", "what", "times", "before", "after", "grown", "each, KiB")
    with report.table("resident memory over a long life", *columns) as table:
        for guest in ("autograd", "rule", *available()):
            for what, times, steps in _lives(guest):
                before, after = _before_and_after(times, steps)
                each = 1024 * (after - before) / times
                grown = mebibytes(after - before, signed=True)
                table.row(
                    guest, what, f"{times:,}", mebibytes(before), mebibytes(after), grown, f"{each:.2f}"
                )


def _lives(guest: str) -> Iterator[tuple[str, int, Callable[[int], object]]]:
    """(what, how often, what is done the i-th time)."""
    step, params = _step(_bridge(guest))
    inputs = {n: np.ones((n, SIZES[0])) for n in range(1, SHAPES + int(WARMING * SHAPES) + 2)}
    yield "gradients", CALLS, lambda i: step(params, inputs[BATCHES[i % len(BATCHES)]])
    yield "input shapes", SHAPES, lambda i: step(params, inputs[1 + i % len(inputs)])

    def dropped(i: int) -> None:
        one, p = _step(_bridge(guest, 1.0 + i))
        one(p, inputs[3])

    yield "bridges dropped", DROPPED, dropped


def _bridge(guest: str, scale: float = 1.0) -> gb.Bridge:
    """A bridge over a model of its own."""
    if guest == "rule":
        f = gb.primitive(lambda x: scale * x**2)
        f.defvjp(lambda ans, x: lambda v: 2 * scale * x * v)
        return f.bridge
    if guest != "autograd":
        return gb.bridge(gb.build("mlp", sizes=SIZES, backend=guest, seed=0))

    def model(p: Any, x: Any) -> Any:
        return scale * anp.dot(anp.tanh(anp.dot(x, p["w"])), p["v"])

    weights = {"w": np.ones((SIZES[0], SIZES[1])), "v": np.ones((SIZES[1], 1))}
    return gb.bridge(model, params=weights, backend="autograd")


def _step(f: gb.Bridge) -> tuple[Callable[[Any, Any], object], np.ndarray]:
    params = f.params
    gradient = grad(lambda p, x: anp.sum(f(p, x) ** 2), 0 if params.size else 1)
    return gradient, params


def _before_and_after(times: int, step: Callable[[int], object]) -> tuple[float, float]:
    warming = max(int(WARMING * times), 5)
    for i in range(warming):
        step(i)
    before = trimmed(drop_compiled=True)
    for i in range(warming, warming + times):
        step(i)
    return before, trimmed(drop_compiled=True)
