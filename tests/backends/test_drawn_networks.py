"""Every derivative of networks drawn at random, against the framework's own in float64."""

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad, hessian, hessian_vector_product, jacobian, make_jvp, make_vjp
from autograd.differential_operators import make_ggnvp, make_jvp_reversemode
from drawn_networks import WORDS, architectures, order_of
from hypothesis import HealthCheck, given, settings

import gradbridge as gb

SETTINGS = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
EXAMPLES = {"torch": 25, "autograd": 25, "jax": 6, "tensorflow": 8}


@pytest.fixture(params=list(WORDS), scope="module")
def words(request):
    if request.param != "autograd":
        pytest.importorskip(request.param)
    return request.param, WORDS[request.param]()


def close(got, expected, tolerance):
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    error = np.max(np.abs(got - expected), initial=0.0)
    assert error <= tolerance * max(1.0, np.max(np.abs(expected), initial=0.0)), error


def drawn_by(name):
    return lambda check: settings(max_examples=EXAMPLES[name], **SETTINGS)(given(architectures())(check))


def at(f, drawn):
    """(z ↦ outputs, z): params and input as one vector, so that derivatives are mixed."""
    x = drawn.data()
    size = f.layout.size
    return lambda z: f(z[:size], anp.reshape(z[size:], x.shape)), np.concatenate([f.params, x.ravel()])


def test_gradients_hessians_and_third_derivatives_are_the_frameworks_own(words):
    name, framework = words

    @drawn_by(name)
    def check(drawn):
        f = framework.bridge(drawn, gb)
        outputs, z = at(f, drawn)
        v = drawn.like_outputs(2)
        a, b = np.random.default_rng(drawn.seed + 3).normal(size=(2, len(z)))
        gradient, curvature, third = framework.derivatives(drawn, order_of(f), z, v, a, b)

        def value(z):
            return anp.sum(v * outputs(z))

        close(grad(value)(z), gradient, 1e-12)
        apart = grad(lambda p, x: anp.sum(v * f(p, x)), (0, 1))(f.params, drawn.data())
        close(np.concatenate([apart[0], apart[1].ravel()]), gradient, 1e-12)
        close(hessian(value)(z), curvature, 1e-10)
        close(hessian_vector_product(value)(z, b), curvature @ b, 1e-10)
        close(grad(lambda z: anp.dot(a, hessian_vector_product(value)(z, b)))(z), third, 1e-8)
        close(make_jvp(grad(value))(z)(b)[1], curvature @ b, 1e-10)

    check()


def test_tangents_and_cotangents_agree(words):
    name, framework = words

    @drawn_by(name)
    def check(drawn):
        f = framework.bridge(drawn, gb)
        outputs, z = at(f, drawn)
        v = drawn.like_outputs(4)
        t = np.random.default_rng(drawn.seed + 5).normal(size=len(z))
        pull, _ = make_vjp(outputs)(z)
        pulled = pull(v)
        pushed = make_jvp(outputs)(z)(t)[1]
        close(np.sum(v * pushed), np.sum(pulled * t), 1e-10)
        close(make_jvp_reversemode(outputs)(z)(t), pushed, 1e-10)
        x, size = drawn.data(), f.layout.size
        tangents = (t[:size], t[size:].reshape(x.shape))
        close(f.jvp(f.params, x, tangent=tangents, wrt=(0, 1)), pushed, 1e-10)
        by_params, by_x = f.vjp(f.params, x, cotangent=v, wrt=(0, 1))
        close(np.concatenate([by_params, by_x.ravel()]), pulled, 1e-10)
        J = jacobian(outputs)(z).reshape(-1, len(z))
        close(make_ggnvp(lambda q: anp.ravel(outputs(q)))(z)(t), J.T @ (J @ t), 1e-10)
        close(f.ggn(f.params, x, vector=tangents[0]), J[:, :size].T @ (J[:, :size] @ tangents[0]), 1e-10)

    check()


def test_every_strategy_gives_the_row_by_row_jacobian(words):
    name, framework = words

    @drawn_by(name)
    def check(drawn):
        f = framework.bridge(drawn, gb)
        x = drawn.data()
        truth = jacobian(f)(f.params, x), jacobian(f, 1)(f.params, x)
        able = f.capabilities
        for strategy in ("auto", "jvp", "loop", "vjp", "rows"):
            if strategy == "vjp" and not able["Jacobian, batched VJP"]:
                continue
            if strategy == "rows" and not (able["Jacobian, per-example"] and drawn.rows > 1):
                continue
            for one, other in zip(f.jacobian(f.params, x, wrt=(0, 1), strategy=strategy), truth):
                close(one, other, 1e-10)

    check()
