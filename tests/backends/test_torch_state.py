"""Modules that keep something between calls: each call is a function of its params and inputs, or is refused."""

import collections
import copy
import functools
import gc

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, value_and_grad

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import AuditError  # noqa: E402

X = onp.random.default_rng(0).normal(size=(4, 3))


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.gain = nn.Linear(3, 3), nn.Parameter(torch.tensor(0.7))
        self.start()
        self.double().eval()


class ClosureMemo(Base):
    """A memo in a closure, as decorators make it."""

    def start(self):
        memo = {}

        def gram():
            if "gram" not in memo:
                memo["gram"] = self.layer.weight @ self.layer.weight.T
            return memo["gram"]

        self.gram = gram

    def forward(self, x):
        return x @ self.gram() * self.gain

    def truth(self, x):
        return x @ (self.layer.weight @ self.layer.weight.T) * self.gain


class CachedProperty(ClosureMemo):
    def start(self):
        pass

    @functools.cached_property
    def kernel(self):
        return self.layer.weight @ self.layer.weight.T

    def gram(self):
        return self.kernel


class RotaryTable(Base):
    """A learned table in a buffer that the first call makes."""

    def start(self):
        self.register_buffer("table", None, persistent=False)

    def forward(self, x):
        if self.table is None:
            self.table = self.angles(x)
        return self.layer(x) * self.table

    def angles(self, x):
        return torch.cos(self.gain * torch.arange(len(x), dtype=x.dtype)).detach()[:, None]

    def truth(self, x):
        return self.layer(x) * self.angles(x)


class FirstBatch(Base):
    def start(self):
        self.mean = None

    def forward(self, x):
        if self.mean is None:
            self.mean = x.mean(0)
        return self.layer(x - self.mean) * self.gain

    def truth(self, x):
        return self.layer(x - x.mean(0)) * self.gain


class Recurrent(Base):
    def start(self):
        self.state = ()

    def forward(self, x):
        y = torch.tanh(self.layer(x) + (self.state[0] if self.state else 0.0))
        self.state = (y,)
        return y * self.gain

    def truth(self, x):
        return torch.tanh(self.layer(x)) * self.gain


class Counter(Base):
    def start(self):
        self.calls = [0]

    def forward(self, x):
        self.calls[0] += 1
        return self.layer(x) * self.gain / self.calls[0]

    def truth(self, x):
        return self.layer(x) * self.gain


class LengthTable(Base):
    """A table that depends on the shape alone: right to keep."""

    def start(self):
        self.tables = {}

    def forward(self, x):
        if len(x) not in self.tables:
            self.tables[len(x)] = torch.arange(len(x), dtype=x.dtype)[:, None]
        return self.layer(x) * self.tables[len(x)] * self.gain

    def truth(self, x):
        return self.layer(x) * torch.arange(len(x), dtype=x.dtype)[:, None] * self.gain


class Recorder(Base):
    """Keeps what it computes, here and there, and never reads it."""

    def start(self):
        self.log, self.last, self.recent = [], None, collections.deque(maxlen=2)

    def forward(self, x):
        y = self.layer(x)
        self.last = {"y": (y, [y])}
        self.log.append(y)
        self.recent.append(y)
        EVERYWHERE.append(y.detach())
        return y * self.gain

    def truth(self, x):
        return self.layer(x) * self.gain


EVERYWHERE = []
KINDS = [ClosureMemo, CachedProperty, RotaryTable, FirstBatch, Recurrent, Counter, LengthTable, Recorder]


def native(kind, p, x):
    net = kind()
    torch.nn.utils.vector_to_parameters(torch.as_tensor(p), net.parameters())
    y = net.truth(torch.as_tensor(x))
    gradients = torch.autograd.grad((y**2).sum(), list(net.parameters()), allow_unused=True)
    flat = [(torch.zeros_like(q) if g is None else g).ravel() for g, q in zip(gradients, net.parameters())]
    return y.detach().numpy(), torch.cat(flat).numpy()


