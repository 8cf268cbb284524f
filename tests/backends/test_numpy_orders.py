"""Higher orders of plain functions, by rules that users write; against closed forms."""

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import (
    grad,
    hessian,
    hessian_vector_product,
    jacobian,
    make_hvp,
    make_jvp,
)

import gradbridge as gb
from gradbridge.errors import HigherOrderError
from gradbridge_numpy.rules import VJPRule

X, U = onp.array([0.5, -1.0, 2.0]), onp.array([1.0, 0.3, -0.7])
Y = onp.array([1.5, 0.2, -0.4])


def cube():
    """x³ with rules to third order."""

    @gb.primitive
    def Q(x):
        return x**3

    @Q.defvjp
    def Q_vjp(ans, x):
        return lambda v: 3 * x**2 * v

    @Q_vjp.defvjp
    def Q_vjp_vjp(gradient, x, v):
        return lambda u: 6 * x * v * u

    @Q_vjp_vjp.defvjp
    def _(gradient, x, v, u):
        return lambda w: 6 * v * u * w

    return Q


def test_a_rule_is_called_as_its_maker_and_keeps_its_name():
    Q = gb.primitive(lambda x: x**2)

    @Q.defvjp
    def Q_vjp(ans, x):
        """Twice."""
        return lambda v: 2 * x * v

    assert (Q_vjp.__name__, Q_vjp.__doc__) == ("Q_vjp", "Twice.")
    assert Q_vjp(9.0, 3.0)(1.0) == 6.0
    assert repr(Q_vjp) == "<VJPRule Q_vjp>"


def test_derivatives_of_a_scalar_to_third_order():
    Q = cube()
    assert grad(Q)(2.0) == 12.0
    assert grad(grad(Q))(2.0) == 12.0
    assert grad(grad(grad(Q)))(2.0) == 6.0
    with pytest.raises(HigherOrderError, match=r"to argument 0 \(x\) and then .* and then .*no rule"):
        grad(grad(grad(grad(Q))))(2.0)


def test_third_order_inside_of_a_program_that_is_not_linear_in_it():
    """exp(x³)''' has all of the terms: in the function, in its cotangent and in both."""
    Q = cube()
    x = 0.7
    e = onp.exp(x**3)
    third = grad(grad(grad(lambda x: np.exp(Q(x)))))(x)
    assert onp.isclose(third, e * (27 * x**6 + 54 * x**3 + 6), rtol=1e-13)


def test_hessians_and_products_of_an_array_function():
    Q = cube()
    loss = lambda x: np.sum(np.sin(Q(x)))
    diagonal = 6 * X * onp.cos(X**3) - 9 * X**4 * onp.sin(X**3)
    onp.testing.assert_allclose(hessian(loss)(X), onp.diag(diagonal), rtol=1e-13)
    onp.testing.assert_allclose(hessian_vector_product(loss)(X, U), diagonal * U, rtol=1e-13)
    onp.testing.assert_allclose(make_hvp(loss)(X)[0](U), diagonal * U, rtol=1e-13)
    onp.testing.assert_allclose(make_jvp(grad(loss))(X)(U)[1], diagonal * U, rtol=1e-13)


def test_forward_over_forward_and_reverse_over_forward():
    Q = cube()
    along = lambda x: make_jvp(Q)(x)(U)[1]
    onp.testing.assert_allclose(make_jvp(along)(X)(Y)[1], 6 * X * U * Y, rtol=1e-13)
    onp.testing.assert_allclose(jacobian(along)(X), onp.diag(6 * X * U), rtol=1e-13)
    scalar = lambda x: make_jvp(Q)(x)(1.0)[1]
    assert onp.isclose(grad(scalar)(2.0), 12.0)
    assert onp.isclose(grad(grad(scalar))(2.0), 6.0)


def test_a_product_with_the_hessian_starts_from_the_recorded_forward():
    calls = []

    def counted(x):
        calls.append(1)
        return x**3

    f = gb.primitive(audit="off")(counted)
    f.defvjp(lambda ans, x: lambda v: 3 * x**2 * v).defvjp(lambda g, x, v: lambda u: 6 * x * v * u)
    make_hvp(lambda x: np.sum(np.sin(f(x))))(X)[0](U)  # the first ones are compared with others
    calls.clear()
    x = X.copy()
    product, _ = make_hvp(lambda x: np.sum(np.sin(f(x))))(x)
    x[:] = 100.0  # the caller's own array, changed meanwhile
    expected = (6 * X * onp.cos(X**3) - 9 * X**4 * onp.sin(X**3)) * U
    onp.testing.assert_allclose(product(U), expected, rtol=1e-13)
    onp.testing.assert_allclose(product(U), expected, rtol=1e-13)
    assert len(calls) == 1


