"""Params whose numbers leave torch on their way to the outputs: the zero in their gradient is told, others are not."""

import warnings

import numpy as np
import pytest
from autograd import grad

torch = pytest.importorskip("torch")

import gradbridge as gb  # noqa: E402
from gradbridge.errors import GradbridgeWarning  # noqa: E402

PARAMS = {"a": np.array([1.0, -2.0, 0.5]), "b": np.array([1.0, 2.0, 3.0]), "c": np.zeros(2)}
X = np.linspace(-1, 1, 12).reshape(4, 3)


def base(p, x):
    return x @ p["a"]


DETOURS = {
    "NumPy": lambda p, x: base(p, x) + float((p["b"].detach().numpy() ** 2).sum()),
    "item": lambda p, x: base(p, x) * p["b"][0].item(),
    "no_grad": lambda p, x: base(p, x) + without_grad(p["b"]),
}


def without_grad(b):
    with torch.no_grad():
        return b.sum() ** 2


def told(function, host="autograd"):
    """(the warnings of a bridge that is differentiated twice, its gradient, the bridge)."""
    f = gb.bridge(function, params=PARAMS, backend="torch")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            if host == "autograd":
                gradient = f.layout.unravel(grad(lambda p: f(p, X).sum())(f.params))
            else:
                leaves = {name: torch.tensor(a, requires_grad=True) for name, a in PARAMS.items()}
                f(leaves, torch.tensor(X)).sum().backward()
                gradient = {name: leaf.grad for name, leaf in leaves.items()}
    return [str(w.message) for w in caught if issubclass(w.category, GradbridgeWarning)], gradient, f


@pytest.mark.parametrize("host", ["autograd", "torch"])
@pytest.mark.parametrize("detour", DETOURS)
def test_params_that_the_outputs_change_with_and_no_derivative_leads_to_are_told_once(detour, host):
    said, gradient, f = told(DETOURS[detour], host)
    assert len(said) == 1
    assert " change with b, and no derivative leads there" in said[0]
    assert gradient["b"] is None or not np.any(gradient["b"].tolist())  # torch's own is None
    note = f.capabilities["audited"].note
    assert "outputs change with b, and no derivative follows; no influence on the outputs here: c" in note


QUIET = {
    "unused": base,
    "at a kink": lambda p, x: base(p, x) + torch.relu(p["c"]).sum() + p["b"].sum(),
    "at a saddle": lambda p, x: base(p, x) + (p["c"] ** 2).sum() + p["b"].sum(),
    "returned": lambda p, x: base(p, x) + torch.cat([p["b"], p["c"]]).sum(),
    "compared": lambda p, x: base(p, x) * (x[:, 0] < 100 * p["b"][0]).double(),
    "times zero": lambda p, x: base(p, x) + p["c"].sum() * p["b"].sum(),
}


@pytest.mark.parametrize("function", QUIET)
def test_params_without_influence_or_with_a_derivative_that_is_zero_are_not_told(function):
    said, gradient, _ = told(QUIET[function])
    assert said == []
    np.testing.assert_allclose(gradient["a"], X.sum(0), rtol=1e-14)


def test_many_of_them_are_told_together_after_one_look():
    class Taught(torch.nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.student = torch.nn.Linear(3, 3).double()
            self.teacher = torch.nn.Sequential(*[torch.nn.Linear(3, 3).double() for _ in range(30)])

        def forward(self, x):
            Taught.calls += 1
            with torch.no_grad():
                target = self.teacher(x)
            return self.student(x) - target

    def calls_and_warnings(net):
        f, Taught.calls = gb.bridge(net), 0
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            grad(lambda p: (f(p, X) ** 2).sum())(f.params)
        return Taught.calls, [str(w.message) for w in caught if issubclass(w.category, GradbridgeWarning)]

    looked, said = calls_and_warnings(Taught())
    frozen = Taught()
    frozen.teacher.requires_grad_(False)
    usual, silent = calls_and_warnings(frozen)
    assert "some of teacher.0.weight, " in said[0]
    assert "(60 in all)" in said[0]
    assert (len(said), silent) == (1, [])
    assert looked < usual + 10  # and not one more for each of them
