"""Models written as five methods over one stateful native model keep the laws."""

import copy
import pickle
import threading

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, hessian, jacobian, make_vjp

pytest.importorskip("seldonian")
torch = pytest.importorskip("torch")
from seldonian.seldonian_algorithm import SeldonianAlgorithm  # noqa: E402
from seldonian.utils.tutorial_utils import make_synthetic_regression_dataset  # noqa: E402

from gradbridge.errors import HigherOrderError, NotDifferentiableError, ParamsShapeError  # noqa: E402
from gradbridge_seldonian import (  # noqa: E402
    SupervisedPytorchBaseModel,
    SupervisedStepsModel,
    supervised_spec,
)

X = onp.random.default_rng(0).normal(size=(6, 2))


class OneLayer(SupervisedPytorchBaseModel):
    """A line with a squashed output, its bias first in theta, all five methods written by hand."""

    def create_model(self, **kwargs):
        return torch.nn.Linear(self.input_dim, self.output_dim).double()

    def update_model_params(self, theta, **kwargs):
        with torch.no_grad():
            self.pytorch_model.bias[0] = theta[0]
            self.pytorch_model.weight[:] = torch.tensor(theta[1:])

    def zero_gradients(self):
        for p in self.pytorch_model.parameters():
            if p.grad is not None:
                p.grad.zero_()

    def forward_pass(self, X, **kwargs):
        return torch.tanh(self.pytorch_model(torch.tensor(X))).view(-1)

    def backward_pass(self, external_grad):
        self.predictions.backward(gradient=external_grad, retain_graph=True)
        return torch.cat((self.pytorch_model.bias.grad, self.pytorch_model.weight.grad.view(-1)))


class LaterEngine(OneLayer):
    """As later engines have it: the predictions are handed in, and the graph is freed."""

    def backward_pass(self, predictions, external_grad):
        predictions.backward(gradient=external_grad)
        return torch.cat((self.pytorch_model.bias.grad, self.pytorch_model.weight.grad.view(-1)))


def truth(theta, X):
    return np.tanh(theta[0] + X @ theta[1:])


THETA = onp.array([0.3, -0.5, 0.8])


@pytest.fixture(params=[OneLayer, LaterEngine])
def model(request):
    return request.param(2, 1)


def test_predictions_and_jacobian_are_right(model):
    onp.testing.assert_allclose(model.predict(THETA, X), truth(THETA, X), rtol=1e-14)
    onp.testing.assert_allclose(jacobian(model.predict)(THETA, X), jacobian(truth)(THETA, X), rtol=1e-12)


def test_two_calls_in_one_program_do_not_see_each_other(model):
    program = lambda f: lambda t: np.sum(f(t, X) * f(2 * t, X + 1))
    onp.testing.assert_allclose(grad(program(model.predict))(THETA), grad(program(truth))(THETA), rtol=1e-12)


def test_pullbacks_in_any_order_from_eight_threads_give_what_each_alone_would(model):
    points = [(THETA * k, X + k) for k in range(5)]
    expected = [make_vjp(truth)(t, x)[0](onp.ones(6)) for t, x in points]
    wrong = []

    def work(seed):
        order = onp.random.default_rng(seed).permutation(5)
        pulls = {i: make_vjp(model.predict)(*points[i])[0] for i in order}
        for i in [*order[::-1], *order]:
            if not onp.allclose(pulls[i](onp.ones(6)), expected[i], rtol=1e-12):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_a_native_change_of_the_model_in_between_is_noticed(model):
    pull, _ = make_vjp(model.predict)(THETA, X)
    with torch.no_grad():
        model.pytorch_model.weight.add_(1.0)
    onp.testing.assert_allclose(pull(onp.ones(6)), make_vjp(truth)(THETA, X)[0](onp.ones(6)), rtol=1e-12)


def test_what_the_methods_cannot_give_is_refused(model):
    with pytest.raises(NotDifferentiableError, match="backward_pass gives that of theta only"):
        grad(lambda X: np.sum(model.predict(THETA, X)))(X)
    with pytest.raises(HigherOrderError):
        hessian(lambda t: np.sum(model.predict(t, X)))(THETA)
    with pytest.raises(ParamsShapeError, match=r"theta of shape \(3,\), got \(4,\)"):
        model.predict(onp.ones(4), X)


def test_it_copies_and_pickles(model):
    model.predict(THETA, X)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        onp.testing.assert_allclose(twin.predict(THETA, X), truth(THETA, X))


def test_the_tutorials_line_ends_where_the_tutorial_says():
    class Line(OneLayer):
        def create_model(self, **kwargs):
            return torch.nn.Linear(self.input_dim, self.output_dim)

        def forward_pass(self, X, **kwargs):
            return self.pytorch_model(torch.tensor(X, requires_grad=True).float()).view(-1)

    onp.random.seed(0)  # noqa: NPY002
    data = make_synthetic_regression_dataset(num_points=1000)
    constraints = ["Mean_Squared_Error >= 1.25", "Mean_Squared_Error <= 2.0"]
    spec = supervised_spec(data, Line(1, 1), constraints, [0.1, 0.1], initial_solution=onp.zeros(2))
    passed, solution = SeldonianAlgorithm(spec).run()
    assert passed
    onp.testing.assert_allclose(
        solution, [0.16911355, 0.1738146], atol=1e-6
    )  # float32, as the tutorial computes


def test_with_create_model_alone_theta_is_in_the_modules_order():
    class Short(SupervisedPytorchBaseModel):
        def create_model(self, hidden, **kwargs):
            torch.manual_seed(0)
            return torch.nn.Sequential(
                torch.nn.Linear(2, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 1), torch.nn.Flatten(0)
            ).double()

    model = Short("cpu", hidden=3)
    theta = model.initial_solution()
    native = model.pytorch_model(torch.tensor(X)).detach().numpy()
    onp.testing.assert_allclose(model.predict(theta, X), native, rtol=1e-14)
    g = grad(lambda t: np.sum(model.predict(t, X) ** 2))(theta)
    u = onp.random.default_rng(1).normal(size=theta.size)
    f = lambda t: np.sum(model.predict(t, X) ** 2)
    assert onp.isclose(g @ u, (f(theta + 1e-6 * u) - f(theta - 1e-6 * u)) / 2e-6, rtol=1e-6)


def test_the_methods_may_be_written_without_any_framework():
    class Plain(SupervisedStepsModel):
        def create_model(self, **kwargs):
            return {}

        def update_model_params(self, theta, **kwargs):
            self.native_model["theta"] = theta

        def zero_gradients(self):
            self.native_model["gradient"] = 0.0

        def forward_pass(self, X, **kwargs):
            self.native_model["X"] = X
            return onp.tanh(self.native_model["theta"][0] + X @ self.native_model["theta"][1:])

        def backward_pass(self, external_grad):
            v = external_grad * (1 - self.predictions**2)
            self.native_model["gradient"] += onp.concatenate([[v.sum()], v @ self.native_model["X"]])
            return self.native_model["gradient"]

    model = Plain()
    program = lambda f: lambda t: np.sum(f(t, X) * f(2 * t, X + 1))
    onp.testing.assert_allclose(grad(program(model.predict))(THETA), grad(program(truth))(THETA), rtol=1e-12)
    with pytest.raises(NotImplementedError, match="must override create_model"):
        SupervisedStepsModel()
