"""Each of the five methods that does not do its part is named, with what was expected and what came."""

import warnings

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad

pytest.importorskip("seldonian")
torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from gradbridge.errors import (  # noqa: E402
    AuditError,
    GradbridgeWarning,
    GradientShapeError,
    GuestError,
    NotDifferentiableError,
    OutputError,
    ParamsShapeError,
    UnknownModelError,
)
from gradbridge_seldonian import SupervisedPytorchBaseModel, SupervisedStepsModel  # noqa: E402

X = onp.random.default_rng(0).normal(size=(6, 3))
THETA = onp.linspace(-1.0, 1.0, 11)


class Net(SupervisedPytorchBaseModel):
    def create_model(self, **kwargs):
        return nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1), nn.Flatten(0))


def variant(base=Net, **methods):
    return type("Variant", (base,), methods)


def gradient(cls, theta=THETA):
    model = cls("cpu")
    return grad(lambda t: np.sum(model.predict(t, X) ** 2))(theta)


def truth(theta):
    def loss(t):
        h = np.tanh(X @ t[:6].reshape(2, 3).T + t[6:8])
        return np.sum((h @ t[8:10] + t[10]) ** 2)

    return grad(loss)(theta)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: None, "create_model of Variant returned None"),
        (lambda: {"w": 1}, "must return a torch.nn.Module, and returned a dict"),
        (lambda: nn.LazyLinear(1), "parameters that are not made yet"),
        (lambda: nn.Linear(3, 1).requires_grad_(False), "without trainable parameters"),
    ],
)
def test_what_is_no_model_is_refused_where_it_is_made(made, words):
    with pytest.raises(UnknownModelError, match=words):
        variant(SupervisedPytorchBaseModel, create_model=lambda self, **kwargs: made())("cpu")


def test_a_class_of_no_framework_must_return_something_too():
    with pytest.raises(UnknownModelError, match="create_model of Variant returned None"):
        variant(SupervisedStepsModel, create_model=lambda self, **kwargs: None)()


def native(self, X):
    return self.pytorch_model(torch.tensor(X).float())


@pytest.mark.parametrize(
    ("forward", "error", "words"),
    [
        (lambda self, X, **kw: None, OutputError, "must return a torch.Tensor.*returned None"),
        (
            lambda self, X, **kw: (native(self, X), 1.0),
            OutputError,
            "returned a tuple; return the predictions",
        ),
        (lambda self, X, **kw: native(self, X).detach().numpy(), OutputError, "returned a ndarray"),
        (lambda self, X, **kw: native(self, X).detach(), NotDifferentiableError, "without a graph"),
        (
            lambda self, X, **kw: torch.tensor(X, requires_grad=True).sum(1),
            NotDifferentiableError,
            "leads to none of the parameters",
        ),
        (lambda self, X, **kw: self.nothing, GuestError, "AttributeError"),
    ],
)
def test_predictions_that_cannot_be_pulled_back_are_laid_at_forward_pass(forward, error, words):
    with pytest.raises(error, match=f"(?s)forward_pass of Variant.*{words}"):
        gradient(variant(forward_pass=forward))


def test_a_detached_forward_is_named_under_a_backward_of_the_classs_own():
    def backward_pass(self, predictions, external_grad):
        predictions.backward(gradient=external_grad)
        return torch.cat([p.grad.view(-1) for p in self.pytorch_model.parameters()])

    with pytest.raises(NotDifferentiableError, match="forward_pass of Variant returned predictions without"):
        gradient(
            variant(forward_pass=lambda self, X, **kw: native(self, X).detach(), backward_pass=backward_pass)
        )


@pytest.mark.parametrize(
    ("returned", "came"),
    [
        (None, "got None"),
        (onp.ones(9), "got 9 values"),
        ([onp.ones(6), onp.ones(5)], "got a list of 2 parts"),
        ("gradient", "got a str"),
    ],
)
def test_what_is_no_gradient_of_theta_is_laid_at_backward_pass(returned, came):
    cls = variant(backward_pass=lambda self, predictions, external_grad: returned)
    with pytest.raises(GradientShapeError, match=rf"backward_pass of Variant .* shape \(11,\), {came}"):
        gradient(cls)


def test_a_backward_pass_that_takes_neither_form_is_refused():
    cls = variant(backward_pass=lambda self, predictions, external_grad, extra: None)
    with pytest.raises(GuestError, match="takes .predictions, external_grad, extra."):
        gradient(cls)


def test_a_theta_that_does_not_fit_is_laid_at_update_model_params():
    def update_model_params(self, theta, **kwargs):
        start = 0
        for size, p in zip(self.param_sizes, self.pytorch_model.parameters()):
            with torch.no_grad():
                p.copy_(torch.from_numpy(theta[start : start + size]).view(p.shape))
            start += size

    own = variant(update_model_params=update_model_params)
    for cls in (Net, own):
        for size in (10, 12):  # the loop above would ignore the twelfth in silence
            with pytest.raises(ParamsShapeError, match=rf"update_model_params .* \(11,\), got \({size},\)"):
                cls("cpu").predict(onp.ones(size), X)
    cut = variant(update_model_params=lambda self, theta, **kw: Net.update_model_params(self, theta[1:]))
    with pytest.raises(ParamsShapeError, match=r"update_model_params .* \(11,\), got \(10,\)"):
        cut("cpu").predict(THETA, X)


def test_a_failure_is_laid_at_the_method_in_which_it_happened():
    def fail(self, *args, **kwargs):
        raise ValueError("broken here")

    for method in ("update_model_params", "forward_pass", "zero_gradients", "backward_pass"):
        with pytest.raises(GuestError, match=f"^{method} of Variant failed: ValueError: broken here"):
            gradient(variant(**{method: fail}))


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
