"""The demonstration's stories: the engine on real problems, with guests of any framework."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gradbridge.errors import OptionError
from gradbridge_seldonian.demo.story import (
    FREE,
    LeftOut,
    Outcome,
    Setting,
    Story,
    both,
    forwards,
    run,
    weighed,
)
from gradbridge_seldonian.demo.workers import shared_out
from gradbridge_seldonian.engine import SeldonianAlgorithm
from gradbridge_seldonian.model import SeldonianModel
from gradbridge_seldonian.pictures import plot_candidate_selection, plot_comparison
from gradbridge_seldonian.specification.supervised import supervised_spec

LOSS = "logistic loss, nats"
#: Least mean probability of "8" for eights.
LEAST = 0.85
#: Between the sexes, in the mean probability of missing a fast progression; and the most that it may be.
GAP, MOST = "abs((FNR | [sex_1]) - (FNR | [sex_2]))", 0.2


def regression(setting: Setting) -> Story:
    """The engine's first example: a line under two opposed bounds on its squared error.

    X ~ N(0, 1), Y = X + N(0, 1), 1000 points of seed 0; 1.25 ≤ MSE ≤ 2.0, each with
    probability 0.9. The first outcome is the guest's, the second the engine's NumPy model.
    """
    from seldonian.models.models import LinearRegressionModel
    from seldonian.utils.tutorial_utils import make_synthetic_regression_dataset

    constraints, deltas = ("Mean_Squared_Error >= 1.25", "Mean_Squared_Error <= 2.0"), (0.1, 0.1)
    state = np.random.get_state()  # the engine's data set draws from NumPy's global numbers  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    data = make_synthetic_regression_dataset(num_points=1000)
    np.random.set_state(state)  # noqa: NPY002

    def make_spec(model: Any, free: bool) -> Any:
        return supervised_spec(data, model, constraints, deltas, initial_solution=np.zeros(2))

    model = SeldonianModel(setting.build("linear", features=1))
    ours = run("through gradbridge", model, make_spec, setting.tick)
    engines = run("engine's NumPy model", LinearRegressionModel(), make_spec, setting.tick)
    difference = float(np.max(np.abs(ours.theta - engines.theta)))
    safety = SeldonianAlgorithm(make_spec(model, False)).safety_dataset
    story = Story(
        "A line whose error must be neither too large nor too small",
        constraints,
        deltas,
        [ours, engines],
        [
            ("intercept", lambda o: f"{o.theta[0]:.8f}"),
            ("slope", lambda o: f"{o.theta[1]:.8f}"),
            ("mean squared error", lambda o: f"{o.loss:.4f}"),
            ("… its lower bound, limit 1.25", lambda o: f"{1.25 - o.bounds[0]:.4f}"),
            ("… its upper bound, limit 2.0", lambda o: f"{2.0 + o.bounds[1]:.4f}"),
            ("guest forwards per iteration", forwards),
        ],
        f"{len(safety.labels)} safety rows",
        [f"largest difference from the engine's own NumPy model: {difference:.1e}"],
        is_good=ours.passed and difference < 1e-6,
    )
    _draw_selection(story, "mean squared error")
    return story


def digits_spec(model: Any, free: bool = False, quick: bool = False) -> Any:
    """The engine's specification of `digits` for a model of images (n, 8, 8, 1) with ten probabilities."""
    from seldonian.dataset import SupervisedDataSet, SupervisedMetaData
    from sklearn.datasets import load_digits

    loaded = load_digits()
    order = np.random.default_rng(0).permutation(len(loaded.target))
    eight = loaded.target[order] == 8
    pixels, groups = [f"pixel {i}" for i in range(64)], ["eight", "other"]
    data = SupervisedDataSet(
        features=(loaded.images[order] / 16.0)[..., None],
        labels=loaded.target[order],
        sensitive_attrs=np.stack([eight, ~eight], axis=1).astype(int),
        num_datapoints=len(order),
        meta=SupervisedMetaData(
            "multiclass_classification", [*groups, *pixels, "digit"], pixels, ["digit"], groups
        ),
    )
    return supervised_spec(
        data,
        model,
        [f"(ACC | [eight]) >= {-FREE if free else LEAST}"],
        [0.05],
        **weighed(free, 4.0, 0.02),
        batch_size=300,
        n_epochs=5 if quick else 50,
        frac_data_in_safety=0.5,
        rows="together",  # thirty eights of 300 rows are cheaper run apart, so that rows need no looking at
    )


