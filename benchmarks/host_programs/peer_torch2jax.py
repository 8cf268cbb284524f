"""wrap-torch2jax: a PyTorch function in JAX by a foreign function of XLA, which a C++ compiler builds at first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from wrap_torch2jax import torch2jax

from benchmarks.host_programs.in_torch import module
from benchmarks.host_programs.system import Weights


def make(weights: Weights, X: np.ndarray) -> tuple[Callable[[Any, Any], Any], Any]:
    """See `benchmarks.host_programs.peers.Make`."""
    model = module(weights, str(X.dtype))
    params = {name: p.detach() for name, p in model.named_parameters()}

    def network(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, p, (x,))

    # No gradient by the input, which nobody asks for here.
    f = torch2jax(network, params, torch.tensor(X), depth=1, nondiff_argnums=(1,))
    return f, {name: p.numpy() for name, p in params.items()}
