"""What compiling costs: memory of dropped bridges, first calls of copies, and other numbers as arguments."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd import value_and_grad

import gradbridge as gb
from benchmarks.figures import Report, count, mebibytes, ratio, seconds
from benchmarks.memory import trimmed
from benchmarks.networks import available

#: Bridges that are made and dropped; and the first of them, whose memory the framework keeps anyway.
DROPPED, WARMING = 40, 10
#: Most that each may leave behind, in MiB.
KEPT = 0.2
NUMBERS = 10
#: Most compilations for so many numbers, those of the first one or two not counted.
COMPILED = 2
#: Copies that are timed, each of a bridge of its own.
COPIES = 3

X = np.linspace(-1, 1, 16).reshape(2, 8)
WEIGHTS = {"b": np.zeros(4), "w": np.ones((8, 4)) / 7}


def run(report: Report) -> None:
    """Print what each framework that compiles takes."""
    with report.table("bridges over functions that are compiled", "guest", "what", "measured") as table:
        for framework, compilations in (("jax", _xla_compilations), ("tensorflow", _traces)):
            if framework not in available():
                continue
            left = mebibytes(_left_behind(framework), at_most=KEPT)
            table.row(framework, "memory left behind by each dropped bridge", left)
            fresh, copied, again = _first_calls(framework, compilations)
            table.row(framework, "first value-and-gradient of a fresh bridge", seconds(fresh))
            table.row(framework, "first value-and-gradient of a deep copy", seconds(copied))
            table.row(framework, "a copy's first one, in fresh ones", ratio(copied / fresh))
            table.row(framework, f"compilations for {COPIES} copies", count(again, "compilations"))
            more = count(_for_numbers(framework, compilations), "compilations", at_most=COMPILED)
            table.row(framework, f"compilations for {NUMBERS} other ints as argument", more)


def _bridged(framework: str, scale: float = 1.0) -> gb.Bridge:
    """A bridge over a function of its own: nothing that another one compiled fits it."""
    if framework == "jax":
        import jax.numpy as lib
    else:
        import tensorflow as lib

    def model(params: dict[str, Any], x: Any, k: Any = 1) -> Any:
        _ran.append(framework)
        return lib.tanh(x @ params["w"] + params["b"]) * scale * k

    return gb.bridge(model, params=WEIGHTS, backend=framework, dtype="float64")


#: An entry for each time that a model's Python code ran.
_ran: list[str] = []


def _step(f: gb.Bridge) -> Callable[[], object]:
    through = value_and_grad(lambda p: anp.sum(f(p, X) ** 2))
    return lambda: through(f.params)


def _left_behind(framework: str) -> float:
    """MiB that a bridge leaves behind which was made, differentiated and dropped."""
    before = 0.0
    for i in range(WARMING + DROPPED):
        if i == WARMING:
            before = trimmed()
        _step(_bridged(framework, 1.0 + i))()
    return (trimmed() - before) / DROPPED


def _first_calls(framework: str, compilations: Callable[[], Any]) -> tuple[float, float, int]:
    """(seconds of a fresh bridge's first value-and-gradient, of a deep copy's, compilations for the copies)."""
    fresh, copied, compiled = [], [], 0
    for i in range(COPIES):
        f = _bridged(framework, -1.0 - i)
        fresh.append(_timed(_step(f)))
        g = copy.deepcopy(f)
        with compilations() as counted:
            copied.append(_timed(_step(g)))
        compiled += counted()
    return min(fresh), min(copied), compiled


def _timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _for_numbers(framework: str, compilations: Callable[[], Any]) -> int:
    """Compilations for Python ints that the model has not seen, as the epoch in a schedule is one."""
    f = _bridged(framework)
    for k in range(2):
        f(f.params, X, k)
    with compilations() as counted:
        for k in range(2, 2 + NUMBERS):
            f(f.params, X, k)
    return counted()


@contextlib.contextmanager
def _xla_compilations() -> Iterator[Callable[[], int]]:
    """Counts what XLA compiles in its block."""
    import jax

    events: list[str] = []

    def note(event: str, seconds: float, **ignored: Any) -> None:
        if event.endswith("backend_compile_duration"):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield lambda: len(events)
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


@contextlib.contextmanager
def _traces() -> Iterator[Callable[[], int]]:
    """Counts how often TensorFlow traces the model in its block: its Python code runs at no other time."""
    before = len(_ran)
    yield lambda: len(_ran) - before
