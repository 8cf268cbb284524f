"""Rules of plain functions: what they are refused for, in which words, and how they are called."""

import copy
import threading

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import elementwise_grad, grad, hessian, jacobian, make_hvp, make_jvp

import gradbridge as gb
from gradbridge.call_spec import CallSpec
from gradbridge.errors import GradientShapeError, HigherOrderError, MissingVJPError, VJPSignatureError
from gradbridge_numpy.rules import VJPRule

X, U = onp.array([0.5, -1.0, 2.0]), onp.array([1.0, 0.3, -0.7])
Y = onp.array([1.5, 0.2, -0.4])


def test_first_order_rules_alone_refuse_a_hessian_and_say_what_to_write():
    f = gb.primitive(lambda x, y: x * y)
    of_x = VJPRule(lambda ans, x, y: lambda v: v * y)
    f.defvjp(of_x, lambda ans, x, y: lambda v: v * x)
    words = (
        r"derivative of the written-down gradient of .* with respect to argument 0 \(x\) and then argument 1 "
        r"\(y\), and no rule gives it.* write it with @Q_vjp.defvjp or @Q_vjp.defjvp"
    )
    with pytest.raises(HigherOrderError, match=words):
        jacobian(grad(lambda x, y: f(x, y).sum()), 1)(X, Y)
    with pytest.raises(HigherOrderError):
        hessian(lambda x: f(x, Y).sum())(X)
    with pytest.raises(HigherOrderError):
        make_hvp(lambda x: f(x, Y).sum())(X)[0](U)
    with pytest.raises(HigherOrderError):
        make_jvp(grad(lambda x: f(x, Y).sum()))(X)(U)
    assert "@Q_vjp.defvjp" in f.bridge.adapter.refusal("pullback")
    of_x.defvjp(None, lambda gradient, x, y, v: lambda u: v * u)
    assert f.bridge.adapter.refusal("pullback") == ""
    onp.testing.assert_array_equal(jacobian(grad(lambda x, y: f(x, y).sum()), 1)(X, Y), onp.eye(3))
    assert onp.array_equal(hessian(lambda x: f(x, Y).sum())(X), onp.zeros((3, 3)))


def test_no_rule_at_all_refuses_forward_mode_in_its_own_words():
    f = gb.primitive(lambda x: x)
    with pytest.raises(HigherOrderError, match=r"forward-mode derivative \(JVP\) of <lambda>"):
        make_jvp(f)(1.0)(1.0)
    with pytest.raises(HigherOrderError, match="derivative of the written-down gradient"):
        grad(grad(f))(1.0)


@pytest.mark.parametrize(
    ("define", "rule", "words"),
    [
        (
            "defvjp",
            lambda gradient, x: None,
            r"must take 3 arguments, \(gradient, x, v\), got \(gradient, x\)",
        ),
        ("defjvp", lambda gradient, x, v: None, r"must take 4 arguments, \(t, gradient, x, v\)"),
        ("defvjp", 3.0, "takes functions or None, got a float"),
    ],
)
def test_a_second_order_rule_of_a_wrong_arity_is_refused_when_it_is_written(define, rule, words):
    f = gb.primitive(lambda x: x**2)
    rules = f.defvjp(lambda ans, x: lambda v: 2 * x * v)
    with pytest.raises(VJPSignatureError, match=words):
        getattr(rules, define)(rule)
    with pytest.raises(VJPSignatureError, match=r"must take 4 arguments, \(gradient, x, v, u\)"):
        rules.defvjp(lambda gradient, x, v: lambda u: 2 * v * u).defvjp(lambda gradient, x, v: None)
    with pytest.raises(VJPSignatureError, match=r"rule for argument 2, but <lambda> takes 2: x, v"):
        rules.defvjp(None, lambda g, x, v: lambda u: u, None)
    with pytest.raises(VJPSignatureError, match="got None for v"):
        rules.defvjp(None, None)


