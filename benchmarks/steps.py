"""Value and gradient through the bridge against the framework's own forward and backward, per guest."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import autograd.numpy as anp
import numpy as np
from autograd import value_and_grad
from autograd.extend import defvjp, primitive
from rich.console import Console
from rich.table import Table

import gradbridge as gb
from benchmarks.timing import best_of_each, readable

# sizes of the layers, rows of the input
SIZES = {
    "tiny": ((10, 1), 100),
    "small": ((32, 64, 1), 256),
    "large": ((256, 512, 512, 512, 10), 256),
}
# Most that the bridge may add on the tiny model, µs, and the largest ratio from 5 ms on.
ADDED = {"torch": 120, "jax": 150, "tensorflow": 600}
RATIO, FROM = 1.15, 5e-3


class Native(NamedTuple):
    """A model of one framework, its bridge, and its own compiled step on the same data."""

    bridge: gb.Bridge
    step: Callable[[], object]


def run(console: Console) -> None:
    """Print a table for each framework that is installed."""
    for backend in ADDED:
        module = importlib.util.find_spec(f"benchmarks.native_{backend}")
        if module is None or not gb.backends().get(backend) or not gb.backends()[backend].available:
            continue
        _table(console, backend, importlib.import_module(f"benchmarks.native_{backend}").make)


def _table(console: Console, backend: str, make: Callable[..., Native]) -> None:
    table = Table(
        title=f"{backend}: value and gradient of a sum of squares, float32, one thread", title_justify="left"
    )
    for heading in (
        "MLP",
        "params",
        "rows",
        "native",
        "through gradbridge",
        "ratio",
        "added",
        "forwards",
        "budget",
    ):
        table.add_column(heading, justify="left" if heading in ("MLP", "budget") else "right")
    for name, (sizes, rows) in SIZES.items():
        X = np.random.default_rng(0).normal(size=(rows, sizes[0])).astype(np.float32)
        native = make(sizes, X)
        f, params = native.bridge, native.bridge.params
        through = value_and_grad(lambda p, f=f, X=X: anp.sum(f(p, X) ** 2))
        with gb.trace() as t:
            through(params)
        times = best_of_each({"native": native.step, "bridge": lambda g=through, p=params: g(p)})
        ratio, added = times["bridge"] / times["native"], times["bridge"] - times["native"]
        if times["native"] >= FROM:
            budget = f"≤ {RATIO} ×: {'kept' if ratio <= RATIO else 'MISSED'}"
        elif name == "tiny":
            budget = f"≤ {ADDED[backend]} µs: {'kept' if added * 1e6 <= ADDED[backend] else 'MISSED'}"
        else:
            budget = "none"
        table.add_row(
            name,
            f"{f.layout.size:,}",
            str(rows),
            readable(times["native"]),
            readable(times["bridge"]),
            f"{ratio:.2f}",
            readable(added) if added > 0 else "none",
            str(t.counts["forward"]),
            budget,
        )
    console.print(table)
    floor = best_of_each({"floor": lambda: _empty_program(np.ones(3))}, 0.3)["floor"]
    console.print(
        f"autograd itself needs {readable(floor)} for such a program with an empty primitive in it\n"
    )


@primitive
def _empty(p: np.ndarray) -> np.ndarray:
    return p


defvjp(_empty, lambda ans, p: lambda g: g)
_empty_program = value_and_grad(lambda p: anp.sum(_empty(p) ** 2))
