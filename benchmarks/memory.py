"""Memory: calls, abandoned graphs and pullbacks leave the process where it was, once it is warm."""

from __future__ import annotations

import gc
import pathlib
from collections.abc import Callable

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
    _report(console, "calls of a primitive", CALLS, lambda: f(x))
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)
    b = gb.bridge(torch.nn.Linear(100, 10))
    p, X = b.params, np.ones((50, 100))
    _report(console, "abandoned graphs of a torch model", GRAPHS, lambda: make_vjp(b)(p, X))
    gradient = grad(lambda p: b(p, X).sum())
    _report(console, "gradients of it", GRAPHS, lambda: gradient(p))


def _repeat(count: int, function: Callable[[], object]) -> None:
    for _ in range(count):
        function()


def _report(console: Console, what: str, count: int, function: Callable[[], object]) -> None:
    # What the framework loads and keeps on first use is no leak.
    _repeat(count // 10, function)
    gc.collect()
    before = _resident()
    _repeat(count, function)
    gc.collect()
    after = _resident()
    console.print(f"[bold]{count:,} {what}[/]: resident memory {before:.1f} → {after:.1f} MiB")


def _resident() -> float:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024
