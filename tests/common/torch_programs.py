"""One small network for every guest of torch programs, and the same in plain torch."""

import autograd.numpy as anp
import numpy as np
import torch

import gradbridge as gb

_DRAW = np.random.default_rng(0)
TREE = {
    "W1": _DRAW.normal(size=(2, 3)),
    "W2": _DRAW.normal(size=(3, 1)),
    "b1": _DRAW.normal(size=3),
    "b2": _DRAW.normal(size=1),
}
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
