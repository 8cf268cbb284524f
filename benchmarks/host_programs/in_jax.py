"""JAX, eager and jitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradbridge as gb
from benchmarks.host_programs.system import Guest, Step, System, Weights, cast
from benchmarks.native_jax import enable_x64, network


class JAX(System):
    """Weights as a pytree, and as one vector."""

    name, label = "jax", "JAX"
    ways = ("eager", "jitted")
    usual = "jitted"
    passes_vectors = True

    def guest(self, weights: Weights) -> Guest:
        return Guest(gb.bridge(network, params=weights, backend="jax"), weights)

    def alone(self, weights: Weights, X: np.ndarray, way: str) -> Step:
        return self.program(network, cast(weights, str(X.dtype)), X, way)

    def program(self, f: Callable[[Any, Any], Any], tree: Any, X: np.ndarray, way: str) -> Step:
        def loss(p: Any, x: jax.Array) -> jax.Array:
            return jnp.sum(f(p, x) ** 2)

        through = jax.value_and_grad(loss)
        if way == "jitted":
            through = jax.jit(through)
        wide = X.dtype == np.float64
        with enable_x64(wide):
            params, data = jax.tree.map(jnp.asarray, (tree, X))
        if not wide:
            return lambda: jax.block_until_ready(through(params, data))

        def step() -> tuple[Any, Any]:
            with enable_x64(True):
                return jax.block_until_ready(through(params, data))

        return step

    def empty(self, way: str) -> Step:
        return self.program(lambda p, x: _empty(p), np.ones(3, self.dtype), np.ones(3, self.dtype), way)


def _called(p: jax.Array) -> jax.Array:
    """What JAX itself has for Python code that is not JAX's."""
    return jax.pure_callback(_identity, jax.ShapeDtypeStruct(p.shape, p.dtype), p)


def _identity(a: Any) -> Any:
    return a


_empty = jax.custom_vjp(_called)
_empty.defvjp(lambda p: (_called(p), None), lambda _, g: (_called(g),))
