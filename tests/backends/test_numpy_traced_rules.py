"""Rules that are written in autograd.numpy: their second order comes by autograd, against closed forms."""

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, hessian, make_hvp

import gradbridge as gb
from gradbridge.errors import HigherOrderError

X, Y, U = onp.array([0.5, -1.0, 2.0]), onp.array([1.5, 0.4, -0.3]), onp.array([1.0, 0.3, -0.7])


def test_a_rule_of_several_steps_has_its_hessian():
    data = onp.linspace(-1, 2, 20)

    @gb.primitive
    def likelihood(p):
        return -0.5 * onp.sum((data - p[0]) ** 2) * onp.exp(-p[1]) - 10 * p[1]

    @likelihood.defvjp
    def score(ans, p):
        r, s = data - p[0], np.exp(-p[1])
        return lambda v: v * np.array([np.sum(r) * s, 0.5 * np.sum(r**2) * s - 10])

    p = onp.array([0.7, 0.3])
    r, s = data - p[0], onp.exp(-p[1])
    expected = [[-20 * s, -r.sum() * s], [-r.sum() * s, -0.5 * onp.sum(r**2) * s]]
    onp.testing.assert_allclose(hessian(likelihood)(p), expected)
    # In a program around it, so that its cotangent moves, too.
    onp.testing.assert_allclose(
        hessian(lambda p: np.exp(likelihood(p) / 10))(p),
        onp.exp(likelihood(p) / 10) * (onp.array(expected) / 10 + onp.outer(*[grad(likelihood)(p) / 10] * 2)),
    )


def test_the_answer_in_a_rule_moves_with_the_arguments():
    f = gb.primitive(lambda x: onp.exp(x**2))
    f.defvjp(lambda ans, x: lambda v: np.multiply(v * ans, 2 * x))
    expected = (2 + 4 * X**2) * onp.exp(X**2)
    onp.testing.assert_allclose(hessian(lambda x: np.sum(U * f(x)))(X), onp.diag(U * expected))
    onp.testing.assert_allclose(make_hvp(lambda x: np.sum(f(x)))(X)[0](U), expected * U)


def test_two_arguments_and_helpers_that_rules_call():
    f = gb.primitive(lambda x, y: onp.sum(onp.sin(x * y) * y))
    f.defvjp(
        lambda ans, x, y: lambda v: v * slope(x, y) * y,
        lambda ans, x, y: lambda v: v * (slope(x, y) * x + np.sin(x * y)),
    )
    native = lambda x, y: np.sum(np.sin(x * y) * y)

    def product(g, of, by):
        return grad(lambda *a: np.sum(U * grad(g, of)(*a)), by)(X, Y)

    for of in (0, 1):
        for by in (0, 1):
            onp.testing.assert_allclose(product(f, of, by), product(native, of, by))


def slope(x, y):
    return np.cos(x * y) * y


def test_a_tree_of_params_and_a_branch_that_does_not_move():
    params = {"spare": onp.ones(2), "w": X}

    def rule(ans, p, x):
        return lambda v: {"w": np.cos(p["w"] * x) * x * v, "spare": None}

    f = gb.bridge(
        lambda p, x: onp.sin(p["w"] * x), params=params, backend="numpy",
        vjp=(rule, lambda ans, p, x: lambda v: np.cos(p["w"] * x) * p["w"] * v),
    )  # fmt: skip
    found = hessian(lambda p: np.sum(f(p, Y)))(f.params)
    onp.testing.assert_allclose(found, onp.diag([0, 0, *(-onp.sin(X * Y) * Y**2)]))
    mixed = grad(lambda x: np.sum(grad(lambda p: np.sum(f(p, x)))(f.params)))(Y)
    onp.testing.assert_allclose(mixed, onp.cos(X * Y) - onp.sin(X * Y) * X * Y)


def test_a_written_second_order_comes_first():
    f = gb.primitive(lambda x: x**3)
    rule = f.defvjp(lambda ans, x: lambda v: np.multiply(v, 3 * x**2))
    rule.defvjp(lambda gradient, x, v: lambda u: 6 * x * u * v)
    onp.testing.assert_allclose(hessian(lambda x: np.sum(f(x)))(X), onp.diag(6 * X))
    assert f.bridge.adapter.refusal("pullback") == ""


def test_a_rule_that_autograd_cannot_follow_is_refused_with_its_words():
    f = gb.primitive(lambda x: x**2)

    @f.defvjp
    def rule(ans, x):
        def pull(v):
            gradient = onp.empty(3)
            gradient[:] = np.multiply(2 * x, v)
            return gradient

        return pull

    words = r"@rule.defvjp .* autograd, in whose functions rule is written, could not"
    with pytest.raises(HigherOrderError, match=words):
        hessian(lambda x: np.sum(f(x)))(X)


def test_a_rule_that_reads_what_the_function_kept_is_found_out_by_its_first_product():
    kept = {}

    @gb.primitive
    def waves(x):
        kept["cos"] = onp.cos(x)
        return onp.sin(x)

    waves.defvjp(lambda ans, x: lambda v: np.multiply(v, kept["cos"]))
    with pytest.raises(HigherOrderError):
        hessian(lambda x: np.sum(waves(x)))(X)


def test_a_rule_of_numpy_alone_and_third_order_are_refused():
    f = gb.primitive(lambda x: x**3)
    f.defvjp(lambda ans, x: lambda v: 3 * x**2 * v)
    with pytest.raises(HigherOrderError, match="NumPy code cannot be differentiated"):
        hessian(lambda x: np.sum(f(x)))(X)
    f = gb.primitive(lambda x: x**3)
    f.defvjp(lambda ans, x: lambda v: np.multiply(3 * x**2, v))
    with pytest.raises(HigherOrderError, match="no rule gives it"):
        grad(lambda x: np.sum(grad(lambda x: np.sum(grad(lambda x: np.sum(f(x)))(x)))(x)))(X)
