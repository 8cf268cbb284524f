"""What rows over workers cost beside the computing: measured, and put together to a model of larger clusters."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from autograd.core import make_vjp

import gradbridge as gb

#: Of a link between machines of 10 Gbit/s, in seconds per byte: what one machine cannot measure.
LINK = 8 / 10e9

_SMALL, _LARGE = 1 << 17, 1 << 24


class Costs(NamedTuple):
    """Seconds that one value-and-gradient takes beside the computing.

    Attributes:
        call: for any number of workers.
        worker: for each worker more: CPU time of this process to send it two orders and to hear from it, which is
            one after the other. What the workers do at the same time shows in `call`.
        broadcast: per byte of the params, to a machine.
        gather: per byte of the outputs.
        scatter: per byte of the cotangents.
        gradients: per byte of one gradient, for two of them to be added and sent on.
    """

    call: float
    worker: float
    broadcast: float
    gather: float
    scatter: float
    gradients: float

    def overhead(self, workers: int, params: int, outputs: int) -> float:
        """Of one value-and-gradient, in seconds.

        Args:
            workers: each on a machine of its own, but for the first two.
            params, outputs: in bytes, all of them.
        """
        rounds = math.ceil(math.log2(workers)) if workers > 1 else 0
        by_link = workers > 2
        broadcast = max(self.broadcast, LINK) if by_link else self.broadcast
        added = max(self.gradients, LINK) if by_link else self.gradients
        # A machine that has the params hands them on: twice as many have them after each round. So it is back.
        return (
            self.call
            + self.worker * workers
            + params * (broadcast * max(1, rounds) + added * max(1, rounds))
            + outputs * (self.gather + self.scatter)
        )

    def efficiency(self, workers: int, computing: float, params: int, outputs: int) -> float:
        """Time of one process over the time of all workers together: 1 is ideal.

        Args:
            workers: how many.
            computing: of one process for all rows, in seconds.
            params, outputs: in bytes.
        """
        return computing / (computing + workers * self.overhead(workers, params, outputs))

    def pays_from(self, workers: int, speedup: float, params: int, row: int, seconds: float) -> int:
        """The least number of rows at which so many workers are so many times as fast as one process; 0 for none.

        Args:
            workers: how many.
            speedup: wanted.
            params: in bytes.
            row: bytes of the outputs of a row.
            seconds: of computing a row.
        """
        saved = seconds * (1 / speedup - 1 / workers) - row * (self.gather + self.scatter)
        return math.ceil(self.overhead(workers, params, 0) / saved) if saved > 0 else 0


def measured(repeat: int) -> Costs:
    """The costs of this machine, by models that compute next to nothing.

    Args:
        repeat: of each measurement; the best one counts.
    """
    few, many, rows = 2, 8, 1 << 12
    forward, backward, busy = _steps(few, _SMALL // 8, 1, 16 * few, repeat)
    worker = max(0.0, (_steps(many, _SMALL // 8, 1, 16 * many, repeat)[2] - busy) / (many - few))
    call = max(0.0, forward + backward - few * worker)
    wide, back, _ = _steps(few, _LARGE // 8, 1, 16 * few, repeat)
    bytes_more = _LARGE - _SMALL
    broadcast, gradients = (wide - forward) / bytes_more, (back - backward) / bytes_more
    width = _LARGE // 8 // rows
    out, cot, _ = _steps(few, _SMALL // 8, width, rows, repeat)
    return Costs(
        call,
        worker,
        max(0.0, broadcast),
        max(0.0, (out - forward) / _LARGE),
        max(0.0, (cot - backward) / _LARGE),
        max(0.0, gradients),
    )


def _steps(workers: int, params: int, outputs: int, rows: int, repeat: int) -> tuple[float, float, float]:
    """(forward, backward, CPU time of this process for both) of an idle model, without what it takes in one process."""
    from gradbridge_ray import shard_rows

    def function(p: Any, x: Any) -> Any:
        return np.zeros((len(x), outputs)) + 0.0 * p[0]

    def vjp(ans: Any, p: Any, x: Any) -> Callable[[Any], Any]:
        return lambda v: np.zeros(params)

    def model() -> Any:
        return gb.bridge(function, params=np.zeros(params), backend="numpy", vjp=vjp, audit="off")

    x = np.zeros((rows, 1))
    here = _best(model(), np.zeros(params), x, repeat)
    with shard_rows(model, workers=workers, cpus_per_worker=0.25, audit="off") as g:
        there = _best(g, np.zeros(params), g.place(x), repeat)
    forward, backward, busy = (max(0.0, a - b) for a, b in zip(there, here))
    return forward, backward, busy


def _best(f: Any, p: Any, x: Any, repeat: int) -> tuple[float, float, float]:
    best = [float("inf")] * 3
    for i in range(repeat + 1):
        busy, start = time.process_time(), time.perf_counter()
        pull, value = make_vjp(lambda q: f(q, x), p)
        middle = time.perf_counter()
        pull(np.ones(np.shape(value)))
        took = middle - start, time.perf_counter() - middle, time.process_time() - busy
        if i:  # the first one looks at the model
            best = [min(a, b) for a, b in zip(best, took)]
    return best[0], best[1], best[2]
