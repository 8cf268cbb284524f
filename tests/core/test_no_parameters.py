"""A model without trainable parameters has params of length 0, and every derivative by them is empty or zero."""

import warnings

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad, hessian_vector_product, make_jvp

import gradbridge as gb
from gradbridge.errors import GuestError, LayoutError, ParamsShapeError

torch = pytest.importorskip("torch")
X, NONE = np.random.default_rng(0).normal(size=(4, 3)), np.empty(0)


def frozen():
    layer = torch.nn.Linear(3, 3)
    for p in layer.parameters():
        p.requires_grad_(False)
    return layer


@pytest.fixture(params=[torch.nn.Tanh, frozen])
def f(request):
    return gb.bridge(request.param(), dtype="float64")


def loss(f):
    return lambda p, x: anp.sum(f(p, x) ** 3)


def test_derivatives_by_the_params_are_empty(f):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # autograd says that nothing depends on them, which is so
        assert grad(loss(f))(NONE, X).shape == (0,)
        assert hessian_vector_product(loss(f))(NONE, X, NONE).shape == (0,)
        assert not np.any(make_jvp(lambda p: f(p, X))(NONE)(NONE)[1])
        assert grad(lambda both: loss(f)(*both))((NONE, X))[0].shape == (0,)


def test_products_and_jacobians_too(f):
    y = f(NONE, X)
    assert not np.any(f.jvp(NONE, X, tangent=NONE))
    assert f.ggn(NONE, X, vector=NONE).shape == f.vjp(NONE, X, cotangent=y).shape == (0,)
    for strategy in ("auto", "rows", "loop"):
        by_params, by_x = f.jacobian(NONE, X, wrt=(0, 1), strategy=strategy)
        assert by_params.shape == (*y.shape, 0)
        np.testing.assert_allclose(by_x, f.jacobian(NONE, X, wrt=1))


def test_derivatives_by_the_inputs_are_those_of_any_model(f):
    layer = f.model(NONE)

    def native(x):
        return (layer(x) ** 3).sum()

    x = torch.tensor(X)
    expected = torch.autograd.functional.hvp(native, x, x)[1].numpy()
    np.testing.assert_allclose(hessian_vector_product(lambda x: loss(f)(NONE, x))(X, X), expected, rtol=1e-12)


@pytest.mark.parametrize("backend", ["autograd", "numpy"])
def test_a_function_of_params_that_was_bridged_without_them_is_told_where_they_go(backend):
    options = {"gradient": "numeric"} if backend == "numpy" else {}
    f = gb.bridge(lambda p, x: x @ p["w"], backend=backend, **options)
    params, x = {"w": np.ones((3, 2))}, np.ones((4, 3))
    assert f.params.shape == (0,)
    cure = "if its first argument is the params, bridge it with params="
    with pytest.raises(ParamsShapeError, match=f"the model has no parameters: {cure}"):
        f(np.ones(6), x)
    with pytest.raises(GuestError, match=f"missing 1 required positional argument: 'x'; {cure}"):
        f(f.params, x)
    with pytest.raises(LayoutError, match=f"the model has no parameters, got a dict; {cure}"):
        f(params, x)
