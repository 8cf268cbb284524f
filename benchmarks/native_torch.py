"""PyTorch's own derivatives of an MLP, as torch leaves them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch

import gradbridge as gb
from benchmarks.networks import Native


def make(sizes: tuple[int, ...], X: np.ndarray) -> Native:
    """An MLP with tanh between its layers in the dtype of X, its step and its Hessian-vector product there."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(a, b), torch.nn.Tanh()]
    data = torch.tensor(X)
    model = torch.nn.Sequential(*layers[:-1]).to(data.dtype)
    parameters = list(model.parameters())

    def step() -> object:
        loss = (model(data) ** 2).sum()
        return loss.item(), torch.autograd.grad(loss, parameters)

    f = gb.bridge(model, dtype=str(X.dtype))

    def product(direction: np.ndarray) -> Callable[[], Sequence[object]]:
        """By the gradient of the gradient ("double backward"), as torch's documentation does it."""
        pieces = [torch.tensor(v, dtype=data.dtype) for v in f.layout.unravel(direction).values()]

        def compute() -> Sequence[object]:
            gradients = torch.autograd.grad((model(data) ** 2).sum(), parameters, create_graph=True)
            return torch.autograd.grad(gradients, parameters, pieces)

        return compute

    return Native(f, step, product)
