"""A torch module computes in the precision of its host: parameters, buffers and constants, wherever they stand."""

import copy
import warnings

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import value_and_grad

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402

X = onp.random.default_rng(0).normal(size=(4, 3))


class Constants(nn.Module):
    """Constants in a buffer, a frozen parameter, an attribute, a list and a closure."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 3)
        self.register_buffer("shift", torch.rand(3, 3))
        self.frozen = nn.Parameter(torch.rand(3, 3), requires_grad=False)
        self.attribute, self.listed, inside = torch.rand(3, 3), [torch.rand(3, 3)], torch.rand(3, 3)
        self.last = lambda z: z @ inside @ self.listed[0] @ self.frozen

    def forward(self, x):
        return torch.tanh(self.last(self.layer(x) @ self.attribute + self.shift[0]))

    def everything(self):
        inside = next(c.cell_contents for c in self.last.__closure__ if torch.is_tensor(c.cell_contents))
        return self.attribute, self.shift, inside, self.listed[0], self.frozen


class Recurrent(nn.Module):
    """Makes its first state in torch's default dtype."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inward, self.onward = nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, x):
        state = torch.zeros(len(x), 2)
        for _ in range(3):
            state = torch.tanh(self.inward(x) + self.onward(state))
        return state


def test_constants_follow_wherever_they_stand():
    net = Constants()
    f = gb.bridge(net)
    attribute, shift, inside, listed, frozen = (t.detach().double().numpy() for t in net.everything())

    def truth(p):
        hidden = (X @ p[:9].reshape(3, 3).T + p[9:]) @ attribute + shift[0]
        return np.sum(np.tanh(hidden @ inside @ listed @ frozen) ** 2)

    for p in (f.params, 1.3 * f.params):
        got = value_and_grad(lambda p: np.sum(f(p, X) ** 2))(p)
        onp.testing.assert_allclose(got[0], truth(p), rtol=1e-13)
        onp.testing.assert_allclose(got[1], value_and_grad(truth)(p)[1], rtol=1e-11, atol=1e-14)
    assert all(t.dtype == torch.float32 for t in net.everything())
    assert all(t.dtype == torch.float64 for t in f.model(f.params).everything())


def test_what_a_forward_makes_in_the_default_dtype_follows_too():
    net = Recurrent()
    f = gb.bridge(net)
    double = copy.deepcopy(net).double()
    torch.set_default_dtype(torch.float64)
    try:
        y = double(torch.tensor(X))
        expected = torch.autograd.grad((y**2).sum(), list(double.parameters()))
    finally:
        torch.set_default_dtype(torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value, gradient = value_and_grad(lambda p: np.sum(f(p, X) ** 2))(f.params)
    onp.testing.assert_allclose(value, (y.detach().numpy() ** 2).sum(), rtol=1e-13)
    flat = onp.concatenate([g.numpy().ravel() for g in expected])
    onp.testing.assert_allclose(gradient, flat, rtol=1e-11)
    assert torch.get_default_dtype() == torch.float32
    assert gb.bridge(net, dtype="model")(f.params, X).dtype == onp.float64  # at the border


def test_another_precision_is_of_the_module_as_it_was_when_bridged():
    net = Constants()
    adapter = gb.bridge(net, dtype="model").adapter
    before = [w.copy() for w in map(onp.asarray, adapter.weights())]
    table = net.shift.clone()
    with torch.no_grad():
        net.shift.fill_(7.0)
        net.attribute.fill_(7.0)
    double = adapter.in_dtype("float64")
    assert double.in_dtype("float64") is double
    assert adapter.in_dtype("float32") is adapter
    made = double.model(before)
    assert torch.equal(made.shift, table.double())
    assert not (made.attribute == 7.0).any()
    assert made.layer.weight.dtype == torch.float64
    half = double.in_dtype("float16").in_dtype("float64").model(before)
    assert torch.equal(half.shift, table.double())  # never through the coarser one


def test_a_module_without_tensors_keeps_the_dtype_of_its_inputs():
    adapter = gb.bridge(nn.Tanh()).adapter
    assert adapter.in_dtype("float64") is adapter


def test_moved_statistics_are_those_of_the_precision_that_moved_them():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    f = gb.bridge(net, mode="train", audit="off")
    f(f.params, X)
    running = f.model(f.params)[1].running_mean
    assert running.dtype == torch.float64
    mean = net[0].double()(torch.tensor(X)).mean(0)
    onp.testing.assert_allclose(running.numpy(), 0.1 * mean.detach().numpy(), rtol=1e-12)


def test_functions_follow_with_what_they_make():
    w = torch.rand(3, 3)
    f = gb.bridge(lambda p, x: torch.tanh(x @ p @ torch.ones(3, 2)), params=w, backend="torch")
    got = value_and_grad(lambda p: np.sum(f(p, X) ** 2))(f.params)
    truth = lambda p: np.sum(np.tanh(X @ p.reshape(3, 3) @ onp.ones((3, 2))) ** 2)
    onp.testing.assert_allclose(got[0], truth(f.params), rtol=1e-13)
    onp.testing.assert_allclose(got[1], value_and_grad(truth)(f.params)[1], rtol=1e-11)
