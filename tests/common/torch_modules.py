"""Guests of the modules of bridges: a tanh layer over each backend, and torch's own of the same params."""

import numpy as np
import pytest
import torch
from torch import nn

import gradbridge as gb
from gradbridge_numpy.rules import VJPRule

W, B = np.random.default_rng(0).normal(size=(3, 2)), np.array([0.1, -0.2])
X = np.random.default_rng(1).normal(size=(5, 3))
x64 = torch.from_numpy(X)


def layer(p, x):
    return np.tanh(x @ p["w"] + p["b"])


def _of_p(ans, p, x):
    def pull(v):
        slope = v * (1 - ans**2)
        return {"b": slope.sum(0), "w": x.T @ slope}

    return pull


def _of_x(ans, p, x):
    return lambda v: (v * (1 - ans**2)) @ p["w"].T


of_p, of_x = VJPRule(_of_p), VJPRule(_of_x)


class Guest:
    """A tanh layer over some backend; `native` is torch's own of the same params."""

    def __init__(self, backend):
        self.backend, tree = backend, {"b": B, "w": W}
        if backend == "numpy":
            self.bridge = gb.bridge(layer, params=tree, backend="numpy", vjp=(of_p, of_x))
        elif backend == "torch":
            native = nn.Sequential(nn.Linear(3, 2), nn.Tanh()).double()
            native.load_state_dict({"0.weight": torch.from_numpy(W.T.copy()), "0.bias": torch.from_numpy(B)})
            self.bridge = gb.bridge(native)
        else:
            np_of = pytest.importorskip(backend + ".numpy")
            function = lambda p, x: np_of.tanh(np_of.dot(x, p["w"]) + p["b"])
            self.bridge = gb.bridge(function, params=tree, backend=backend)

    def native(self, module, x):
        if self.backend == "torch":
            p = dict(module.named_parameters())
            return torch.tanh(nn.functional.linear(x, p["0.weight"], p["0.bias"]))
        return torch.tanh(x @ module.w + module.b)


def gradients(loss, module, *more):
    return torch.autograd.grad(loss, [*module.parameters(), *more])


def assert_equal(ours, theirs, atol=1e-12):
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=atol)