def digits(setting: Setting) -> Story:
    """A small convolutional network on scikit-learn's digits, which reads eights worst and must not.

    1797 images of 8 × 8, half of them to train on. With probability 0.95 the mean probability that it
    gives to "8" where an 8 is written must be at least 0.85 on unseen images. The other digits pay for it.

    The margins, in standard errors of what is bounded, with torch, JAX and TensorFlow alike: from the weights
    used here the constrained network passes by 4.6 and the unconstrained one fails by 5.0; from those of
    two other seeds by 3.0 and 8.0, and by 8.0 and 7.8.
    """
    make_spec = functools.partial(digits_spec, quick=setting.quick)

    def model() -> SeldonianModel:
        network = setting.build("cnn", image=(8, 8, 1), channels=[4, 8], classes=10)
        return SeldonianModel(network, dtype="float32")

    try:
        model()
    except OptionError as error:
        raise LeftOut(str(error)) from error
    outcomes, safety = both(model, make_spec, setting.tick)
    labels, eights = safety.labels, safety.labels == 8

    def sureness(outcome: Outcome) -> float:
        return float(outcome.predictions[eights, 8].mean())

    def hits(outcome: Outcome, rows: Any) -> float:
        return float(np.mean(outcome.predictions.argmax(1)[rows] == labels[rows]))

    constrained, unconstrained = outcomes
    story = Story(
        "Handwritten digits: eights must be read as well as promised",
        (f"(ACC | [eight]) >= {LEAST}",),
        (0.05,),
        outcomes,
        [
            ('mean probability of "8" for eights', lambda o: f"{sureness(o):.3f}"),
            (f"… its lower bound, limit {LEAST}", lambda o: f"{LEAST - o.bounds[0]:.3f}"),
            ("eights read right", lambda o: f"{hits(o, eights):.1%}"),
            ("all digits read right", lambda o: f"{hits(o, slice(None)):.1%}"),
            (LOSS, lambda o: f"{o.loss:.3f}"),
            ("guest forwards per iteration", forwards),
        ],
        f"{len(labels)} safety rows, {eights.sum()} of them eights",
        [
            "ACC, the engine's accuracy, is the mean probability that the model gives to the true class, not the "
            "share of rows that are read right. "
            + (
                "The promise about eights costs the other digits."
                if constrained.loss > unconstrained.loss
                else ""
            ),
        ],
    )
    _draw_selection(story, LOSS)
    _draw_comparison(
        story,
        [
            (
                'eights: mean probability of "8" (ACC)',
                {o.name: (sureness(o), LEAST - o.bounds[0]) for o in outcomes},
                LEAST,
            ),
            ("eights: share read right", {o.name: hits(o, eights) for o in outcomes}, None),
            ("all digits: share read right", {o.name: hits(o, slice(None)) for o in outcomes}, None),
            (f"all digits: {LOSS}", {o.name: o.loss for o in outcomes}, None),
        ],
    )
    return story


def fairness_spec(model: Any, free: bool = False, quick: bool = False) -> Any:
    """The engine's specification of `fairness` for a model of nine features with one probability."""
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
    return supervised_spec(
        data,
        model,
        [f"{GAP} <= {FREE if free else MOST}"],
        [0.1],
        **weighed(free, 0.5, 0.2),
        num_iters=30 if quick else 300,
        frac_data_in_safety=0.5,
    )


def fairness(setting: Setting) -> Story:
    """A logistic classifier of diabetes progression that must not miss one sex more often than the other.

    442 patients (Efron et al., 2004), progression above the median or not, from nine measurements
    without the sex. With probability 0.9 the rates at which fast progressions are missed in the
    two sexes must differ by at most 0.2.

    Source:
        Hardt, Price & Srebro (2016), Equality of Opportunity in Supervised Learning.
    """
    make_spec = functools.partial(fairness_spec, quick=setting.quick)

    def model() -> SeldonianModel:
        return SeldonianModel(setting.build("linear", features=9, activation="sigmoid"))

    if setting.workers is None:
        outcomes, safety = both(model, make_spec, setting.tick)
        over, is_good = list[str](), True
    else:
        outcomes, safety, over, is_good = shared_out(model, make_spec, setting)

    def missed(outcome: Outcome) -> float:
        first, second = ((safety.sensitive_attrs[:, i] == 1) & (safety.labels == 1) for i in (0, 1))
        miss = 1.0 - outcome.predictions
        return float(abs(miss[first].mean() - miss[second].mean()))

    def right(outcome: Outcome) -> float:
        return float(np.mean((outcome.predictions > 0.5) == safety.labels))

    n = len(safety.labels)
    why = (
        f"The safety test holds an upper confidence bound against the limit, not the gap measured on these {n} "
        f"patients: with probability 0.9 the gap on unseen patients is below the bound."
    )
    for o in outcomes:
        if missed(o) <= MOST and not o.passed:
            why += f" So {missed(o):.3f} under a limit of {MOST} fails: it may be up to {MOST + o.bounds[0]:.3f}."
    story = Story(
        "Diabetes progression: misses equal for both sexes",
        (f"{GAP} <= {MOST}",),
        (0.1,),
        outcomes,
        [
            ("gap in the probability of a miss", lambda o: f"{missed(o):.3f}"),
            (f"… its upper bound, limit {MOST}", lambda o: f"{MOST + o.bounds[0]:.3f}"),
            ("patients classified right", lambda o: f"{right(o):.1%}"),
            (LOSS, lambda o: f"{o.loss:.4f}"),
            ("guest forwards per iteration", forwards),
        ],
        f"{n} safety rows",
        [why, *over],
        is_good=is_good,
    )
    _draw_selection(story, LOSS)
    _draw_comparison(
        story,
        [
            (
                "gap in the probability of a miss",
                {o.name: (missed(o), MOST + o.bounds[0]) for o in outcomes},
                MOST,
            ),
            ("patients classified right", {o.name: right(o) for o in outcomes}, None),
            (LOSS, {o.name: o.loss for o in outcomes}, None),
        ],
    )
    return story


def _draw_selection(story: Story, objective: str) -> None:
    first = story.outcomes[0]
    story.pictures["candidate_selection"] = lambda path: plot_candidate_selection(
        first.selection, path, title=story.title, objective=objective, constraints=story.constraints
    )


def _draw_comparison(story: Story, measures: list[tuple[str, dict[str, Any], float | None]]) -> None:
    tests = ", ".join(f"{o.name} {'passed' if o.passed else 'FAILED'}" for o in story.outcomes)
    note = f"Safety test of {story.constraints[0]}, δ = {story.deltas[0]:g}: {tests}."
    story.pictures["comparison"] = lambda path: plot_comparison(
        story.title, measures, path, note="\n".join([note, *story.notes])
    )
