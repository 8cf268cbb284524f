"""Guests of torch programs: one small network in every framework, and the same in plain torch; models of torch's own."""

import autograd.numpy as anp
import numpy as np
import torch
from torch import nn

import gradbridge as gb

_DRAW = np.random.default_rng(0)
TREE = {
    "W1": _DRAW.normal(size=(2, 3)),
    "W2": _DRAW.normal(size=(3, 1)),
    "b1": _DRAW.normal(size=3),
    "b2": _DRAW.normal(size=1),
}
#: Inputs of the models of torch's own.
X3 = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
INPUTS = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)


def network(tanh):
    return lambda p, x: tanh(x @ p["W1"] + p["b1"]) @ p["W2"] + p["b2"]


def bridge_over(guest, **options):
    """A bridge over the network as a guest's own function."""
    if guest == "jax":
        import jax.numpy as jnp

        return gb.bridge(network(jnp.tanh), params=TREE, backend="jax", **options)
    if guest == "torch":
        params = {name: torch.tensor(w) for name, w in TREE.items()}
        return gb.bridge(network(torch.tanh), params=params, backend="torch", **options)
    return gb.bridge(network(anp.tanh), params=TREE, backend="autograd", **options)


def native(p, x):
    """The network in plain torch, of the flat vector of its parameters."""
    w1, w2, b1, b2 = p.split([6, 3, 3, 1])
    return torch.tanh(x @ w1.reshape(2, 3) + b1) @ w2.reshape(3, 1) + b2


def vector():
    return torch.tensor(np.concatenate([w.ravel() for w in TREE.values()]))


def leaves(tree):
    """All tensors of a tree, in order."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if tree is None:
        return []
    return [leaf for part in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(part)]


def assert_same(found, expected, tolerance=1e-12):
    found, expected = leaves(found), leaves(expected)
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a.detach(), b.detach(), rtol=0.0, atol=tolerance * scale)


def weights_of(f):
    return [torch.tensor(w, requires_grad=True) for w in f.layout.cut(np.asarray(f.params))]


def called_once(model, x=X3, **options):
    """A bridge whose first gradient was taken, so that it is known what its model does."""
    f = gb.bridge(model, **options)
    output = f(weights_of(f), x)
    (output if isinstance(output, torch.Tensor) else output[0]).sum().backward()
    return f


def linear(outputs=2):
    return nn.Linear(3, outputs, dtype=torch.float64)


class Net(nn.Module):
    """A model of the user's own class around what `body` does with its layer."""

    def __init__(self, body, outputs=2):
        super().__init__()
        self.layer, self.body = linear(outputs), body

    def forward(self, x):
        return self.body(self, x)
