"""Portable architectures as scenarios: what `gradbridge.build` makes must compute these, with params in this order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gradbridge.architectures import Architecture, Layer, cnn, linear, mlp
from gradbridge.testing.scenario import Params, Scenario

# Written so that a complex step passes through them.
_STEPS: Mapping[str | None, Callable[[Any], Any]] = {
    None: lambda z: z,
    "tanh": np.tanh,
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "relu": lambda z: z * (np.real(z) > 0),
    "softmax": lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True),
}


def _slope(name: str | None, z: Any, v: Any) -> Any:
    """The VJP of an activation."""
    y = _STEPS[name](z)
    if name == "softmax":
        return y * (v - (v * y).sum(-1, keepdims=True))
    slopes = {None: 1.0, "tanh": 1 - y**2, "sigmoid": y * (1 - y), "relu": 1.0 * (np.real(z) > 0)}
    return v * slopes[name]


def _windows(x: Any, size: int) -> Any:
    """(n, h, w, c) ↦ (n, h, w, size, size, c): what a kernel sees around each place, zeros beyond the border."""
    pad = size // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    view = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return np.moveaxis(view, 3, -1)


def _linear_part(layer: Layer, p: Params, x: Any) -> Any:
    bias, weight = p[f"{layer.name}.bias"], p[f"{layer.name}.weight"]
    if layer.kind == "dense":
        return x @ weight + bias
    return np.einsum("nhwijc,ijco->nhwo", _windows(x, layer.size), weight) + bias


def _layers(architecture: Architecture, p: Params, x: Any) -> list[tuple[Layer, Any, Any]]:
    """(layer, its input, what its activation is given) for each."""
    passed = []
    for layer in architecture.layers:
        z = (
            x.reshape(len(x), int(np.prod(x.shape[1:])))
            if layer.kind == "flatten"
            else _linear_part(layer, p, x)
        )
        passed.append((layer, x, z))
        x = _STEPS[layer.activation](z)
    return passed


def _value(architecture: Architecture, p: Params, inputs: Sequence[Any]) -> Any:
    layer, _, z = _layers(architecture, p, inputs[0])[-1]
    y = _STEPS[layer.activation](z)
    return y[..., 0] if architecture.squeeze else y


def _gradients(
    architecture: Architecture, p: Params, inputs: Sequence[Any], cotangents: Sequence[Any]
) -> Any:
    v = cotangents[0][..., None] if architecture.squeeze else cotangents[0]
    gradients: dict[str, Any] = {}
    for layer, x, z in reversed(_layers(architecture, p, inputs[0])):
        v = _slope(layer.activation, z, v)
        if layer.kind == "flatten":
            v = v.reshape(x.shape)
            continue
        weight = p[f"{layer.name}.weight"]
        gradients[f"{layer.name}.bias"] = v.sum(tuple(range(v.ndim - 1)))
        if layer.kind == "dense":
            gradients[f"{layer.name}.weight"] = x.T @ v
            v = v @ weight.T
        else:
            gradients[f"{layer.name}.weight"] = np.einsum("nhwijc,nhwo->ijco", _windows(x, layer.size), v)
            v = np.einsum("nhwijo,ijco->nhwc", _windows(v, layer.size), weight[::-1, ::-1])
    return {name: gradients[name] for name in p}, [v]


def _scenario(name: str, architecture: Architecture, input_shape: tuple[int, ...]) -> Scenario:
    layout = architecture.layout
    return Scenario(
        name,
        dict(zip(layout.names, layout.shapes)),
        lambda rng, rows: (rng.normal(size=(rows, *input_shape)),),
        lambda p, inputs: _value(architecture, p, inputs),
        lambda p, inputs, v: _gradients(architecture, p, inputs, v),
        architecture=architecture,
    )


#: One of each kind of layer. A pooling has no parameters, and its largest numbers are not a closed form.
BUILT = (
    _scenario("linear", linear(3), (3,)),
    _scenario("logistic", linear(2, activation="sigmoid"), (2,)),
    _scenario("perceptron", mlp([3, 4, 2], output="softmax"), (3,)),
    _scenario("convolution", cnn((3, 2, 2), [2], 2, pool=1, activation="tanh", output=None), (3, 2, 2)),
)
