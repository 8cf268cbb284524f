"""scikit-learn estimators as guests, against what they predict themselves."""

import warnings

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad

pytest.importorskip("sklearn")
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.linear_model import (
    BayesianRidge,
    HuberRegressor,
    LassoCV,
    LinearRegression,
    LogisticRegression,
    MultiTaskLasso,
    Ridge,
    RidgeClassifier,
)
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import scale
from sklearn.svm import LinearSVR

import gradbridge as gb
from gradbridge.errors import OptionError, UnknownModelError

D, C, I = load_diabetes(), load_breast_cancer(), load_iris()  # noqa: E741
SMALL = {"hidden_layer_sizes": (6, 4), "max_iter": 30, "random_state": 0}
CASES = {
    "line": (LinearRegression(), D.data, D.target, lambda e, X: e.predict(X)),
    "line through the origin": (LinearRegression(fit_intercept=False), D.data, D.target, lambda e, X: e.predict(X)),
    "two lines": (LinearRegression(), D.data[:, :8], D.data[:, 8:], lambda e, X: e.predict(X)),
    "ridge": (Ridge(), D.data, D.target, lambda e, X: e.predict(X)),
    "lasso": (LassoCV(), D.data, D.target, lambda e, X: e.predict(X)),
    "two lassos": (MultiTaskLasso(alpha=1e-3), D.data[:, :8], D.data[:, 8:], lambda e, X: e.predict(X)),
    "huber": (HuberRegressor(), D.data, D.target, lambda e, X: e.predict(X)),
    "bayes": (BayesianRidge(), D.data, D.target, lambda e, X: e.predict(X)),
    "support vectors": (LinearSVR(), D.data, D.target, lambda e, X: e.predict(X)),
    "two classes": (LogisticRegression(), scale(C.data), C.target, lambda e, X: e.predict_proba(X)[:, 1]),
    "three classes": (LogisticRegression(), I.data, I.target, lambda e, X: e.predict_proba(X)),
    "regressor": (MLPRegressor(activation="tanh", **SMALL), D.data, D.target / 100, lambda e, X: e.predict(X)),
    "classifier": (MLPClassifier(activation="relu", **SMALL), I.data, I.target, lambda e, X: e.predict_proba(X)),
    "yes or no": (MLPClassifier(activation="logistic", **SMALL), scale(C.data), C.target,
                  lambda e, X: e.predict_proba(X)[:, 1]),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request):
    estimator, X, y, predict = CASES[request.param]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(X, y)
    return estimator, X[:7], predict


def test_predictions_are_the_estimators_own(case):
    estimator, X, predict = case
    f = gb.bridge(estimator)
    onp.testing.assert_allclose(f(f.params, X), predict(estimator, X), rtol=1e-10, atol=1e-12)


def test_gradients_agree_with_central_differences(case):
    estimator, X, _ = case
    f = gb.bridge(estimator)
    gp, gx = grad(lambda p, X: np.sum(np.sin(f(p, X))), (0, 1))(f.params, X)
    rng = onp.random.default_rng(0)
    u, w = rng.normal(size=gp.shape), rng.normal(size=X.shape)
    loss = lambda t: onp.sum(onp.sin(f(f.params + t * u, X + t * w)))
    numeric = (loss(1e-6) - loss(-1e-6)) / 2e-6
    onp.testing.assert_allclose(onp.sum(gp * u) + onp.sum(gx * w), numeric, rtol=1e-5, atol=1e-5)


def test_a_model_comes_back_as_an_estimator_and_the_users_stays(case):
    estimator, X, predict = case
    f = gb.bridge(estimator)
    before = predict(estimator, X)
    new = f.model(0.9 * f.params)
    assert type(new) is type(estimator)
    onp.testing.assert_allclose(predict(new, X), f(0.9 * f.params, X), rtol=1e-10, atol=1e-12)
    assert onp.array_equal(predict(estimator, X), before)


def test_an_estimator_that_is_not_fitted_is_refused():
    with pytest.raises(UnknownModelError, match="not fitted"):
        gb.bridge(LinearRegression())
    with pytest.raises(OptionError):
        gb.bridge(LinearRegression().fit(D.data, D.target), gradient="numeric")


def test_a_classifier_without_probabilities_is_refused():
    with pytest.raises(UnknownModelError, match="RidgeClassifier predicts classes and no probabilities"):
        gb.bridge(RidgeClassifier().fit(I.data, I.target))


@pytest.mark.parametrize("estimator", [LinearRegression(fit_intercept=False), Ridge(), MLPRegressor(**SMALL)])
def test_an_estimator_that_was_fitted_in_float32_can_be_computed_in_double(estimator):
    X = D.data.astype("float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(X, (D.target / 100).astype("float32"))
    adapter = gb.bridge(estimator).adapter.in_dtype("float64")
    p, x = onp.concatenate([w.ravel() for w in adapter.weights()]), D.data[:3]
    assert adapter.dtype == "float64"
    slope = (gb.bridge(adapter)(p, x + 1e-7) - gb.bridge(adapter)(p, x - 1e-7)) / 2e-7
    onp.testing.assert_allclose(
        slope, gb.bridge(adapter).jvp(p, x, tangent=onp.ones_like(x), wrt=1), rtol=1e-6
    )
