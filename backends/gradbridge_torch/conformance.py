"""The scenarios of the conformance kit in PyTorch, as modules and as a function of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gradbridge.layout import Array
from gradbridge.testing import BackendUnderTest


class UnderTest(BackendUnderTest):
    backend: ClassVar[str] = "torch"
    builds = True

    def mlp(self, weight1: Array, bias1: Array, weight2: Array, bias2: Array) -> nn.Module:
        return nn.Sequential(_linear(weight1, bias1), nn.Tanh(), _linear(weight2, bias2))

    def embedding(self, table: Array) -> nn.Module:
        return nn.Embedding.from_pretrained(torch.tensor(table), freeze=False)

    def energy(self) -> Any:
        return lambda x, y: (x**2 * y).sum()

    def outputs(self, scale: Array) -> nn.Module:
        return _Outputs(scale)

    def tied(self, weight: Array) -> nn.Module:
        first, second = _linear(weight), _linear(weight)
        second.weight = first.weight
        return nn.Sequential(first, nn.Tanh(), second)

    def unused(self, weight: Array, spare: Array) -> nn.Module:
        return _Unused(weight, spare)

    def dropout(self, rate: float) -> nn.Module:
        return nn.Dropout(rate)

    def batchnorm(self, scale: Array, shift: Array, epsilon: float) -> nn.Module:
        layer = nn.BatchNorm1d(len(scale), eps=epsilon, dtype=torch.float64)
        layer.weight, layer.bias = _parameter(scale), _parameter(shift)
        return layer

    def wave(self, scale: Array) -> nn.Module:
        return _Wave(scale)

    def broadcast(self, scale: Array) -> nn.Module:
        return _Broadcast(scale)

    def masked(self) -> Any:
        return lambda x, m, k: torch.where(m, k * x**2, x)

    def root(self, scale: Array) -> Any:
        return _Root(scale)

    def switch(self) -> Any:
        return lambda x, name, k: k * x**3 if name == "cube" else k * x**2

    def labels(self, scale: Array) -> Any:
        return _Labels(scale)

    def state(self, model: Any) -> Any:
        surroundings = (
            torch.get_rng_state().numpy().tobytes(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
        )
        if not isinstance(model, nn.Module):
            return surroundings
        tensors = [(name, t.numpy(force=True).tobytes()) for name, t in model.state_dict().items()]
        slots = [(name, id(p), p.requires_grad, p.grad is None) for name, p in model.named_parameters()]
        modes = [(name, part.training, len(part._forward_hooks)) for name, part in model.named_modules()]
        return surroundings, tensors, slots, modes

    def surroundings(self) -> Iterable[tuple[str, AbstractContextManager[Any]]]:
        yield "under torch.no_grad()", torch.no_grad()
        yield "under torch.inference_mode()", torch.inference_mode()
        yield "under autocast", torch.autocast("cpu", dtype=torch.bfloat16)
        yield "under fake tensors", FakeTensorMode(allow_non_fake_inputs=True)
        yield "under lossy hooks", torch.autograd.graph.saved_tensors_hooks(torch.zeros_like, lambda t: t)
        yield "under default dtype float16", _default_dtype(torch.float16)
        yield "under default dtype float64", _default_dtype(torch.float64)


class _Outputs(nn.Module):
    def __init__(self, scale: Array) -> None:
        super().__init__()
        self.scale = _parameter(scale)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {"scaled": x * self.scale, "rest": (x**2, (self.scale**2).sum())}


class _Unused(nn.Module):
    def __init__(self, weight: Array, spare: Array) -> None:
        super().__init__()
        self.spare = _parameter(spare)
        self.weight = _parameter(weight)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.exp(x @ self.weight / 4)


class _Wave(nn.Module):
    def __init__(self, scale: Array) -> None:
        super().__init__()
        self.scale = _parameter(scale)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        square = (z * z.conj()).real
        return self.scale * torch.exp(1j * x) * z * square, square


class _Broadcast(nn.Module):
    def __init__(self, scale: Array) -> None:
        super().__init__()
        self.scale = _parameter(scale)

    def forward(self, t: torch.Tensor, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.scale * x + m) * t[:, None]


class _Root(nn.Module):
    def __init__(self, scale: Array) -> None:
        super().__init__()
        self.scale = _parameter(scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * torch.sqrt(x)


class _Labels(nn.Module):
    def __init__(self, scale: Array) -> None:
        super().__init__()
        self.scale = _parameter(scale)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scale * x, x.argmax(1)


def _linear(weight: Array, bias: Array | None = None) -> nn.Linear:
    layer = nn.Linear(*weight.shape, bias=bias is not None, dtype=torch.float64)
    layer.weight = _parameter(weight.T)
    if bias is not None:
        layer.bias = _parameter(bias)
    return layer


def _parameter(array: Array) -> nn.Parameter:
    return nn.Parameter(torch.tensor(array))


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
