"""The portable architectures in NumPy, with their derivatives by hand: dense layers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradbridge.errors import OptionError
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Adapter, Array, GuestOptions, Signature
from gradbridge_numpy.dense import INPUT, PARAMS, DensePoint
from gradbridge_numpy.pullbacks import PullbackAdapter, Root

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


class NetworkAdapter(Root):
    """A `Network` with its derivatives by hand, to second order."""

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
        point = self.point(loaded, inputs, signature)
        return point.answer[0].copy(), (point if wrt else None)

    def backward(
        self, residuals: DensePoint, cotangents: Sequence[Array], wrt: tuple[int, ...]
    ) -> list[Array]:
        """See `Adapter.backward`."""
        gradient = residuals.gradient(cotangents[0])
        return [gradient[position].copy() for position in wrt]

    def pushforward(
        self,
        loaded: dict[str, Array],
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> list[Array] | None:
        """See `Adapter.pushforward`."""
        return [self.point(loaded, inputs, signature).pushed(dict(zip(wrt, tangents)))]

    def pullback(self, signature: Signature, wrt: tuple[int, ...]) -> Adapter:
        """See `Adapter.pullback`."""
        return PullbackAdapter(self, signature, (wrt,))

    def point(self, loaded: dict[str, Array], inputs: Sequence[Any], signature: Signature) -> DensePoint:
        """See `Root.point`."""
        (x,), _ = signature.bind([np.array(leaf, dtype=self._dtype) for leaf in inputs])
        values = self._network.values(loaded, x)
        return DensePoint(self.label, self._network.architecture, self.layout, loaded, values)

    def places(self, signature: Signature) -> dict[int, tuple[int, ...]]:
        """See `Root.places`."""
        return {PARAMS: (0,), INPUT: (1,)}


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
