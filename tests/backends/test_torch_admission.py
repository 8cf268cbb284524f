"""Modules that are none yet, or hold no numbers; and what a forward may ask of its parameters."""

from dataclasses import dataclass

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, value_and_grad

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import UnknownModelError  # noqa: E402

X = onp.random.default_rng(0).normal(size=(4, 3))


@dataclass(eq=False)
class Record(nn.Module):
    size: int = 3

    def forward(self, x):
        return self.size * x


class Late(nn.Module):
    """Its child forgot what it did not."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.child = Record()


@pytest.mark.parametrize("make", [Record, Late])
def test_a_module_whose_init_did_not_call_its_parents_is_told_so(make):
    with pytest.raises(UnknownModelError, match=r"Record.__init__ did not call super\(\).__init__\(\)"):
        gb.bridge(make())


def partly():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = nn.Parameter(torch.empty(3, 3, device="meta"))
    return net


def buffered():
    net = nn.Linear(3, 3)
    net.register_buffer("mask", torch.empty(3, device="meta"), persistent=False)
    return net


@pytest.mark.parametrize(
    ("make", "name"),
    [(lambda: nn.Linear(3, 1, device="meta"), "weight"), (partly, "1.weight"), (buffered, "mask")],
)
@pytest.mark.parametrize("options", [{}, {"device": "cpu"}, {"dtype": "float64"}])
def test_a_module_on_the_meta_device_has_no_numbers(make, name, options):
    with pytest.raises(UnknownModelError, match=f"'{name}' of .* is on the meta device"):
        gb.bridge(make(), **options)


class Ridge(nn.Module):
    """A penalty over what is trainable, told in one way or another."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1).double()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64), requires_grad=False)
        self.how = how

    def forward(self, x):
        penalty = sum((p**2).sum() for p in self.parameters() if self.how(p))
        return (self.scale * self.layer(x)).sum() ** 2 + penalty


WAYS = [
    lambda p: p.requires_grad,
    lambda p: isinstance(p, nn.Parameter) and p.requires_grad,
    lambda p: p.requires_grad and p.is_leaf and p.grad is None,
]


@pytest.mark.parametrize("how", WAYS)
def test_parameters_are_trainable_in_every_call(how):
    f = gb.bridge(Ridge(how))
    p = f.params
    total = onp.sum(X @ p[:3] + p[3])
    truth = total**2 + p @ p
    onp.testing.assert_allclose(f(p, X), truth, rtol=1e-13)
    value, slope = value_and_grad(lambda x: f(p, x))(X)
    onp.testing.assert_allclose(value, truth, rtol=1e-13)
    onp.testing.assert_allclose(slope, onp.tile(2 * total * p[:3], (4, 1)), rtol=1e-12)
    value, slope = value_and_grad(lambda q: f(q, X))(p)
    onp.testing.assert_allclose(value, truth, rtol=1e-13)
    onp.testing.assert_allclose(slope, 2 * total * onp.append(X.sum(0), 4.0) + 2 * p, rtol=1e-12)
    direction = onp.arange(1.0, 5.0)
    product = grad(lambda q: np.dot(grad(lambda r: f(r, X))(q), direction))(p)
    inputs = onp.append(X.sum(0), 4.0)
    onp.testing.assert_allclose(product, 2 * inputs * (inputs @ direction) + 2 * direction, rtol=1e-12)


def test_parameters_are_parameters_in_every_call():
    class Weighed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, x):
            return x * self.weight if isinstance(self.weight, nn.Parameter) else x * 0

    f = gb.bridge(Weighed())
    onp.testing.assert_array_equal(f(2 * f.params, X), 2 * X)
    onp.testing.assert_array_equal(f.jvp(f.params, X, tangent=onp.ones(3)), X)
    onp.testing.assert_array_equal(f.jacobian(f.params, X)[1], onp.diag(X[1]))
