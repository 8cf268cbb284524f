"""Torch modules that compute in their backward, or derive in their forward."""

import warnings

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, hessian, make_vjp

torch = pytest.importorskip("torch")
from torch.utils.checkpoint import checkpoint  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import (  # noqa: E402
    GuestError,
)


class Checkpointed(torch.nn.Module):
    """Computes its middle again in the backward, if it is told so."""

    def __init__(self, recompute=True):
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
        self.recompute, self.reentrant = recompute, False

    def middle(self, x):
        return torch.tanh(self.second(torch.tanh(self.first(x))))

    def forward(self, x):
        if self.recompute:
            return checkpoint(self.middle, x, use_reentrant=self.reentrant)
        return self.middle(x)


def checkpointed_and_plain():
    one, other = Checkpointed().double(), Checkpointed(recompute=False).double()
    other.load_state_dict(one.state_dict())
    return gb.bridge(one), gb.bridge(other)


@pytest.mark.parametrize("order", [grad, hessian])
def test_activation_checkpointing_computes_with_the_parameters_of_its_call(order):
    f, plain = checkpointed_and_plain()
    x = onp.random.default_rng(0).normal(size=(5, 3))
    for shift in (0.5, -0.5, 1.0):
        p = f.params + shift
        found, truth = (order(lambda q, f=f: np.sum(f(q, x) ** 2))(p) for f in (f, plain))
        onp.testing.assert_allclose(found, truth, rtol=1e-11, atol=1e-13)


def test_checkpointed_calls_in_flight_do_not_see_each_other():
    f, plain = checkpointed_and_plain()
    x = onp.random.default_rng(0).normal(size=(5, 3))
    points = [f.params + shift for shift in (0.5, -0.5, 1.0)]
    v = onp.ones((5, 2))
    for _ in range(2):  # the first time it is not known yet
        pulls = [make_vjp(lambda q: f(q, x))(p)[0] for p in points]
        for pull, p in reversed(list(zip(pulls, points))):
            onp.testing.assert_allclose(pull(v), make_vjp(lambda q: plain(q, x))(p)[0](v), rtol=1e-12)
    onp.testing.assert_allclose(
        f.jacobian(points[0], x, wrt=(0, 1))[0], plain.jacobian(points[0], x, wrt=(0, 1))[0], rtol=1e-11
    )


def test_reentrant_checkpointing_says_what_to_do():
    model = Checkpointed()
    model.reentrant = True
    f = gb.bridge(model, dtype="float64")
    with pytest.raises(GuestError, match="use_reentrant=False"):
        grad(lambda x: np.sum(f(f.params, x)))(onp.ones((2, 3)))


class Force(torch.nn.Module):
    """Minus the gradient of an energy, taken in the forward as models of molecules do."""

    def __init__(self):
        super().__init__()
        self.energy = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))

    def forward(self, x):
        x = x if x.requires_grad else x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return -gradient


def test_a_model_that_takes_gradients_in_its_forward():
    model = Force().double()
    f = gb.bridge(model)
    warnings.simplefilter("error", gb.errors.GradbridgeWarning)  # nothing of it comes from outside
    x = onp.random.default_rng(0).normal(size=(5, 3))
    onp.testing.assert_allclose(f(f.params, x), model(torch.as_tensor(x)).detach().numpy(), rtol=1e-13)
    own = torch.autograd.grad(
        (model(torch.as_tensor(x)) ** 2).sum(), list(model.parameters()), allow_unused=True
    )
    flat = onp.concatenate(
        [onp.zeros(p.numel()) if g is None else g.numpy().ravel() for p, g in zip(model.parameters(), own)]
    )
    onp.testing.assert_allclose(grad(lambda p: np.sum(f(p, x) ** 2))(f.params), flat, rtol=1e-11, atol=1e-13)


def test_a_model_that_spoils_its_own_derivative_in_place_is_told():
    class InPlace(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.line = torch.nn.Linear(3, 3)

        def forward(self, x):
            y = self.line(x).exp()
            y[:, 0] = y[:, 1] * y[:, 2]
            return y

    f = gb.bridge(InPlace(), dtype="float64")
    with pytest.raises(GuestError, match="write to a clone"):
        grad(lambda p: np.sum(f(p, onp.ones((2, 3)))))(f.params)
