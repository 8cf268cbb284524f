"""How times are taken: alternating rounds, the best of each, so that a busy machine hits both alike."""

from __future__ import annotations

import time
from collections.abc import Callable


def best_of_each(functions: dict[str, Callable[[], object]], seconds: float = 1.0) -> dict[str, float]:
    """Best time of one call of each function, in seconds.

    Args:
        functions: {name: function of no arguments}; each is warmed up first.
        seconds: how long to measure each for, about.
    """
    rounds: dict[str, int] = {}
    for name, function in functions.items():
        for _ in range(3):
            function()
        once = max(_time(function, 1), 1e-6)
        rounds[name] = max(1, int(seconds / 12 / once))
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(12):
        for name, function in functions.items():
            best[name] = min(best[name], _time(function, rounds[name]))
    return best


def _time(function: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        function()
    return (time.perf_counter() - start) / count


def readable(seconds: float) -> str:
    """A time in µs or ms, three figures."""
    return f"{1e6 * seconds:.0f} µs" if seconds < 1e-3 else f"{1e3 * seconds:.2f} ms"
