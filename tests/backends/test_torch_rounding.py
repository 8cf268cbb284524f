"""What is zero but for rounding is no fault: checks that compare relative to it would refuse what is right."""

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, hessian_vector_product, make_jvp

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402

X = onp.random.default_rng(0).normal(size=(4, 3))
TOKENS = onp.array([[0, 1, 2], [2, 1, 0], [1, 1, 1], [2, 2, 0]])


class Shifted(nn.Module):
    """log-softmax of z + b, which does not depend on b."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 4)
        self.shift = nn.Parameter(torch.tensor([0.7]))

    def forward(self, x):
        return torch.log_softmax(self.lin(x) + self.shift, -1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def of_one_feature():
    return nn.Sequential(nn.Linear(3, 1), nn.LayerNorm(1), nn.Tanh())


@pytest.mark.parametrize("strategy", ["auto", "rows", "vjp", "jvp", "loop"])
@pytest.mark.parametrize("make", [Shifted, of_one_feature])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_jacobians_with_columns_of_rounding_are_taken_by_every_strategy(strategy, make, dtype):
    module = make()
    f = gb.bridge(module, dtype=dtype)
    found = f.jacobian(f.params, X, strategy=strategy)
    weights = {name: p.detach().double() for name, p in module.named_parameters()}
    call = lambda w: torch.func.functional_call(module.double(), w, (torch.tensor(X),))
    expected = torch.func.jacrev(call)(weights)
    expected = torch.cat([expected[n].reshape(*found.shape[:2], -1) for n in f.layout.names], -1).numpy()
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    onp.testing.assert_allclose(found, expected, atol=tolerance * onp.abs(expected).max())


@pytest.mark.parametrize("make", [Shifted, of_one_feature])
@pytest.mark.parametrize("host", ["float64", "float32"])
def test_second_derivatives_through_what_is_rounding_are_taken(make, host):
    f = gb.bridge(make(), dtype="float64")
    p, x = f.params.astype(host), X.astype(host)
    loss = lambda p, x: np.sum(np.sin(f(p, x)))
    for argument in (0, 1):
        at = (p, x)[argument]
        product = hessian_vector_product(loss, argument)(p, x, onp.ones_like(at))
        assert onp.isfinite(product).all()
        assert product.dtype == host
    tangent = make_jvp(lambda p: f(p, x))(p)(onp.ones_like(p))[1]
    assert onp.isfinite(tangent).all()


def test_rows_of_integers_are_their_own_where_a_gradient_is_rounding():
    module = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 1), nn.Flatten(), nn.LogSoftmax(-1))
    whole, chunked = gb.bridge(module), gb.bridge(module, rows_per_chunk=2)
    v = onp.random.default_rng(1).normal(size=(4, 3))
    onp.testing.assert_allclose(
        chunked.vjp(chunked.params, TOKENS, cotangent=v),
        whole.vjp(whole.params, TOKENS, cotangent=v),
        atol=1e-14,
    )


@pytest.mark.parametrize("host", ["float64", "float32"])
def test_a_host_of_another_precision_than_the_guest_is_no_fault(host):
    for dtype in ("float64", "float32"):
        f = gb.bridge(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), dtype=dtype)
        p = f.params.astype(host)
        loss = lambda p, f=f: np.sum(f(p, X)) ** 2
        product = hessian_vector_product(loss)(p, onp.ones_like(p))
        step = 1e-2 if "float32" in (host, dtype) else 1e-5
        moved = [grad(loss)((p + s * step).astype(host)) for s in (1, -1)]
        scale = onp.abs(product).max()
        onp.testing.assert_allclose(product, (moved[0] - moved[1]) / (2 * step), atol=2e-2 * scale)
