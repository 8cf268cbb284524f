"""The autograd host over plain functions: everything that autograd does to its own."""

import threading

import autograd
import autograd.numpy as np
import numpy as onp
import pytest
from autograd import elementwise_grad, grad, hessian, jacobian, make_jvp, make_vjp, value_and_grad

import gradbridge as gb
from gradbridge.errors import CotangentMismatchError, HigherOrderError, NotDifferentiableError


@gb.primitive
def product(x, y):
    return x * y


product.defvjp(lambda ans, x, y: lambda v: v * y, lambda ans, x, y: lambda v: v * x)


@gb.primitive
def both(x):
    return {"sin": onp.sin(x), "parts": (x**2, onp.arange(3))}


@both.defvjp
def both_vjp(ans, x):
    return lambda v: v["sin"] * onp.cos(x) + v["parts"][0] * 2 * x


def test_grad_value_and_grad_jacobian_and_elementwise_grad_agree_with_closed_forms():
    x, y = onp.arange(3.0), onp.array([2.0, -1.0, 0.5])
    assert onp.array_equal(grad(lambda x: product(x, y).sum())(x), y)
    value, gradient = value_and_grad(lambda x: product(x, y).sum())(x)
    assert value == x @ y
    assert onp.array_equal(gradient, y)
    assert onp.array_equal(jacobian(product)(x, y), onp.diag(y))
    assert onp.array_equal(elementwise_grad(product)(x, y), y)


def test_gradients_of_all_arguments_cost_one_forward_and_one_backward():
    with gb.trace() as t:
        gx, gy = grad(lambda x, y: product(x, y).sum(), (0, 1))(onp.ones(2), onp.full(2, 3.0))
    assert t.counts == {"update": 1, "forward": 1, "zero": 1, "backward": 1}
    assert onp.array_equal(gx, [3, 3])
    assert onp.array_equal(gy, [1, 1])


def test_it_stands_inside_a_larger_program():
    def program(x):
        inner = np.exp(x) + 1.0
        return np.sum(np.log(product(inner, x)) * x)

    def plain(x):
        inner = np.exp(x) + 1.0
        return np.sum(np.log(inner * x) * x)

    x = onp.linspace(0.5, 2, 4)
    assert onp.allclose(grad(program)(x), grad(plain)(x), rtol=1e-14)


def test_python_floats_are_differentiated_as_autograd_does():
    assert grad(product)(3.0, 2.0) == 2.0


def test_outputs_of_a_tree_come_back_as_the_tree_and_unused_ones_count_as_zero():
    x = onp.linspace(0, 1, 4)
    out = both(x)
    assert set(out) == {"sin", "parts"}
    assert out["parts"][1].dtype == onp.arange(3).dtype
    assert onp.array_equal(grad(lambda x: both(x)["sin"].sum())(x), onp.cos(x))
    assert onp.allclose(
        grad(lambda x: (both(x)["sin"] * both(x)["parts"][0]).sum())(x),
        onp.cos(x) * x**2 + onp.sin(x) * 2 * x,
    )


def test_a_whole_container_is_differentiated_at_once():
    @gb.primitive
    def energy(state, scale):
        return onp.sum(state["x"] ** 2) * scale + onp.sum(state["y"][0])

    energy.defvjp(lambda ans, s, k: lambda v: {"x": v * 2 * s["x"] * k, "y": [v * onp.ones_like(s["y"][0])]})
    g = grad(energy)({"x": onp.arange(2.0), "y": [onp.ones(3)]}, 3.0)
    assert onp.array_equal(g["x"], [0, 6])
    assert onp.array_equal(g["y"][0], [1, 1, 1])


def test_tuples_of_arguments_are_differentiated_together():
    x = (onp.array(2.0), onp.array(5.0))
    assert grad(lambda pair: product(pair[0], pair[1]))(x) == (5.0, 2.0)


def test_a_second_derivative_of_plain_code_raises_and_is_never_zero():
    with pytest.raises(HigherOrderError, match="derivative of the written-down gradient of product"):
        autograd.hessian(lambda x: product(x, x).sum())(onp.ones(2))
    with pytest.raises(HigherOrderError):
        grad(grad(lambda x: product(x, 3.0)))(1.0)
    with pytest.raises(HigherOrderError):
        autograd.hessian_vector_product(lambda x: product(x, x).sum())(onp.ones(2), onp.ones(2))


