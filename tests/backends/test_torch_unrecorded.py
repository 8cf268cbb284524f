"""Derivatives of torch gradients that torch does not record, or not all of: right, or refused."""

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, hessian_vector_product, make_jvp

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import HigherOrderError  # noqa: E402

X = onp.array([0.5, 1.0, 2.0])


def function(backward):
    """x³ as a function whose backward is given."""

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

    Cube.backward = staticmethod(lambda ctx, g: backward(*ctx.saved_tensors, g))
    return Cube.apply


@torch.no_grad()
def without_grad(x, g):
    return 3 * x**2 * g


def in_numpy(x, g):
    return torch.as_tensor(3 * x.detach().numpy() ** 2 * g.detach().numpy())


def adjoint_steps(x, g):
    # As an adjoint solver integrates backwards: in small steps that nobody records.
    with torch.no_grad():
        total = torch.zeros_like(x)
        for _ in range(100):
            total = total + 3 * x**2 * g / 100
    return total


def reverse_walk_inside(x, g):
    # As an implicit layer solves its linear system: by walks that are not recorded.
    with torch.enable_grad():
        own = x.detach().requires_grad_()
        return torch.autograd.grad(own**3, own, g.detach())[0]


UNRECORDED = [without_grad, in_numpy, adjoint_steps, reverse_walk_inside]


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "next to a recorded way"])
@pytest.mark.parametrize("operator", ["product", "JVP"])
@pytest.mark.parametrize("backward", UNRECORDED)
def test_a_backward_that_is_not_recorded_is_refused_rather_than_taken_for_a_constant(
    backward, operator, beside
):
    cube = function(backward)
    f = gb.primitive(backend="torch")(lambda x: torch.sin(cube(x)) + (x**2 if beside else 0))
    slope = 3 * X**2 * onp.cos(X**3) + (2 * X if beside else 0)
    onp.testing.assert_allclose(grad(lambda x: np.sum(f(x)))(X), slope)
    with pytest.raises(HigherOrderError, match="a backward in it is not recorded"):
        if operator == "product":
            hessian_vector_product(lambda x: np.sum(f(x) ** 2))(X, X)
        else:
            make_jvp(f)(X)(X)


@pytest.mark.parametrize("cotangent", [0.0, 1.0])
def test_a_hook_that_detaches_is_refused_whatever_its_cotangent(cotangent):
    class Hooked(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, x):
            z = torch.tanh(self.w * x)
            if z.requires_grad:
                z.register_hook(lambda g: 2 * g.detach())
            return z**2 + self.w

    f = gb.bridge(Hooked())
    z = onp.tanh(X)
    onp.testing.assert_allclose(grad(lambda p: np.sum(f(p, X)))(f.params), 4 * z * (1 - z**2) * X + 1)
    with pytest.raises(HigherOrderError, match="goes into TanhBackward"):
        hessian_vector_product(lambda p: cotangent * np.sum(f(p, X)))(f.params, X)


def test_hooks_and_functions_that_are_recorded_have_their_derivatives():
    class Recorded(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.full((3,), 0.7, dtype=torch.float64))
            self.norms = []

        def forward(self, x):
            z = function(lambda x, g: 3 * x**2 * g)(self.w * x)
            if z.requires_grad:
                z.register_hook(lambda g: self.norms.append(g.detach().norm().item()) or 2 * g)
            return torch.round(self.w) * z

    f = gb.bridge(Recorded())
    truth = 2 * 2 * 3 * X**3 * f.params * X  # the doubled gradient, 6 w² x³, differentiated
    product = hessian_vector_product(lambda p: np.sum(f(p, X)))(f.params, X)
    onp.testing.assert_allclose(product, truth, rtol=1e-12)
    again = hessian_vector_product(lambda p: np.sum(f(p, X)))(f.params, X)
    onp.testing.assert_allclose(again, truth, rtol=1e-12)


def test_a_function_that_is_met_later_is_looked_at_then():
    cube = function(without_grad)
    f = gb.primitive(backend="torch")(lambda x: torch.sin(x) if x[0] < 1 else torch.sin(cube(x)) + x**2)
    loss = lambda x: np.sum(f(x))
    onp.testing.assert_allclose(hessian_vector_product(loss)(X, X), -onp.sin(X) * X)
    with pytest.raises(HigherOrderError, match="not recorded"):
        hessian_vector_product(loss)(X + 1, X)


class Implicit(nn.Module):
    """z = tanh(w z + x), whose implicit gradient a hook puts in, with a slope that is a constant for torch."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -0.4, 0.7], dtype=torch.float64))

    def forward(self, x):
        with torch.no_grad():
            z = torch.zeros_like(x)
            for _ in range(200):
                z = torch.tanh(self.w * z + x)
        z = torch.tanh(self.w * z + x)
        if z.requires_grad:
            slope = (self.w * (1 - z**2)).detach()
            z.register_hook(lambda g: g / (1 - slope))
        return z


class Saving(nn.Module):
    """exp(w x), whose function keeps its output where torch does not see it."""

    class Exp(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.y = x.exp()
            return ctx.y.clone()

        @staticmethod
        def backward(ctx, g):
            return ctx.y * g

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -0.4, 0.7], dtype=torch.float64))

    def forward(self, x):
        return self.Exp.apply(self.w * x) if x[0] < 1 else torch.exp(self.w * x)


@pytest.mark.parametrize("make", [Implicit, Saving])
def test_a_constant_that_is_none_for_the_gradient_is_noticed_by_a_difference(make):
    f = gb.bridge(make())
    p, v, step = f.params, onp.array([1.0, -1.0, 0.5]), 1e-6
    moved = (f(p + step * v, X) - f(p - step * v, X)) / (2 * step)
    onp.testing.assert_allclose(grad(lambda q: np.sum(f(q, X)))(p) @ v, moved.sum(), rtol=1e-7)
    with pytest.raises(
        HigherOrderError, match="is wrong: .* a central difference of the gradient .*, and they differ by"
    ):
        hessian_vector_product(lambda q: np.sum(f(q, X) ** 2))(p, v)
    onp.testing.assert_allclose(f.jvp(p, X, tangent=v), moved, rtol=1e-7)  # it needs the gradient alone


def test_operations_that_a_call_has_not_had_before_are_compared_then():
    f = gb.bridge(Saving())
    p, v = f.params, onp.array([1.0, -1.0, 0.5])
    product = lambda x: hessian_vector_product(lambda q: np.sum(f(q, x)))(p, v)
    onp.testing.assert_allclose(product(X + 1), (X + 1) ** 2 * onp.exp(p * (X + 1)) * v, rtol=1e-10)
    with pytest.raises(HigherOrderError, match="what its framework gives is wrong"):
        product(X)
