"""Jacobians by the params: autograd's row by row against `f.jacobian`, per guest."""

from __future__ import annotations

import numpy as np
from autograd import jacobian

import gradbridge as gb
from benchmarks.figures import Report, ratio, seconds
from benchmarks.networks import available
from benchmarks.timing import best_of_each, clock_name

#: (rows, hidden units) of an MLP with 8 inputs and one output.
SHAPES = ((64, 8), (256, 64))
# Least that it must be faster, from so many rows on.
FASTER, FROM = 10, 256


def run(report: Report) -> None:
    """Print one table with the frameworks that are installed."""
    title = f"d outputs / d params of an MLP 8 → hidden → 1, float64, one thread, {clock_name()}"
    headings = ("guest", "from", "through", "row by row", "f.jacobian", "faster", "strategy")
    with report.table(title, *headings) as table:
        for backend in available():
            for rows, hidden in SHAPES:
                f, X = bridged(backend, rows, hidden)
                params = f.params
                by_row = jacobian(lambda p, f=f, X=X: f(p, X))
                with gb.trace() as t:
                    ours = f.jacobian(params, X)
                np.testing.assert_allclose(ours, by_row(params), rtol=1e-10, atol=1e-12)
                strategy = {step.bridge.partition(", ")[2] for step in t.steps} - {"", "JVP checked"}
                times = best_of_each(
                    {
                        "rows": lambda g=by_row, p=params: g(p),
                        "ours": lambda f=f, p=params, X=X: f.jacobian(p, X),
                    }
                )
                table.row(
                    backend,
                    f"{rows} outputs",
                    f"{hidden} hidden",
                    seconds(times["rows"]),
                    seconds(times["ours"]),
                    ratio(times["rows"] / times["ours"], at_least=FASTER if rows >= FROM else None),
                    ", ".join(sorted(strategy)) or "loop",
                )


def bridged(backend: str, rows: int, hidden: int) -> tuple[gb.Bridge, np.ndarray]:
    """The MLP and its input."""
    if backend == "torch":
        import torch

        torch.set_num_threads(1)
    f = gb.bridge(gb.build("mlp", sizes=[8, hidden, 1], backend=backend, seed=0), dtype="float64")
    return f, np.random.default_rng(0).normal(size=(rows, 8))