def test_a_jvp_of_a_wrong_arity_or_kind_is_refused():
    f = gb.primitive(lambda x: x**2)
    with pytest.raises(VJPSignatureError, match=r"JVP maker .* must take 3 arguments, \(t, ans, x\)"):
        f.defjvp(lambda ans, x: None)
    f.defjvp(lambda t, ans, x: lambda v: v)
    with pytest.raises(VJPSignatureError, match="must return the tangent itself, got a function"):
        make_jvp(f)(X)(U)
    f.defjvp(lambda t, ans, x: None)
    with pytest.raises(GradientShapeError, match="the JVP of <lambda> for argument 0 returned None"):
        make_jvp(f)(X)(U)
    f.defjvp(lambda t, ans, x: t.sum())
    with pytest.raises(GradientShapeError, match=r"the output's shape \(3,\), got \(\)"):
        make_jvp(f)(X)(U)


def test_second_order_rules_that_return_something_else_are_refused():
    f = gb.primitive(lambda x: x**2)

    @f.defvjp
    def rule(ans, x):
        return lambda v: 2 * x * v

    @rule.defvjp
    def again(gradient, x, v):
        return lambda u: onp.sum(2 * v * u)

    with pytest.raises(GradientShapeError, match=r"the VJP again of <lambda> .* shape \(3,\), got \(\)"):
        hessian(lambda x: f(x).sum())(X)
    rule.defvjp(lambda gradient, x, v: 2.0)
    with pytest.raises(
        VJPSignatureError, match="must return a function of the cotangent, got a float; return `lambda v: …`"
    ):
        hessian(lambda x: f(x).sum())(X)
    p = gb.bridge(lambda p, x: x, params={"a": X}, backend="numpy", vjp=lambda a, p, x: lambda v: {"b": v})
    with pytest.raises(GradientShapeError, match="a tree like them, or a vector"):
        grad(lambda q: p(q, X).sum())(p.params)


# -- how functions are called -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "factor"),
    [((), {}, 2.0), ((3.0,), {}, 3.0), ((), {"k": 4.0}, 4.0), ((), {"c": 5.0}, 10.0)],
)
def test_defaults_and_keywords_reach_rules_of_higher_orders_by_position(args, kwargs, factor):
    f = gb.primitive(lambda x, k=2.0, *, c=1.0: c * k * x**2)
    f.defvjp(lambda ans, x, k=2.0, *, c=1.0: lambda v: 2 * c * k * x * v).defvjp(
        lambda gradient, x, k, v, *, c=1.0: lambda u: 2 * c * k * v * u
    )
    H = hessian(lambda x: f(x, *args, **kwargs).sum())(X)
    onp.testing.assert_allclose(H, 2 * factor * onp.eye(3))


def test_functions_without_a_signature_and_methods():
    sine = gb.primitive(onp.sin)
    sine.defvjp(lambda ans, x: lambda v: v * onp.cos(x)).defvjp(
        lambda gradient, x, v: lambda u: -v * u * onp.sin(x)
    )
    onp.testing.assert_allclose(hessian(lambda x: np.sum(sine(x) ** 2))(X), 2 * onp.diag(onp.cos(2 * X)))
    assert elementwise_grad(elementwise_grad(sine))(0.5) == -onp.sin(0.5)

    class Spring:
        def __init__(self, k):
            self.k = k

        @gb.primitive
        def energy(self, x):
            return 0.5 * self.k * x**2

        @energy.defvjp(argnums=(1,))
        def force(ans, self, x):
            return lambda v: v * self.k * x

        @force.defvjp(argnums=(1,))
        def _(gradient, self, x, v):
            return lambda u: v * self.k * u

    assert grad(grad(Spring(3.0).energy))(2.0) == 3.0


