"""Forward mode of plain functions, by rules that users write; against closed forms."""

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import (
    grad,
    hessian,
    make_ggnvp,
    make_jvp,
)

import gradbridge as gb
from gradbridge.errors import HigherOrderError, MissingVJPError

X, U = onp.array([0.5, -1.0, 2.0]), onp.array([1.0, 0.3, -0.7])
Y = onp.array([1.5, 0.2, -0.4])


def test_forward_mode_by_a_written_jvp_in_one_forward_and_without_the_vjp():
    f = gb.primitive(lambda x, y: x * y)

    def never(ans, x, y):
        raise AssertionError("the VJP was asked")

    f.defvjp(never, never)
    f.defjvp(lambda t, ans, x, y: t * y, lambda t, ans, x, y: x * t)
    with gb.trace() as t:
        value, moved = make_jvp(f)(X, Y)(U)
    assert onp.array_equal(value, X * Y)
    assert onp.array_equal(moved, U * Y)
    assert t.counts["forward"] == 1
    assert t.counts["backward"] == 0
    pair = (X, Y)
    moved = make_jvp(lambda pair: f(pair[0], pair[1]))(pair)((U, X))[1]
    onp.testing.assert_allclose(moved, U * Y + X * X)


def test_forward_mode_of_a_vjp_alone_is_exact():
    f = gb.primitive(lambda x: onp.outer(x, x))
    f.defvjp(lambda ans, x: lambda v: (v + v.T) @ x)
    moved = make_jvp(f)(X)(U)[1]
    onp.testing.assert_allclose(moved, onp.outer(U, X) + onp.outer(X, U), rtol=1e-14)
    assert grad(lambda a: np.sum(grad(lambda x: a * np.sum(f(x)))(X)))(2.0) == pytest.approx(6 * X.sum())


def test_gauss_newton_needs_first_order_rules_alone():
    f = gb.primitive(lambda x: x**3)
    f.defvjp(lambda ans, x: lambda v: 3 * x**2 * v)
    expected = (3 * X**2) ** 2 * U
    onp.testing.assert_allclose(make_ggnvp(f, lambda y: 0.5 * np.sum(y**2))(X)(U), expected, rtol=1e-14)
    onp.testing.assert_allclose(f.bridge.ggn(onp.empty(0), X, vector=U, wrt=1), expected, rtol=1e-14)


def test_a_function_with_a_jvp_alone_has_a_gradient():
    @gb.primitive
    def f(x, k):
        return k * onp.outer(x, x)

    @f.defjvp
    def f_jvp(t, ans, x, k):
        return k * (onp.outer(t, x) + onp.outer(x, t))

    assert callable(f_jvp)
    W = onp.arange(9.0).reshape(3, 3)
    onp.testing.assert_allclose(grad(lambda x: np.sum(f(x, 2.0) * W))(X), 2 * (W + W.T) @ X, rtol=1e-14)
    onp.testing.assert_allclose(make_jvp(f)(X, 2.0)(U)[1], 2 * (onp.outer(U, X) + onp.outer(X, U)))
    assert f.bridge.adapter.gradient_note.startswith("written down as JVPs")
    with pytest.raises(MissingVJPError, match=r"argument 1 \(k\) .* rules for argument 0 only"):
        grad(lambda k: np.sum(f(X, k)))(2.0)
    with pytest.raises(HigherOrderError, match=r"write the VJPs up to it"):
        hessian(lambda x: np.sum(f(x, 2.0)))(X)


def test_a_jvp_of_params():
    f = gb.bridge(
        lambda p, x: p["a"] * x,
        params={"a": onp.array([1.0, 2.0])},
        backend="numpy",
        jvp=(lambda t, ans, p, x: t["a"] * x, lambda t, ans, p, x: p["a"] * t),
    )
    x = onp.array([3.0, 4.0])
    assert onp.array_equal(f.jvp(f.params, x, tangent=onp.array([1.0, 10.0])), [3.0, 40.0])
    assert onp.array_equal(grad(lambda p: f(p, x).sum())(f.params), [3.0, 4.0])
