"""Memory: calls, abandoned graphs and derivatives leave the process where it was, once it is warm."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import pathlib
import sys
from collections.abc import Callable

import autograd.numpy as anp
import numpy as np
from autograd import grad, hessian_vector_product, make_vjp

import gradbridge as gb
from benchmarks.figures import Figure, Report, mebibytes
from benchmarks.networks import available

CALLS, GRAPHS, PRODUCTS = 1_000_000, 10_000, 2_000


def run(report: Report) -> None:
    """Print the resident memory before and after, for plain functions and each framework that is here."""
    with report.table("resident memory", "guest", "what", "times", "before", "after", "grown") as table:
        f = gb.primitive(lambda x: x * 2.0)
        f.defvjp(lambda ans, x: lambda v: 2.0 * v)
        x = np.ones(3)
        table.row("numpy", "calls", f"{CALLS:,}", *_measured(CALLS, lambda: f(x)))
        for backend in available():
            b = gb.bridge(gb.build("mlp", sizes=[100, 10], backend=backend, seed=0), dtype="float32")
            p, X = b.params, np.ones((50, 100))

            def loss(p: np.ndarray, b: gb.Bridge = b, X: np.ndarray = X) -> object:
                return anp.sum(anp.sin(b(p, X)))

            gradient, product = grad(loss), hessian_vector_product(loss)
            for what, times, step in (
                ("abandoned graphs", GRAPHS, lambda b=b, p=p, X=X: make_vjp(b)(p, X)),
                ("gradients", GRAPHS, lambda g=gradient, p=p: g(p)),
                ("Hessian-vector products", PRODUCTS, lambda h=product, p=p: h(p, p)),
                ("JVPs", PRODUCTS, lambda b=b, p=p, X=X: b.jvp(p, X, tangent=p)),
                ("Jacobians", PRODUCTS // 20, lambda b=b, p=p, X=X: b.jacobian(p, X)),
            ):
                table.row(backend, what, f"{times:,}", *_measured(times, step))


def _measured(count: int, function: Callable[[], object]) -> tuple[Figure, ...]:
    # What the framework loads and keeps on first use is no leak.
    _repeat(max(count // 10, 50), function)
    before = resident()
    _repeat(count, function)
    after = resident()
    return mebibytes(before), mebibytes(after), mebibytes(after - before, signed=True)


def _repeat(count: int, function: Callable[[], object]) -> None:
    for _ in range(count):
        function()


def resident() -> float:
    """Memory of this process after a collection, in MiB."""
    gc.collect()
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def trimmed(drop_compiled: bool = False) -> float:
    """Resident memory without what the allocator keeps for later, where it can be asked to give it back.

    Args:
        drop_compiled: whether JAX forgets its compiled programs first.
    """
    if drop_compiled and "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    resident()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return resident()
