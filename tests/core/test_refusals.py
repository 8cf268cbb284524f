"""What a guest cannot do it says in one way, and the reason is shown where one looks for it."""

import numpy as np
import pytest

import gradbridge as gb
from gradbridge.errors import HigherOrderError, Unsupported
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Adapter, CallSpec

OPTIONAL = ("backward_many", "row_jacobians", "pushforward", "pushforward_many", "pullback", "output_spec")


class Doubling(Adapter):
    """x ↦ 2 x, with the least that an adapter must have."""

    label = "doubling"
    layout = ParameterLayout.empty()

    def weights(self):
        return []

    def model(self, weights):
        return lambda x: 2 * x

    def update(self, weights):
        return None

    def forward(self, loaded, inputs, spec, wrt):
        return 2 * inputs[0], ()

    def backward(self, residuals, cotangents, wrt):
        return [2 * c for c in cotangents]


@pytest.mark.parametrize("operation", OPTIONAL)
def test_what_an_adapter_leaves_out_raises_unsupported_with_the_reason_that_refusal_gives(operation):
    adapter, spec, x = Doubling(), CallSpec.of_arrays(1), np.ones(3)
    arguments = {
        "backward_many": ((), [x[None]], (0,)),
        "row_jacobians": (None, [x], spec, (), (True,)),
        "pushforward": (None, [x], spec, (0,), [x]),
        "pushforward_many": (None, [x], spec, (0,), [x[None]]),
        "pullback": (spec, (0,)),
        "output_spec": ([x], spec),
    }
    assert "doubling" in adapter.refusal(operation)
    with pytest.raises(Unsupported, match="doubling"):
        getattr(adapter, operation)(*arguments[operation])


def test_a_missing_derivative_of_a_derivative_is_one_of_them():
    assert issubclass(HigherOrderError, Unsupported)
    with pytest.raises(HigherOrderError):
        Doubling().pullback(CallSpec.of_arrays(1), (0,))


def test_capabilities_give_the_reasons():
    able = gb.bridge(Doubling()).capabilities
    for row, word in {
        "derivatives of derivatives": "again",
        "Jacobian, per-example": "per-example",
        "Jacobian, batched VJP": "one cotangent",
        "output shapes before the run": "after it has run",
    }.items():
        assert not able[row]
        assert word in able[row].note


def test_what_a_framework_refused_for_a_call_is_shown_with_its_words():
    torch = pytest.importorskip("torch")

    def branching(p, x):
        return x @ p if float(x.detach().sum()) > 1e9 else torch.sin(x @ p)

    f = gb.bridge(branching, params=torch.ones(40, dtype=torch.float64), backend="torch")
    X = np.random.default_rng(0).normal(size=(20, 40))
    expected = np.cos(X.sum(1))[:, None] * X
    np.testing.assert_allclose(f.jacobian(np.ones(40), X), expected, rtol=1e-12)
    assert "refused for a call" in f.capabilities["Jacobian, per-example"].note
