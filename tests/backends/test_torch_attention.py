"""Derivatives beyond the first through torch's fast attention, which has one itself."""

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, hessian_vector_product

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402

DRAW = onp.random.default_rng(0)
X = DRAW.normal(size=(5, 3))


class Attention(nn.Module):
    """Of one head over the rows by torch's fast kernel, or by its formula; or of two, as encoder layers have it."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.project = kind, nn.Linear(3, 4).double()
        self.heads = nn.MultiheadAttention(4, 2, batch_first=True).double()

    def forward(self, x):
        y = torch.tanh(self.project(x))[None]
        if self.kind == "heads":
            return self.heads(y, y, y, need_weights=False)[0][0]
        if self.kind == "formula":
            weights = torch.softmax((y @ y.mT / 2).masked_fill(torch.ones(5, 5).triu(1) > 0, -torch.inf), -1)
            return (weights @ y)[0]
        attended = nn.functional.scaled_dot_product_attention(y[None], y[None], y[None], is_causal=True)
        return attended[0, 0]


def test_fast_attention_has_the_derivatives_of_its_formula():
    ours, truth = (gb.bridge(Attention(kind)) for kind in ("causal", "formula"))
    p, v = ours.params, 0.5 * DRAW.normal(size=ours.layout.size)
    products = [hessian_vector_product(lambda q, f=f: np.sum(np.sin(f(q, X))))(p, v) for f in (ours, truth)]
    onp.testing.assert_allclose(*products, rtol=1e-8, atol=1e-12)
    lines = [lambda t, f=f: np.sum(np.sin(f(p + t * v, X))) for f in (ours, truth)]
    for order in range(4):
        onp.testing.assert_allclose(lines[0](0.3), lines[1](0.3), rtol=1e-8, err_msg=f"order {order}")
        lines = [grad(line) for line in lines]


def test_attention_of_several_heads_has_second_derivatives():
    f = gb.bridge(Attention("heads"))
    p, v = f.params, 0.5 * DRAW.normal(size=f.layout.size)
    slope = grad(lambda q: np.sum(np.sin(f(q, X))))
    numeric = (slope(p + 1e-5 * v) - slope(p - 1e-5 * v)) / 2e-5
    ours = hessian_vector_product(lambda q: np.sum(np.sin(f(q, X))))(p, v)
    onp.testing.assert_allclose(ours, numeric, rtol=1e-6, atol=1e-9)
