"""Derivatives that are zero but for rounding, and hosts coarser than their guest: nothing there is wrong."""

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import hessian_vector_product

import gradbridge as gb

torch = pytest.importorskip("torch")
X = np.linspace(-1, 1, 12).reshape(4, 3)


def shifted(p, x):
    """Of a log softmax that everything is shifted in together."""
    return torch.log_softmax(x @ p["w"] + p["shift"], -1)


def of_one_feature(p, x):
    """A layer norm of one number is its bias: no derivative by anything else."""
    z = torch.nn.functional.layer_norm((x @ p["w"])[:, :1], (1,), p["scale"], p["bias"])
    return torch.tanh(z)


def params_of(model, dtype):
    rng = np.random.default_rng(0)
    names = {"w": (3, 2)} | ({"shift": (1,)} if model is shifted else {"scale": (1,), "bias": (1,)})
    return {name: torch.as_tensor(rng.normal(size=shape), dtype=dtype) for name, shape in names.items()}


@pytest.mark.parametrize("model", [shifted, of_one_feature])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("host", ["float64", "float32"])
def test_what_is_zero_but_for_rounding_is_no_disagreement(model, dtype, host):
    f = gb.bridge(model, params=params_of(model, torch.float64), backend="torch", dtype=dtype)
    p, x = f.params.astype(host), X.astype(host)
    tolerance = 1e-12 if "float32" not in (dtype, host) else 1e-4
    loop = f.jacobian(p, x, strategy="loop", wrt=(0, 1))
    for strategy in ("rows", "vjp", "jvp"):
        for one, other in zip(f.jacobian(p, x, strategy=strategy, wrt=(0, 1)), loop):
            np.testing.assert_allclose(one, other, atol=tolerance)
    product = hessian_vector_product(lambda x: anp.sum(anp.sin(f(p, x))))(x, x)
    assert product.dtype == host
    assert model is shifted or np.max(np.abs(product)) < tolerance


@pytest.mark.parametrize("model", [shifted, of_one_feature])
def test_such_rows_are_independent_in_chunks_whatever_the_guest_computes_in(model):
    f = gb.bridge(
        model, params=params_of(model, torch.float64), backend="torch", dtype="float32", rows_per_chunk=2
    )
    whole = gb.bridge(model, params=params_of(model, torch.float64), backend="torch", dtype="float32")
    v = np.ones_like(whole(f.params, X))
    np.testing.assert_allclose(
        f.vjp(f.params, X, cotangent=v), whole.vjp(f.params, X, cotangent=v), atol=1e-5
    )


class Single(torch.nn.Module):
    """Computes in float32, whatever it is made in, and returns what it was given."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Linear(5, 40), torch.nn.Linear(40, 3)

    def forward(self, x):
        y = x.float()
        for layer in (self.first, self.last):
            y = torch.tanh(torch.nn.functional.linear(y, layer.weight.float(), layer.bias.float()))
        return y.to(x.dtype)


@pytest.mark.filterwarnings("ignore:.*was asked to compute in float64")
@pytest.mark.parametrize("audit", ["first", "off"])
def test_derivatives_are_held_to_the_precision_that_a_model_computes_in(audit):
    f = gb.bridge(Single(), backend="torch", audit=audit)
    x = np.random.default_rng(0).normal(size=(6, 5))
    report = f.audit(f.params, x)
    assert report, report
    rows = {row.check: row.outcome for row in report}
    assert rows["gradient against differences"] == rows["JVP against VJP"] == "right"
    f.jvp(f.params, x, tangent=np.random.default_rng(1).normal(size=f.params.shape))
    assert "the guest's own" in f.capabilities["forward mode (JVP)"].note
    assert "disagrees" not in f.capabilities["forward mode (JVP)"].note
