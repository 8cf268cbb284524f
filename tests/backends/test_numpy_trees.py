"""Higher orders of functions of trees and of parameters, by rules that users write; against closed forms."""

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import (
    grad,
    hessian,
    jacobian,
    make_jvp,
)

import gradbridge as gb
from gradbridge.call_spec import CallSpec
from gradbridge.errors import HigherOrderError
from gradbridge_numpy.rules import VJPRule

X, U = onp.array([0.5, -1.0, 2.0]), onp.array([1.0, 0.3, -0.7])


def line(flat):
    """exp(a + x @ b) of a tree of params, its gradients a tree or a flat vector."""

    def value(p, x):
        return onp.exp(p["a"] + x @ p["b"])

    def packed(a, b):
        return onp.concatenate([[a], b]) if flat else {"a": a, "b": b}

    def opened(u):
        return (u[0], u[1:]) if flat else (u["a"], u["b"])

    @VJPRule
    def of_p(ans, p, x):
        return lambda v: packed((v * ans).sum(), (v * ans) @ x)

    @VJPRule
    def of_x(ans, p, x):
        return lambda v: onp.outer(v * ans, p["b"])

    @of_p.defvjp
    def _(gradient, p, x, v):
        def pull(u):
            a, b = opened(u)
            w = v * value(p, x) * (a + x @ b)
            return packed(w.sum(), w @ x)

        return pull

    @of_p.defvjp(argnums=(1,))
    def _(gradient, p, x, v):
        def pull(u):
            a, b = opened(u)
            return onp.outer(v * value(p, x), b) + onp.outer(v * value(p, x) * (a + x @ b), p["b"])

        return pull

    params = {"a": onp.array(0.1), "b": onp.array([0.2, -0.3])}
    return gb.bridge(value, params=params, backend="numpy", vjp=(of_p, of_x))


@pytest.mark.parametrize("flat", [False, True], ids=["tree", "flat vector"])
def test_second_order_of_a_tree_of_params(flat):
    f = line(flat)
    x = onp.array([[1.0, 2.0], [0.5, -1.0], [0.3, 0.8]])
    design = onp.column_stack([onp.ones(3), x])
    y = onp.exp(design @ f.params)
    H = hessian(lambda p: np.sum(f(p, x)))(f.params)
    onp.testing.assert_allclose(H, design.T @ (y[:, None] * design), rtol=1e-13)
    # d/dx of the gradient along w: by rows yᵢ ((1, xᵢ) · w) b + yᵢ w[1:].
    w = onp.array([0.4, -1.0, 2.0])
    mixed = grad(lambda x: np.dot(grad(lambda p: np.sum(f(p, x)))(f.params), w))(x)
    onp.testing.assert_allclose(
        mixed, onp.outer(y * (design @ w), f.params[1:]) + onp.outer(y, w[1:]), rtol=1e-13
    )
    # The other order has no rule, and follows by symmetry with one unit vector per number.
    other = grad(lambda p: np.sum(grad(lambda x: np.sum(f(p, x)))(x) * x))(f.params)
    expected = design.T @ (y * (x @ f.params[1:])) + onp.concatenate([[0.0], y @ x])
    onp.testing.assert_allclose(other, expected, rtol=1e-13)
    with pytest.raises(HigherOrderError, match=r"argument 1 \(x\) and then argument 1 \(x\)"):
        hessian(lambda x: np.sum(f(f.params, x)))(x)


def test_params_of_one_array_that_is_no_vector():
    of_p = VJPRule(lambda ans, p, x: lambda v: onp.outer(v * 2 * (p @ x), x))
    of_p.defjvp(lambda t, gradient, p, x, v: onp.outer(v * 2 * (t @ x), x))
    f = gb.bridge(lambda p, x: (p @ x) ** 2, params=onp.ones((2, 2)), backend="numpy", vjp=of_p)
    x = onp.array([2.0, 3.0])
    H = hessian(lambda p: np.sum(f(p, x)))(f.params)
    onp.testing.assert_allclose(H, onp.kron(onp.eye(2), 2 * onp.outer(x, x)), rtol=1e-14)


