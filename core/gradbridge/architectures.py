"""Portable architectures, as data: one canonical parameter layout for every framework.

The same flat vector gives the same predictions wherever the model is built. In every layer the
bias stands before the weights, so that the params of ``linear`` read intercept, slope …

=========  ===========================================  =================================
layer      parameters, in this order                    input → output
=========  ===========================================  =================================
dense      bias (out,), weight (in, out)                (…, in) → (…, out): x @ weight + bias
conv       bias (out,), weight (k, k, in, out)          (n, h, w, in) → (n, h, w, out), padded
                                                        with zeros, stride 1, cross-correlation
pool       none                                         (n, h, w, c) → (n, h // s, w // s, c),
                                                        largest of each s × s square
flatten    none                                         (n, h, w, c) → (n, h w c), in that order
=========  ===========================================  =================================

Images are (n, height, width, channels). An activation follows its layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradbridge.choice import default_backend
from gradbridge.errors import OptionError
from gradbridge.layout import ParameterLayout
from gradbridge.option_values import check_options
from gradbridge.protocol import Array
from gradbridge.registry import Registry, default_registry
from gradbridge.wording import suggestion

ACTIVATIONS = ("tanh", "relu", "sigmoid", "softmax")


@dataclass(frozen=True)
class Layer:
    """One layer of a portable architecture.

    Attributes:
        kind: ``dense``, ``conv``, ``pool`` or ``flatten``.
        name: prefix of its parameters' names, unique in the architecture.
        inputs, outputs: features or channels, for dense and conv.
        size: side of the kernel (conv, odd) or of the pooled square (pool).
        activation: one of `ACTIVATIONS`, or None. Softmax runs over the last axis.
    """

    kind: str
    name: str
    inputs: int = 0
    outputs: int = 0
    size: int = 0
    activation: str | None = None

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the bias and the weight; empty for a layer without parameters."""
        if self.kind == "dense":
            return (self.outputs,), (self.inputs, self.outputs)
        if self.kind == "conv":
            return (self.outputs,), (self.size, self.size, self.inputs, self.outputs)
        return ()


@dataclass(frozen=True)
class Architecture:
    """A feed-forward stack of layers.

    Attributes:
        name: ``linear``, ``mlp`` or ``cnn``.
        layers: in the order of evaluation.
        squeeze: whether an output of one feature loses its last axis, (n, 1) → (n,).
    """

    name: str
    layers: tuple[Layer, ...]
    squeeze: bool = False

    @property
    def layout(self) -> ParameterLayout:
        """The canonical layout."""
        names = [
            f"{layer.name}.{part}" for layer in self.layers if layer.shapes for part in ("bias", "weight")
        ]
        shapes = [shape for layer in self.layers for shape in layer.shapes]
        return ParameterLayout(tuple(names), tuple(shapes), ("float64",) * len(names))

    def initial(self, seed: int) -> Array:
        """Initial parameters, the same on every framework: weights Glorot-uniform, biases zero.

        Returns:
            (P,) float64.

        Source:
            Glorot & Bengio (2010), Understanding the difficulty of training deep feedforward
            neural networks, eq. 16.
        """
        rng = np.random.default_rng(int(seed) % 2**63)  # as a bridge takes its seeds
        parts: list[Array] = []
        for layer in self.layers:
            if not layer.shapes:
                continue
            _, shape = layer.shapes
            receptive = math.prod(shape[:-2])
            limit = math.sqrt(6.0 / (receptive * (layer.inputs + layer.outputs)))
            parts += [np.zeros(layer.outputs), rng.uniform(-limit, limit, size=shape).ravel()]
        return np.concatenate(parts)


def linear(features: int, outputs: int = 1, *, activation: str | None = None) -> Architecture:
    """A line: intercept, then slopes. With ``activation="sigmoid"``, a logistic regression.

    Args:
        features: number of columns of the input.
        outputs: number of columns of the output; one is dropped, (n, 1) → (n,).
        activation: of the output.
    """
    _positive("features", features)
    _positive("outputs", outputs)
    layer = Layer("dense", "0", features, outputs, activation=_activation(activation))
    return Architecture("linear", (layer,), squeeze=outputs == 1)


