"""The audit (law 10): what a bridge finds out about its guest at its first calls, what it mends, and what it refuses.

Models without a framework here; tests/backends has those of each.
"""

import copy
import itertools
import random

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, hessian_vector_product, jacobian, make_jvp

import gradbridge as gb
from gradbridge.errors import AuditError, HigherOrderError
from gradbridge.testing.reference import ReferenceAdapter, ReferencePullback

X = onp.random.default_rng(0).normal(size=(5, 3))


def written(body, rule=lambda ans, x: lambda v: 2 * x * v, **options):
    f = gb.primitive(**options)(body)
    f.defvjp(rule)
    return f


# -- a function of its arguments ------------------------------------------------------------------


@pytest.mark.parametrize("draw", [lambda: onp.random.normal(), random.random], ids=["numpy", "python"])  # noqa: NPY002
def test_numbers_from_a_global_generator_are_refused_by_name(draw):
    f = written(lambda x: x**2 + draw())
    with pytest.raises(AuditError, match="draws random numbers from Python's or NumPy's global generator"):
        grad(lambda x: np.sum(f(x)))(onp.arange(3.0))
    with pytest.raises(AuditError, match="draws random numbers"):
        written(lambda x: x**2 + draw())(onp.arange(3.0))  # where nothing is differentiated, too


def test_the_random_states_of_the_program_are_as_they_were():
    f = written(lambda x: x**2)
    onp.random.seed(3)  # noqa: NPY002
    random.seed(3)
    expected = onp.random.normal(), random.random()  # noqa: NPY002
    onp.random.seed(3)  # noqa: NPY002
    random.seed(3)
    grad(lambda x: np.sum(f(x)))(onp.arange(3.0))
    assert (onp.random.normal(), random.random()) == expected  # noqa: NPY002


def test_a_counter_between_calls_is_refused():
    calls = []

    def counting(x):
        calls.append(1)
        return x**2 * len(calls)

    with pytest.raises(AuditError, match="keeps something between calls"):
        grad(lambda x: np.sum(written(counting)(x)))(onp.arange(3.0))


def test_a_gradient_that_changes_from_call_to_call_is_refused():
    calls = []

    def rule(ans, x):
        calls.append(1)
        return lambda v: 2 * x * v * len(calls)

    with pytest.raises(AuditError, match="gives another gradient when the same call is pulled back again"):
        grad(lambda x: np.sum(written(lambda x: x**2, rule)(x)))(onp.arange(3.0))


def test_audit_off_looks_at_nothing():
    calls = []

    def counting(x):
        calls.append(1)
        return x**2 * len(calls)

    f = written(counting, audit="off")
    assert np.allclose(grad(lambda x: np.sum(f(x)))(onp.arange(3.0)), 2 * onp.arange(3.0))
    assert len(calls) == 1
    assert not f.capabilities["audited"]


def test_what_a_function_keeps_for_its_rule_is_of_the_programs_own_call():
    kept = {}

    def body(x):
        kept["cos"] = onp.cos(x)
        return onp.sin(x)

    x = onp.linspace(-1, 1, 5)
    onp.testing.assert_array_equal(
        grad(lambda x: np.sum(written(body, lambda ans, x: lambda v: v * kept["cos"])(x)))(x), onp.cos(x)
    )


def test_it_is_looked_at_once():
    calls = []

    def counted(x):
        calls.append(1)
        return x**2

    f = written(counted)
    assert not f.capabilities["audited"]
    gradient = grad(lambda x: np.sum(f(x)))
    gradient(onp.arange(3.0))
    first = len(calls)
    assert first > 1
    assert f.capabilities["audited"]
    for _ in range(3):
        gradient(onp.arange(3.0))
    assert len(calls) == first + 3
    assert copy.deepcopy(f).capabilities["audited"]


def test_its_calls_are_none_of_the_programs():
    f = written(lambda x: x**2)
    with gb.trace() as t:
        grad(lambda x: np.sum(f(x)))(onp.arange(3.0))
    assert (t.counts["forward"], t.counts["backward"]) == (1, 1)


def test_a_model_that_remembers_is_computed_by_a_fresh_copy_each_time(adapter_of):
    right, f = gb.bridge(adapter_of("right")), gb.bridge(adapter_of("forgetful"))
    for scale in (1.0, 2.0, -0.5):
        p = scale * f.params
        ours, theirs = (grad(lambda p, b=b: np.sum(b(p, X) ** 2))(p) for b in (f, right))
        onp.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert "a fresh copy" in f.capabilities["audited"].note


def test_a_model_that_remembers_and_cannot_be_made_fresh_is_refused(adapter_of):
    adapter = adapter_of("forgetful")
    adapter.isolates = False
    f = gb.bridge(adapter)
    with pytest.raises(AuditError, match="depend on earlier calls"):
        grad(lambda p: np.sum(f(p, X) ** 2))(f.params)


def test_a_rule_that_reads_what_its_forward_kept_is_right_with_other_calls_in_between():
    kept = {}

    def body(x):
        kept["slope"] = 2 * x
        return x**2

    g, x = written(body, lambda ans, x: lambda v: kept["slope"] * v), onp.arange(1.0, 4.0)
    onp.testing.assert_allclose(grad(lambda z: np.sum(g(z) * g(2 * z)))(x), 16 * x**3)
    assert "again" in g.capabilities["audited"].note


