"""Stateful models in surroundings that are not theirs: other threads, random states and grad modes."""

import threading
import warnings

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, make_vjp

pytest.importorskip("seldonian")
torch = pytest.importorskip("torch")
from seldonian.models.models import LinearRegressionModel  # noqa: E402
from seldonian.parse_tree.parse_tree import make_parse_trees_from_constraints  # noqa: E402
from seldonian.seldonian_algorithm import SeldonianAlgorithm  # noqa: E402
from seldonian.spec import SupervisedSpec  # noqa: E402
from seldonian.utils.tutorial_utils import make_synthetic_regression_dataset  # noqa: E402
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import GradbridgeWarning, GradientShapeError, GuestError  # noqa: E402
from gradbridge_seldonian import SupervisedPytorchBaseModel, SupervisedStepsModel  # noqa: E402

X = onp.random.default_rng(0).normal(size=(6, 2))
THETA = onp.array([-0.5, 0.8, 0.3])


class Line(SupervisedPytorchBaseModel):
    """A line in double precision, theta in the module's order: weights, then bias."""

    def create_model(self, **kwargs):
        return nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)).double()


class Masked(SupervisedPytorchBaseModel):
    """A model that draws random masks in train mode."""

    def create_model(self, **kwargs):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(2, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 1), nn.Flatten(0)
        ).double()


class Masking(Masked):
    """The same, in train mode on purpose."""

    def __init__(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GradbridgeWarning)
            super().__init__("cpu")
        self.pytorch_model.train()


def loss(model, X=X):
    return lambda t: np.sum(model.predict(t, X) ** 2)


def test_eight_threads_that_make_the_first_call_at_once_get_the_truth():
    expected = make_vjp(lambda t: X @ t[:2] + t[2])(THETA)[0](onp.arange(6.0))
    for _ in range(20):
        model, wrong, start = Line("cpu"), [], threading.Barrier(8)

        def work(k, model=model, wrong=wrong, start=start):
            start.wait()
            pull, value = make_vjp(model.predict)(THETA * k, X)
            if not onp.allclose(value, (X @ THETA[:2] + THETA[2]) * k):
                wrong.append(("value", k))
            if not onp.allclose(pull(onp.arange(6.0)), expected, rtol=1e-12):
                wrong.append(("gradient", k))

        threads = [threading.Thread(target=work, args=(k,)) for k in range(1, 9)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not wrong


def test_a_value_and_its_gradient_cost_one_forward_and_one_backward():
    with gb.trace() as t:
        grad(loss(Line("cpu")))(THETA)
    assert (t.counts["forward"], t.counts["backward"]) == (1, 1)


def test_dropout_is_off_unless_it_is_asked_for_and_that_is_said():
    with pytest.warns(GradbridgeWarning, match="Masked has Dropout and is evaluated in eval mode"):
        model = Masked("cpu")
    theta = model.initial_solution()
    native = model.pytorch_model.eval()(torch.tensor(X)).detach().numpy()
    assert onp.array_equal(model.predict(theta, X), native)


def test_a_gradient_belongs_to_the_masks_of_its_value_even_when_replayed():
    model = Masking()
    theta = model.initial_solution()
    f = loss(model)
    assert f(theta) == f(theta)
    pull, _ = make_vjp(f)(theta)
    f(2 * theta)  # the model moves on
    g, u = pull(1.0), onp.random.default_rng(1).normal(size=theta.size)
    assert onp.isclose(g @ u, (f(theta + 1e-6 * u) - f(theta - 1e-6 * u)) / 2e-6, rtol=1e-6)


def test_torchs_random_state_is_neither_used_nor_changed():
    model = Masking()
    theta = model.initial_solution()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = grad(loss(model))(theta)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert onp.array_equal(grad(loss(model))(theta), first)


@pytest.mark.parametrize("surroundings", [torch.no_grad, torch.inference_mode])
def test_the_callers_grad_mode_does_not_matter(surroundings):
    model = Line("cpu")
    expected = grad(loss(model))(THETA)
    with surroundings():
        assert onp.array_equal(grad(loss(model))(THETA), expected)


def test_features_that_forward_pass_overwrites_are_still_the_callers():
    class Writing(Line):
        def forward_pass(self, X, **kwargs):
            X *= 2.0
            return self.pytorch_model(torch.from_numpy(X))

    model, features = Writing("cpu"), X.copy()
    pull, value = make_vjp(model.predict)(THETA, features)
    model.predict(0 * THETA, features)
    assert onp.array_equal(features, X)
    onp.testing.assert_allclose(value, 2 * X @ THETA[:2] + THETA[2], rtol=1e-12)
    onp.testing.assert_allclose(pull(onp.ones(6)), [*(2 * X).sum(0), 6.0], rtol=1e-12)


def test_a_gradient_of_the_wrong_length_is_refused():
    class Short(Line):
        def backward_pass(self, external_grad):
            return super().backward_pass(external_grad)[:2]

    with pytest.raises(GradientShapeError, match=r"gradient of theta, shape \(3,\), got 2 values"):
        grad(loss(Short("cpu")))(THETA)


@pytest.mark.parametrize("method", ["forward_pass", "backward_pass"])
def test_a_failure_in_a_method_names_it(method):
    def fail(self, *args, **kwargs):
        raise ValueError("broken here")

    model = type("Broken", (Line,), {method: fail})("cpu")
    with pytest.raises(GuestError, match=f"{method} of Broken failed: ValueError: broken here"):
        grad(loss(model))(THETA)


def test_a_method_that_was_not_written_is_named():
    class Half(SupervisedStepsModel):
        def create_model(self, **kwargs):
            return {}

    with pytest.raises(NotImplementedError, match="Half must override update_model_params"):
        Half().predict(THETA, X)


def test_a_class_for_the_present_engine_needs_its_import_changed_and_nothing_else():
    """The engine's own use: a device, create_model alone, get_model_params as the initial solution."""

    class Slope(SupervisedPytorchBaseModel):
        def __init__(self, device):
            super().__init__(device)

        def create_model(self, **kwargs):
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(1, 1), nn.Flatten(0)).double()

    onp.random.seed(0)  # noqa: NPY002, the engine's generator draws from it
    data = make_synthetic_regression_dataset(num_points=200)
    model = Slope(torch.device("cpu"))
    bias_first = lambda model, X, Y: start[::-1].copy()
    start = model.get_model_params()
    solutions = []
    for m, first in ((model, model.get_model_params), (LinearRegressionModel(), bias_first)):
        spec = SupervisedSpec(
            data,
            m,
            make_parse_trees_from_constraints(["Mean_Squared_Error <= 2.0"], [0.1]),
            "regression",
            initial_solution_fn=first,
            use_builtin_primary_gradient_fn=False,
        )
        spec.optimization_hyperparams = {
            **spec.optimization_hyperparams,
            "lambda_init": onp.array([0.5]),
            "num_iters": 20,
            "verbose": False,
        }
        algorithm = SeldonianAlgorithm(spec)
        algorithm.run()
        solutions.append(algorithm.cs_result["candidate_solution"])
    onp.testing.assert_allclose(solutions[0], solutions[1][::-1], rtol=1e-9)