def bilinear(rules):
    """f(x, y) = x² y of arrays, with some of the rules that give its second order."""
    f = gb.primitive(lambda x, y: x**2 * y)
    of_x = VJPRule(lambda ans, x, y: lambda v: 2 * v * x * y)
    of_y = VJPRule(lambda ans, x, y: lambda v: v * x**2)
    f.defvjp(of_x, of_y)
    vjps = (lambda g, x, y, v: lambda u: 2 * v * y * u, lambda g, x, y, v: lambda u: 2 * v * x * u)
    jvps = (lambda t, g, x, y, v: 2 * v * y * t, lambda t, g, x, y, v: 2 * v * x * t)
    if rules == "a VJP of each":
        of_x.defvjp(*vjps)
        of_y.defvjp(lambda g, x, y, v: lambda u: 2 * v * x * u, None)
    elif rules == "a JVP of each":
        of_x.defjvp(*jvps)
        of_y.defjvp(lambda t, g, x, y, v: 2 * v * x * t, None)
    elif rules == "VJPs of the first":
        of_x.defvjp(*vjps)
        of_y.defvjp(None, argnums=(1,))
    elif rules == "JVPs of the first":
        of_x.defjvp(*jvps)
        of_y.defjvp(None, argnums=(1,))
    elif rules == "one of the first, one of the second":
        of_x.defjvp(jvps[0])
        of_y.defjvp(lambda t, g, x, y, v: 2 * v * x * t, None)
    elif rules == "forward mode too":
        of_x.defvjp(*vjps)
        of_y.defvjp(None, argnums=(1,))
        f.defjvp(lambda t, ans, x, y: 2 * x * y * t, lambda t, ans, x, y: x**2 * t)
    return f


RULES = (
    "a VJP of each",
    "a JVP of each",
    "VJPs of the first",
    "JVPs of the first",
    "one of the first, one of the second",
    "forward mode too",
)


@pytest.mark.parametrize("rules", RULES)
def test_mixed_second_derivatives_from_any_half_of_the_rules(rules):
    f = bilinear(rules)
    loss = lambda x, y: np.sum(np.sin(f(x, y)))
    s, c = onp.sin(X**2 * Y), onp.cos(X**2 * Y)
    xx = onp.diag(2 * Y * c - 4 * X**2 * Y**2 * s)
    xy = onp.diag(2 * X * c - 2 * X**3 * Y * s)
    yy = onp.diag(-(X**4) * s)
    onp.testing.assert_allclose(hessian(loss)(X, Y), xx, rtol=1e-13, atol=1e-15)
    onp.testing.assert_allclose(hessian(loss, 1)(X, Y), yy, rtol=1e-13, atol=1e-15)
    onp.testing.assert_allclose(jacobian(grad(loss, 0), 1)(X, Y), xy, rtol=1e-13, atol=1e-15)
    onp.testing.assert_allclose(jacobian(grad(loss, 1), 0)(X, Y), xy, rtol=1e-13, atol=1e-15)
    both = grad(lambda x, y: np.dot(grad(loss)(x, y), U), (0, 1))(X, Y)
    onp.testing.assert_allclose(both, [xx @ U, xy @ U], rtol=1e-13)
    moved = make_jvp(lambda x: grad(loss, 1)(x, Y))(X)(U)[1]
    onp.testing.assert_allclose(moved, xy @ U, rtol=1e-13)
    onp.testing.assert_allclose(make_jvp(f, 1)(X, Y)(U)[1], X**2 * U, rtol=1e-13)


def test_a_written_rule_is_taken_before_what_symmetry_gives():
    asked = []

    def noted(name, rule):
        def maker(*args):
            asked.append(name)
            return rule(*args)

        return maker

    f = gb.primitive(lambda x, y: x * y)
    of_x, of_y = VJPRule(lambda a, x, y: lambda v: v * y), VJPRule(lambda a, x, y: lambda v: v * x)
    f.defvjp(of_x, of_y)
    of_x.defvjp(None, noted("x then y", lambda g, x, y, v: lambda u: v * u))
    of_y.defvjp(noted("y then x", lambda g, x, y, v: lambda u: v * u), None)
    assert grad(grad(f), 1)(2.0, 3.0) == 1.0
    assert asked == ["x then y"]
    assert grad(grad(f, 1))(2.0, 3.0) == 1.0
    assert asked == ["x then y", "y then x"]
