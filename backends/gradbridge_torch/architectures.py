"""The portable architectures as torch modules, with the canonical parameter layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from gradbridge.layout import Array
from gradbridge_torch.runtime import RUNTIME

if TYPE_CHECKING:
    from gradbridge.architectures import Architecture, Layer


def build(architecture: Architecture, params: Mapping[str, Array]) -> Network:
    """A float32 module of the architecture, holding the parameters."""
    RUNTIME.require()
    return Network(architecture, params)


class Network(nn.Module):
    """A stack of layers; images are (n, height, width, channels)."""

    def __init__(self, architecture: Architecture, params: Mapping[str, Array]) -> None:
        super().__init__()
        self.squeeze = architecture.squeeze
        self.names = [layer.name for layer in architecture.layers]
        for layer in architecture.layers:
            part = _PARTS[layer.kind](layer)
            for name in ("bias", "weight") if layer.shapes else ():
                value = torch.tensor(params[f"{layer.name}.{name}"], dtype=torch.float32)
                setattr(part, name, nn.Parameter(value))
            self.add_module(layer.name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, …) → (n, outputs), or (n,) for a single output."""
        for name in self.names:
            x = self.get_submodule(name)(x)
        return x.squeeze(-1) if self.squeeze else x


class _Part(nn.Module):
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.size = layer.size
        self.activation = layer.activation

    def activated(self, x: torch.Tensor) -> torch.Tensor:
        if self.activation is None:
            return x
        return torch.softmax(x, -1) if self.activation == "softmax" else getattr(torch, self.activation)(x)


class _Dense(_Part):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activated(x @ self.weight + self.bias)


class _Conv(_Part):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = self.weight.permute(3, 2, 0, 1)
        y = nn.functional.conv2d(x.permute(0, 3, 1, 2), kernel, self.bias, padding=self.size // 2)
        return self.activated(y.permute(0, 2, 3, 1))


class _Pool(_Part):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.max_pool2d(x.permute(0, 3, 1, 2), self.size).permute(0, 2, 3, 1)


class _Flatten(_Part):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], -1)


_PARTS = {"dense": _Dense, "conv": _Conv, "pool": _Pool, "flatten": _Flatten}
