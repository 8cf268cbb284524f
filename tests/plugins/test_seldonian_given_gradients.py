"""A gradient that is given, or a formula of the engine's, is that of what the engine minimizes, or is refused."""

import functools

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad

pytest.importorskip("seldonian")
torch = pytest.importorskip("torch")
from seldonian.dataset import SupervisedDataSet, SupervisedMetaData  # noqa: E402
from seldonian.models import objectives as engine_objectives  # noqa: E402
from seldonian.models.models import LinearRegressionModel, SupervisedModel  # noqa: E402

from gradbridge_seldonian import SeldonianModel, supervised_spec  # noqa: E402
from gradbridge_seldonian.specification.supervised import SpecError  # noqa: E402

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 2))
META = SupervisedMetaData("regression", ["f", "g", "y"], ["f", "g"], ["y"], [])
DATA = SupervisedDataSet(X, X @ [0.3, 1.0] + 0.1 * RNG.normal(size=40), [], 40, META)


def in_torch(model, theta, X, Y, **ignored):
    found = torch.as_tensor(np.asarray(model.predict(theta, X)))
    return torch.nn.functional.mse_loss(found, torch.as_tensor(Y)).item()


class Bent(SupervisedModel):
    """No linear model, and none of ours."""

    has_intercept = True

    def predict(self, theta, X):
        return anp.tanh(X @ theta[1:] + theta[0]) ** 2


def squared(model, theta, X, Y, **ignored):
    return anp.mean((model.predict(theta, X) - Y) ** 2)


SQUARED = engine_objectives.Mean_Squared_Error
FORMULA = engine_objectives.gradient_Mean_Squared_Error


def by_autograd(model, theta, X, Y):
    return grad(lambda t: squared(model, t, X, Y))(theta)


def line():
    return SeldonianModel(torch.nn.Linear(2, 1))


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (Bent, {"use_builtin_primary_gradient_fn": True, "primary_objective": SQUARED}),
        (Bent, {"custom_primary_gradient_fn": FORMULA, "primary_objective": SQUARED}),
        (line, {"custom_primary_gradient_fn": lambda model, theta, X, Y: FORMULA(model, theta, X, Y)}),
        (
            line,
            {"custom_primary_gradient_fn": lambda *, model, theta, X, Y: -by_autograd(model, theta, X, Y)},
        ),
        (
            line,
            {
                "custom_primary_gradient_fn": by_autograd,  # without the term that the engine adds
                "regularization_hyperparams": {"reg_coef": 0.5},
            },
        ),
    ],
)
def test_a_gradient_is_that_of_what_is_minimized(make, settings):
    start = np.array([0.4, -0.3, 0.2])
    with pytest.raises(SpecError, match=r"is not that of the objective.*autograd's is"):
        supervised_spec(DATA, make(), ["Mean_Squared_Error <= 9"], [0.1],
                        initial_solution=start, **settings)  # fmt: skip


def test_a_formula_of_the_engines_is_none_of_ours_by_another_name():
    partial = functools.partial(FORMULA)
    with pytest.raises(SpecError, match="and SeldonianModel is not among them"):
        supervised_spec(DATA, line(), ["Mean_Squared_Error <= 9"], [0.1],
                        custom_primary_gradient_fn=partial)  # fmt: skip


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (LinearRegressionModel, {"use_builtin_primary_gradient_fn": True}),
        (LinearRegressionModel, {"custom_primary_gradient_fn": FORMULA}),
        (line, {"custom_primary_gradient_fn": by_autograd}),
        (
            line,
            {
                "custom_primary_gradient_fn": lambda model, theta, X, Y: (
                    by_autograd(model, theta, X, Y) + theta
                ),
                "regularization_hyperparams": {"reg_coef": 0.5},
            },
        ),
        (  # which autograd cannot follow, so that a gradient is given
            line,
            {
                "primary_objective": in_torch,
                "custom_primary_gradient_fn": by_autograd,
            },
        ),
        (  # steps, whose own gradient is zero
            line,
            {
                "primary_objective": lambda model, theta, X, Y, **k: anp.mean(
                    anp.sign(model.predict(theta, X))
                ),
                "custom_primary_gradient_fn": by_autograd,
            },
        ),
    ],
)
def test_a_right_gradient_stays(make, settings):
    supervised_spec(DATA, make(), ["Mean_Squared_Error <= 9"], [0.1],
                    initial_solution=np.array([0.4, -0.3, 0.2]), **settings)  # fmt: skip