@pytest.mark.parametrize("first", ["value", "gradient"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_call_sees_another(kind, first):
    f = gb.bridge(kind())
    for scale in (1.0, 2.0, -0.5, 1.0):
        p, x = scale * f.params, scale * X
        value, gradient = native(kind, p, x)
        if first == "value":
            onp.testing.assert_allclose(f(p, x), value, rtol=1e-12)
        got = value_and_grad(lambda p: np.sum(f(p, x) ** 2))(p)  # noqa: B023
        onp.testing.assert_allclose(got[0], onp.sum(value**2), rtol=1e-12)
        onp.testing.assert_allclose(got[1], gradient, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_is_as_it_was_when_it_was_bridged_and_stays_so(kind):
    net = kind()
    before = copy.deepcopy(vars(net))
    f = gb.bridge(net)
    grad(lambda p: np.sum(f(p, X)))(f.params)
    assert vars(net).keys() == before.keys()
    kept = ("calls", "state", "mean", "table", "log", "last", "tables")
    assert all(vars(net).get(name) == before.get(name) for name in kept)


def test_a_table_that_depends_on_shapes_alone_costs_no_fresh_copy():
    for kind, isolated in ((LengthTable, False), (ClosureMemo, True)):
        f = gb.bridge(kind())
        grad(lambda p: np.sum(f(p, X)))(f.params)  # noqa: B023
        assert f.adapter.isolate_calls() is not isolated


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("kind", [LengthTable, Recorder, ClosureMemo, CachedProperty, RotaryTable])
def test_a_module_that_was_called_before_is_bridged_like_a_new_one(kind, recorded):
    net = kind()
    with torch.set_grad_enabled(recorded):
        for _ in range(3):
            net(torch.as_tensor(X))
    f = gb.bridge(net)
    for scale in (1.0, 2.0):
        value, gradient = native(kind, scale * f.params, X)
        onp.testing.assert_allclose(f(scale * f.params, X), value, rtol=1e-12)
        got = grad(lambda p: np.sum(f(p, X) ** 2))(scale * f.params)
        onp.testing.assert_allclose(got, gradient, rtol=1e-11, atol=1e-13)
        model = f.model(scale * f.params)
        onp.testing.assert_allclose(model(torch.as_tensor(X)).detach().numpy(), value, rtol=1e-12)
    onp.testing.assert_allclose(copy.deepcopy(f)(f.params, X), native(kind, f.params, X)[0], rtol=1e-12)
    assert len(getattr(net, "log", (1, 2, 3))) == 3


def test_a_state_that_was_computed_from_parameters_before_is_refused_by_name():
    net = Recurrent()
    net(torch.as_tensor(X))
    f = gb.bridge(net)
    words = "parameter 'layer.weight', from which 'state.0.' was computed before and kept"
    with pytest.raises(AuditError, match=words):
        grad(lambda p: np.sum(f(p, X)))(f.params)


class Bounded(Base):
    """Can do without its bounds, which do not show at most inputs, and never makes them anew."""

    def start(self):
        self.bounds = torch.full((3,), 0.5)

    def forward(self, x):
        y = self.layer(x) * self.gain
        return y if self.bounds is None else torch.minimum(y, self.bounds)


@pytest.mark.parametrize("kind", [FirstBatch, Bounded])
def test_what_was_learned_from_data_and_constants_are_not_taken_for_memos(kind):
    net = kind()
    with torch.no_grad():
        net.layer.weight.mul_(0.1)
        net(torch.as_tensor(X))
    f = gb.bridge(net)
    f(f.params, X)
    for x in (X, 50 * X):
        native = copy.deepcopy(net)(torch.as_tensor(x)).detach().numpy()
        onp.testing.assert_allclose(f(f.params, x), native, rtol=1e-12)


def test_what_a_module_records_does_not_pile_up_in_the_bridge():
    f = gb.bridge(Recorder())
    loss = grad(lambda p: np.sum(f(p, X) ** 2))
    EVERYWHERE.clear()

    def tensors():
        gc.collect()
        return sum(type(o) is torch.Tensor for o in gc.get_objects())

    for _ in range(8):
        loss(f.params)
    EVERYWHERE.clear()
    before = tensors()
    for _ in range(50):
        loss(f.params)
    EVERYWHERE.clear()
    assert tensors() <= before + 5


def test_a_fresh_model_shares_no_moving_state():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
    adapter = gb.bridge(net, mode="train").adapter
    fresh = adapter.fresh()
    f = gb.bridge(net, mode="train", audit="off")
    f(f.params, X)
    assert f.model(f.params)[1].num_batches_tracked == 1
    assert fresh.model(fresh.weights())[1].num_batches_tracked == 0
    assert net[1].num_batches_tracked == 0


def test_statistics_move_on_in_whatever_precision_a_call_is():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    native = copy.deepcopy(net).double().train()
    f = gb.bridge(net, mode="train")
    single = f.params.astype("float32")
    for p in (single, f.params, f.params, single):
        f(p, X)
        native(torch.as_tensor(X))
    for p in (f.params, single):
        found = f.model(p)[1]
        assert found.num_batches_tracked == 4
        onp.testing.assert_allclose(found.running_mean, native[1].running_mean, rtol=1e-5)
        onp.testing.assert_allclose(found.running_var, native[1].running_var, rtol=1e-5)
