"""A forward mode that is not the transposed of its reverse mode is noticed at its first tangent, and not used."""

import numpy as np
import pytest
from autograd import grad, make_jvp

import gradbridge as gb
from gradbridge.audit.findings import Audit
from gradbridge.audit.forward_mode import passes_adjoint_test
from gradbridge.call_spec import CallSpec
from gradbridge.errors import NotDifferentiableError
from gradbridge.protocol import GuestOptions
from gradbridge.registry import default_registry
from gradbridge.testing import SCENARIOS, Subject
from gradbridge.testing.reference import Reference, ReferenceAdapter, ReferencePullback

X = np.random.default_rng(0).normal(size=(4, 3))


class Doubled(ReferenceAdapter):
    """Pushes twice the tangent."""

    def pushforward(self, *args):
        outputs, tangents = super().pushforward(*args)
        return outputs, [2 * y for y in tangents]

    def pushforward_many(self, *args):
        return [2 * y for y in super().pushforward_many(*args)]


class OnlyForward(ReferenceAdapter):
    def backward(self, residuals, cotangents, wrt):
        raise NotDifferentiableError("no way back")


def bridged(kind):
    subject = Subject(Reference(), SCENARIOS["mlp"])
    return gb.bridge(kind(subject.build(subject.initial()).model, GuestOptions(dtype="float64")))


def labels(t):
    return [step.bridge for step in t.steps]


def test_a_right_one_is_used_and_looked_at_once():
    f = bridged(ReferenceAdapter)
    tangent = np.ones(f.layout.size)
    for expected in (True, False):
        with gb.trace() as t:
            f.jvp(f.params, X, tangent=tangent)
        assert any("JVP checked" in label for label in labels(t)) is expected
        assert not any("gradient of" in label for label in labels(t))
    assert "own, one forward" in f.capabilities["forward mode (JVP)"].note


@pytest.mark.parametrize("strategy", ["auto", "jvp"])
def test_a_wrong_one_is_replaced_by_the_pullback_of_the_pullback(strategy):
    f, right = bridged(Doubled), bridged(ReferenceAdapter)
    tangent = np.arange(float(f.layout.size))
    truth = right.jacobian(f.params, X, strategy="loop")
    np.testing.assert_allclose(f.jvp(f.params, X, tangent=tangent), truth @ tangent, rtol=1e-10)
    np.testing.assert_allclose(make_jvp(lambda p: f(p, X))(f.params)(tangent)[1], truth @ tangent, rtol=1e-10)
    other = bridged(Doubled)
    np.testing.assert_allclose(other.jacobian(f.params, X, strategy=strategy), truth, rtol=1e-10, atol=1e-12)
    assert "disagrees with its gradient" in f.capabilities["forward mode (JVP)"].note


def test_what_cannot_be_pulled_back_is_believed():
    f = bridged(OnlyForward)
    right = bridged(ReferenceAdapter)
    tangent = np.ones(f.layout.size)
    np.testing.assert_array_equal(
        f.jvp(f.params, X, tangent=tangent), right.jvp(f.params, X, tangent=tangent)
    )


def test_a_model_that_is_refused_refuses_its_gradients_and_not_the_other_way_round():
    check = Audit()
    check.found(1, ("pushforward", (0,)), False)
    assert not check.is_wrong(0, "pushforward")
    assert check.is_wrong(1, "pushforward")
    assert check.is_wrong(2, "pushforward")
    assert not check.is_wrong(2, "backward_many")
    assert check.awaits(0, ("pushforward", (0,)))


def test_numbers_that_are_not_finite_tell_nothing():
    subject = Subject(Reference(), SCENARIOS["mlp"])
    point, adapter = subject.point(), subject.adapter()
    weights = adapter.layout.cut(point.params)
    loaded, spec = adapter.update(weights), CallSpec.of_arrays(len(point.inputs))
    tangents = [np.full(weights[0].shape, np.nan)]
    _, pushed = adapter.pushforward(loaded, point.inputs, spec, (0,), tangents)
    assert passes_adjoint_test(adapter, loaded, point.inputs, spec, (0,), tangents, pushed, 0.0) is None
    assert isinstance(adapter.pullback(spec, (0,)), ReferencePullback)
    assert default_registry() is not None


TORCH = {
    "scatter_reduce prod": lambda torch: (
        lambda x: torch.zeros(2, dtype=x.dtype).scatter_reduce(
            0, torch.tensor([0, 0, 1]), x, "prod", include_self=False
        )
    ),
    "cholesky_inverse": lambda torch: (
        lambda x: torch.cholesky_inverse(
            torch.diag(x) + torch.tensor([[0, 0, 0], [0.3, 0, 0], [0.1, 0.2, 0]], dtype=x.dtype)
        )
    ),
    "fmax at ties": lambda torch: lambda x: torch.fmax(x, x.detach()) * x,
}


@pytest.mark.parametrize("operation", TORCH)
def test_torch_operations_whose_two_derivatives_differ(operation):
    torch = pytest.importorskip("torch")
    f = gb.primitive(TORCH[operation](torch), backend="torch")
    x, t = np.array([2.0, 0.7, 1.5]), np.array([0.5, -1.0, 2.0])
    loop = f.jacobian(x, strategy="loop")
    np.testing.assert_allclose(f.jvp(x, tangent=t), loop @ t, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(f.jacobian(x, strategy="jvp"), loop, rtol=1e-12, atol=1e-14)


def test_hooks_on_nodes_of_torchs_graph_are_heeded():
    torch = pytest.importorskip("torch")

    def hooked(x):
        y = x**2
        if y.grad_fn is not None:
            y.grad_fn.register_prehook(lambda g: (3 * g[0],))
        return y

    f = gb.primitive(hooked, backend="torch")
    x = np.array([1.0, 2.0])
    np.testing.assert_allclose(f.jvp(x, tangent=np.ones(2)), 6 * x)
    np.testing.assert_allclose(grad(lambda x: f(x).sum())(x), 6 * x)
    assert torch is not None
