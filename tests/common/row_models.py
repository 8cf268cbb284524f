"""What is computed over workers in several modules of tests/ray, and what it must be: native PyTorch in float64."""

import autograd.numpy as anp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(size=(101, 5)), DRAW.normal(size=(101, 1))
D = DRAW.normal(size=57)


def network():
    torch.manual_seed(0)
    layers = torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    return torch.nn.Sequential(*layers).double()


def curves(p, x, shift=0.0, names=None):
    """Several outputs of a function of autograd.numpy: rows of two shapes, and integers."""
    z = anp.dot(x, p["w"]) + p["b"] + shift
    return {"sine": anp.sin(z), "both": (z[:, None] * x, (z > 0) * 1)}


TREE = {"b": np.array(0.3), "w": np.linspace(-1, 1, 5)}


def loss(f, x):
    return lambda p: anp.mean((f(p, x) - Y) ** 2)


def native(params, x=X):
    """(loss, gradient by the params, gradient by the inputs, product with D) by PyTorch alone."""
    net = network()
    p = torch.tensor(params, requires_grad=True)
    inputs = torch.tensor(x, requires_grad=True)
    names = [n for n, _ in net.named_parameters()]
    shapes = [w.shape for w in net.parameters()]
    parts = [part.reshape(s) for part, s in zip(p.split([s.numel() for s in shapes]), shapes)]
    value = ((torch.func.functional_call(net, dict(zip(names, parts)), inputs) - torch.tensor(Y)) ** 2).mean()
    own, rows = torch.autograd.grad(value, (p, inputs), create_graph=True)
    product = torch.autograd.grad(own, p, torch.tensor(D))[0]
    return value.item(), own.detach().numpy(), rows.detach().numpy(), product.numpy()


def close(ours, theirs, times=1):
    assert np.abs(ours - theirs).max() <= times * 2e-15 * np.abs(theirs).max()
