"""Models with many parameters: a derivative of the gradient walks through the guest's forward once, and is the true one."""

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad, hessian_vector_product, make_jvp

import gradbridge as gb

DRAW = np.random.default_rng(0)
X, SHAPES = DRAW.normal(size=(6, 5)), ((5, 4000), (4000, 2))
SIZE = sum(a * b for a, b in SHAPES)  # above what the token pays from
P, V = DRAW.normal(size=SIZE) / 60, DRAW.normal(size=SIZE)
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def cut(p):
    first = SHAPES[0][0] * SHAPES[0][1]
    return p[:first].reshape(SHAPES[0]), p[first:].reshape(SHAPES[1])


def native(p, x):
    first, second = cut(p)
    return anp.dot(anp.tanh(anp.dot(x, first)), second)


def in_framework(backend):
    """The same network beside an output of integers, with the parameters in the same order."""
    if backend == "torch":
        torch = pytest.importorskip("torch")

        def network(tree, x):
            y = torch.tanh(x @ tree["a"]) @ tree["b"]
            return {"classes": y.argmax(1), "y": y}
    elif backend == "jax":
        jnp = pytest.importorskip("jax").numpy

        def network(tree, x):
            y = jnp.tanh(x @ tree["a"]) @ tree["b"]
            return {"classes": y.argmax(1), "y": y}
    else:
        tf = pytest.importorskip("tensorflow")

        def network(tree, x):
            y = tf.tanh(x @ tree["a"]) @ tree["b"]
            return {"classes": tf.argmax(y, 1), "y": y}

    f = gb.bridge(network, params=dict(zip("ab", cut(P))), backend=backend)
    return lambda p, x: f(p, x)["y"]


@pytest.fixture(params=["torch", "jax", "tensorflow"])
def f(request):
    return in_framework(request.param)


def loss(f):
    return lambda p, x=X: anp.sum(anp.sin(f(p, x)) ** 2)


def test_a_hessian_vector_product_makes_one_forward(f):
    expected = hessian_vector_product(loss(native))(P, V)
    hessian_vector_product(loss(f))(P, V)
    with gb.trace() as t:
        np.testing.assert_allclose(hessian_vector_product(loss(f))(P, V), expected, **CLOSE)
    assert t.counts["forward"] == 1


def test_several_calls_at_other_params_and_an_output_that_is_used_twice(f):
    def several(f):
        def of(p):
            y = f(p, X)
            return anp.sum(y**3) + anp.sum(y * f(2 * p, X)) + anp.sum(f(p * anp.tanh(anp.sum(y)), X) ** 2)

        return of

    expected = hessian_vector_product(several(native))(P, V)
    np.testing.assert_allclose(hessian_vector_product(several(f))(P, V), expected, **CLOSE)


def test_derivatives_of_the_product_by_params_direction_and_inputs(f):
    def product(f):
        return lambda p, v, x: anp.dot(hessian_vector_product(lambda q: loss(f)(q, x))(p, v), v)

    for argument in range(3):
        expected = grad(product(native), argument)(P, V, X)
        np.testing.assert_allclose(grad(product(f), argument)(P, V, X), expected, **CLOSE)


def test_forward_over_reverse_and_mixed_derivatives(f):
    expected = make_jvp(grad(loss(native)))(P)(V)[1]
    np.testing.assert_allclose(make_jvp(grad(loss(f)))(P)(V)[1], expected, **CLOSE)

    def mixed(f):
        return lambda x: anp.dot(grad(loss(f))(P, x), V)

    np.testing.assert_allclose(grad(mixed(f))(X), grad(mixed(native))(X), **CLOSE)


def test_arrays_that_change_in_place_between_the_orders_do_not_matter(f):
    expected = hessian_vector_product(loss(native))(P, V)
    p, x = P.copy(), X.copy()

    def spoiling(q):
        value = grad(lambda r: loss(f)(r, x))(q)
        x[...] = 0.0
        return anp.dot(value, V)

    np.testing.assert_allclose(grad(spoiling)(p), expected, **CLOSE)


@pytest.mark.parametrize("idle", [0, 17_000])
@pytest.mark.parametrize("rule", ["reversal", "clipping", "scaled"])
def test_a_custom_rule_of_jax_is_differentiated_again_as_jax_does_it(rule, idle):
    """JAX differentiates the forward of a custom rule the second time, however many parameters there are."""
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    if rule == "scaled":
        own = jax.custom_jvp(jnp.sin)
        own.defjvp(lambda at, t: (jnp.sin(at[0]), 3 * jnp.cos(at[0]) * t[0]))
    else:
        own = jax.custom_vjp(lambda x: x)
        back = {"reversal": lambda g: -g, "clipping": lambda g: jnp.clip(g, -0.1, 0.1)}[rule]
        own.defvjp(lambda x: (x, None), lambda _, g: (back(g),))
    first = DRAW.normal(size=(5, 4)) / 2

    def network(tree, x):
        return jnp.tanh(own(x @ tree["a"])) + 0 * tree["b"].sum()

    with jax.enable_x64(True):
        f = gb.bridge(network, params={"a": first, "b": np.zeros(idle)}, backend="jax")
        direction = DRAW.normal(size=f.params.size)
        product = hessian_vector_product(lambda p: anp.sum(f(p, X) ** 2))(f.params, direction)

        def cost(p):
            return jnp.sum(network({"a": p[:20].reshape(5, 4), "b": p[20:]}, X) ** 2)

        expected = jax.grad(lambda p: jnp.vdot(jax.grad(cost)(p), direction))(f.params)
    np.testing.assert_allclose(product, expected, rtol=1e-10, atol=1e-12)
