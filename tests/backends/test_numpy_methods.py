"""Primitives as methods: the object is an argument that nobody differentiates, and inputs are counted after it."""

import dataclasses
import functools

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, hessian, make_jvp

import gradbridge as gb
from gradbridge.errors import MissingVJPError, NotDifferentiableError, OptionError, VJPSignatureError

X, U, Y = onp.array([0.5, -1.0, 2.0]), onp.array([1.0, 0.3, -0.7]), onp.array([1.0, 2.0, 3.0])


class Spring:
    """A spring, its constant and its length; the rules of first and second order are written without self."""

    def __init__(self, k):
        self.k = k

    @gb.primitive
    def energy(self, x, y):
        return 0.5 * self.k * onp.sum(x**2 * y)

    @energy.defvjp
    def of_x(ans, self, x, y):
        return lambda v: v * self.k * x * y

    of_x.defvjp(
        lambda gradient, self, x, y, v: lambda u: v * self.k * y * u,
        lambda gradient, self, x, y, v: lambda u: v * self.k * x * u,
    )
    energy.defjvp(
        lambda t, ans, self, x, y: self.k * onp.sum(x * y * t),
        lambda t, ans, self, x, y: 0.5 * self.k * onp.sum(x**2 * t),
    )

    @gb.primitive(gradient="numeric")
    def numeric(self, x):
        return self.k * onp.sin(x)

    @gb.primitive(backend="autograd")
    def derived(self, x, y):
        return self.k * np.sin(x) * y

    @classmethod
    def unit(cls):
        return cls(1.0)

    @staticmethod
    @gb.primitive(backend="autograd")
    def doubled(x):
        return 2 * x

    tripled = gb.primitive(staticmethod(lambda x: 3 * x), backend="autograd")
    sine = gb.primitive(onp.sin)


def test_rules_are_for_the_arguments_after_self():
    energy = Spring(3.0).energy
    onp.testing.assert_allclose(grad(energy)(X, Y), 3 * X * Y)
    onp.testing.assert_allclose(grad(energy, 1)(X, Y), 1.5 * X**2)
    onp.testing.assert_allclose(hessian(energy)(X, Y), onp.diag(3 * Y))
    onp.testing.assert_allclose(make_jvp(energy)(X, Y)(U)[1], onp.sum(3 * X * Y * U))


def test_derivatives_of_a_method_count_its_inputs_from_0():
    pytest.importorskip("numdifftools")
    spring = Spring(2.0)
    onp.testing.assert_allclose(spring.numeric.jacobian(X), onp.diag(2 * onp.cos(X)), atol=1e-9)
    onp.testing.assert_allclose(spring.numeric.jvp(X, tangent=U), 2 * onp.cos(X) * U, rtol=1e-9)
    by_x, by_y = spring.derived.jacobian(X, Y, wrt=(0, 1))
    onp.testing.assert_allclose(by_x, onp.diag(2 * onp.cos(X) * Y))
    onp.testing.assert_allclose(by_y, onp.diag(2 * onp.sin(X)))
    onp.testing.assert_allclose(spring.derived.vjp(X, Y, cotangent=U, wrt=1), 2 * onp.sin(X) * U)
    onp.testing.assert_allclose(spring.derived.ggn(X, Y, vector=U), (2 * onp.cos(X) * Y) ** 2 * U)
    with pytest.raises(OptionError, match="0 to 1 are its input arrays in order; got 2"):
        spring.derived.jacobian(X, Y, wrt=2)
    # By way of the class it is the function that it was written as.
    onp.testing.assert_allclose(Spring.derived.jacobian(spring, X, Y, wrt=1), by_x)
    assert spring.numeric.gradient_error < 1e-9


def test_a_method_is_like_one_of_pythons_own():
    spring = Spring(2.0)
    assert spring.energy == spring.energy
    assert {spring.energy: 1}[spring.energy] == 1
    assert spring.energy != Spring(2.0).energy
    assert (spring.energy.__self__, spring.energy.__func__) == (spring, Spring.energy)
    assert spring.energy.__name__ == "energy"
    assert spring.doubled(2.0) == 4.0
    assert spring.tripled(2.0) == 6.0
    assert spring.sine(0.5) == onp.sin(0.5)
    assert functools.partial(Spring.unit().derived, y=1.0)(0.5) == onp.sin(0.5)


def test_an_object_that_is_a_tree_of_arrays_is_counted_as_one():
    @dataclasses.dataclass
    class Line:
        slope: onp.ndarray
        height: float

        @gb.primitive(backend="autograd")
        def at(self, x):
            return self.slope * x + self.height

    onp.testing.assert_allclose(Line(Y, 1.0).at.jacobian(X), onp.diag(Y))
    onp.testing.assert_allclose(grad(lambda y: np.sum(Line(y, 1.0).at(X)))(Y), X)


def test_rules_for_every_argument_and_numbered_ones_count_self():
    def made(*rules, **options):
        class Scaled:
            @gb.primitive
            def product(self, x, y):
                return x * y

            product.defvjp(*rules, **options)

        return Scaled().product

    by_x, by_y = (lambda ans, self, x, y: lambda v: v * y), (lambda ans, self, x, y: lambda v: v * x)
    for product in (made(None, by_x, by_y), made(by_x, by_y), made(by_x, by_y, argnums=(1, 2))):
        assert (grad(product)(2.0, 3.0), grad(product, 1)(2.0, 3.0)) == (3.0, 2.0)
    with pytest.raises(
        VJPSignatureError, match=r"may be meant for self or for x; leave self out .* argnums=\(1, 2\)"
    ):
        made(None, by_y)
    with pytest.raises(
        MissingVJPError,
        match=r"argument 2 \(y\) \(argument 0 is self\) .* argument 1 only; write it with @product\.defvjp\(argnums=\(2,\)\)",
    ):
        grad(made(by_x), 1)(2.0, 3.0)


def test_a_method_without_rules_is_told_to_write_one_without_argnums():
    class Scaled:
        @gb.primitive
        def product(self, x):
            return 2 * x

    with pytest.raises(
        MissingVJPError, match=r"argument 1 \(x\) \(argument 0 is self\).*@product\.defvjp, or make"
    ):
        grad(Scaled().product)(2.0)


def test_the_object_itself_has_no_derivative():
    with pytest.raises((NotDifferentiableError, OptionError)):
        Spring.derived.jacobian(Spring(1.0), X, Y, wrt=0)
