"""Memory: calls, abandoned graphs and pullbacks leave the process where it was."""

from __future__ import annotations

import gc
import pathlib

import numpy as np
from autograd import grad, make_vjp
from rich.console import Console

import gradbridge as gb

CALLS, GRAPHS = 1_000_000, 10_000


def run(console: Console) -> None:
    """Print the resident memory before and after."""
    f = gb.primitive(lambda x: x * 2.0)
    f.defvjp(lambda ans, x: lambda v: 2.0 * v)
    x = np.ones(3)
    _report(console, f"{CALLS:,} calls of a primitive", lambda: _repeat(CALLS, lambda: f(x)))
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)
    b = gb.bridge(torch.nn.Linear(100, 10))
    p, X = b.params, np.ones((50, 100))
    _report(
        console,
        f"{GRAPHS:,} abandoned graphs of a torch model",
        lambda: _repeat(GRAPHS, lambda: make_vjp(b)(p, X)),
    )
    gradient = grad(lambda p: b(p, X).sum())
    _report(console, f"{GRAPHS:,} gradients of it", lambda: _repeat(GRAPHS, lambda: gradient(p)))


def _repeat(count: int, function: object) -> None:
    for _ in range(count):
        function()  # type: ignore[operator]


def _report(console: Console, what: str, work: object) -> None:
    work_once = work
    gc.collect()
    before = _resident()
    work_once()  # type: ignore[operator]
    gc.collect()
    after = _resident()
    console.print(f"[bold]{what}[/]: resident memory {before:.1f} → {after:.1f} MiB")


def _resident() -> float:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024
