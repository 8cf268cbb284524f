"""The scenarios of the conformance kit in JAX, as Flax NNX modules and as functions of arrays."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gradbridge.protocol import Array
from gradbridge.testing import BackendUnderTest, Native
from gradbridge_jax.isolation import isolated


class UnderTest(BackendUnderTest):
    """The scenarios in JAX."""

    backend: ClassVar[str] = "jax"
    builds = True

    def mlp(self, weight1: Array, bias1: Array, weight2: Array, bias2: Array) -> nnx.Module:
        """Two linear layers and a tanh."""
        with isolated(True):
            return nnx.Sequential(_linear(weight1, bias1), jnp.tanh, _linear(weight2, bias2))

    def embedding(self, table: Array) -> nnx.Module:
        """A lookup layer."""
        with isolated(True):
            layer = nnx.Embed(*table.shape, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
            layer.embedding = nnx.Param(jnp.array(table))
            return layer

    def energy(self) -> Any:
        """A function of arrays."""
        return lambda x, y: (x**2 * y).sum()

    def outputs(self, scale: Array) -> Native:
        """A function that returns a dict with a tuple in it."""

        def outputs(params: Any, x: Any) -> Any:
            return {"scaled": x * params["scale"], "rest": (x**2, (params["scale"] ** 2).sum())}

        return Native(outputs, params={"scale": scale})

    def tied(self, weight: Array) -> Native:
        """A function that uses its one parameter twice."""
        return Native(lambda params, x: jnp.tanh(x @ params["w"]) @ params["w"], params={"w": weight})

    def unused(self, weight: Array, spare: Array) -> Native:
        """A function that ignores a parameter and an input."""

        def unused(params: Any, x: Any, y: Any) -> Any:
            return jnp.exp(x @ params["weight"] / 4)

        return Native(unused, params={"weight": weight, "spare": spare})

    def dropout(self, rate: float) -> nnx.Module:
        """The layer, with a random stream of its own."""
        return nnx.Dropout(rate, rngs=nnx.Rngs(0))

    def batchnorm(self, scale: Array, shift: Array, epsilon: float) -> nnx.Module:
        """The layer, with its affine parameters set."""
        with isolated(True):
            layer = nnx.BatchNorm(len(scale), epsilon=epsilon, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
            layer.scale, layer.bias = nnx.Param(jnp.array(scale)), nnx.Param(jnp.array(shift))
            return layer

    def wave(self, scale: Array) -> Native:
        """A function of complex arrays."""

        def wave(params: Any, x: Any, z: Any) -> Any:
            square = (z * z.conj()).real
            phase = jax.lax.complex(jnp.cos(x), jnp.sin(x))
            return jax.lax.complex(params["scale"] * square, 0 * square) * phase * z, square

        return Native(wave, params={"scale": scale})

    def broadcast(self, scale: Array) -> Native:
        """A function of a vector, a matrix and a row."""
        return Native(lambda p, t, x, m: jnp.tanh(p * x + m) * t[:, None], params=scale)

    def masked(self) -> Any:
        """A function of booleans and integers."""
        return lambda x, m, k: jnp.where(m, k * x**2, x)

    def root(self, scale: Array) -> Native:
        """A function whose derivative may be infinite."""
        return Native(lambda p, x: p * jnp.sqrt(x), params=scale)

    def switch(self) -> Any:
        """A function of a string and a number."""
        return lambda x, name, k: k * x**3 if name == "cube" else k * x**2

    def labels(self, scale: Array) -> Native:
        """A function that returns integers beside what has a derivative."""
        return Native(lambda p, x: (p * x, jnp.argmax(x, 1)), params=scale)

    def state(self, model: Any) -> Any:
        """Every variable and attribute of a module, and JAX's flags."""
        config: Any = jax.config  # its flags are made at run time
        flags = (config.jax_enable_x64, config.jax_threefry_partitionable, config.jax_disable_jit)
        if not isinstance(model, nnx.Module):
            return flags
        graph, variables = nnx.split(model)
        leaves = [
            jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
            for leaf in jax.tree.leaves(variables)
        ]
        return flags, graph, [np.asarray(leaf).tobytes() for leaf in leaves]

    def surroundings(self) -> Iterable[tuple[str, AbstractContextManager[Any]]]:
        """What a JAX program may have set around us."""
        yield "with 64-bit numbers", isolated(True)
        yield "without 64-bit numbers", isolated(False)
        yield "under jax.disable_jit()", jax.disable_jit()
        yield "with old-style random numbers", jax.threefry_partitionable(False)
        yield "under strict dtype promotion", jax.numpy_dtype_promotion("strict")


def _linear(weight: Array, bias: Array) -> nnx.Linear:
    layer = nnx.Linear(*weight.shape, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    layer.kernel, layer.bias = nnx.Param(jnp.array(weight)), nnx.Param(jnp.array(bias))
    return layer