def test_rules_that_write_to_what_they_get_change_nothing():
    f = gb.primitive(lambda x: x**3)

    def rude(ans, x):
        def pull(v):
            v *= 3 * x**2
            return v

        return pull

    def ruder(gradient, x, v):
        x *= 6

        def pull(u):
            u *= v * x
            return u

        return pull

    f.defvjp(rude).defvjp(ruder)
    loss = lambda x: np.sum(f(x))
    onp.testing.assert_allclose(hessian(loss)(X), onp.diag(6 * X))
    onp.testing.assert_allclose(make_jvp(f)(X)(U)[1], 3 * X**2 * U)
    x = X.copy()
    pull, _ = make_hvp(loss)(x)
    x[:] = 100.0
    onp.testing.assert_allclose(pull(U), 6 * X * U)


def test_a_function_in_float32_keeps_to_it():
    seen = set()
    of_x = VJPRule(lambda ans, x: lambda v: 2 * x * v.astype(x.dtype))

    def again(gradient, x, v):
        seen.add((gradient.dtype.name, x.dtype.name))
        return lambda u: 2 * v * u

    of_x.defvjp(again)
    f = gb.primitive(dtype="float32", vjp=of_x)(lambda x: x**2)
    onp.testing.assert_allclose(hessian(lambda x: f(x).sum())(X), 2 * onp.eye(3), rtol=1e-6)
    assert seen == {("float32", "float32")}


def test_adapters_of_second_order_in_eight_threads():
    f, results = gb.primitive(lambda x: x**3), {}
    f.defvjp(lambda ans, x: lambda v: 3 * x**2 * v).defvjp(lambda g, x, v: lambda u: 6 * x * v * u)
    adapter = f.bridge.adapter

    def work(k):
        spec = CallSpec.of_arrays(1)
        x = onp.full(3, float(k))
        for _ in range(50):
            second = adapter.pullback(spec, (0,))
            inputs = [x, onp.ones(3)]
            _, residuals = second.forward(second.update([]), inputs, spec, (0, 1))
            results[k] = second.backward(residuals, [U], (0, 1))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(8):
        onp.testing.assert_allclose(results[k], [6 * k * U, 3 * k**2 * U])


def test_an_argument_of_no_influence_is_no_second_order_of_the_others():
    f = gb.primitive(lambda x, y: x**2)
    of_x, _ = f.bridge.adapter.defvjp(lambda ans, x, y: lambda v: 2 * x * v, None)
    assert "@Q_vjp.defvjp" in f.bridge.adapter.refusal("pullback")
    assert onp.array_equal(jacobian(grad(lambda x, y: f(x, y).sum()), 1)(X, Y), onp.zeros((3, 3)))
    of_x.defvjp(lambda gradient, x, y, v: lambda u: 2 * v * u)
    assert f.bridge.adapter.refusal("pullback") == ""


def test_a_written_rule_for_the_cotangent_is_taken_and_sees_no_zeros():
    f = gb.primitive(lambda x: x**2)
    of_x = f.defvjp(lambda ans, x: lambda v: 2 * x * v)
    of_x.defvjp(
        lambda gradient, x, v: lambda u: 2 * v * u,
        lambda gradient, x, v: lambda u: u * gradient / v,
    )
    loss = lambda x: np.sum(np.exp(f(x)))
    onp.testing.assert_allclose(hessian(loss)(X), onp.diag((2 + 4 * X**2) * onp.exp(X**2)), rtol=1e-13)
    onp.testing.assert_allclose(make_jvp(f)(X)(U)[1], 2 * X * U)


ONE_EACH = r"; write one rule per argument: defvjp\(rule_x, rule_y\)"


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        (lambda ans, x, y: (lambda v: v * y, lambda v: v * x), VJPSignatureError),  # a pullback for each
        (lambda ans, x, y: lambda v: (v * y, v * x), GradientShapeError),  # a gradient for each
        (lambda ans, x, y: lambda v: (v * y, np.sum(v * x)), GradientShapeError),  # of several shapes
    ],
)
def test_a_rule_that_returns_a_tuple_is_told_that_there_is_one_rule_per_argument(rule, error):
    f = gb.primitive(lambda x, y: x * y)
    f.defvjp(rule)
    with pytest.raises(error, match=ONE_EACH):
        grad(lambda x: np.sum(f(x, X)))(X)


