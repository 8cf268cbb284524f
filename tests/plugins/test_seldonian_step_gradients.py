"""A gradient of five methods that is not that of its predictions is refused, and what is wrong with it is said."""

import warnings

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, make_vjp

pytest.importorskip("seldonian")
torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch_classes import THETA, Net, Tutorial, X, gradient, truth, variant  # noqa: E402

from gradbridge.errors import AuditError, GradbridgeWarning  # noqa: E402
from gradbridge_seldonian import SupervisedPytorchBaseModel, SupervisedStepsModel  # noqa: E402


def reversed_update(self, theta, **kwargs):
    Net.update_model_params(self, theta[::-1].copy())


class Remembers(Net):
    """Gives the gradient of the first run again, whichever one it is called for."""

    def backward_pass(self, predictions, external_grad):
        if not hasattr(self, "first"):
            self.first = super().backward_pass(predictions, external_grad)
        return self.first


class Hoards(Net):
    """Pulls back the predictions of the first run."""

    def backward_pass(self, predictions, external_grad):
        self.first = getattr(self, "first", predictions)
        return super().backward_pass(self.first, external_grad)


@pytest.mark.parametrize(
    "cls",
    [
        variant(backward_pass=lambda self, p, v: Net.backward_pass(self, p, v)[::-1].copy()),
        variant(backward_pass=lambda self, p, v: 2.0 * Net.backward_pass(self, p, v)),
        variant(update_model_params=reversed_update),
        Remembers,
        Hoards,
    ],
)
def test_a_gradient_that_is_not_how_the_predictions_move_is_refused(cls):
    with pytest.raises(AuditError, match="gradient"):
        gradient(cls)


def test_a_class_may_say_that_its_gradient_is_meant_to_be_another():
    cls = variant(audit="off", backward_pass=lambda self, p, v: 2.0 * Net.backward_pass(self, p, v))
    onp.testing.assert_allclose(gradient(cls), 2.0 * truth(THETA), rtol=1e-4, atol=1e-4)


def test_a_part_of_the_forward_that_is_held_constant_is_told():
    def forward_pass(self, X, **kwargs):
        with torch.no_grad():
            h = self.pytorch_model[:2](torch.tensor(X).float())
        return self.pytorch_model[2:](h)

    with pytest.warns(GradbridgeWarning, match="a part of it is computed from detached values"):
        found = gradient(variant(forward_pass=forward_pass))
    onp.testing.assert_allclose(found, onp.where(onp.arange(11) < 8, 0.0, truth(THETA)), rtol=1e-4)


@pytest.mark.parametrize("theta", [THETA, 0 * THETA, 50 * THETA])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.Hardtanh])
def test_right_gradients_are_not_refused_at_kinks_in_saturation_or_at_zero(activation, theta):
    class Own(SupervisedPytorchBaseModel):
        def create_model(self, **kwargs):
            return nn.Sequential(nn.Linear(3, 2), activation(), nn.Linear(2, 1), nn.Flatten(0))

        def backward_pass(self, predictions, external_grad):
            return super().backward_pass(predictions, external_grad)

    with warnings.catch_warnings():
        warnings.simplefilter("error", GradbridgeWarning)
        found = gradient(Own, theta)
    if activation is nn.Tanh:
        onp.testing.assert_allclose(found, truth(theta), rtol=1e-4, atol=1e-4 * abs(theta).max() + 1e-9)


ROWS = onp.random.default_rng(1).normal(size=(100, 5))


def deep(change, activation=nn.ReLU, dtype=torch.float64):
    """Two wide hidden layers, and a backward_pass that does something to the gradients of the six parameters."""

    class Deep(SupervisedPytorchBaseModel):
        def create_model(self, **kwargs):
            torch.manual_seed(0)
            hidden = [nn.Linear(5, 32), activation(), nn.Linear(32, 32), activation()]
            return nn.Sequential(*hidden, nn.Linear(32, 1), nn.Sigmoid(), nn.Flatten(0)).to(dtype)

        def backward_pass(self, predictions, external_grad):
            parts = torch.autograd.grad(predictions, list(self.pytorch_model.parameters()), external_grad)
            return onp.concatenate([x.numpy().ravel() for x in change([*parts])])

    return Deep("cpu")


