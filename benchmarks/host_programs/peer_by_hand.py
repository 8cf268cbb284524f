"""A JAX function in PyTorch as a good engineer writes it in half an hour: jitted, DLPack, residuals of `jax.vjp`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch

from benchmarks.host_programs.system import Weights, cast
from benchmarks.native_jax import network


def make(weights: Weights, X: np.ndarray) -> tuple[Callable[[Any, Any], Any], Any]:
    """See `benchmarks.host_programs.peers.Make`."""
    structure = jax.tree.structure(weights)

    @jax.jit
    def forward(leaves: list[jax.Array], x: jax.Array) -> tuple[jax.Array, Any]:
        # The closure of a vjp is a pytree, so that a jitted function can return it.
        return jax.vjp(lambda *p: network(jax.tree.unflatten(structure, p), x), *leaves)

    @jax.jit
    def backward(vjp: Any, cotangent: jax.Array) -> Any:
        return vjp(cotangent)

    class Network(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, *leaves: torch.Tensor) -> torch.Tensor:
            y, ctx.vjp = forward([_to_jax(p) for p in leaves], _to_jax(x))
            return torch.from_dlpack(y)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, cotangent: torch.Tensor) -> Any:
            return (None, *map(torch.from_dlpack, backward(ctx.vjp, _to_jax(cotangent))))

    def f(params: Any, x: torch.Tensor) -> torch.Tensor:
        return Network.apply(x, *jax.tree.leaves(params))

    return f, cast(weights, str(X.dtype))


def _to_jax(tensor: torch.Tensor) -> jax.Array:
    return jax.dlpack.from_dlpack(tensor.detach().contiguous())
