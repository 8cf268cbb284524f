"""What the audit costs: the first differentiated call with it and without, and every call after the first."""

from __future__ import annotations

import time
from collections.abc import Callable

import autograd.numpy as anp
import numpy as np
from autograd import value_and_grad

import gradbridge as gb
from benchmarks.figures import Report, ratio, seconds
from benchmarks.networks import SIZES, available
from benchmarks.timing import best_of_each, clock_name

#: Fresh bridges per kind, in turn; the best of each is taken.
TRIES = 3
#: Most that a second call with the audit may take, in such calls without: it does nothing then.
AFTERWARDS = 1.1


def run(report: Report) -> None:
    """Print the calls of each guest."""
    columns = ("guest", "model", "first, off", "first, audited", "more", "ratio", "second, audited / off")
    with report.table(f"audit='first' against 'off', {clock_name()}", *columns) as table:
        for backend in ("numpy", *available()):
            for name in ("tiny", "large"):
                sizes, rows = SIZES[name]
                X = np.random.default_rng(0).normal(size=(rows, sizes[0]))
                _first(backend, sizes, X, "first")  # what the framework loads on first use
                firsts: dict[str, list[float]] = {"off": [], "first": []}
                steps = {}
                for _ in range(TRIES):
                    for audit, times in firsts.items():
                        took, steps[audit] = _first(backend, sizes, X, audit)
                        times.append(took)
                off, audited = min(firsts["off"]), min(firsts["first"])
                second = best_of_each(steps)
                afterwards = ratio(second["first"] / second["off"], at_most=AFTERWARDS)
                table.row(
                    backend,
                    name,
                    seconds(off),
                    seconds(audited),
                    seconds(audited - off),
                    ratio(audited / off),
                    afterwards,
                )


def _first(
    backend: str, sizes: tuple[int, ...], X: np.ndarray, audit: str
) -> tuple[float, Callable[[], object]]:
    """Seconds of the first value-and-gradient of a fresh bridge over a fresh model, and that step."""
    f = gb.bridge(gb.build("mlp", sizes=list(sizes), backend=backend, seed=0), audit=audit)
    through, params = value_and_grad(lambda p: anp.sum(f(p, X) ** 2)), f.params
    start = time.process_time()
    through(params)
    return time.process_time() - start, lambda: through(params)