class Bent(SupervisedPytorchBaseModel):
    """A hidden layer, and a frozen scale behind it."""

    def create_model(self, activation=nn.Tanh, **kwargs):
        torch.manual_seed(0)
        out = nn.Linear(3, 1, bias=False).requires_grad_(False)
        return nn.Sequential(nn.Linear(2, 3), activation(), out, nn.Flatten(0)).double()


class BentAnew(Bent):
    """Computes everything again in backward_pass."""

    def forward_pass(self, X, **kwargs):
        self.X = torch.tensor(X)
        return self.pytorch_model(self.X)

    def backward_pass(self, external_grad):
        again = self.pytorch_model(self.X)
        trained = [p for p in self.pytorch_model.parameters() if p.requires_grad]
        return torch.cat([g.ravel() for g in torch.autograd.grad(again, trained, external_grad)])


def _scaled(model, layer):
    model.pytorch_model[layer].weight.data.mul_(3.0)


def _replaced(model, layer):
    weight = model.pytorch_model[layer].weight
    weight.data = torch.ones_like(weight)


def _through_numpy(model, layer):
    model.pytorch_model[layer].weight.detach().numpy()[:] = 2.0


def _exchanged(model, layer):
    model.pytorch_model = type(model)("cpu", activation=nn.Sigmoid).pytorch_model


def _exchanged_and_used(model, layer):
    _exchanged(model, layer)
    model.predict(onp.ones(9), X)


@pytest.mark.parametrize("cls", [Bent, BentAnew])
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("change", [_scaled, _replaced, _through_numpy, _exchanged, _exchanged_and_used])
def test_a_gradient_is_that_of_its_value_whatever_is_done_to_the_model_in_between(cls, layer, change):
    model, theta = cls("cpu"), onp.linspace(-1.0, 1.0, 9)
    scale = model.pytorch_model[2].weight.detach().numpy()[0].copy()
    truth = lambda t: np.sum((np.tanh(X @ t[:6].reshape(3, 2).T + t[6:]) @ scale) ** 2)
    for i in range(3):  # after those that are looked at
        grad(loss(model))(theta + 0.1 * i)
    pull, _ = make_vjp(loss(model))(theta)
    change(model, layer)
    left = model.pytorch_model, model.pytorch_model[2].weight.detach().clone()
    onp.testing.assert_allclose(pull(1.0), grad(truth)(theta), rtol=1e-10)
    assert model.pytorch_model is left[0]
    assert torch.equal(model.pytorch_model[2].weight, left[1])
