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
from gradbridge.errors import GradientShapeError, HigherOrderError
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


DEEP = {"w": {"a": onp.array([1.0, 2.0]), "b": [onp.array(3.0), onp.ones(2)]}, "c": onp.array(0.5)}


@pytest.mark.parametrize(
    ("unmoved", "moving"),
    [
        ({"w": {"a": None, "b": None}}, {"c"}),  # a branch
        ({"w": None}, {"c"}),  # a branch with branches in it
        ({"w": {"b": [None, None]}, "c": None}, {"w/a"}),  # leaves, in a list too
        ({"w/b/0": None, "w/b/1": None, "c": None}, {"w/a"}),  # by the names of the layout
    ],
)
def test_none_in_a_gradient_of_params_says_that_nothing_depends_on_these(unmoved, moving):
    def function(p, x):
        return x * (np.sum(p["w"]["a"]) if "w/a" in moving else p["c"])

    def rule(ans, p, x):
        def pull(v):
            s = onp.sum(v * x)
            if any("/" in name for name in unmoved):
                return {"w/a": s * onp.ones(2), **unmoved}
            if "w/a" in moving:
                return {"w": {"a": s * onp.ones(2), "b": unmoved["w"]["b"]}, "c": None}
            return {**unmoved, "c": s}

        return pull

    f = gb.bridge(function, params=DEEP, backend="numpy", vjp=rule)
    expected = f.layout.ravel(
        {name: (6.5 if name in moving else 0.0) * onp.ones(shape) for name, shape, _ in f.layout}
    )
    onp.testing.assert_array_equal(grad(lambda p: np.sum(f(p, onp.array([6.0, 0.5]))))(f.params), expected)


def test_none_in_tangents_and_in_rules_of_second_order():
    f = gb.primitive(lambda q: {"moves": q["x"] ** 3, "rest": (2.0 * onp.ones(3), q["y"] * 0.0 + 1.0)})
    first = f.defvjp(lambda ans, q: lambda v: {"x": 3 * q["x"] ** 2 * v["moves"], "y": None})
    f.defjvp(lambda t, ans, q: {"moves": 3 * q["x"] ** 2 * t["x"], "rest": None})
    first.defvjp(lambda gradient, q, v: lambda u: {"x": 6 * q["x"] * v["moves"] * u["x"], "y": None})
    for at in ({"x": X, "y": U}, {"y": U, "x": X}):
        moved = f.jvp(at, tangent=U, wrt=0)
        onp.testing.assert_allclose(moved["moves"], 3 * X**2 * U)
        assert not onp.any(moved["rest"][0])
        assert not onp.any(moved["rest"][1])
    loss = lambda x, y: np.sum(U * f({"x": x, "y": y})["moves"])
    onp.testing.assert_allclose(hessian(loss)(X, X), onp.diag(6 * X * U))
    onp.testing.assert_array_equal(hessian(loss, 1)(X, X), onp.zeros((3, 3)))


def test_none_does_not_stand_for_what_is_forgotten_and_nan_is_passed_on():
    params = {"a": onp.ones(2), "b": onp.array(1.0)}

    def pulled(gradient):
        rule = lambda ans, p, x: lambda v: gradient
        f = gb.bridge(lambda p, x: p["a"] * x, params=params, backend="numpy", vjp=rule)
        return grad(lambda p: np.sum(f(p, 2.0)))(f.params)

    for wrong in ({"a": None}, {"a": onp.ones(2), "b": None, "d": onp.ones(2)}, [None, onp.array(1.0)]):
        with pytest.raises(GradientShapeError, match="VJP for the parameters .* tree like them"):
            pulled(wrong)
    with pytest.raises(GradientShapeError, match="returned None; return the gradient"):
        pulled(None)
    onp.testing.assert_array_equal(pulled({"a": onp.array([onp.nan, 2.0]), "b": None}), [onp.nan, 2.0, 0.0])