@pytest.mark.parametrize("how", ["vjp", "jvp"])
def test_leaves_of_a_tree_argument_are_told_apart(how):
    f = gb.primitive(lambda s, k: k * s["a"] ** 2 * onp.sum(s["b"]))

    @f.defvjp
    def of_s(ans, s, k):
        return lambda v: {
            "a": 2 * v * k * s["a"] * onp.sum(s["b"]),
            "b": v * k * s["a"] ** 2 * onp.ones_like(s["b"]),
        }

    def along(t, s, k, v):
        a, b, total = s["a"], onp.ones_like(s["b"]), onp.sum(s["b"])
        return {
            "a": 2 * v * k * (t["a"] * total + a * onp.sum(t["b"])),
            "b": 2 * v * k * a * t["a"] * b,
        }

    if how == "jvp":
        of_s.defjvp(lambda t, gradient, s, k, v: along(t, s, k, v))
    else:
        of_s.defvjp(lambda gradient, s, k, v: lambda u: along(u, s, k, v))
    a, b = onp.array(1.5), onp.array([1.0, 2.0])
    of_a = lambda a, b: f({"a": a, "b": b}, 3.0)
    assert onp.isclose(grad(grad(of_a))(a, b), 2 * 3 * 3)
    onp.testing.assert_allclose(grad(grad(of_a), 1)(a, b), [9.0, 9.0])
    onp.testing.assert_allclose(jacobian(grad(of_a, 1), 0)(a, b), [9.0, 9.0])
    assert onp.array_equal(hessian(of_a, 1)(a, b), onp.zeros((2, 2)))
    onp.testing.assert_allclose(make_jvp(grad(of_a))(a, b)(1.0)[1], 18.0)


def test_outputs_of_a_tree():
    f = gb.primitive(lambda x: {"y": x**2, "z": (x.sum() ** 2,)})
    of_x = f.defvjp(lambda ans, x: lambda v: v["y"] * 2 * x + v["z"][0] * 2 * x.sum())
    of_x.defvjp(lambda g, x, v: lambda u: v["y"] * 2 * u + v["z"][0] * 2 * u.sum())

    def loss(x):
        out = f(x)
        return np.sum(np.exp(out["y"])) + out["z"][0]

    expected = onp.diag((2 + 4 * X**2) * onp.exp(X**2)) + 2
    onp.testing.assert_allclose(hessian(loss)(X), expected, rtol=1e-13)


@pytest.mark.parametrize("how", ["vjp", "jvp"])
def test_integers_among_the_outputs_do_not_move(how):
    f = gb.primitive(lambda x: {"y": x**2, "n": onp.arange(2)})
    if how == "vjp":
        f.defvjp(lambda ans, x: lambda v: v["y"] * 2 * x)
    else:
        f.defjvp(lambda t, ans, x: {"y": 2 * x * t, "n": 0})
    pushed = f.bridge.jvp(onp.empty(0), X, tangent=U, wrt=1)
    onp.testing.assert_allclose(pushed["y"], 2 * X * U)
    assert onp.array_equal(pushed["n"], [0, 0])
    onp.testing.assert_allclose(grad(lambda x: np.sum(f(x)["y"]))(X), 2 * X)
    # The leaves are n, y; so are the cotangents, arguments 1 and 2 of the pullback.
    spec = CallSpec.of_arrays(1)
    second = f.bridge.adapter.pullback(spec, (0,))
    inputs = [X, onp.zeros(2), onp.ones(3)]
    outputs, residuals = second.forward(second.update([]), inputs, spec, (1, 2))
    onp.testing.assert_allclose(outputs[0], 2 * X)
    pulled = second.backward(residuals, [U], (1, 2))
    assert onp.array_equal(pulled[0], [0, 0])
    onp.testing.assert_allclose(pulled[1], 2 * X * U)