def test_forward_mode_through_plain_code_is_exact_and_without_rules_it_raises():
    assert make_jvp(product)(1.0, 2.0)(1.0)[1] == grad(product)(1.0, 2.0)
    with pytest.raises(HigherOrderError, match="no forward mode"):
        make_jvp(gb.primitive(lambda x: x**2))(1.0)(1.0)


@pytest.mark.parametrize("backend", ["torch", "jax", "tensorflow", "autograd"])
def test_second_order_beside_an_integer_output(backend):
    if backend != "autograd":
        pytest.importorskip(backend)
    bodies = {
        "torch": lambda x: {"y": x.sin(), "n": x.argmax()},
        "autograd": lambda x: {"y": np.sin(x), "n": onp.array(1)},
    }
    if backend == "jax":
        import jax.numpy as jnp

        bodies["jax"] = lambda x: {"y": jnp.sin(x), "n": x.argmax()}
    if backend == "tensorflow":
        import tensorflow as tf

        bodies["tensorflow"] = lambda x: {"y": tf.sin(x), "n": tf.argmax(x)}
    f = gb.primitive(backend=backend)(bodies[backend])
    x = onp.array([0.3, 0.4])
    onp.testing.assert_allclose(
        hessian(lambda x: np.sum(f(x)["y"]))(x), onp.diag(-onp.sin(x)), rtol=1e-13, atol=1e-15
    )


def test_an_outer_derivative_that_does_not_pass_through_the_bridge_is_fine():
    f = lambda a: a**2 * grad(lambda x: product(x, 3.0))(1.0)
    assert grad(f)(2.0) == 12.0


def test_an_integer_input_has_no_derivative_and_says_so():
    with pytest.raises(NotDifferentiableError, match=r"input 1 of product .* dtype int64"):
        grad(lambda x, i: product(x, i).sum(), 1)(onp.ones(2), onp.arange(2))


def test_a_function_of_integers_only_has_no_derivative_and_says_so():
    classify = gb.primitive(lambda x: (x > 0).astype(int))
    classify.defvjp(lambda ans, x: lambda v: v)
    with pytest.raises(NotDifferentiableError, match="returned only int64"):
        elementwise_grad(classify)(onp.ones(2))


def test_a_cotangent_of_a_wrong_shape_is_refused():
    pull, _ = make_vjp(product)(onp.ones(2), 2.0)
    with pytest.raises(CotangentMismatchError, match=r"output's shape \(2,\), got \(3,\)"):
        pull(onp.ones(3))


def test_pulling_back_twice_in_any_order_and_after_other_calls_changes_nothing():
    pulls = [make_vjp(product)(onp.full(2, float(i)), float(i + 1))[0] for i in range(4)]
    for i in (2, 0, 3, 1, 2, 0):
        assert onp.array_equal(pulls[i](onp.ones(2)), onp.full(2, i + 1.0))


def test_arrays_that_the_caller_changes_later_do_not_change_the_gradient():
    x, y = onp.ones(2), onp.full(2, 3.0)
    pull, value = make_vjp(product)(x, y)
    x[:], y[:], value[:] = 100, 100, 100
    assert onp.array_equal(pull(onp.ones(2)), [3, 3])


def test_eight_threads_get_what_each_alone_would():
    results = {}

    def work(k):
        for _ in range(50):
            pull, value = make_vjp(product)(onp.full(3, float(k)), float(k + 1))
            results[k] = (value, pull(onp.ones(3)))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(8):
        assert onp.array_equal(results[k][0], onp.full(3, k * (k + 1.0)))
        assert onp.array_equal(results[k][1], onp.full(3, k + 1.0))


def test_no_rule_of_autograd_is_added_by_a_call():
    from autograd.core import primitive_vjps

    before = len(primitive_vjps)
    for i in range(20):
        f = gb.primitive(lambda x, i=i: x * i)
        f.defvjp(lambda ans, x, i=i: lambda v: v * i)
        grad(f)(1.0)
    assert len(primitive_vjps) == before
