"""PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import gradbridge as gb
from benchmarks.host_programs.system import Guest, Step, System, Weights


class Torch(System):
    """Weights as leaves that require gradients, and as one such vector."""

    name, label = "torch", "torch"
    ways = ("eager", "compiled")
    layer = "gradbridge, as_module"
    passes_vectors = True

    def guest(self, weights: Weights) -> Guest:
        model = module(weights, "float32")
        tree = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
        return Guest(gb.bridge(model), tree)

    def alone(self, weights: Weights, X: np.ndarray, way: str) -> Step:
        model = module(weights, str(X.dtype))
        return _step(model, list(model.parameters()), torch.tensor(X), way)

    def program(self, f: Callable[[Any, Any], Any], tree: Any, X: np.ndarray, way: str) -> Step:
        leaves: list[torch.Tensor] = []
        params = _leaves(tree, leaves)
        return _step(lambda x: f(params, x), leaves, torch.tensor(X), way)

    def empty(self, way: str) -> Step:
        p = torch.ones(3, requires_grad=True)
        return _step(_Empty.apply if way == "eager" else _empty, [p], p, way)

    def as_layer(self, bridge: gb.Bridge, X: np.ndarray) -> Step:
        layer = bridge.as_module().float()
        return _step(layer, list(layer.parameters()), torch.tensor(X), "eager")


def module(weights: Weights, dtype: str) -> torch.nn.Sequential:
    """An MLP with tanh between its layers."""
    layers: list[torch.nn.Module] = []
    for weight, bias in weights:
        linear = torch.nn.Linear(*weight.shape)
        linear.load_state_dict({"weight": torch.tensor(weight.T), "bias": torch.tensor(bias)})
        layers += [linear, torch.nn.Tanh()]
    return torch.nn.Sequential(*layers[:-1]).to(getattr(torch, dtype))


def _step(f: Callable[[Any], Any], leaves: list[Any], X: torch.Tensor, way: str) -> Step:
    def loss(x: torch.Tensor) -> torch.Tensor:
        return (f(x) ** 2).sum()

    if way == "compiled":
        # What is compiled is kept with the code object: each program has one of its own.
        loss.__code__ = loss.__code__.replace()
        loss = torch.compile(loss, fullgraph=True)

    def step() -> tuple[Any, Any]:
        value = loss(X)
        return value.item(), torch.autograd.grad(value, leaves)

    return step


def _leaves(tree: Any, leaves: list[torch.Tensor]) -> Any:
    """The tree with a tensor that requires a gradient for each array, which `leaves` takes, too."""
    if isinstance(tree, dict):
        return {name: _leaves(part, leaves) for name, part in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_leaves(part, leaves) for part in tree)
    leaves.append(torch.tensor(tree, requires_grad=True))
    return leaves[-1]


class _Empty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: torch.Tensor) -> torch.Tensor:
        return p.view_as(p)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return g


@torch.library.custom_op("gradbridge_benchmarks::empty", mutates_args=())
def _empty(p: torch.Tensor) -> torch.Tensor:
    return p.clone()


_empty.register_fake(torch.empty_like)
_empty.register_autograd(lambda ctx, g: g)
