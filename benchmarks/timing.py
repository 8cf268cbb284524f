"""How times are taken: alternating rounds, the best of each, so that a busy machine hits all alike.

By CPU time of all threads of the process: with one thread that is what the wall clock shows where nobody
else computes. Where others do, ratios of CPU times repeat to a few percent, while the best wall times of a
call of 10 ms are off by a third. `take_wall_times` is for quiet machines: it also sees what only waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_clock = time.process_time

#: Length of a round of one function, in seconds, about: short enough that some fall between others' work.
ROUND = 0.01


def take_wall_times() -> None:
    """From now on, measure by the wall clock."""
    global _clock
    _clock = time.perf_counter


def clock_name() -> str:
    """What is measured, for titles."""
    return "CPU time" if _clock is time.process_time else "wall time"


def best_of_each(functions: dict[str, Callable[[], object]], seconds: float = 1.0) -> dict[str, float]:
    """Best time of one call of each function, in seconds.

    Args:
        functions: {name: function of no arguments}; each is warmed up first.
        seconds: how long to measure each for, about; at least 12 rounds.
    """
    calls: dict[str, int] = {}
    longest = 0.0
    for name, function in functions.items():
        calls[name], once = calibrated(function)
        longest = max(longest, calls[name] * once)
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(max(12, int(seconds / longest))):
        for name, function in functions.items():
            best[name] = min(best[name], time_of(function, calls[name]))
    return best


def calibrated(function: Callable[[], object]) -> tuple[int, float]:
    """Warm a function up: how many calls make a round, and how long one takes, in seconds."""
    for _ in range(3):
        function()
    once = max(min(time_of(function, 1) for _ in range(3)), 1e-6)
    return max(1, int(ROUND / once)), once


def time_of(function: Callable[[], object], count: int) -> float:
    """Mean time of one of so many calls, in seconds."""
    start = _clock()
    for _ in range(count):
        function()
    return (_clock() - start) / count


def readable(seconds: float) -> str:
    """A time in µs, ms or s, about three figures."""
    if abs(seconds) < 1e-3:
        return f"{1e6 * seconds:.0f} µs"
    return f"{1e3 * seconds:.2f} ms" if abs(seconds) < 0.1 else f"{seconds:.3g} s"