def descend(model, theta=None, X=ROWS, times=3, **kwargs):
    theta = model.get_model_params() if theta is None else theta
    for i in range(times):
        found = grad(lambda t: np.mean((model.predict(t, X, **kwargs) - 0.3) ** 2))(theta + 0.01 * i)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("place", range(6))
def test_a_backward_pass_that_leaves_out_any_one_parameter_is_refused(place, activation, dtype):
    drop = lambda parts: [0 * p if i == place else p for i, p in enumerate(parts)]
    with pytest.raises(AuditError, match=r"backward_pass of Deep .*leaves out theta\[.*1 of 6 parameters"):
        descend(deep(drop, activation, dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradbridgeWarning)
        descend(deep(lambda parts: parts, activation, dtype))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda parts: [1.04 * p for p in parts], "it is 1.04 times as large"),
        (lambda parts: [-p for p in parts], "its sign is reversed"),
        (lambda parts: parts[::-1], "orders the parameters otherwise than update_model_params"),
        (lambda parts: [parts[0].T, *parts[1:]], "orders the parameters otherwise than update_model_params"),
        (lambda parts: [*parts[:2], parts[2] ** 2, *parts[3:]], r"wrong for theta\[192:1216\]"),
    ],
)
def test_what_is_wrong_with_a_gradient_is_said(change, words):
    with pytest.raises(AuditError, match=words):
        descend(deep(change))


class Scaled(Tutorial):
    """Its theta is in other units than the module's parameters."""

    def create_model(self, **kwargs):
        return super().create_model(**kwargs).double()

    def update_model_params(self, theta, **kwargs):
        nn.utils.vector_to_parameters(torch.from_numpy(theta) / 8, self.pytorch_model.parameters())

    def forward_pass(self, X, **kwargs):
        return self.pytorch_model(torch.tensor(X))

    def backward_pass(self, external_grad):
        return self.finish(super().backward_pass(external_grad) / 8)

    def finish(self, gradient):
        return gradient


class ByHand(SupervisedStepsModel):
    """No framework: tanh(X W + b) v, and a gradient written by hand that forgets a piece."""

    forgets = slice(0, 0)

    def create_model(self, **kwargs):
        return {}

    def update_model_params(self, theta, **kwargs):
        self.W, self.b, self.v = theta[:250].reshape(5, 50), theta[250:300], theta[300:]

    def zero_gradients(self):
        pass

    def forward_pass(self, X, **kwargs):
        self.X, self.h = X, onp.tanh(X @ self.W + self.b)
        return self.h @ self.v

    def backward_pass(self, external_grad):
        d = onp.outer(external_grad, self.v) * (1 - self.h**2)
        gradient = onp.concatenate([(self.X.T @ d).ravel(), d.sum(0), self.h.T @ external_grad])
        gradient[self.forgets] = 0.0
        return gradient


def test_where_the_framework_cannot_tell_differences_of_pieces_of_theta_do():
    theta = onp.random.default_rng(2).normal(size=350) * 0.5
    for forgets in (slice(0, 250), slice(250, 300), slice(300, 350)):
        with pytest.raises(AuditError, match="leaves some out"):
            descend(variant(ByHand, forgets=forgets)(), theta)
    hidden = lambda t: np.tanh(ROWS @ t[:250].reshape(5, 50) + t[250:300]) @ t[300:]
    expected = grad(lambda t: np.mean((hidden(t) - 0.3) ** 2))(theta + 0.02)
    onp.testing.assert_allclose(descend(ByHand(), theta), expected, rtol=1e-10)
    descend(Scaled("cpu"), 8 * THETA, X)
    for cut in (slice(0, 6), slice(6, 8), slice(8, 10)):
        drops = lambda self, g, cut=cut: g.numpy() * ~onp.isin(onp.arange(11), onp.arange(11)[cut])
        with pytest.raises(AuditError, match="leaves some out"):
            descend(variant(Scaled, finish=drops)("cpu"), 8 * THETA, X)


