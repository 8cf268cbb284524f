"""Numeric gradients of plain functions: they state their order and error, and push forward."""

import threading

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, hessian, jacobian, make_jvp

import gradbridge as gb
from gradbridge.errors import HigherOrderError, OptionError

pytest.importorskip("numdifftools")
X, U = onp.array([0.5, -1.0, 2.0]), onp.array([1.0, 0.3, -0.7])


def waves(**options):
    return gb.primitive(gradient="numeric", **options)(lambda x, k: onp.sin(k * x))


def test_forward_mode_is_the_numeric_jacobian_times_the_tangent():
    f = waves()
    onp.testing.assert_allclose(make_jvp(f)(X, 2.0)(U)[1], 2 * onp.cos(2 * X) * U, rtol=1e-9)
    onp.testing.assert_allclose(make_jvp(f, 1)(X, 2.0)(3.0)[1], 3 * X * onp.cos(2 * X), rtol=1e-9)
    p = gb.bridge(lambda p, x: onp.exp(p["a"] * x), params={"a": X}, backend="numpy", gradient="numeric")
    onp.testing.assert_allclose(p.jvp(p.params, 2.0, tangent=U), 2 * onp.exp(2 * X) * U, rtol=1e-9)


def test_numbers_that_do_not_move_and_keywords():
    f = gb.primitive(gradient="numeric")(lambda x, k=1.0: {"y": k * x**2, "n": onp.arange(2)})
    pushed = f.bridge.jvp(onp.empty(0), X, tangent=U, wrt=1)
    onp.testing.assert_allclose(pushed["y"], 2 * X * U, rtol=1e-9)
    assert onp.array_equal(pushed["n"], [0, 0])
    assert onp.isclose(grad(lambda k: np.sum(f(X, k=k)["y"]))(2.0), onp.sum(X**2))


def test_the_gradient_can_be_differentiated_by_its_cotangent_alone():
    f = waves()
    by_scale = jacobian(lambda a: grad(lambda x: a * np.sum(f(x, 2.0)))(X))(3.0)
    onp.testing.assert_allclose(by_scale, 2 * onp.cos(2 * X), rtol=1e-9)


def test_second_order_is_refused_with_its_reason():
    f = waves()
    words = "derivative of the numeric gradient of .* differences of differences would lose most"
    with pytest.raises(HigherOrderError, match=words):
        hessian(lambda x: np.sum(f(x, 2.0)))(X)
    assert "differences of differences" in f.bridge.adapter.refusal("pullback")
    with pytest.raises(OptionError, match="leave that out to write its JVP"):
        f.defjvp(lambda t, ans, x, k: t)


def test_the_error_is_estimated_and_covers_the_true_one():
    f = waves()
    assert f.gradient_error is None
    assert "no error estimated yet" in f.bridge.adapter.gradient_note
    found = grad(lambda x: np.sum(f(x, 2.0)))(X)
    first = f.gradient_error
    assert onp.max(onp.abs(found - 2 * onp.cos(2 * X))) <= max(first, 1e-15)
    assert 0 <= first < 1e-10


def test_the_largest_error_of_all_calls_is_kept_beside_that_of_the_latest():
    f = waves()
    grad(lambda x: np.sum(f(x, 1e4)))(X)  # it turns ten thousand times as fast
    rough = f.gradient_error
    grad(lambda x: np.sum(f(x, 1.0)))(X)
    numeric = f.bridge.adapter.numeric
    assert numeric.latest_error < rough == numeric.estimated_error == f.gradient_error
    assert numeric.method == "central"


def test_it_prints_as_one_sentence():
    f = waves(order=4, step=1e-3)
    grad(lambda x: np.sum(f(x, 2.0)))(X)
    numeric = f.bridge.adapter.numeric
    assert (numeric.order, numeric.step) == (4, 1e-3)
    assert str(numeric) == f.bridge.adapter.gradient_note
    assert str(numeric).startswith(
        "numeric: central differences of order 4 with Richardson extrapolation, step 0.001; largest "
        "estimated error so far "
    )


def test_written_gradients_say_so_and_have_no_error():
    f = gb.primitive(lambda x: x**2)
    assert f.bridge.adapter.gradient_note == "not written down yet"
    f.defvjp(lambda ans, x: lambda v: 2 * x * v)
    assert (f.gradient_error, f.bridge.adapter.numeric) == (None, None)
    assert f.bridge.adapter.gradient_note == "written down"


def test_errors_are_counted_in_any_number_of_threads():
    f = waves()

    def work():
        for k in (1.0, 100.0, 1e4):
            grad(lambda x, k=k: np.sum(f(x, k)))(X)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = waves()
    grad(lambda x: np.sum(alone(x, 1e4)))(X)
    assert f.gradient_error == alone.gradient_error
