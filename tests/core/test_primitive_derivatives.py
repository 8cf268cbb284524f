"""A function of arrays has the derivatives of a bridge, its arguments counted as autograd counts them."""

import numpy as np
import pytest

import gradbridge as gb
from gradbridge.errors import HigherOrderError, MissingVJPError, NotDifferentiableError, OptionError

X, Y = np.random.default_rng(0).normal(size=(2, 5))


@pytest.fixture
def product():
    f = gb.primitive(lambda x, y: x**2 * y)
    f.defvjp(lambda ans, x, y: lambda v: 2 * v * x * y, lambda ans, x, y: lambda v: v * x**2)
    return f


def test_jacobians_count_arguments_from_0(product):
    np.testing.assert_allclose(product.jacobian(X, Y), np.diag(2 * X * Y), rtol=1e-14)
    np.testing.assert_allclose(product.jacobian(X, Y, wrt=1), np.diag(X**2), rtol=1e-14)
    by_y, by_x = product.jacobian(X, Y, wrt=(1, 0), strategy="loop")
    np.testing.assert_allclose(by_y, np.diag(X**2), rtol=1e-14)
    np.testing.assert_allclose(by_x, np.diag(2 * X * Y), rtol=1e-14)


def test_products_with_it(product):
    v, t = np.arange(5.0), np.ones(5)
    np.testing.assert_allclose(product.vjp(X, Y, cotangent=v, wrt=1), v * X**2, rtol=1e-14)
    moved = product.jvp(X, Y, tangent=(t, v), wrt=(0, 1))
    np.testing.assert_allclose(moved, 2 * X * Y * t + X**2 * v, rtol=1e-14)
    np.testing.assert_allclose(product.ggn(X, Y, vector=t), (2 * X * Y) ** 2 * t, rtol=1e-14)
    np.testing.assert_allclose(product.jvp(X, y=Y, tangent=t), 2 * X * Y * t, rtol=1e-14)


def test_what_it_can_do_is_told_by_the_function_itself(product):
    product.jacobian(X, Y)
    assert "5 outputs and 5 numbers" in product.capabilities["latest Jacobian"].note
    assert (
        "numeric"
        in gb.primitive(lambda x: x, gradient="numeric").capabilities["gradient wrt floating inputs"].note
    )


@pytest.mark.parametrize("wrong", [2, -1, "x", True, (0, 0), ()])
def test_an_argument_that_there_is_not_is_refused_in_its_own_count(product, wrong):
    with pytest.raises(OptionError, match=r"0 to 1 are its input arrays in order|names each argument once"):
        product.jacobian(X, Y, wrt=wrong)


def test_what_there_is_to_differentiate_by_is_counted_out():
    f = gb.primitive(lambda *x: sum(x), backend="autograd")
    with pytest.raises(OptionError, match=r"<lambda>: 0 is its input array; got 1"):
        f.jacobian(X, wrt=1)
    with pytest.raises(OptionError, match=r"<lambda>: it has no input arrays; got 0"):
        f.jacobian()
    b = gb.bridge(lambda p, x: x * p, params=np.ones(1), backend="autograd")
    with pytest.raises(OptionError, match=r"<lambda>: 0 is its params, 1 is its input array; got 2"):
        b.jacobian(b.params, X, wrt=2)


def test_a_mistyped_architecture_is_answered_with_the_nearest():
    with pytest.raises(OptionError, match="there is no architecture 'mpl'; did you mean 'mlp'"):
        gb.build("mpl", sizes=[1, 2], backend="numpy")


def test_a_held_argument_is_refused_by_its_own_number():
    f = gb.primitive(lambda x, y: x * y, nondiff=1)
    f.defvjp(lambda ans, x, y: lambda v: v * y)
    np.testing.assert_allclose(f.jacobian(X, Y), np.diag(Y))
    with pytest.raises(NotDifferentiableError, match="argument 1 of .* was made with nondiff="):
        f.jacobian(X, Y, wrt=1)


def test_what_is_not_written_is_refused():
    f = gb.primitive(lambda x, y: x * y)
    f.defvjp(lambda ans, x, y: lambda v: v * y)
    with pytest.raises((MissingVJPError, HigherOrderError)):
        f.jacobian(X, Y, wrt=1)


@pytest.mark.parametrize("backend", ["torch", "jax", "tensorflow", "autograd"])
def test_through_a_guest_that_derives_them(backend):
    if backend != "autograd":
        pytest.importorskip(backend)
    f = gb.primitive(lambda x, y: x**2 * y, backend=backend)
    np.testing.assert_allclose(f.jacobian(X, Y, wrt=1), np.diag(X**2), rtol=1e-12)
    np.testing.assert_allclose(f.jvp(X, Y, tangent=np.ones(5), wrt=0), 2 * X * Y, rtol=1e-12)
