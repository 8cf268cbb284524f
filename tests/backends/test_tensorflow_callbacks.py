"""tf.py_function has its gradient of every order, and any number of its calls may be in flight."""

import gc

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

import gradbridge as gb
from gradbridge import errors

tf = pytest.importorskip("tensorflow")

X, V = np.array([1.0, 2.0, -1.5]), np.array([1.0, -1.0, 0.5])


def outside(function):
    return lambda x: tf.py_function(function, [x], x.dtype)


CUBES = {
    "plain": outside(lambda a: a**3),
    "in the middle": lambda x: outside(lambda a: a**2)(2.0 * x) * x / 4.0,
    "in a loop": lambda x: tf.while_loop(lambda i, y: i < 2, lambda i, y: (i + 1, tf.ensure_shape(outside(lambda a: a * 1.0)(y), [3]) * x), (0, x))[1],
    "in a branch": lambda x: tf.cond(x[0] > -9.0, lambda: outside(lambda a: a**3)(x), lambda: x),
    "in a tf.function": tf.function(outside(lambda a: a * a * a)),
    "of two": lambda x: tf.py_function(lambda a, b: a * b, [x, x**2], x.dtype),
    "one of two outputs": lambda x: tf.py_function(lambda a: (a, a**3), [x], [x.dtype, x.dtype])[1],
    "beside an integer": lambda x: tf.py_function(lambda a, n: a ** tf.cast(n, a.dtype), [x, 3], x.dtype),
}  # fmt: skip


@pytest.mark.parametrize("name", CUBES)
def test_python_functions_have_derivatives_of_every_order(name, close):
    f = gb.primitive(CUBES[name], backend="tensorflow")
    loss = lambda x: anp.sum(anp.sin(f(x)))
    true = lambda x: anp.sum(anp.sin(x**3))
    close(autograd.grad(loss)(X), autograd.grad(true)(X))
    product = lambda of: autograd.grad(lambda x: anp.sum(autograd.grad(of)(x) * V))
    close(product(loss)(X), product(true)(X))
    close(autograd.hessian(loss)(X), autograd.hessian(true)(X))
    third = lambda of: autograd.grad(lambda x: anp.sum(product(of)(x) ** 2))
    close(third(loss)(X), third(true)(X))


def test_calls_in_flight_do_not_meet(close):
    f = gb.primitive(outside(lambda a: a**3), backend="tensorflow")
    close(autograd.grad(lambda x: anp.sum(f(x) * f(2 * x) * f(3 * x)))(X), 9 * 216 * X**8)
    pull, value = autograd.make_vjp(f)(X)
    f(2 * X)
    close(pull(V), 3 * X**2 * V)
    close(pull(2 * V), 6 * X**2 * V)  # a second time
    close(value, X**3)


def test_a_gradient_runs_the_function_once(close):
    runs = []

    def cube(a):
        runs.append(1)
        return a**3

    f = gb.primitive(outside(cube), backend="tensorflow")
    gradient = autograd.grad(lambda x: anp.sum(f(x)))
    gradient(X)
    runs.clear()
    close(gradient(X), 3 * X**2)
    assert len(runs) == 1


def test_python_functions_live_as_long_as_the_bridge(close):
    f = gb.primitive(lambda x: tf.py_function(lambda a: a**3, [x], x.dtype), backend="tensorflow")
    f(X)
    gc.collect()
    close(f(X), X**3)
    close(autograd.grad(lambda x: anp.sum(f(x)))(X), 3 * X**2)


def test_numpy_functions_beside_the_way_are_constants(close):
    f = gb.primitive(
        lambda x: x * tf.numpy_function(np.cumsum, [tf.ones(3, x.dtype)], x.dtype), backend="tensorflow"
    )
    close(autograd.grad(lambda x: anp.sum(f(x)))(X), np.array([1.0, 2.0, 3.0]))


def test_numpy_functions_are_refused_where_they_are_differentiated():
    f = gb.primitive(lambda x: tf.numpy_function(np.sin, [x], x.dtype), backend="tensorflow")
    with pytest.raises(errors.NotDifferentiableError, match="numpy_function"):
        autograd.grad(lambda x: anp.sum(f(x)))(X)
