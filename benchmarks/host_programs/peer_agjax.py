"""agjax: a function of autograd in JAX, by a `custom_vjp` that runs eagerly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from agjax import wrap_for_jax

from benchmarks.host_programs.in_autograd import network
from benchmarks.host_programs.system import Weights, cast


def make(weights: Weights, X: np.ndarray) -> tuple[Callable[[Any, Any], Any], Any]:
    """See `benchmarks.host_programs.peers.Make`."""
    f = wrap_for_jax(lambda params, x: network(params, np.asarray(x)), nondiff_argnums=(1,))
    return f, cast(weights, str(X.dtype))
