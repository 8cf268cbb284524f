"""JAX's own step on an MLP: one jitted value-and-gradient on arrays that are there already."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import gradbridge as gb
from benchmarks.steps import Native


def make(sizes: tuple[int, ...], X: np.ndarray) -> Native:
    """A portable MLP with tanh between its layers, and its native step on X."""
    network = gb.build("mlp", sizes=list(sizes), backend="jax")
    data, params = jnp.asarray(X), network.params

    @jax.jit
    def value_and_grad(params: list[dict[str, jax.Array]]) -> object:
        def loss(p: list[dict[str, jax.Array]]) -> jax.Array:
            return jnp.sum(type(network)(network.architecture, p)(data) ** 2)

        return jax.value_and_grad(loss)(params)

    return Native(gb.bridge(network), lambda: jax.block_until_ready(value_and_grad(params)))