# -- derivatives of derivatives -------------------------------------------------------------------


def test_a_second_derivative_with_some_terms_missing_is_refused(adapter_of):
    right, f = gb.bridge(adapter_of("right")), gb.bridge(adapter_of("halved"))
    loss = lambda b: lambda p: np.sum(np.sin(b(p, X)))
    onp.testing.assert_allclose(grad(loss(f))(f.params), grad(loss(right))(f.params))
    hessian_vector_product(loss(right))(f.params, onp.ones_like(f.params))
    for said in (
        "its product with a cotangent and a tangent",
        "differs from differences of its gradient",
    ):
        with pytest.raises(
            HigherOrderError, match=f"second derivative .* its framework gives is wrong: .*{said}"
        ):
            hessian_vector_product(loss(f))(f.params, onp.ones_like(f.params))
    off = gb.bridge(adapter_of("halved"), audit="off")
    assert onp.isfinite(hessian_vector_product(loss(off))(f.params, onp.ones_like(f.params))).all()


class NoWayAlong(ReferencePullback):
    def backward(self, residuals, cotangents, wrt):
        gradients = super().backward(residuals, cotangents, wrt)
        cotangent = max(wrt)  # it comes after the weights and the input
        return [0.0 * g if argument == cotangent else g for g, argument in zip(gradients, wrt)]


class Cut(ReferenceAdapter):
    def pullback(self, spec, wrt, residuals=None):
        twin = super().pullback(spec, wrt, residuals)
        twin.__class__ = NoWayAlong
        return twin

    def pushforward(self, *args):
        raise gb.errors.Unsupported("it has none")


def test_a_gradient_that_is_not_linear_in_its_cotangent_there_is_refused_in_products_and_tangents(adapter_of):
    f = gb.bridge(adapter_of(Cut))
    with pytest.raises(HigherOrderError, match="its product with a cotangent"):
        hessian_vector_product(lambda p: np.sum(np.sin(f(p, X))))(f.params, onp.ones_like(f.params))
    with pytest.raises(HigherOrderError):
        make_jvp(lambda p: f(p, X))(f.params)(onp.ones_like(f.params))


def test_kinks_and_rules_of_ones_own_are_no_fault():
    relu = gb.primitive(lambda x: onp.maximum(x, 0))
    relu.defvjp(lambda ans, x: lambda v: v * (x > 0)).defvjp(
        lambda g, x, v: lambda u: 0 * u, lambda g, x, v: lambda u: u * (x > 0)
    )
    x = onp.array([-1.0, 0.0, 1e-9, 2.0])
    product = hessian_vector_product(lambda x: np.sum(relu(x) ** 2))(x, onp.ones(4))
    onp.testing.assert_allclose(product, [0, 0, 2, 2])
    through = gb.primitive(onp.round)  # straight through
    through.defvjp(lambda ans, x: lambda v: v).defvjp(
        lambda g, x, v: lambda u: 0 * u, lambda g, x, v: lambda u: u
    )
    assert onp.allclose(grad(lambda x: np.sum(through(x) ** 2))(x), 2 * onp.round(x))
    assert onp.allclose(hessian_vector_product(lambda x: np.sum(through(x) ** 2))(x, onp.ones(4)), 2.0)


# -- many at once ---------------------------------------------------------------------------------


class ShuffledMany(ReferenceAdapter):
    def backward_many(self, residuals, cotangents, wrt):
        return [g[::-1] for g in super().backward_many(residuals, cotangents, wrt)]

    def row_jacobians(self, *args):
        raise gb.errors.Unsupported("none")


def test_many_cotangents_at_once_that_are_not_what_each_gives_are_not_used(adapter_of):
    right, f = gb.bridge(adapter_of("right")), gb.bridge(adapter_of(ShuffledMany))
    onp.testing.assert_allclose(f.jacobian(f.params, X), right.jacobian(f.params, X), rtol=1e-10)
    with pytest.raises(gb.errors.OptionError, match="not what it gives for each"):
        f.jacobian(f.params, X, strategy="vjp")
    onp.testing.assert_allclose(
        jacobian(lambda p: f(p, X))(f.params), right.jacobian(f.params, X), rtol=1e-10
    )


def test_a_mask_beside_the_outputs_hinders_neither_the_refusal_nor_the_report():
    def masked(x, factor):
        return x**2 * factor, x > 1

    def rule(ans, x, factor):
        return lambda v: 2 * x * v[0] * factor

    calls = itertools.count(1)
    f = written(lambda x: masked(x, next(calls)), lambda ans, x: rule(ans, x, 1.0))
    with pytest.raises(AuditError, match=r"outputs that differ by up to \d"):
        grad(lambda x: np.sum(f(x)[0]))(onp.arange(3.0))
    report = written(lambda x: masked(x, 1.0), lambda ans, x: rule(ans, x, 1.0)).audit(onp.arange(3.0))
    assert report, report
