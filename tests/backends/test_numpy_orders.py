"""Higher orders and forward mode of plain functions, by rules that users write; against closed forms."""

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import (
    grad,
    hessian,
    hessian_vector_product,
    jacobian,
    make_ggnvp,
    make_hvp,
    make_jvp,
)

import gradbridge as gb
from gradbridge.call_spec import CallSpec
from gradbridge.errors import HigherOrderError, MissingVJPError
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

    f = gb.primitive(counted)
    f.defvjp(lambda ans, x: lambda v: 3 * x**2 * v).defvjp(lambda g, x, v: lambda u: 6 * x * v * u)
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


# -- parameters and trees ---------------------------------------------------------------------


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


# -- forward mode -----------------------------------------------------------------------------


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
