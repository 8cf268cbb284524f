"""JAX's own derivatives of an MLP: jitted, on arrays that are there already."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import gradbridge as gb
from benchmarks.networks import Native

try:
    from jax import enable_x64
except ImportError:  # where it has not left the experimental module yet
    from jax.experimental import enable_x64

Params = list[tuple[jax.Array, jax.Array]]


def network(params: Params, x: jax.Array) -> jax.Array:
    """An MLP with tanh between its layers."""
    for weight, bias in params[:-1]:
        x = jnp.tanh(x @ weight + bias)
    weight, bias = params[-1]
    return x @ weight + bias


def loss(params: Params, x: jax.Array) -> jax.Array:
    """Sum of squares of its outputs."""
    return jnp.sum(network(params, x) ** 2)


@jax.jit
def hessian_vector_product(params: Params, x: jax.Array, direction: Params) -> Params:
    """Forward over reverse, which JAX's documentation (the autodiff cookbook) recommends."""
    return jax.jvp(lambda p: jax.grad(loss)(p, x), (params,), (direction,))[1]


def make(sizes: tuple[int, ...], X: np.ndarray) -> Native:
    """The network in the dtype of X, its step and its Hessian-vector product there."""
    rng = np.random.default_rng(0)
    weights = [
        ((rng.normal(size=(a, b)) / np.sqrt(a)).astype(X.dtype), np.zeros(b, X.dtype))
        for a, b in itertools.pairwise(sizes)
    ]
    f = gb.bridge(network, params=weights, backend="jax", dtype=str(X.dtype))
    wide = X.dtype == np.float64
    with enable_x64(wide):
        params, data = jax.tree.map(jnp.asarray, (weights, X))
    value_and_grad = jax.jit(jax.value_and_grad(loss))

    def step() -> object:
        with enable_x64(wide):
            return jax.block_until_ready(value_and_grad(params, data))

    def product(direction: np.ndarray) -> Callable[[], Sequence[object]]:
        pieces = iter(f.layout.unravel(direction.astype(X.dtype)).values())
        with enable_x64(wide):
            tree = [(jnp.asarray(weight), jnp.asarray(bias)) for weight, bias in zip(pieces, pieces)]

        def compute() -> Sequence[object]:
            with enable_x64(wide):
                return jax.tree.leaves(jax.block_until_ready(hessian_vector_product(params, data, tree)))

        return compute

    return Native(f, step, product)
