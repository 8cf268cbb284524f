"""Memory: calls, abandoned graphs and derivatives leave the process where it was, once it is warm."""

from __future__ import annotations

import gc
import pathlib
from collections.abc import Callable

import autograd.numpy as anp
import numpy as np
from autograd import grad, hessian_vector_product, make_vjp
from rich.console import Console
from rich.table import Table

import gradbridge as gb

CALLS, GRAPHS, PRODUCTS = 1_000_000, 10_000, 2_000


def run(console: Console) -> None:
    """Print the resident memory before and after, for plain functions and each framework that is here."""
    table = Table(title="resident memory, MiB", title_justify="left")
    for heading in ("guest", "what", "times", "before", "after", "grown"):
        table.add_column(heading, justify="left" if heading in ("guest", "what") else "right")
    f = gb.primitive(lambda x: x * 2.0)
    f.defvjp(lambda ans, x: lambda v: 2.0 * v)
    x = np.ones(3)
    table.add_row("numpy", "calls", *_measured(CALLS, lambda: f(x)))
    for backend in ("torch", "jax", "tensorflow"):
        if not gb.backends()[backend].available:
            continue
        b = gb.bridge(gb.build("mlp", sizes=[100, 10], backend=backend, seed=0))
        p, X = b.params, np.ones((50, 100))

        def loss(p: np.ndarray, b: gb.Bridge = b, X: np.ndarray = X) -> object:
            return anp.sum(anp.sin(b(p, X)))

        gradient, product = grad(loss), hessian_vector_product(loss)
        for what, count, step in (
            ("abandoned graphs", GRAPHS, lambda b=b, p=p, X=X: make_vjp(b)(p, X)),
            ("gradients", GRAPHS, lambda g=gradient, p=p: g(p)),
            ("Hessian-vector products", PRODUCTS, lambda h=product, p=p: h(p, p)),
            ("JVPs", PRODUCTS, lambda b=b, p=p, X=X: b.jvp(p, X, tangent=p)),
            ("Jacobians", PRODUCTS // 20, lambda b=b, p=p, X=X: b.jacobian(p, X)),
        ):
            table.add_row(backend, what, *_measured(count, step))
    console.print(table)


def _measured(count: int, function: Callable[[], object]) -> tuple[str, ...]:
    # What the framework loads and keeps on first use is no leak.
    _repeat(max(count // 10, 50), function)
    gc.collect()
    before = _resident()
    _repeat(count, function)
    gc.collect()
    after = _resident()
    return f"{count:,}", f"{before:.1f}", f"{after:.1f}", f"{after - before:+.1f}"


def _repeat(count: int, function: Callable[[], object]) -> None:
    for _ in range(count):
        function()


def _resident() -> float:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024
