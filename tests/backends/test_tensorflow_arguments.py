"""What is passed beside arrays: what is compiled in, and when it is compiled anew."""

import gc
import weakref

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

import gradbridge as gb

tf = pytest.importorskip("tensorflow")

X = np.random.default_rng(0).normal(size=(5, 3))
W = np.array([0.5, -1.0, 2.0])


class Scale:
    def __init__(self, value):
        self.value = value


def bridged(body):
    return gb.bridge(
        lambda p, x, c: body(tf.linalg.matvec(x, p["w"]), c), params={"w": W}, backend="tensorflow"
    )


def check_all_derivatives(f, c, factor):
    """Of y = (factor·Xp)³ and its Jacobian, gradient, Hessian and JVP."""
    p, v = f.params, np.array([1.0, 2.0, -1.0])
    closed = lambda p: (factor * anp.dot(X, p)) ** 3
    loss, true = lambda p: anp.sum(f(p, X, c) ** 2), lambda p: anp.sum(closed(p) ** 2)
    jacobian = autograd.jacobian(closed)(p)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10)
    close(f(p, X, c), closed(p))
    close(autograd.grad(loss)(p), autograd.grad(true)(p))
    close(autograd.hessian(loss)(p), autograd.hessian(true)(p))
    close(f.jvp(p, X, c, tangent=v), jacobian @ v)
    close(autograd.make_jvp(autograd.grad(loss))(p)(v)[1], autograd.hessian(true)(p) @ v)
    for strategy in ("auto", "loop", "vjp", "jvp"):
        close(f.jacobian(p, X, c, strategy=strategy), jacobian)


def test_objects_that_change_are_read_on_every_call():
    f = bridged(lambda y, c: (c.value * y) ** 3)
    c = Scale(1.0)
    check_all_derivatives(f, c, 1.0)
    c.value = 2.0
    check_all_derivatives(f, c, 2.0)


def test_sets_that_change_are_read_on_every_call():
    f = bridged(lambda y, c: (len(c) * y) ** 3)
    c = {1}
    check_all_derivatives(f, c, 1.0)
    c.add(4)
    check_all_derivatives(f, c, 2.0)


def test_a_call_with_an_object_leaves_nothing_behind():
    f = bridged(lambda y, c: c.value * y)
    seen = []
    for value in range(3):
        c = Scale(float(value))
        seen.append(weakref.ref(c))
        autograd.grad(lambda p, c: anp.sum(f(p, X, c)))(f.params, c)
        f.jvp(f.params, X, c, tangent=W)
    del c
    gc.collect()
    assert [ref() for ref in seen[:-1]] == [None, None]  # the last may be the evaluation that is reused


def test_the_pullback_of_an_evaluation_is_with_the_object_as_it_was():
    f = bridged(lambda y, c: c.value * y)
    c = Scale(3.0)
    pull, _ = autograd.make_vjp(lambda p: f(p, X, c))(f.params)
    c.value = 5.0
    f(f.params, X, c)
    np.testing.assert_allclose(pull(np.ones(5)), 3 * X.sum(0), rtol=1e-12)


def test_flags_that_are_equal_but_of_other_types_are_told_apart():
    f = bridged(lambda y, c: y * (3.0 if c is True else 2.0))
    p, v = f.params, np.array([1.0, 2.0, -1.0])
    for c, factor in ((1, 2.0), (True, 3.0), (1, 2.0)):
        np.testing.assert_allclose(f(p, X, c), factor * X @ p, rtol=1e-12)
        np.testing.assert_allclose(f.jvp(p, X, c, tangent=v), factor * X @ v, rtol=1e-12)
        for strategy in ("rows", "jvp", "vjp", "loop"):
            np.testing.assert_allclose(f.jacobian(p, X, c, strategy=strategy), factor * X, rtol=1e-12)


@pytest.mark.parametrize(
    "constant", ["text", 2, None, tf.float32, tf.TensorShape([3]), tf.TensorSpec([None])]
)
def test_what_never_changes_is_compiled_once(constant):
    traces = []

    def body(y, c):
        traces.append(c)
        return y

    f = bridged(body)
    f(f.params, X, constant)
    count = len(traces)
    f(f.params, 2 * X, constant)
    assert len(traces) == count


@pytest.mark.parametrize("strategy", ["auto", "jvp", "vjp", "loop"])
def test_parameters_without_axes(strategy):
    f = gb.bridge(
        lambda p, x: tf.sin(p["scale"] * x) + p["shift"],
        params={"scale": tf.constant(0.7, tf.float64), "shift": tf.constant(0.1, tf.float64)},
        backend="tensorflow",
    )
    p, slope = f.params, np.cos(0.7 * X) * X
    np.testing.assert_allclose(f.jvp(p, X, tangent=[2.0, 3.0]), 2 * slope + 3, rtol=1e-12)
    np.testing.assert_allclose(
        f.jacobian(p, X, strategy=strategy), np.stack([slope, np.ones_like(X)], -1), rtol=1e-12
    )