def mlp(sizes: Sequence[int], *, activation: str = "tanh", output: str | None = None) -> Architecture:
    """A multilayer perceptron.

    Args:
        sizes: numbers of features, from the input to the output.
        activation: between the layers.
        output: of the last layer.
    """
    if len(sizes) < 2:
        raise OptionError(f"mlp needs sizes from its input to its output, two at least, got {list(sizes)}")
    for size in sizes:
        _positive("sizes", size)
    last = len(sizes) - 2
    activations = [_activation(activation)] * last + [_activation(output)]
    layers = [
        Layer("dense", str(i), sizes[i], sizes[i + 1], activation=activations[i]) for i in range(last + 1)
    ]
    return Architecture("mlp", tuple(layers), squeeze=sizes[-1] == 1)


def cnn(
    image: Sequence[int],
    channels: Sequence[int],
    classes: int,
    *,
    kernel: int = 3,
    pool: int = 2,
    activation: str = "relu",
    output: str | None = "softmax",
) -> Architecture:
    """A convolutional network: a convolution and a pooling per entry of `channels`, then a dense layer.

    Args:
        image: (height, width, channels) of the input.
        channels: of each convolution.
        classes: number of outputs.
        kernel: side of the kernels, odd.
        pool: side of the pooled squares; 1 pools nothing.
        activation: after each convolution.
        output: of the dense layer.
    """
    if len(image) != 3:
        raise OptionError(f"cnn needs image=(height, width, channels), got {tuple(image)}")
    for value in (*image, *channels, classes, kernel, pool):
        _positive("cnn's sizes", value)
    if kernel % 2 == 0:
        raise OptionError(f"kernel must be odd, so that the padding is the same on both sides; got {kernel}")
    height, width, depth = image
    between, last = _activation(activation), _activation(output)
    layers: list[Layer] = []
    for i, out in enumerate(channels):
        layers.append(Layer("conv", str(len(layers)), depth, out, kernel, between))
        depth = out
        if pool > 1:
            height, width = height // pool, width // pool
            layers.append(Layer("pool", str(len(layers)), size=pool))
        if height < 1 or width < 1:
            raise OptionError(
                f"an image of {image[0]} × {image[1]} has no pixels left after {i + 1} poolings by {pool}"
            )
    layers.append(Layer("flatten", str(len(layers))))
    size = height * width * depth
    layers.append(Layer("dense", str(len(layers)), size, classes, activation=last))
    return Architecture("cnn", tuple(layers), squeeze=classes == 1)


ARCHITECTURES: dict[str, Callable[..., Architecture]] = {"linear": linear, "mlp": mlp, "cnn": cnn}


def build(
    name: str,
    *args: Any,
    backend: str | None = None,
    seed: int = 0,
    registry: Registry | None = None,
    **sizes: Any,
) -> Any:
    """Build a portable architecture as a native model of a framework.

    ::

        model = gradbridge.build("mlp", sizes=[8, 32, 1], backend="torch", seed=0)
        f = gradbridge.bridge(model, dtype="float64")

    Args:
        name: ``"linear"``, ``"mlp"`` or ``"cnn"``.
        *args, **sizes: of the function of that name in `gradbridge.architectures`.
        backend: the framework; None takes the environment variable ``GRADBRIDGE_BACKEND``, and
            without it the first of torch, tensorflow, jax, numpy that is installed.
        seed: of the initial parameters, which are the same on every framework.
        registry: the plugins to choose from; by default all that are installed.

    Returns:
        A native model in float32 (float64 for numpy), to be bridged like any other.

    Raises:
        OptionError: an unknown architecture or sizes that make none.
        UnknownBackendError, BackendUnavailableError
    """
    check_options(name=name, backend=backend, seed=seed, registry=registry)
    if name not in ARCHITECTURES:
        hint = suggestion(name, ARCHITECTURES)
        raise OptionError(f"there is no architecture {name!r}; {hint}there are {', '.join(ARCHITECTURES)}")
    try:
        architecture = ARCHITECTURES[name](*args, **sizes)
    except TypeError as error:
        raise OptionError(f"the architecture {name} does not take this: {error}") from error
    registry = registry if registry is not None else default_registry()
    chosen = backend if backend is not None else default_backend(registry)
    layout = architecture.layout
    return registry.builder(chosen)(architecture, layout.unravel(architecture.initial(seed)))


def _positive(what: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise OptionError(f"{what} must be positive integers, got {value!r}")


def _activation(name: str | None) -> str | None:
    if name is not None and not (isinstance(name, str) and name in ACTIVATIONS):
        raise OptionError(f"activation must be None or one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return name
