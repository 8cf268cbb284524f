"""PyTorch's own step on an MLP: forward and backward, gradients as torch leaves them."""

from __future__ import annotations

import itertools

import numpy as np
import torch

import gradbridge as gb
from benchmarks.steps import Native


def make(sizes: tuple[int, ...], X: np.ndarray) -> Native:
    """An MLP with tanh between its layers, and its native step on X."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(a, b), torch.nn.Tanh()]
    model = torch.nn.Sequential(*layers[:-1])
    data, parameters = torch.tensor(X), list(model.parameters())

    def step() -> object:
        loss = (model(data) ** 2).sum()
        return loss.item(), torch.autograd.grad(loss, parameters)

    return Native(gb.bridge(model), step)
