"""Params that a caller has as integers, in a tree: they are computed with as floating numbers, by every guest."""

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad

import gradbridge as gb

X = np.array([[1.0, -2.0], [0.5, 3.0]])
W, B = np.array([[1, -2], [3, 1]]), np.array([2, -1])


def halves(p, x):
    return x @ p["w"] / 2 + p["b"] ** -1


def function(backend):
    pytest.importorskip(backend)
    return gb.bridge(halves, params={"b": B.astype(float), "w": W.astype(float)}, backend=backend)


@pytest.mark.parametrize("backend", ["torch", "jax", "tensorflow", "autograd"])
def test_a_function_computes_with_floating_numbers(backend):
    f, expected = function(backend), halves({"b": B.astype(float), "w": W.astype(float)}, X)
    np.testing.assert_allclose(f({"b": B, "w": W}, X), expected, rtol=1e-15)
    np.testing.assert_allclose(grad(lambda x: anp.sum(f({"b": B, "w": W}, x)))(X), [W.sum(1) / 2] * 2)
    mixed = grad(lambda b: anp.sum(f({"b": b, "w": W}, X)))(B.astype(float))
    np.testing.assert_allclose(mixed, -2.0 / B**2, rtol=1e-15)


def test_a_module_of_torch_computes_with_them_in_programs_of_torch_too():
    torch = pytest.importorskip("torch")
    f = gb.bridge(torch.nn.Linear(2, 2))
    x = torch.tensor(X, requires_grad=True)
    tree = {"weight": torch.tensor(W.T.copy()), "bias": torch.tensor(B)}
    for _ in range(3):
        y = f(tree, x)
        assert y.dtype is torch.float64
        np.testing.assert_allclose(y.detach(), X @ W + B, rtol=1e-15)
        np.testing.assert_allclose(torch.autograd.grad(y.sum(), x)[0], [W.sum(1)] * 2, rtol=1e-15)
    np.testing.assert_allclose(f({"weight": W.T, "bias": B}, X), X @ W + B, rtol=1e-15)


def test_a_function_of_jax_is_a_part_of_programs_of_jax_with_them_too():
    jax = pytest.importorskip("jax")
    f = function("jax")
    expected = X @ W / 2 + 1.0 / B
    vector = f.layout.ravel({"b": B, "w": W}).astype(int)
    for params in ({"b": jax.numpy.array(B), "w": jax.numpy.array(W)}, jax.numpy.array(vector)):
        program = jax.jit(f)
        assert "gradbridge" not in str(jax.make_jaxpr(program)(params, X))  # nobody is called back
        for call in (program, f):
            y = call(params, X)
            assert y.dtype == jax.numpy.float32
            np.testing.assert_allclose(y, expected, rtol=1e-6)
        gradient = jax.jit(jax.grad(lambda x, p: f(p, x).sum()))(jax.numpy.array(X), params)
        np.testing.assert_allclose(gradient, [W.sum(1) / 2] * 2, rtol=1e-6)
