"""Law 8: whatever is pulled back through one call, the guest evaluated it once; and what it kept goes with the graph."""

import gc
import weakref

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import elementwise_grad, grad, jacobian, make_vjp, value_and_grad

import gradbridge as gb
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Adapter

X = np.random.default_rng(0).normal(size=(6, 3))


@pytest.fixture(params=["torch", "jax", "tensorflow", "autograd"])
def f(request):
    backend = request.param
    if backend == "autograd":
        params = {"w": np.ones((3, 2)), "b": np.zeros(2)}
        return gb.bridge(lambda p, x: anp.tanh(anp.dot(x, p["w"]) + p["b"]), params=params, backend=backend)
    pytest.importorskip(backend)
    model = gb.build("mlp", sizes=[3, 4, 2], backend=backend, seed=0)
    return gb.bridge(model, backend=backend, dtype="float64")


def forwards(work):
    with gb.trace() as t:
        work()
    return t.counts["forward"]


def test_values_gradients_and_jacobians_cost_one_forward(f):
    p = f.params
    assert forwards(lambda: value_and_grad(lambda q: anp.sum(f(q, X) ** 2))(p)) == 1
    assert forwards(lambda: grad(lambda q, x: anp.sum(f(q, x) ** 2), (0, 1))(p, X)) == 1
    assert forwards(lambda: jacobian(f)(p, X)) == 1
    assert forwards(lambda: elementwise_grad(lambda x: f(p, x))(X)) == 1
    for strategy in ("auto", "vjp", "loop"):
        if not (strategy == "vjp" and not f.capabilities["Jacobian, batched VJP"]):
            assert forwards(lambda s=strategy: f.jacobian(p, X, strategy=s)) == 1


def test_several_cotangents_through_one_call_cost_one_forward(f):
    rng = np.random.default_rng(1)

    def work():
        pull, y = make_vjp(f)(f.params, X)
        first = [pull(v) for v in rng.normal(size=(4, *y.shape))]
        assert len(first) == 4

    assert forwards(work) == 1


class Kept:
    """Residuals that can be watched."""


class Doubling(Adapter):
    """x ↦ 2 x."""

    label = "doubling"
    layout = ParameterLayout.empty()

    def __init__(self):
        self.alive = weakref.WeakSet()

    def weights(self):
        return []

    def model(self, weights):
        return lambda x: 2 * x

    def update(self, weights):
        return None

    def forward(self, loaded, inputs, spec, wrt):
        residuals = Kept() if wrt else None
        if wrt:
            self.alive.add(residuals)
        return 2 * inputs[0], residuals

    def backward(self, residuals, cotangents, wrt):
        return [2 * cotangents[0]]


def test_residuals_live_as_long_as_the_graph_and_no_longer():
    adapter = Doubling()
    f = gb.bridge(adapter)
    none = np.empty(0)
    gc.disable()  # references alone must do it: a graph that waits for the collector piles up
    try:
        pull, _ = make_vjp(lambda x: f(none, x))(X)
        assert len(adapter.alive) == 1
        pull(X)
        pull(X)
        assert len(adapter.alive) == 1
        del pull
        assert len(adapter.alive) == 0
        grad(lambda x: anp.sum(f(none, x)))(X)
        f(none, X)
        assert len(adapter.alive) == 0
        kept = [make_vjp(lambda x: f(none, x))(X)[0] for _ in range(5)]
        assert len(adapter.alive) == 5
        del kept[2:]
        assert len(adapter.alive) == 2
    finally:
        gc.enable()


def test_reuse_keeps_as_many_residuals_as_it_says():
    adapter = Doubling()
    f = gb.bridge(adapter, reuse=3)
    for k in range(10):
        grad(lambda x: anp.sum(f(np.empty(0), x)))(X + k)
    assert len(adapter.alive) == 3
    f.memory.forget()
    assert len(adapter.alive) == 0
