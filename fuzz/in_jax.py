"""JAX: functions of trees, and NNX modules."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fuzz.built import Built, cast, function_of
from fuzz.interpreter import EPSILON, interpret
from fuzz.networks import WORDS, Layer, Network


class Words:
    """The operations of `interpreter`, JAX's own where it has one."""

    tanh, exp, sin, sqrt, where, stack = (
        staticmethod(one) for one in (jnp.tanh, jnp.exp, jnp.sin, jnp.sqrt, jnp.where, jnp.stack)
    )
    reshape, concat = staticmethod(jnp.reshape), staticmethod(jnp.concatenate)
    sigmoid, softplus, relu = (staticmethod(one) for one in (jax.nn.sigmoid, jax.nn.softplus, jax.nn.relu))

    @staticmethod
    def constant(array: Any, like: Any) -> Any:
        return jnp.asarray(array, like.dtype)

    @staticmethod
    def gelu(z: Any) -> Any:
        return jax.nn.gelu(z, approximate=False)

    @staticmethod
    def sum(z: Any, axis: Any, keepdims: bool = False) -> Any:
        return jnp.sum(z, axis, keepdims=keepdims)

    @staticmethod
    def mean(z: Any, axis: Any, keepdims: bool) -> Any:
        return jnp.mean(z, axis, keepdims=keepdims)

    @staticmethod
    def max(z: Any) -> Any:
        return jnp.max(z, 1)

    @staticmethod
    def swapped(z: Any) -> Any:
        return jnp.swapaxes(z, -1, -2)

    @staticmethod
    def take(table: Any, ids: Any) -> Any:
        return table[ids]

    @staticmethod
    def cumsum(z: Any) -> Any:
        return jnp.cumsum(z, 1)

    @staticmethod
    def roll(z: Any) -> Any:
        return jnp.roll(z, 1, 1)

    @staticmethod
    def argmax(z: Any) -> Any:
        return jnp.argmax(z, -1)

    @staticmethod
    def logsumexp(z: Any, axis: int, keepdims: bool) -> Any:
        return jax.nn.logsumexp(z, axis, keepdims=keepdims)

    @staticmethod
    def softmax(z: Any) -> Any:
        return jax.nn.softmax(z, -1)

    @staticmethod
    def attend(q: Any, k: Any, v: Any, scale: float) -> Any:
        return jax.nn.softmax(scale * (q @ jnp.swapaxes(k, -1, -2)), -1) @ v


class Jax:
    """The guest."""

    styles: tuple[str, ...] = ("function", "function", "nnx")
    queries = (2, 4)

    def build(self, network: Network, style: str, dtype: str, frozen: frozenset[str]) -> Built:
        weights = cast(network.weights(), dtype)
        with jax.enable_x64(True):  # as users of float64 models have it when they make them
            if style == "nnx":
                return Built(_nnx_module(network, weights))
            return function_of(network, weights, Words, "jax")


def _nnx_module(network: Network, weights: dict[str, Any]) -> Any:
    """A network as an NNX module, of Flax' own layers where it has them."""
    from flax import nnx

    class Module(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.layers, self.loose = nnx.Dict(), nnx.Dict()
            self.drop = nnx.Dropout(network.dropout, rngs=rngs) if network.dropout else None
            for layer in network.every_layer:
                own = {name: jnp.asarray(weights[name]) for name in layer.shapes(network.length)}
                short = {name.split(".")[1]: array for name, array in own.items()}
                made = None if network.is_tied(layer) else _nnx_layer(nnx, layer, network, short, rngs)
                if made is not None:
                    self.layers[layer.name] = made
                    continue
                for name, array in own.items():
                    self.loose[name.replace(".", "_")] = nnx.Param(array)

        def __call__(self, first: Any, second: Any = None) -> Any:
            inputs = (first,) if second is None else (first, second)
            get = lambda name: self.loose[name.replace(".", "_")][...]  # noqa: E731
            return interpret(network, get, inputs, Words, dict(self.layers.items()), self.drop)

    module = Module(nnx.Rngs(0))
    module.eval()
    return module


def _nnx_layer(nnx: Any, layer: Layer, network: Network, w: dict[str, Any], rngs: Any) -> Any:
    a, b, bias = layer.inputs, layer.outputs, layer.bias
    options = {"rngs": rngs, "param_dtype": next(iter(w.values())).dtype if w else None}
    match layer.kind:
        case "linear":
            made = nnx.Linear(a, b, use_bias=bias, **options)
            values = {"kernel": w["w"], "bias": w.get("b")}
        case "conv":
            made = nnx.Conv(a, b, (int(layer.option),), use_bias=bias, **options)
            values = {"kernel": w["w"], "bias": w.get("b")}
        case "layernorm":
            made = nnx.LayerNorm(b, epsilon=EPSILON, use_bias=bias, **options)
            values = {"scale": w["scale"], "bias": w.get("b")}
        case "embedding":
            made, values = nnx.Embed(WORDS, b, **options), {"embedding": w["table"]}
        case _:
            return None
    for name, value in values.items():
        if value is not None:
            getattr(made, name)[...] = value
    return made
