"""Rows over Ray workers: against one process, what a call costs, and what to expect of larger clusters."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd import value_and_grad

import gradbridge as gb
from benchmarks.cluster_costs import LINK, Costs, measured
from benchmarks.figures import Report, count, ratio, seconds

#: Two workers are to be so many times as fast as one process where a row costs `DEAR` or more.
LEAST, DEAR = 1.6, 50e-6
ROWS = 20_000
SIZES = (256, 640, 640, 1)
#: (rows, seconds of computing a row, params) of the table of larger clusters.
PROBLEMS = (
    (100_000, 50e-6, 400_000),
    (1_000_000, 50e-6, 400_000),
    (10_000_000, 50e-6, 400_000),
    (1_000_000, 1e-3, 10_000_000),
    (100_000_000, 1e-3, 10_000_000),
)
WORKERS = (2, 10, 100, 1000)


def run(report: Report) -> None:
    """Print the ratio for two workers, the costs, and the efficiency that they lead to."""
    try:
        import ray
    except ImportError:
        report.say('shards needs Ray: pip install "ray>=2.40"')
        return
    if not ray.is_initialized():
        ray.init(num_cpus=8, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    costs = measured(30)
    with report.table("beside the computing, wall time of one value-and-gradient", "what", "cost") as table:
        table.row("a call", seconds(costs.call))
        table.row("and for each worker", seconds(costs.worker))
        for name in ("broadcast", "gather", "scatter", "gradients"):
            table.row(f"{name}, for each MB", seconds(1e6 * getattr(costs, name)))
    _against_one_process(report, costs)
    _pays(report, costs)
    _larger(report, costs)


def network() -> Any:
    """An MLP, float64."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers: list[Any] = []
    for a, b in itertools.pairwise(SIZES):
        layers += [torch.nn.Linear(a, b), torch.nn.Tanh()]
    return torch.nn.Sequential(*layers[:-1]).double()


def _against_one_process(report: Report, costs: Costs) -> None:
    from gradbridge_ray import shard_rows

    draw = np.random.default_rng(0)
    one = gb.bridge(network(), dtype="float64")
    p = one.params
    with (
        shard_rows(network, workers=2, dtype="float64") as g,
        report.table(
            f"value and gradient, MLP {'-'.join(map(str, SIZES))} in float64, one thread each, wall time",
            "rows",
            "one process",
            "a row",
            "two workers",
            "as the costs say",
            "ratio",
        ) as table,
    ):
        for rows in (ROWS // 20, ROWS // 4, ROWS):
            X, y = draw.normal(size=(rows, SIZES[0])), draw.normal(size=(rows, 1))
            steps = {f: _step(f, x, y, p) for f, x in ((one, X), (g, g.place(X)))}
            best = _alternating(steps, max(3, 60_000 // rows))
            here, there = best[one], best[g]
            expected = here / 2 + costs.overhead(2, 8 * one.layout.size, 8 * rows)
            budget = {"at_least": LEAST} if rows == ROWS and here / rows >= DEAR else {}
            table.row(
                f"{rows:,}",
                seconds(here),
                seconds(here / rows),
                seconds(there),
                seconds(expected),
                ratio(here / there, **budget),
            )


def _step(f: Any, x: Any, y: Any, p: Any) -> Callable[[], object]:
    through = value_and_grad(lambda q: anp.mean((f(q, x) - y) ** 2))
    through(p)  # which looks at the model
    return lambda: through(p)


def _alternating(steps: dict[Any, Callable[[], object]], times: int) -> dict[Any, float]:
    """Best wall time of each, in alternating rounds."""
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(times):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def _pays(report: Report, costs: Costs) -> None:
    with report.table(
        "rows from which two workers pay, 400,000 params, one output for a row",
        "a row costs",
        "1 ×",
        f"{LEAST} ×",
    ) as table:
        for cost in (1e-6, 1e-5, DEAR, 1e-3):
            rows = [costs.pays_from(2, s, 3_200_000, 8, cost) for s in (1.0, LEAST)]
            table.row(f"{1e6 * cost:g} µs", *[count(n, "rows") if n else "never" for n in rows])


def _larger(report: Report, costs: Costs) -> None:
    with report.table(
        f"efficiency to expect, machines joined by 10 Gbit/s ({1e6 * LINK * 1e3:.1f} ms for each MB)",
        "rows",
        "a row costs",
        "params",
        *[f"{n:,} workers" for n in WORKERS],
    ) as table:
        for rows, cost, params in PROBLEMS:
            efficiencies = [costs.efficiency(n, rows * cost, 8 * params, 8 * rows) for n in WORKERS]
            table.row(f"{rows:,}", f"{1e6 * cost:g} µs", f"{params:,}", *[f"{e:.0%}" for e in efficiencies])
