"""Jacobians by the params: autograd's row by row against `f.jacobian`, per guest."""

from __future__ import annotations

import contextlib

import numpy as np
from autograd import jacobian
from rich.console import Console
from rich.table import Table

import gradbridge as gb
from benchmarks.timing import best_of_each, readable

#: (rows, hidden units) of an MLP with 8 inputs and one output.
SHAPES = ((64, 8), (256, 64))
BACKENDS = ("torch", "jax", "tensorflow")
# Least that it must be faster, from so many rows on.
FASTER, FROM = 10, 256


def run(console: Console) -> None:
    """Print one table with the frameworks that are installed."""
    available = [name for name in BACKENDS if gb.backends()[name].available]
    for name in available:
        _one_thread(name)
    table = Table(
        title="d outputs / d params of an MLP 8 → hidden → 1, float64, one thread", title_justify="left"
    )
    for heading in ("guest", "outputs", "hidden", "row by row", "f.jacobian", "faster", "strategy", "budget"):
        table.add_column(heading, justify="left" if heading in ("guest", "strategy", "budget") else "right")
    for backend in available:
        for rows, hidden in SHAPES:
            f = gb.bridge(gb.build("mlp", sizes=[8, hidden, 1], backend=backend, seed=0), dtype="float64")
            params, X = f.params, np.random.default_rng(0).normal(size=(rows, 8))
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
            faster = times["rows"] / times["ours"]
            budget = "none"
            if rows >= FROM:
                budget = f"≥ {FASTER} ×: {'kept' if faster >= FASTER else 'MISSED'}"
            table.add_row(
                backend,
                str(rows),
                str(hidden),
                readable(times["rows"]),
                readable(times["ours"]),
                f"{faster:.1f} ×",
                ", ".join(sorted(strategy)) or "loop",
                budget,
            )
    console.print(table)


def _one_thread(backend: str) -> None:
    if backend == "torch":
        import torch

        torch.set_num_threads(1)
    if backend == "tensorflow":
        import tensorflow as tf

        with contextlib.suppress(RuntimeError):  # another benchmark has started TensorFlow, with one
            tf.config.threading.set_intra_op_parallelism_threads(1)
