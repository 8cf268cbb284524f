"""Functions of tensors as guests, with and without parameters."""

import autograd
import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, jacobian

torch = pytest.importorskip("torch")

import gradbridge as gb  # noqa: E402
from gradbridge.errors import GuestError, InputError, OptionError  # noqa: E402


@gb.primitive(backend="torch")
def energy(x, y):
    return (torch.sin(x) * y).sum()


def test_the_guest_derives_the_gradient_and_callers_see_arrays():
    x, y = onp.linspace(0, 1, 4), onp.arange(4.0)
    value = energy(x, y)
    assert isinstance(value, onp.ndarray)
    gx, gy = grad(energy, (0, 1))(x, y)
    onp.testing.assert_allclose(gx, onp.cos(x) * y, rtol=1e-15)
    onp.testing.assert_allclose(gy, onp.sin(x), rtol=1e-15)


def test_higher_orders_follow():
    x, y = onp.linspace(0, 1, 4), onp.arange(4.0)
    onp.testing.assert_allclose(autograd.hessian(energy)(x, y), onp.diag(-onp.sin(x) * y), rtol=1e-14)
    third = jacobian(autograd.hessian(energy))(x, y)
    onp.testing.assert_allclose(onp.einsum("iii->i", third), -onp.cos(x) * y, rtol=1e-14)


def test_a_hessian_through_bridged_and_ordinary_code_agrees_with_autograds_own():
    x = onp.linspace(0.1, 1, 3)
    bridged = autograd.hessian(lambda x: np.log(energy(np.exp(x), x**2) + 3.0))(x)
    plain = autograd.hessian(lambda x: np.log(np.sum(np.sin(np.exp(x)) * x**2) + 3.0))(x)
    onp.testing.assert_allclose(bridged, plain, rtol=1e-11)


def test_a_gradient_that_is_constant_has_a_zero_second_derivative_that_is_true():
    linear = gb.primitive(backend="torch")(lambda x: 3.0 * x)
    assert grad(grad(linear))(2.0) == 0.0


def test_methods_and_keyword_arguments_work():
    class Well:
        depth = 2.0

        @gb.primitive(backend="torch")
        def potential(self, x, *, power=2):
            return self.depth * x**power

    assert grad(Well().potential)(3.0) == 12.0
    assert grad(lambda x: Well().potential(x, power=3))(1.0) == 6.0


def test_float32_inputs_compute_in_float32_unless_told_otherwise():
    seen = []

    def body(x):
        seen.append(x.dtype)
        return x

    gb.primitive(backend="torch")(body)(onp.ones(2, onp.float32))
    assert set(seen) == {torch.float32}
    seen.clear()
    out = gb.primitive(backend="torch", dtype="float64")(body)(onp.ones(2, onp.float32))
    assert set(seen) == {torch.float64}
    assert out.dtype == onp.float32


def test_a_function_of_a_parameter_tree():
    params = {"w": torch.ones(2, 3, dtype=torch.float64), "b": onp.zeros(2)}
    f = gb.bridge(lambda p, x: x @ p["w"].T + p["b"], params=params, backend="torch")
    assert f.layout.names == ("b", "w")
    X = onp.arange(6.0).reshape(2, 3)
    onp.testing.assert_allclose(f(f.params, X), X @ onp.ones((3, 2)))
    g = f.layout.unravel(grad(lambda p: np.sum(f(p, X) ** 2))(f.params))
    r = 2 * (X @ onp.ones((3, 2)))
    onp.testing.assert_allclose(g["b"], r.sum(0))
    onp.testing.assert_allclose(g["w"], r.T @ X)
    native = f.model(f.params)
    assert torch.equal(native(torch.tensor(X)), torch.tensor(X @ onp.ones((3, 2))))


def test_integer_parameters_are_refused():
    with pytest.raises(OptionError, match="parameter 'n' of params= has dtype torch.int64"):
        gb.bridge(lambda p, x: x, params={"n": torch.arange(3)}, backend="torch")


def test_a_function_that_raises_is_named_with_its_inputs():
    with pytest.raises(
        GuestError, match=r"energy failed on input 0 of shape \(2,\) float64, input 1 of shape \(3,\)"
    ):
        energy(onp.ones(2), onp.ones(3))


def test_arrays_that_torch_has_not_are_refused():
    with pytest.raises(InputError, match="no tensors of dtype"):
        energy(onp.array(["a"]), 1.0)


def test_a_function_cannot_write_to_the_callers_arrays():
    f = gb.primitive(backend="torch")(lambda x: x.mul_(2))
    mine = onp.ones(3)
    assert onp.array_equal(f(mine), [2, 2, 2])
    assert onp.array_equal(mine, [1, 1, 1])
