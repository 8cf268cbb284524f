"""Networks as data: layers drawn at random that fit each other, their weights and their inputs."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

ACTIVATIONS = ("tanh", "sigmoid", "softplus", "silu", "gelu", "relu", "sin", "square", "bump")
POOLS = ("mean", "max", "logsumexp", "last", "flatten")
HEADS = ("none", "none", "softmax", "log_softmax", "unit")
OUTPUTS = ("array", "array", "array", "tuple", "dict", "labelled")
#: How many different tokens there are.
WORDS = 5


@dataclass(frozen=True)
class Layer:
    """One step of a network.

    Attributes:
        kind: what it does; see `interpreter`.
        name: unique in the network.
        inputs, outputs: features before and after it.
        option: of its kind: an activation, a size, a way.
        bias: whether it adds one.
        inner: the layers of a residual block.
    """

    kind: str
    name: str
    inputs: int
    outputs: int
    option: str | int = ""
    bias: bool = True
    inner: tuple[Layer, ...] = ()

    def shapes(self, length: int) -> dict[str, tuple[int, ...]]:
        """{name: shape} of its own parameters; `length` is that of the sequences."""
        a, b = self.inputs, self.outputs
        match self.kind:
            case "linear" | "gate":
                shapes = {"w": (a, b), "b": (b,)}
            case "product":
                shapes = {"w": (a, b), "u": (a, b), "b": (b,)}
            case "conv":
                shapes = {"w": (int(self.option), a, b), "b": (b,)}
            case "layernorm" | "groupnorm" | "batchnorm":
                shapes = {"scale": (b,), "b": (b,)}
            case "embedding":
                shapes = {"table": (WORDS, b)}
            case "mix":
                shapes = {"w": (SECOND, b)}
            case "attention":
                shapes = {"in": (a, 3 * a), "out": (a, a), "b": (3 * a,), "c": (a,)}
            case "rnn":
                shapes = {"w": (a, b), "u": (b, b), "b": (b,), "c": (b,)}
            case "positions":
                shapes = {"table": (length, b)}
            case "scalar":
                shapes = {"s": ()}
            case _:
                shapes = {}
        if not self.bias:
            shapes = {k: shape for k, shape in shapes.items() if k not in ("b", "c")}
        return {f"{self.name}.{k}": shape for k, shape in shapes.items()}


#: Features of the second input.
SECOND = 2


@dataclass(frozen=True)
class Network:
    """A function of (weights, inputs) as data.

    Attributes:
        seed: where weights and inputs are drawn from.
        form: of the first input: ``"rows"`` (n, d), ``"sequences"`` (n, t, d) or ``"tokens"`` (n, t).
        features, length: d and t.
        layers: one after the other.
        second: a second input: ``""``, ``"array"`` (n, 2) or ``"mask"`` (n,) of booleans.
        output: ``"array"``, ``"column"`` (n, 1), ``"vector"`` (n,), or in which container.
        dropout: the rate at the end, 0 for none.
    """

    seed: int
    form: str
    features: int
    length: int
    layers: tuple[Layer, ...]
    second: str
    output: str
    dropout: float = 0.0

    @property
    def every_layer(self) -> Iterator[Layer]:
        """Those within blocks, too."""
        for layer in self.layers:
            yield layer
            yield from layer.inner

    def is_tied(self, layer: Layer) -> bool:
        """Whether another layer uses its weights."""
        return any(one.kind == "tied" and one.option == layer.name for one in self.every_layer)

    @property
    def rows_are_independent(self) -> bool:
        return not any(layer.kind == "batchmix" for layer in self.every_layer)

    @property
    def maps_to_itself(self) -> bool:
        """Whether its output can be its first input."""
        return self.form == "rows" and self.output == "array" and self.layers[-1].outputs == self.features

    def weights(self) -> dict[str, np.ndarray]:
        """Every parameter, of values that float32 has, too: no two entries are alike."""
        found = {}
        for layer in self.every_layer:
            for name, shape in layer.shapes(self.length).items():
                rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
                drawn = rng.uniform(-1, 1, shape) / (1.0 if len(shape) < 2 else np.sqrt(shape[-2]) / 1.5)
                found[name] = np.float64(np.float32(drawn + (1.0 if name.endswith(".scale") else 0.0)))
        return {name: np.asarray(array) for name, array in found.items()}

    def statistics(self, layer: Layer) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of a batch norm, which are constants."""
        rng = np.random.default_rng([self.seed, zlib.crc32(layer.name.encode()), 1])
        mean, variance = rng.normal(size=layer.outputs), rng.uniform(0.5, 2, layer.outputs)
        return np.float64(np.float32(mean)), np.float64(np.float32(variance))

    def inputs(self, rows: int, seed: int, dtype: str = "float64") -> list[np.ndarray]:
        """Arrays for a call."""
        rng = np.random.default_rng([self.seed, seed])
        if self.form == "tokens":
            first = rng.integers(0, WORDS, (rows, self.length))
        else:
            middle = (self.length,) if self.form == "sequences" else ()
            first = rng.normal(size=(rows, *middle, self.features)).astype(dtype)
        if self.second == "mask":
            return [first, rng.uniform(size=rows) < 0.5]
        if self.second == "array":
            return [first, rng.normal(size=(rows, SECOND)).astype(dtype)]
        return [first]