class Normed(nn.Module):
    """A factor of its output is held constant."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 1)

    def forward(self, x):
        return (self.b(torch.tanh(self.a(x))) * self.a.weight.detach().norm())[:, 0]


def test_what_detach_holds_constant_is_only_told_whoever_writes_the_methods():
    for base in (Tutorial, SupervisedPytorchBaseModel):
        cls = variant(base, create_model=lambda self, **kwargs: Normed())
        with pytest.warns(GradbridgeWarning, match="a part of it is computed from detached values") as told:
            found = descend(cls("cpu"), THETA, X)
        assert len(told) == 1

        def held(t):
            h = np.tanh(X @ t[:6].reshape(2, 3).T + t[6:8])
            return np.mean(((h @ t[8:10] + t[10]) * onp.linalg.norm(THETA[:6] + 0.02) - 0.3) ** 2)

        onp.testing.assert_allclose(found, grad(held)(THETA + 0.02), rtol=1e-4, atol=1e-5)


def test_a_straight_through_estimate_is_the_frameworks_own_gradient():
    def forward_pass(self, X, **kwargs):
        h = self.pytorch_model[:2](torch.tensor(X).float())
        return self.pytorch_model[2:](h + (torch.round(4 * h) / 4 - h).detach())

    cls = variant(Tutorial, forward_pass=forward_pass)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradbridgeWarning)
        assert descend(cls("cpu"), THETA, X)[:8].all()


def test_masks_in_train_mode_are_those_of_the_value_at_every_look():
    class Masked(Tutorial):
        def __init__(self):
            super().__init__("cpu")
            self.pytorch_model.train()

        def create_model(self, **kwargs):
            return nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5), nn.Linear(2, 1), nn.Flatten(0))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradbridgeWarning)
        model = Masked()
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradbridgeWarning)
        descend(model, THETA, X)
    ones = onp.ones(6)
    pull, value = make_vjp(lambda t: model.predict(t, X))(THETA)
    first, second = pull(ones), pull(2 * ones)
    onp.testing.assert_allclose(second, 2 * first, rtol=1e-5)
    onp.testing.assert_array_equal(model.predict(THETA, X), value)


def test_gradients_that_add_up_are_laid_at_zero_gradients():
    with pytest.raises(AuditError, match="zero_gradients of Variant does not clear what backward_pass"):
        descend(variant(Tutorial, zero_gradients=lambda self: None)("cpu"), THETA, X)


def test_a_backward_pass_that_does_not_use_its_cotangent_is_told_so():
    ignores = lambda self, external_grad: Tutorial.backward_pass(self, torch.ones_like(external_grad))
    with pytest.raises(AuditError, match="does not change with external_grad"):
        descend(variant(Tutorial, backward_pass=ignores)("cpu"), THETA, X)


class Hybrid(Tutorial):
    """A line in torch, and a term without it that theta's last number goes into."""

    times = 1.0

    def create_model(self, **kwargs):
        return nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)).double()

    def update_model_params(self, theta, **kwargs):
        nn.utils.vector_to_parameters(torch.from_numpy(theta[:4]), self.pytorch_model.parameters())
        self.rate = theta[4]

    def forward_pass(self, X, **kwargs):
        self.X = X
        return self.pytorch_model(torch.tensor(X)) + torch.tensor(onp.tanh(self.rate * X[:, 0]))

    def backward_pass(self, external_grad):
        slope = self.X[:, 0] * (1 - onp.tanh(self.rate * self.X[:, 0]) ** 2)
        return onp.append(super().backward_pass(external_grad), self.times * (slope @ external_grad.numpy()))


class Whole(Hybrid):
    """The same with a part that its backward_pass knows of and torch does not."""

    def forward_pass(self, X, **kwargs):
        self.X = X
        weight = self.pytorch_model[0].weight.detach().numpy()[0]
        return super().forward_pass(X) + torch.tensor(onp.sin(X @ weight))

    def backward_pass(self, external_grad):
        gradient, weight = (
            super().backward_pass(external_grad),
            self.pytorch_model[0].weight.detach().numpy()[0],
        )
        gradient[:3] += self.X.T @ (external_grad.numpy() * onp.cos(self.X @ weight))
        return gradient


@pytest.mark.parametrize("cls", [Hybrid, Whole])
def test_what_the_framework_has_not_recorded_is_looked_for_in_the_differences(cls):
    def value(t):
        whole = np.sin(X @ t[:3]) if cls is Whole else 0.0
        return np.mean((X @ t[:3] + t[3] + np.tanh(t[4] * X[:, 0]) + whole - 0.3) ** 2)

    theta = THETA[:5]
    onp.testing.assert_allclose(descend(cls("cpu"), theta, X), grad(value)(theta + 0.02), rtol=1e-10)
    for times in (0.0, 3.0):
        with pytest.raises(AuditError, match="not how its predictions move with theta"):
            descend(variant(cls, times=times)("cpu"), theta, X)
