"""The portable architectures in JAX, with the canonical parameter layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbridge.protocol import Array, GuestOptions
from gradbridge_jax.functions import FunctionModel
from gradbridge_jax.runtime import RUNTIME

if TYPE_CHECKING:
    from gradbridge.architectures import Architecture, Layer


def build(architecture: Architecture, params: Mapping[str, Array]) -> Network:
    """A float32 network of the architecture, holding the parameters."""
    RUNTIME.require()
    parts = [
        {name: jnp.asarray(params[f"{layer.name}.{name}"], jnp.float32) for name in ("bias", "weight")}
        for layer in architecture.layers
        if layer.shapes
    ]
    return Network(architecture, parts)


@jax.tree_util.register_pytree_node_class
class Network:
    """A stack of layers, a pytree whose leaves are its parameters; images are (n, height, width, channels).

    Attributes:
        architecture: what it computes.
        params: a dict of ``bias`` and ``weight`` for each layer that has them.
    """

    def __init__(self, architecture: Architecture, params: list[dict[str, Any]]) -> None:
        self.architecture = architecture
        self.params = params

    def __call__(self, x: Any) -> Any:
        """(n, …) → (n, outputs), or (n,) for a single output."""
        return apply(self.architecture, self.params, x)

    def tree_flatten(self) -> tuple[tuple[Any], Any]:
        """For `jax.tree_util`."""
        return (self.params,), self.architecture

    @classmethod
    def tree_unflatten(cls, architecture: Any, children: tuple[Any]) -> Network:
        """For `jax.tree_util`."""
        return cls(architecture, *children)


class NetworkModel(FunctionModel):
    """A `Network` as a function of its parameters."""

    def __init__(self, network: Network, options: GuestOptions) -> None:
        self._architecture = network.architecture
        super().__init__(self._apply, dataclasses.replace(options, params=network.params))
        self.label = f"jax {network.architecture.name}"

    def native(self, weights: Sequence[Array]) -> Network:
        assert self._tree is not None
        return Network(self._architecture, self._tree.fill(self.own_weights(weights), self.state))

    def _apply(self, params: list[dict[str, Any]], x: Any) -> Any:
        return apply(self._architecture, params, x)


def apply(architecture: Architecture, params: list[dict[str, Any]], x: Any) -> Any:
    """Evaluate an architecture at a list of its layers' parameters."""
    remaining = iter(params)
    for layer in architecture.layers:
        x = _activate(layer.activation, _layer(layer, next(remaining) if layer.shapes else {}, x))
    return x[..., 0] if architecture.squeeze else x


def _layer(layer: Layer, part: dict[str, Any], x: Any) -> Any:
    if layer.kind == "dense":
        return x @ part["weight"] + part["bias"]
    if layer.kind == "conv":
        axes = ("NHWC", "HWIO", "NHWC")
        return (
            jax.lax.conv_general_dilated(x, part["weight"], (1, 1), "SAME", dimension_numbers=axes)
            + part["bias"]
        )
    if layer.kind == "pool":
        s, (n, h, w, c) = layer.size, np.shape(x)
        cropped = x[:, : h // s * s, : w // s * s]
        return cropped.reshape(n, h // s, s, w // s, s, c).max((2, 4))
    return x.reshape(np.shape(x)[0], -1)


def _activate(name: str | None, x: Any) -> Any:
    if name is None:
        return x
    return jnp.tanh(x) if name == "tanh" else getattr(jax.nn, name)(x)
