"""Each of the five methods that does not do its part is named, with what was expected and what came."""

import numpy as onp
import pytest

pytest.importorskip("seldonian")
torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch_classes import THETA, Net, Tutorial, X, gradient, variant  # noqa: E402

from gradbridge.errors import (  # noqa: E402
    GradientShapeError,
    GuestError,
    NotDifferentiableError,
    OptionError,
    OutputError,
    ParamsShapeError,
    UnknownModelError,
)
from gradbridge_seldonian import SupervisedPytorchBaseModel, SupervisedStepsModel  # noqa: E402
from gradbridge_seldonian.steps.framework import MissingStepError  # noqa: E402


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


def test_arguments_of_backward_pass_the_other_way_round_are_refused():
    swapped = lambda self, external_grad, predictions: Tutorial.backward_pass(self, external_grad)
    with pytest.raises(MissingStepError, match="takes .external_grad, predictions."):
        gradient(variant(Tutorial, backward_pass=swapped))


def test_predictions_that_only_seem_to_be_recorded_are_laid_at_forward_pass():
    seems = lambda self, X, **kwargs: Tutorial.forward_pass(self, X).detach().requires_grad_()
    with pytest.raises(
        NotDifferentiableError, match="forward_pass of Variant .* leads to none of the parameters"
    ):
        gradient(variant(Tutorial, forward_pass=seems))


def test_a_failure_in_create_model_or_before_it_is_named():
    with pytest.raises(GuestError, match="create_model of Variant failed: TypeError"):
        variant(create_model=lambda self, **kwargs: nn.Linear("3", 1))("cpu")
    with pytest.raises(OptionError, match="device of Net must be one that torch has here.*'cdua'"):
        Net("cdua")

    def __init__(self, device):
        self.device = device

    forgot = variant(__init__=__init__)("cpu")
    for use in (lambda: forgot.predict(THETA, X), forgot.initial_solution, forgot.get_model_params):
        with pytest.raises(GuestError, match=r"call super\(\).__init__"):
            use()
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        print(forgot.nonsense)


def test_a_slip_in_update_model_params_is_no_order_of_its_own():
    def update_model_params(self, theta, **kwargs):
        torch.form_numpy(theta)

    model = variant(update_model_params=update_model_params)("cpu")
    before = model.get_model_params()
    with pytest.raises(
        GuestError, match="update_model_params of Variant failed: AttributeError: .*form_numpy"
    ):
        model.initial_solution()
    onp.testing.assert_array_equal(model.get_model_params(), before)
