"""The portable architectures in NumPy, with their derivatives by hand: dense layers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.errors import InputError, OptionError
from gradbridge.layout import Array, ParameterLayout
from gradbridge.protocol import ArraySpec, GuestOptions
from gradbridge_numpy.closed import FormsAdapter, floating_dtype
from gradbridge_numpy.dense import DenseJet

if TYPE_CHECKING:
    from gradbridge.architectures import Architecture

_DOUBLE = np.dtype(np.float64)


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


class NetworkAdapter(FormsAdapter):
    """A `Network` with its derivatives by hand, to second order.

    Args:
        network: the layers.
        options: what the guest half was told.
        own: the dtype that it has by itself.
    """

    def __init__(self, network: Network, options: GuestOptions, own: np.dtype[Any] = _DOUBLE) -> None:
        self.label = f"numpy {network.architecture.name}"
        self.layout: ParameterLayout = network.architecture.layout
        self.dtype = floating_dtype(options.dtype) or own
        self._network = network

    def weights(self) -> Sequence[Array]:
        return [self._network.params[name] for name in self.layout.names]

    def model(self, weights: Sequence[Array]) -> Any:
        params = {name: np.array(weight) for name, weight in zip(self.layout.names, weights)}
        return Network(self._network.architecture, params)

    def jet(self, loaded: Sequence[Array], inputs: Sequence[Any], spec: CallSpec) -> DenseJet:
        (x,), _ = spec.bind([np.array(self.border.view(leaf), dtype=self.dtype) for leaf in inputs])
        params = dict(zip(self.layout.names, loaded))
        architecture = self._network.architecture
        return DenseJet(self.label, architecture, params, self._network.values(params, x))

    def output_spec(self, inputs: Sequence[Any], spec: CallSpec) -> ArraySpec:
        (x,), _ = spec.bind(inputs)
        layers, shape = self._network.architecture.layers, tuple(np.shape(x))
        if not shape or shape[-1] != layers[0].inputs:
            raise InputError(f"{self.label} takes an array of shape (…, {layers[0].inputs}), got {shape}")
        last = () if self._network.architecture.squeeze else (layers[-1].outputs,)
        return ArraySpec((*shape[:-1], *last), np.dtype(self.dtype))


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