def test_a_rule_of_a_tree_that_returns_a_tuple_is_told_that_there_is_one_rule_per_argument():
    f = gb.primitive(lambda x, y: x["a"] * y)
    f.defvjp(lambda ans, x, y: lambda v: ({"a": v * y}, v * x["a"]))
    with pytest.raises(GradientShapeError, match=f"must return a tree like .*{ONE_EACH}"):
        grad(lambda x: np.sum(f({"a": x}, X)))(X)


def test_a_rule_may_return_a_gradient_as_a_tuple_of_numbers():
    f = gb.primitive(lambda x, y: x[0] * x[1] * y)
    f.defvjp(lambda ans, x, y: lambda v: (v * x[1] * y, v * x[0] * y))
    onp.testing.assert_array_equal(grad(lambda x: f(x, 5.0))(onp.array([2.0, 3.0])), [15.0, 10.0])


def test_a_list_of_rules_is_told_that_there_is_one_rule_per_argument():
    f = gb.primitive(lambda x, y: x * y)
    with pytest.raises(VJPSignatureError, match="got a list; give one rule per argument, not a list of them"):
        f.defvjp([lambda ans, x, y: lambda v: v * y, lambda ans, x, y: lambda v: v * x])


def test_the_missing_rule_of_a_bridge_is_asked_for_as_an_option():
    f = gb.bridge(lambda p, x: p * x, params=onp.ones(3), backend="numpy")
    with pytest.raises(
        MissingVJPError, match="it has no rules; write it as vjp= of gradbridge.bridge, one rule per"
    ):
        grad(lambda p: np.sum(f(p, X)))(f.params)


def test_a_keyword_has_no_rule():
    f = gb.primitive(lambda x, k: k * x)
    f.defvjp(lambda ans, x, k: lambda v: k * v, lambda ans, x, k: lambda v: np.sum(v * x))
    f.defjvp(lambda t, ans, x, k: k * t)
    with pytest.raises(MissingVJPError, match="argument 'k' of <lambda> was passed by keyword"):
        grad(lambda k: np.sum(f(X, k=k)))(2.0)
    with pytest.raises(MissingVJPError, match="argument 'k' of <lambda> was passed by keyword"):
        make_jvp(lambda k: np.sum(f(X, k=k)))(2.0)(1.0)
    onp.testing.assert_allclose(make_jvp(lambda x: f(x, k=3.0))(X)(U)[1], 3 * U)


def test_copies_of_a_function_stand_alone_with_their_rules():
    f = gb.primitive(lambda x: x**2)
    of_x = f.defvjp(lambda ans, x: lambda v: 2 * x * v)
    other = copy.deepcopy(f)
    of_x.defvjp(lambda gradient, x, v: lambda u: 2 * v * u)
    assert grad(grad(f))(1.0) == 2.0
    with pytest.raises(HigherOrderError):
        grad(grad(other))(1.0)
    numeric = copy.deepcopy(gb.primitive(gradient="numeric")(lambda x: x**2))
    assert numeric.gradient_error is None


def test_a_rule_that_fails_is_named():
    Q = gb.primitive(lambda x: x**2)

    @Q.defvjp
    def Q_vjp(ans, x):
        return lambda v: v @ np.ones((7, 7))

    with pytest.raises(gb.errors.GuestError, match=r"the rule Q_vjp that is written for .* failed .*\(3,\)"):
        grad(lambda x: Q(x).sum())(np.ones(3))

    R = gb.primitive(lambda x: x**2)
    R.defjvp(lambda t, ans, x: {}["missing"])
    with pytest.raises(gb.errors.GuestError, match="KeyError: 'missing'"):
        R.jvp(np.ones(3), tangent=np.ones(3))
