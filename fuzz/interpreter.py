"""What a network computes, in the words of any framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fuzz.networks import Layer, Network

#: Added to variances: a number that every precision has.
EPSILON = 0.125


def interpret(
    network: Network,
    get: Callable[[str], Any],
    inputs: tuple[Any, ...],
    words: Any,
    native: Mapping[str, Callable[..., Any]] | None = None,
    drop: Callable[[Any], Any] | None = None,
) -> Any:
    """The outputs of a network.

    Args:
        network: which one.
        get: name of a parameter ↦ its array.
        inputs: the framework's arrays.
        words: the framework's operations.
        native: {name of a layer: the framework's own layer}, taken in place of what is written here.
        drop: what drops outputs, in train mode.
    """
    steps = _Steps(network, get, inputs, words, native or {})
    z = inputs[0]
    for layer in network.layers:
        z = steps.take(layer, z)
    z = z if drop is None else drop(z)
    match network.output:
        case "vector":
            return z[:, 0]
        case "tuple":
            return z, words.sum(z * z, -1)
        case "dict":
            return {"main": z, "beside": words.sin(z)}
        case "labelled":
            return {"main": z, "label": words.argmax(z)}
        case _:
            return z


class _Steps:
    def __init__(self, network: Network, get: Any, inputs: Any, words: Any, native: Any) -> None:
        self._network, self._get, self._inputs = network, get, inputs
        self._words, self._native = words, native

    def take(self, layer: Layer, z: Any) -> Any:
        if layer.name in self._native:
            return self._native[layer.name](z)
        return getattr(self, f"_{layer.kind}")(layer, z)

    def _weight(self, layer: Layer, name: str) -> Any:
        return self._get(f"{layer.name}.{name}")

    def _biased(self, layer: Layer, z: Any, name: str = "b") -> Any:
        return z + self._weight(layer, name) if layer.bias else z

    def _linear(self, layer: Layer, z: Any) -> Any:
        return self._biased(layer, z @ self._weight(layer, "w"))

    def _tied(self, layer: Layer, z: Any) -> Any:
        weight = self._get(f"{layer.option}.w")
        return z @ self._words.swapped(weight)

    def _gate(self, layer: Layer, z: Any) -> Any:
        return z * self._words.sigmoid(self._linear(layer, z))

    def _product(self, layer: Layer, z: Any) -> Any:
        return self._biased(layer, (z @ self._weight(layer, "w")) * (z @ self._weight(layer, "u")))

    def _act(self, layer: Layer, z: Any) -> Any:
        if layer.option == "square":
            return z * z
        if layer.option == "bump":
            return self._words.exp(-(z * z))
        if layer.option == "silu":
            return z * self._words.sigmoid(z)
        return getattr(self._words, str(layer.option))(z)

    def _scalar(self, layer: Layer, z: Any) -> Any:
        return self._weight(layer, "s") * z

    def _residual(self, layer: Layer, z: Any) -> Any:
        through = z
        for one in layer.inner:
            through = self.take(one, through)
        return z + through

    def _unit(self, layer: Layer, z: Any) -> Any:
        words = self._words
        return z / words.sqrt(words.sum(z * z, -1, True) + EPSILON)

    def _batchmix(self, layer: Layer, z: Any) -> Any:
        return z + 0.5 * self._words.mean(z, 0, True)

    def _affine(self, layer: Layer, z: Any) -> Any:
        return self._biased(layer, z * self._weight(layer, "scale"))

    def _layernorm(self, layer: Layer, z: Any) -> Any:
        return self._affine(layer, self._normed(z, -1))

    def _normed(self, z: Any, axes: Any) -> Any:
        words = self._words
        centred = z - words.mean(z, axes, True)
        return centred / words.sqrt(words.mean(centred * centred, axes, True) + EPSILON)

    def _groupnorm(self, layer: Layer, z: Any) -> Any:
        words, groups = self._words, int(layer.option)
        # (n, t, groups, features of each), t = 1 for rows.
        length, is_sequence = (self._network.length, True) if len(z.shape) == 3 else (1, False)
        each = layer.inputs // groups
        normed = self._normed(words.reshape(z, (-1, length, groups, each)), (1, 3))
        last = (-1, length, layer.inputs) if is_sequence else (-1, layer.inputs)
        return self._affine(layer, words.reshape(normed, last))

    def _batchnorm(self, layer: Layer, z: Any) -> Any:
        words = self._words
        mean, variance = (words.constant(one, z) for one in self._network.statistics(layer))
        return self._affine(layer, (z - mean) / words.sqrt(variance + EPSILON))

    def _embedding(self, layer: Layer, z: Any) -> Any:
        return self._words.take(self._weight(layer, "table"), z)

    def _positions(self, layer: Layer, z: Any) -> Any:
        return z + self._weight(layer, "table")

    def _mix(self, layer: Layer, z: Any) -> Any:
        moved = self._inputs[1] @ self._weight(layer, "w")
        return z + (moved[:, None, :] if len(z.shape) == 3 else moved)

    def _mask(self, layer: Layer, z: Any) -> Any:
        mask = self._inputs[1]
        mask = mask[:, None, None] if len(z.shape) == 3 else mask[:, None]
        return self._words.where(mask, z, 0.5 * z)

    def _conv(self, layer: Layer, z: Any) -> Any:
        words, size, length = self._words, int(layer.option), self._network.length
        kernel = self._weight(layer, "w")
        zeros = [0.0 * z[:, :1]] * (size // 2)
        padded = words.concat([*zeros, z, *zeros], 1)
        windows = [padded[:, j : j + length] @ kernel[j] for j in range(size)]
        return self._biased(layer, sum(windows[1:], windows[0]))

    def _attention(self, layer: Layer, z: Any) -> Any:
        words, d, heads = self._words, layer.inputs, int(layer.option)
        each = d // heads
        merged = self._biased(layer, z @ self._weight(layer, "in"))
        parts = []
        for h in range(heads):
            q, k, v = (merged[..., i * d + h * each : i * d + (h + 1) * each] for i in range(3))
            parts.append(words.attend(q, k, v, each**-0.5))
        return self._biased(layer, words.concat(parts, -1) @ self._weight(layer, "out"), "c")

    def _rnn(self, layer: Layer, z: Any) -> Any:
        words = self._words
        moved = self._biased(layer, z @ self._weight(layer, "w"))
        u = self._weight(layer, "u")
        states = [words.tanh(self._biased(layer, moved[:, 0], "c"))]
        for t in range(1, self._network.length):
            states.append(words.tanh(self._biased(layer, moved[:, t] + states[-1] @ u, "c")))
        return words.stack(states, 1)

    def _roll(self, layer: Layer, z: Any) -> Any:
        return self._words.roll(z)

    def _cumsum(self, layer: Layer, z: Any) -> Any:
        return self._words.cumsum(z)

    def _pool(self, layer: Layer, z: Any) -> Any:
        words = self._words
        match layer.option:
            case "mean":
                return words.mean(z, 1, False)
            case "max":
                return words.max(z)
            case "logsumexp":
                return words.logsumexp(z, 1, False)
            case "last":
                return z[:, -1]
            case _:
                return words.reshape(z, (-1, layer.outputs))

    def _head(self, layer: Layer, z: Any) -> Any:
        words = self._words
        match layer.option:
            case "softmax":
                return words.softmax(z)
            case "log_softmax":
                return z - words.logsumexp(z, -1, True)
            case "unit":
                return self._unit(layer, z)
            case _:
                return z
