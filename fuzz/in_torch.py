"""PyTorch: modules of its own layers, modules of bare parameters, and functions of trees."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fuzz.built import Built, cast, function_of
from fuzz.interpreter import EPSILON, interpret
from fuzz.networks import WORDS, Layer, Network

F = nn.functional


class Words:
    """The operations of `interpreter`, PyTorch's own where it has one."""

    tanh, exp, sin, sqrt, sigmoid, where, stack = (
        staticmethod(one)
        for one in (torch.tanh, torch.exp, torch.sin, torch.sqrt, torch.sigmoid, torch.where, torch.stack)
    )
    softplus, relu, gelu = staticmethod(F.softplus), staticmethod(F.relu), staticmethod(F.gelu)
    reshape, concat = staticmethod(torch.reshape), staticmethod(torch.cat)

    @staticmethod
    def constant(array: Any, like: Any) -> Any:
        return torch.as_tensor(array, dtype=like.dtype)

    @staticmethod
    def sum(z: Any, axis: Any, keepdims: bool = False) -> Any:
        return torch.sum(z, axis, keepdim=keepdims)

    @staticmethod
    def mean(z: Any, axis: Any, keepdims: bool) -> Any:
        return torch.mean(z, axis, keepdim=keepdims)

    @staticmethod
    def max(z: Any) -> Any:
        return torch.amax(z, 1)

    @staticmethod
    def swapped(z: Any) -> Any:
        return z.transpose(-1, -2)

    @staticmethod
    def take(table: Any, ids: Any) -> Any:
        return table[ids]

    @staticmethod
    def cumsum(z: Any) -> Any:
        return torch.cumsum(z, 1)

    @staticmethod
    def roll(z: Any) -> Any:
        return torch.roll(z, 1, 1)

    @staticmethod
    def argmax(z: Any) -> Any:
        return torch.argmax(z, -1)

    @staticmethod
    def logsumexp(z: Any, axis: int, keepdims: bool) -> Any:
        return torch.logsumexp(z, axis, keepdim=keepdims)

    @staticmethod
    def softmax(z: Any) -> Any:
        return torch.softmax(z, -1)

    @staticmethod
    def attend(q: Any, k: Any, v: Any, scale: float) -> Any:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)


class _Attention(nn.Module):
    """`nn.MultiheadAttention` of a sequence with itself."""

    def __init__(self, layer: Layer, weighs: bool) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(layer.inputs, int(layer.option), bias=layer.bias, batch_first=True)
        self.weighs = weighs

    def forward(self, z: Any) -> Any:
        return self.inner(z, z, z, need_weights=self.weighs)[0]


class _ChannelsFirst(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Any) -> Any:
        return self.inner(z.transpose(1, 2)).transpose(1, 2) if z.ndim == 3 else self.inner(z)


class _First(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Any) -> Any:
        return self.inner(z)[0]


_ACTIVATIONS = {
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
}


def _layer_of(layer: Layer, network: Network, w: dict[str, torch.Tensor]) -> nn.Module | None:
    """PyTorch's own layer with these weights, None where it has none."""
    a, b, bias = layer.inputs, layer.outputs, layer.bias
    made: nn.Module
    match layer.kind:
        case "linear":
            made = nn.Linear(a, b, bias)
            values = {"weight": w["w"].T, "bias": w.get("b")}
        case "conv":
            size = int(layer.option)
            made = _ChannelsFirst(nn.Conv1d(a, b, size, padding="same", bias=bias))
            values = {"inner.weight": w["w"].permute(2, 1, 0), "inner.bias": w.get("b")}
        case "layernorm":
            made = nn.LayerNorm(b, EPSILON, bias=bias)
            values = {"weight": w["scale"], "bias": w.get("b")}
        case "groupnorm" if bias and int(layer.option) < b:  # PyTorch refuses one number per group
            made = _ChannelsFirst(nn.GroupNorm(int(layer.option), b, EPSILON))
            values = {"inner.weight": w["scale"], "inner.bias": w["b"]}
        case "batchnorm" if bias:
            mean, variance = network.statistics(layer)
            made = _ChannelsFirst(nn.BatchNorm1d(b, EPSILON))
            values = {"inner.weight": w["scale"], "inner.bias": w["b"]}
            values |= {"inner.running_mean": torch.as_tensor(mean)}
            values |= {"inner.running_var": torch.as_tensor(variance)}
        case "embedding":
            made, values = nn.Embedding(WORDS, b), {"weight": w["table"]}
        case "attention":
            made = _Attention(layer, weighs=network.seed % 2 == 0)
            values = {"inner.in_proj_weight": w["in"].T, "inner.out_proj.weight": w["out"].T}
            values |= {"inner.in_proj_bias": w.get("b"), "inner.out_proj.bias": w.get("c")}
        case "rnn":
            made = _First(nn.RNN(a, b, batch_first=True, bias=bias))
            values = {"inner.weight_ih_l0": w["w"].T, "inner.weight_hh_l0": w["u"].T}
            values |= {"inner.bias_ih_l0": w.get("b"), "inner.bias_hh_l0": w.get("c")}
        case "act" if layer.option in _ACTIVATIONS:
            return _ACTIVATIONS[str(layer.option)]()
        case _:
            return None
    state = {name: value for name, value in values.items() if value is not None}
    left = made.load_state_dict(state, strict=False)
    assert not left.unexpected_keys, left
    return made


class _Module(nn.Module):
    """A network as a module.

    Args:
        network: which one.
        weights: the parameters.
        own_layers: whether PyTorch's layers stand for what they can, or parameters alone.
        frozen: names of parameters that are not trained.
    """

    def __init__(
        self, network: Network, weights: dict[str, Any], own_layers: bool, frozen: frozenset[str]
    ) -> None:
        super().__init__()
        self.network, self.layers = network, nn.ModuleDict()
        self.loose = nn.ParameterDict()
        self.drop = nn.Dropout(network.dropout) if network.dropout else None
        for layer in network.every_layer:
            own = {name: torch.as_tensor(weights[name]) for name in layer.shapes(network.length)}
            short = {name.split(".")[1]: array for name, array in own.items()}
            made = _layer_of(layer, network, short) if own_layers and not network.is_tied(layer) else None
            if made is not None:
                self.layers[layer.name] = made.to(next(iter(own.values())).dtype) if own else made
                for parameter in made.parameters():
                    parameter.requires_grad_(layer.name not in frozen)
                continue
            for name, array in own.items():
                trained = layer.name not in frozen
                self.loose[name.replace(".", "_")] = nn.Parameter(array.clone(), requires_grad=trained)

    def forward(self, first: Any, second: Any = None) -> Any:
        get = lambda name: self.loose[name.replace(".", "_")]  # noqa: E731
        inputs = (first,) if second is None else (first, second)
        return interpret(self.network, get, inputs, Words, dict(self.layers.items()), self.drop)


class Torch:
    """The guest."""

    styles = ("module", "module", "parameters", "function")
    queries = (3, 8)

    def build(self, network: Network, style: str, dtype: str, frozen: frozenset[str]) -> Built:
        weights = cast(network.weights(), dtype)
        if style != "function":
            return Built(_Module(network, weights, style == "module", frozen).eval())
        tensors = {name: torch.as_tensor(array) for name, array in weights.items()}
        return function_of(network, tensors, Words, "torch")


def native_outputs(model: Any, inputs: list[Any], dtype: str) -> Any:
    """What a module computes by itself."""
    with torch.no_grad():
        tensors = [torch.as_tensor(x) for x in inputs]
        return model(*[t.to(getattr(torch, dtype)) if t.is_floating_point() else t for t in tensors])
