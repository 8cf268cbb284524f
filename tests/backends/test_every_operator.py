"""Whatever autograd does to its own functions it does to a bridge, with the same numbers."""

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import (
    checkpoint,
    deriv,
    elementwise_grad,
    grad,
    grad_and_aux,
    grad_named,
    hessian,
    hessian_tensor_product,
    hessian_vector_product,
    jacobian,
    make_ggnvp,
    make_hvp,
    make_jvp,
    make_vjp,
    tensor_jacobian_product,
    value_and_grad,
    vector_jacobian_product,
)
from autograd.differential_operators import make_jvp_reversemode
from autograd.test_util import check_grads

import gradbridge as gb

RNG = np.random.default_rng(0)
W = {"b": np.ones(2), "w": RNG.normal(size=(3, 2))}
P = np.concatenate([W["b"], W["w"].ravel()])
X = RNG.normal(size=(4, 3))
V = RNG.normal(size=8)


def plain(p, x):
    return anp.tanh(anp.dot(x, anp.reshape(p[2:], (3, 2))) + p[:2])


@pytest.fixture(params=["torch", "jax", "tensorflow", "autograd"], scope="module")
def f(request):
    backend = request.param
    if backend == "autograd":
        function = lambda p, x: anp.tanh(anp.dot(x, p["w"]) + p["b"])
    else:
        pytest.importorskip(backend)
        tanh = {
            "torch": lambda: __import__("torch").tanh,
            "jax": lambda: __import__("jax").numpy.tanh,
            "tensorflow": lambda: __import__("tensorflow").tanh,
        }[backend]()
        function = lambda p, x: tanh(x @ p["w"] + p["b"])
    return gb.bridge(function, params=W, backend=backend, dtype="float64")


def loss(f):
    return lambda p: anp.sum(f(p, X) ** 2)


def flat(f):
    return lambda p: anp.ravel(f(p, X))


OPERATORS = {
    "grad": lambda f: grad(loss(f))(P),
    "value_and_grad": lambda f: value_and_grad(loss(f))(P)[1],
    "grad_and_aux": lambda f: grad_and_aux(lambda p: (loss(f)(p), 3.0))(P)[0],
    "grad_named": lambda f: grad_named(lambda p, x: anp.sum(f(p, x) ** 2), "x")(P, X),
    "elementwise_grad": lambda f: elementwise_grad(lambda x: f(P, x))(X),
    "deriv": lambda f: deriv(lambda t: loss(f)(P * t))(1.0),
    "make_vjp": lambda f: make_vjp(flat(f))(P)[0](V),
    "vector_jacobian_product": lambda f: vector_jacobian_product(flat(f))(P, V),
    "tensor_jacobian_product": lambda f: tensor_jacobian_product(flat(f))(P, V),
    "jacobian": lambda f: jacobian(flat(f))(P),
    "jacobian of jacobian": lambda f: jacobian(jacobian(flat(f)))(P),
    "hessian": lambda f: hessian(loss(f))(P),
    "hessian_vector_product": lambda f: hessian_vector_product(loss(f))(P, V),
    "hessian_tensor_product": lambda f: hessian_tensor_product(loss(f))(P, V),
    "make_hvp": lambda f: make_hvp(loss(f))(P)[0](V),
    "make_ggnvp": lambda f: make_ggnvp(flat(f))(P)(V),
    "make_jvp": lambda f: make_jvp(flat(f))(P)(V)[1],
    "make_jvp_reversemode": lambda f: make_jvp_reversemode(flat(f))(P)(V),
    "checkpoint": lambda f: grad(lambda p: checkpoint(loss(f))(p))(P),
    "mixed": lambda f: jacobian(lambda x: grad(lambda p: anp.sum(f(p, x) ** 2))(P))(X),
    "third order": lambda f: grad(lambda p: anp.sum(hessian_vector_product(loss(f))(p, V) ** 2))(P),
    "JVP of a gradient": lambda f: make_jvp(grad(loss(f)))(P)(V)[1],
    "JVP of a JVP": lambda f: make_jvp(lambda p: make_jvp(flat(f))(p)(V)[1])(P)(V)[1],
    "gradient of a JVP": lambda f: grad(lambda p: anp.sum(make_jvp(flat(f))(p)(V)[1] ** 2))(P),
    "through ordinary code": lambda f: hessian(
        lambda p: anp.sum(anp.sin(f(p * p[0], f(p, X) @ np.ones((2, 3)))))
    )(P),
}


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_gives_what_it_gives_of_autograds_own_function(f, operator):
    expected = np.asarray(OPERATORS[operator](plain))
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(OPERATORS[operator](f), expected, rtol=0, atol=1e-11 * scale)


def test_autograds_own_check_of_both_modes_to_second_order(f):
    check_grads(lambda p, x: f(p, x), modes=["fwd", "rev"], order=2)(P, X)
