"""The portable architectures in NumPy, with their gradient by hand: dense layers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradbridge.errors import OptionError
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Adapter, Array, GuestOptions, Signature

if TYPE_CHECKING:
    from gradbridge.architectures import Architecture


def build(architecture: Architecture, params: Mapping[str, Array]) -> Network:
    """The architecture in float64, holding the parameters.

    Raises:
        OptionError: it has layers other than dense ones.
    """
    kinds = sorted({layer.kind for layer in architecture.layers if layer.kind != "dense"})
    if kinds:
        raise OptionError(
            f"the numpy backend builds dense layers only, and {architecture.name} has {', '.join(kinds)}; "
            f"choose backend='torch', 'tensorflow' or 'jax'"
        )
    return Network(architecture, {name: np.array(value, dtype=np.float64) for name, value in params.items()})


class Network:
    """Dense layers with activations, a plain Python object: ``network(x)``."""

    def __init__(self, architecture: Architecture, params: dict[str, Array]) -> None:
        self.architecture = architecture
        self.params = params

    def __call__(self, x: Array) -> Array:
        """(n, features) → (n, outputs), or (n,) for a single output."""
        values = self.values(self.params, x)
        return values[-1][..., 0] if self.architecture.squeeze else values[-1]

    def values(self, params: Mapping[str, Array], x: Array) -> list[Array]:
        """The input and the output of every layer."""
        values = [x]
        for layer in self.architecture.layers:
            z = values[-1] @ params[f"{layer.name}.weight"] + params[f"{layer.name}.bias"]
            values.append(_activate(layer.activation, z))
        return values


class NetworkAdapter(Adapter):
    """A `Network` with its backward pass by hand."""

    def __init__(self, network: Network, options: GuestOptions) -> None:
        self.label = f"numpy {network.architecture.name}"
        self.layout: ParameterLayout = network.architecture.layout
        self._network = network
        self._dtype = np.dtype(options.dtype) if options.dtype is not None else np.dtype(np.float64)

    def params(self) -> Array:
        """See `Adapter.params`."""
        return self.layout.ravel(self._network.params)

    def model(self, params: Array) -> Network:
        """See `Adapter.model`."""
        return Network(
            self._network.architecture, {k: v.copy() for k, v in self.layout.unravel(params).items()}
        )

    def update(self, params: Array) -> dict[str, Array]:
        """See `Adapter.update`."""
        return self.layout.unravel(params.astype(self._dtype))

    def forward(
        self, loaded: dict[str, Array], inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> tuple[Array, Any]:
        """See `Adapter.forward`."""
        (x,), _ = signature.bind([np.array(leaf, dtype=self._dtype) for leaf in inputs])
        values = self._network.values(loaded, x)
        output = values[-1][..., 0] if self._network.architecture.squeeze else values[-1]
        return output.copy(), ((loaded, values) if wrt else None)

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        """See `Adapter.backward`. Source: Rumelhart, Hinton & Williams (1986), eqs. 4 to 6."""
        params, values = residuals
        v = cotangents[0].astype(self._dtype)
        v = v[..., None] if self._network.architecture.squeeze else v
        gradients: dict[str, Array] = {}
        for layer, x, y in reversed(list(zip(self._network.architecture.layers, values, values[1:]))):
            v = _pull(layer.activation, y, v)
            rows = v.reshape(-1, layer.outputs)
            gradients[f"{layer.name}.bias"] = rows.sum(0)
            gradients[f"{layer.name}.weight"] = x.reshape(-1, layer.inputs).T @ rows
            v = v @ params[f"{layer.name}.weight"].T
        flat = self.layout.ravel(gradients)
        return [flat.copy() if position == 0 else v.copy() for position in wrt]


def _activate(name: str | None, z: Array) -> Array:
    if name == "tanh":
        return np.tanh(z)
    if name == "relu":
        return np.maximum(z, 0.0)
    if name == "sigmoid":
        return np.where(z >= 0, 1.0, np.exp(np.minimum(z, 0.0))) / (1.0 + np.exp(-np.abs(z)))
    if name == "softmax":
        e = np.exp(z - z.max(-1, keepdims=True, initial=-np.inf))
        return e / e.sum(-1, keepdims=True)
    return z


def _pull(name: str | None, y: Array, v: Array) -> Array:
    """Pull a cotangent back through an activation, from its output."""
    if name == "tanh":
        return v * (1.0 - y**2)
    if name == "relu":
        return v * (y > 0)
    if name == "sigmoid":
        return v * y * (1.0 - y)
    if name == "softmax":
        return y * (v - (v * y).sum(-1, keepdims=True))
    return v
