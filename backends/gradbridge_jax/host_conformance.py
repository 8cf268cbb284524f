"""Programs of JAX, as the conformance kit for hosts writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from gradbridge.layout import Array
from gradbridge.testing.hosts import HostUnderTest
from gradbridge_jax.isolation import enable_x64


class UnderTest(HostUnderTest):
    """JAX, by its transformations."""

    host: ClassVar[str] = "jax"
    reasons: ClassVar[Mapping[str, str]] = {"changeable": "JAX's arrays cannot be changed in place"}

    def array(self, array: Array) -> jax.Array:
        return jnp.array(array)

    def numpy(self, value: Any) -> Array:
        return np.asarray(value)

    def sin(self, x: Any) -> jax.Array:
        return jnp.sin(x)

    def sum(self, x: Any) -> jax.Array:
        return jnp.sum(x)

    def vjp(
        self, function: Callable[..., tuple[Any, ...]], arrays: Sequence[Any]
    ) -> tuple[Sequence[Any], Callable[[Sequence[Any]], Sequence[Any]]]:
        outputs, pull = jax.vjp(function, *arrays)
        return outputs, lambda cotangents: pull(tuple(cotangents))

    def gradient(self, function: Callable[..., Any], argnums: tuple[int, ...] = (0,)) -> Callable[..., Any]:
        return jax.grad(function, argnums)

    def jvp(
        self, function: Callable[..., Any], arrays: Sequence[Any], tangents: Sequence[Any]
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        return jax.jvp(function, tuple(arrays), tuple(tangents))

    def hessian(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.hessian(function)

    def vmap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.vmap(function)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(function)

    def active(self) -> AbstractContextManager[Any]:
        return enable_x64(True)
