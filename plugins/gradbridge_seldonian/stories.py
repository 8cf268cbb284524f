"""The demonstration's stories: the engine on real problems, with guests of any framework.

Each returns plain results for `command` to tell and `pictures` to draw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import gradbridge
from gradbridge_seldonian.engine import SeldonianAlgorithm
from gradbridge_seldonian.model import SeldonianModel
from gradbridge_seldonian.spec import supervised_spec

#: A constraint that nothing violates stands in for none, because the engine asks for one.
FREE = 1e6

Tick = Callable[[], None]


@dataclass
class Outcome:
    """One run of the engine.

    Attributes:
        name: e.g. ``"constrained"``.
        theta: (P,) the candidate solution.
        passed: whether it passed the safety test of the real constraints.
        bounds: upper bound of each real constraint on the safety data, in their order; at most 0
            passes.
        selection: the engine's record of candidate selection.
        loss: the primary objective on the safety data.
        forwards: guest forwards in candidate selection.
        predictions: on the safety features, (n,) or (n, k).
    """

    name: str
    theta: np.ndarray
    passed: bool
    bounds: list[float]
    selection: dict[str, Any]
    loss: float
    forwards: int
    predictions: np.ndarray


@dataclass
class Story:
    """A problem and its outcomes.

    Attributes:
        title: what it is about.
        objective: name of the primary objective, with its unit.
        constraints: the constraint strings.
        outcomes: the runs, first the constrained one.
        safety: the engine's safety data set.
        iterations: steps of candidate selection.
    """

    title: str
    objective: str
    constraints: tuple[str, ...]
    outcomes: list[Outcome]
    safety: Any
    iterations: int


class Counted:
    """A primary objective that ticks when the optimizer asks for its value: once an iteration."""

    def __init__(self, objective: Callable[..., Any], tick: Tick) -> None:
        self._objective, self._tick = objective, tick
        self.__name__ = objective.__name__

    def __call__(self, model: Any, theta: Any, X: Any, Y: Any, **kwargs: Any) -> Any:
        """The objective itself."""
        if isinstance(theta, np.ndarray):  # traced when its gradient is asked for
            self._tick()
        return self._objective(model, theta, X, Y, **kwargs)


def run(name: str, model: Any, make_spec: Callable[..., Any], tick: Tick, free: bool = False) -> Outcome:
    """Candidate selection and safety test of one model.

    Args:
        name: of the outcome.
        model: an engine model.
        make_spec: `supervised_spec` with all but the constraints' strictness filled in; called with
            ``free=True`` for a spec whose constraints nothing violates.
        tick: called once an iteration.
        free: whether to train without the constraints. The safety test is that of the real ones.
    """
    spec = make_spec(model, free=free)
    spec.primary_objective = Counted(spec.primary_objective, tick)
    algorithm = SeldonianAlgorithm(spec)
    algorithm.set_initial_solution()
    with gradbridge.trace() as t:
        theta = algorithm.run_candidate_selection()
    judge = SeldonianAlgorithm(make_spec(model, free=False))
    if isinstance(theta, str):
        raise RuntimeError(f"candidate selection of {name!r} diverged; the engine says {theta!r}")
    passed, _ = judge.run_safety_test(theta)
    safety = judge.safety_dataset
    objective = judge.spec.primary_objective
    return Outcome(
        name,
        theta,
        bool(passed),
        [float(tree.root.upper) for tree in judge.st_result.values()],
        algorithm.cs_result,
        float(objective(model, theta, safety.features, safety.labels)),
        t.counts["forward"],
        np.asarray(model.predict(theta, safety.features)),
    )


def regression(tick: Tick, build: Callable[..., Any]) -> Story:
    """The engine's first example: a line under two opposed bounds on its squared error.

    X ~ N(0, 1), Y = X + N(0, 1), 1000 points of seed 0; 1.25 ≤ MSE ≤ 2.0, each with
    probability 0.9. The first outcome is the guest's, the second the engine's NumPy model.
    """
    from seldonian.models.models import LinearRegressionModel
    from seldonian.utils.tutorial_utils import make_synthetic_regression_dataset

    constraints = ("Mean_Squared_Error >= 1.25", "Mean_Squared_Error <= 2.0")
    state = np.random.get_state()  # the engine's data set draws from NumPy's global numbers  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    data = make_synthetic_regression_dataset(num_points=1000)
    np.random.set_state(state)  # noqa: NPY002

    def make_spec(model: Any, free: bool) -> Any:
        return supervised_spec(data, model, constraints, [0.1, 0.1], initial_solution=np.zeros(2))

    ours = SeldonianModel(build("linear", features=1))
    outcomes = [
        run("through gradbridge", ours, make_spec, tick),
        run("engine's NumPy model", LinearRegressionModel(), make_spec, tick),
    ]
    safety = SeldonianAlgorithm(make_spec(ours, False)).safety_dataset
    return Story(
        "A line whose error must be neither too large nor too small",
        "mean squared error",
        constraints,
        outcomes,
        safety,
        200,
    )


def digits(tick: Tick, build: Callable[..., Any], quick: bool = False) -> Story:
    """A convolutional network on scikit-learn's digits, whose accuracy is guaranteed.

    1797 images of 8 × 8, 40 % to train on. With probability 0.95 the mean probability of the
    true digit must be at least 0.91 on unseen images.
    """
    from seldonian.dataset import SupervisedDataSet, SupervisedMetaData
    from sklearn.datasets import load_digits

    loaded = load_digits()
    order = np.random.default_rng(0).permutation(len(loaded.target))
    pixels = [f"pixel {i}" for i in range(64)]
    data = SupervisedDataSet(
        features=(loaded.images[order] / 16.0)[..., None],
        labels=loaded.target[order],
        sensitive_attrs=[],
        num_datapoints=len(order),
        meta=SupervisedMetaData("multiclass_classification", [*pixels, "digit"], pixels, ["digit"]),
    )
    constraint, epochs = "ACC >= 0.91", 4 if quick else 40

    def make_spec(model: Any, free: bool) -> Any:
        return supervised_spec(
            data,
            model,
            [f"ACC >= -{FREE}" if free else constraint],
            [0.05],
            lambda_init=0.0 if free else 0.5,
            alpha_lamb=0.0 if free else 0.05,
            alpha_theta=0.003,
            # The engine's momentum corrections multiply up; short memories keep them tame.
            beta_velocity=0.5,
            beta_rmsprop=0.5,
            batch_size=120,
            n_epochs=epochs,
        )

    def model() -> SeldonianModel:
        return SeldonianModel(build("cnn", image=(8, 8, 1), channels=[8, 16], classes=10), dtype="float32")

    return _both(
        "Handwritten digits: a guaranteed accuracy",
        "logistic loss, nats",
        constraint,
        model,
        make_spec,
        tick,
        6 * epochs,
    )


def fairness(tick: Tick, build: Callable[..., Any], quick: bool = False) -> Story:
    """A logistic classifier of diabetes progression that must not miss one sex more often than the other.

    442 patients (Efron et al., 2004), progression above the median or not, from nine measurements
    without the sex. With probability 0.9 the rates at which fast progressions are missed in the
    two sexes must differ by at most 0.2.

    Source:
        Hardt, Price & Srebro (2016), Equality of Opportunity in Supervised Learning.
    """
    from seldonian.dataset import SupervisedDataSet, SupervisedMetaData
    from sklearn.datasets import load_diabetes

    loaded = load_diabetes(scaled=False)
    order = np.random.default_rng(0).permutation(len(loaded.target))
    sex = loaded.data[order, 1]
    features = np.delete(loaded.data[order], 1, axis=1)
    names = [name for name in loaded.feature_names if name != "sex"]
    groups = ["sex_1", "sex_2"]
    data = SupervisedDataSet(
        features=(features - features.mean(0)) / features.std(0),
        labels=(loaded.target[order] > np.median(loaded.target)).astype(float),
        sensitive_attrs=np.stack([sex == 1, sex == 2], axis=1).astype(int),
        num_datapoints=len(order),
        meta=SupervisedMetaData("classification", [*groups, *names, "fast"], names, ["fast"], groups),
    )
    gap = "abs((FNR | [sex_1]) - (FNR | [sex_2]))"
    iterations = 30 if quick else 300

    def make_spec(model: Any, free: bool) -> Any:
        return supervised_spec(
            data,
            model,
            [f"{gap} <= {FREE if free else 0.2}"],
            [0.1],
            lambda_init=0.0 if free else 0.5,
            alpha_lamb=0.0 if free else 0.2,
            beta_velocity=0.5,
            beta_rmsprop=0.5,
            num_iters=iterations,
            frac_data_in_safety=0.5,
        )

    def model() -> SeldonianModel:
        return SeldonianModel(build("linear", features=9, activation="sigmoid"))

    return _both(
        "Diabetes progression: misses equal for both sexes",
        "logistic loss, nats",
        f"{gap} <= 0.2",
        model,
        make_spec,
        tick,
        iterations,
    )


def _both(
    title: str,
    objective: str,
    constraint: str,
    model: Callable[[], Any],
    make_spec: Callable[..., Any],
    tick: Tick,
    iterations: int,
) -> Story:
    outcomes = [
        run("constrained", model(), make_spec, tick),
        run("unconstrained", model(), make_spec, tick, free=True),
    ]
    safety = SeldonianAlgorithm(make_spec(model(), free=False)).safety_dataset
    return Story(title, objective, (constraint,), outcomes, safety, iterations)


def accuracy(outcome: Outcome, labels: np.ndarray) -> float:
    """Share of the safety rows whose most probable class is the label."""
    p = outcome.predictions
    return float(np.mean((p.argmax(1) if p.ndim == 2 else p > 0.5) == labels))