class Drawing:
    """Draws a network layer by layer.

    Args:
        rng: where from.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng, self._without, self._count = rng, tuple[str, ...](), 0

    def network(self, seed: int, rowwise: bool = False, dropout: bool = False) -> Network:
        """A network.

        Args:
            seed: of its weights.
            rowwise: whether its rows must be independent of each other.
            dropout: whether it drops outputs in train mode.
        """
        rng = self._rng
        if dropout:
            self._without = ("batchnorm",)  # in train mode it has statistics of the batch
        form = str(rng.choice(["rows", "rows", "sequences", "tokens"]))
        length, features = int(rng.integers(2, 5)), int(rng.integers(1, 5))
        second = str(rng.choice(["", "", "array", "mask"]))
        layers: list[Layer] = []
        width, is_sequence = features, form != "rows"
        if form == "tokens":
            width = int(rng.integers(1, 5))
            layers.append(Layer("embedding", self._name(), 1, width))
        for _ in range(int(rng.integers(1, 5))):
            layer = self._layer(width, is_sequence, layers, rowwise)
            layers.append(layer)
            width = layer.outputs
        if second:
            at = int(rng.integers(1 if form == "tokens" else 0, len(layers) + 1))
            before = layers[at - 1].outputs if at else features
            layers.insert(at, Layer("mix" if second == "array" else "mask", self._name(), before, before))
        if is_sequence:
            how = str(rng.choice(POOLS))
            outputs = width * length if how == "flatten" else width
            layers.append(Layer("pool", self._name(), width, outputs, how))
            width = outputs
        output = str(rng.choice([*OUTPUTS, "column", "vector"]))
        if output in ("column", "vector"):
            layers.append(Layer("linear", self._name(), width, 1))
        elif form == "rows" and rng.uniform() < 0.5:
            layers.append(Layer("linear", self._name(), width, features))
        elif not any(layer.shapes(length) for layer in layers):
            layers.append(Layer("linear", self._name(), width, int(rng.integers(1, 4))))
        width = layers[-1].outputs
        if output not in ("column", "vector"):
            layers.append(Layer("head", self._name(), width, width, str(rng.choice(HEADS))))
        rate = 0.5 if dropout else 0.0
        output = "array" if dropout else output
        return Network(seed, form, features, length, tuple(layers), second, output, rate)

    def _name(self) -> str:
        self._count += 1
        return f"l{self._count}"

    def _layer(self, width: int, is_sequence: bool, before: list[Layer], rowwise: bool) -> Layer:
        rng = self._rng
        kinds = [
            "linear",
            "linear",
            "act",
            "act",
            "gate",
            "product",
            "residual",
            "residual",
            "scalar",
            "unit",
        ]
        kinds += [] if rowwise else ["batchmix"]
        kinds += ["layernorm", "groupnorm", "batchnorm"]
        kinds += (
            ["conv", "attention", "attention", "rnn", "positions", "roll", "cumsum"] if is_sequence else []
        )
        mates = [one for one in before if one.kind == "linear" and one.outputs == width]
        kinds += ["tied", "tied"] if mates else []
        kind = str(rng.choice([kind for kind in kinds if kind not in self._without]))
        name, wider, bias = self._name(), int(rng.integers(1, 5)), bool(rng.uniform() < 0.75)
        match kind:
            case "linear" | "product" | "rnn":
                return Layer(kind, name, width, wider, bias=bias)
            case "conv":
                return Layer(kind, name, width, wider, int(rng.choice([1, 3])), bias)
            case "act":
                return Layer(kind, name, width, width, str(rng.choice(ACTIVATIONS)))
            case "groupnorm":
                return Layer(
                    kind, name, width, width, int(rng.choice([g for g in (1, 2, 4) if not width % g]))
                )
            case "attention":
                heads = int(rng.choice([h for h in (1, 2) if not width % h]))
                return Layer(kind, name, width, width, heads, bias)
            case "tied":
                mate = mates[int(rng.integers(len(mates)))]
                return Layer(kind, name, width, mate.inputs, mate.name)
            case "residual":
                first = self._layer(width, is_sequence, [], rowwise)
                back = Layer("linear", self._name(), first.outputs, width)
                # Only one level: what is within a block is no block.
                inner = (*first.inner, back) if first.kind == "residual" else (first, back)
                return Layer(kind, name, width, width, inner=inner)
            case _:
                return Layer(kind, name, width, width, bias=bias)
