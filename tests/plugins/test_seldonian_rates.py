"""Rates of a class are bounded as by hand: means over the right rows, Student's t, closed-form gradients."""

import copy
import pickle

import numpy as np
import pytest
from autograd import grad
from scipy.stats import t as student

pytest.importorskip("seldonian")
torch = pytest.importorskip("torch")

from seldonian.dataset import SupervisedDataSet, SupervisedMetaData  # noqa: E402
from seldonian.models.models import MultiClassLogisticRegressionModel  # noqa: E402
from seldonian.parse_tree.nodes import MultiClassBaseNode  # noqa: E402
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge_seldonian import SeldonianModel, supervised_spec  # noqa: E402
from gradbridge_seldonian.engine import (  # noqa: E402
    SeldonianAlgorithm,
    SupervisedSpec,
    make_parse_trees_from_constraints,
)
from gradbridge_seldonian.evaluation.constraints import SweptTree  # noqa: E402
from gradbridge_seldonian.specification.measures import read_constraint  # noqa: E402

RNG = np.random.default_rng(3)
N, K, D = 400, 4, 3
X = RNG.normal(size=(N, D))
GROUPS = (RNG.random((N, 2)) < [0.5, 0.6]).astype(int)
Y = np.argmax(X @ RNG.normal(size=(D, K)) + GROUPS[:, :1] + RNG.normal(size=(N, K)), axis=1)
OLD, NEW = GROUPS[:, 0] == 1, GROUPS[:, 1] == 1
ALL = np.ones(N, bool)

# name: (rows that it looks at, the class whose probability it is, or 1 less that)
RATES = {
    "PR_[2]": (ALL, 2, 1),
    "NR_[0]": (ALL, 0, -1),
    "FPR_[1]": (Y != 1, 1, 1),
    "TPR_[3]": (Y == 3, 3, 1),
    "FNR_[2]": (Y == 2, 2, -1),
    "TNR_[0]": (Y != 0, 0, -1),
    "CM_[0,3]": (Y == 0, 3, 1),
    "CM_[2,2]": (Y == 2, 2, 1),
    "PR_[1] | [old]": (OLD, 1, 1),
    "FNR_[3] | [new]": (NEW & (Y == 3), 3, -1),
    "TNR_[1] | [old,new]": (OLD & NEW & (Y != 1), 1, -1),
    "CM_[1,0] | [old]": (OLD & (Y == 1), 0, 1),
}
WAYS = ["auto", "together"]
CANDIDATE, SAFETY = slice(160), slice(160, None)  # 0.6 of the data are the safety test's


def dataset(features=X, labels=Y, groups=GROUPS, sub_regime="multiclass_classification"):
    names = [f"x{i}" for i in range(D)]
    meta = SupervisedMetaData(sub_regime, [*names, "old", "new", "y"], names, ["y"], ["old", "new"])
    return SupervisedDataSet(features, labels, groups, len(labels), meta)


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(D, K), nn.Softmax(dim=-1))


def spec_of(*constraints, data=None, model=None, **settings):
    settings = {"num_iters": 3, **settings} if "batch_size" not in settings else settings
    model = model or SeldonianModel(net())
    return supervised_spec(data or dataset(), model, list(constraints), [0.1] * len(constraints), **settings)


def probabilities(theta, features=X):
    """(n, K) of the linear softmax model, from its weight (K, D) and bias (K,)."""
    W, b = theta[: K * D].reshape(K, D), theta[K * D :]
    e = np.exp(features @ W.T + b)
    return e / e.sum(1, keepdims=True)


def by_hand(rate, theta, part=ALL):
    """(rows of `part` that a rate looks at, its samples there)."""
    rows, column, sign = RATES[rate]
    seen = np.flatnonzero(rows)
    seen = seen[np.isin(seen, np.arange(N)[part])]
    p = probabilities(theta)[seen, column]
    return seen, p if sign > 0 else 1 - p


def upper(values, count, delta=0.1, factor=1.0):
    return values.mean() + factor * values.std(ddof=1) / np.sqrt(count) * student.ppf(1 - delta, count - 1)


def theta_of(spec, shift=0.3):
    start = np.asarray(spec.model.initial_solution())
    return start + shift * np.random.default_rng(0).normal(size=start.shape)


def safety_bounds(spec, theta, **settings):
    algorithm = SeldonianAlgorithm(spec)
    algorithm.run_safety_test(theta, **settings)
    return list(algorithm.get_st_upper_bounds().values())


def candidate_bounds(spec):
    """θ ↦ the upper bounds that candidate selection predicts, all of them."""
    algorithm = SeldonianAlgorithm(spec)
    algorithm.set_initial_solution()
    selection = algorithm.candidate_selection()
    selection.calculate_batches(0, algorithm.n_candidate, 0, 1)
    return selection.get_constraint_upper_bounds


def constraint_value(spec, theta, data=None, **settings):
    """The first constraint itself, as the experiments package evaluates it on held-out data."""
    tree = spec.parse_trees[0]
    tree.reset_base_node_dict(reset_data=True)
    tree.evaluate_constraint(
        theta=theta,
        tree_dataset_dict={"all": data or spec.dataset},
        model=spec.model,
        regime="supervised_learning",
        sub_regime=spec.sub_regime,
        **{"branch": "safety_test", "batch_size_safety": None, "n_safety": 240, **settings},
    )
    return tree.root.value


@pytest.mark.parametrize("rows", WAYS)
def test_the_safety_test_bounds_the_rate_of_the_class(rows):
    spec = spec_of(*(f"({rate}) <= 0.3" for rate in RATES), rows=rows)
    theta = theta_of(spec)
    wanted = []
    for rate in RATES:
        _, values = by_hand(rate, theta, SAFETY)
        wanted.append(upper(values, len(values)) - 0.3)
    np.testing.assert_allclose(safety_bounds(spec, theta), wanted, rtol=1e-12)
    for batch in (1, 7, 100, 1000):
        np.testing.assert_allclose(safety_bounds(spec, theta, batch_size_safety=batch), wanted, rtol=1e-12)


@pytest.mark.parametrize("rows", WAYS)
@pytest.mark.parametrize("rate", RATES)
def test_candidate_selection_predicts_that_bound_with_its_closed_form_gradient(rate, rows):
    spec = spec_of(f"({rate}) <= 0.3", rows=rows)
    theta, bounds = theta_of(spec), candidate_bounds(spec)
    seen, values = by_hand(rate, theta, CANDIDATE)
    count = round(len(values) / 160 * 240)
    assert bounds(theta)[0] == pytest.approx(upper(values, count, factor=2.0) - 0.3, rel=1e-12)

    _, column, sign = RATES[rate]
    s, n = values.std(ddof=1), len(values)
    slope = 1 / n + 2 / np.sqrt(count) * student.ppf(0.9, count - 1) * (values - values.mean()) / (
        (n - 1) * s
    )
    P = probabilities(theta)[seen]
    logits = sign * slope[:, None] * P[:, [column]] * (np.eye(K)[column] - P)
    wanted = np.concatenate([(logits.T @ X[seen]).ravel(), logits.sum(0)])
    found = grad(lambda th: bounds(th)[0])(theta)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-13)
    direction = np.random.default_rng(1).normal(size=theta.shape)
    difference = (bounds(theta + 1e-6 * direction)[0] - bounds(theta - 1e-6 * direction)[0]) / 2e-6
    assert found @ direction == pytest.approx(difference, rel=1e-6)


@pytest.mark.parametrize("rate", RATES)
def test_the_constraint_itself_is_the_mean(rate):
    spec = spec_of(f"({rate}) >= 0.3")
    theta = theta_of(spec)
    wanted = 0.3 - by_hand(rate, theta)[1].mean()
    for settings in ({}, {"batch_size_safety": 33}, {"branch": "candidate_selection"}):
        assert constraint_value(spec, theta, **settings) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("rows", WAYS)
def test_mini_batches_bound_the_rate_of_the_class(rows):
    spec = spec_of("(PR_[1] | [old]) <= 0.5", "FPR_[1] <= 0.6", batch_size=80, n_epochs=2, rows=rows)
    start = np.asarray(spec.model.initial_solution())
    algorithm = SeldonianAlgorithm(spec)
    algorithm.run()
    found = algorithm.cs_result["g_vals"]
    assert len(found) == 4
    for g, rate, limit in zip(found[0], ("PR_[1] | [old]", "FPR_[1]"), (0.5, 0.6)):
        _, values = by_hand(rate, start, slice(80))
        assert g == pytest.approx(upper(values, round(len(values) / 80 * 240), factor=2.0) - limit, rel=1e-12)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda spec: pickle.loads(pickle.dumps(spec))])
def test_copies_and_pickles_keep_the_class(again):
    spec = spec_of("(CM_[1,0] | [old]) <= 0.5", "(FNR_[3] | [new]) <= 0.9")
    theta, bounds = theta_of(spec), candidate_bounds(spec)
    grad(lambda th: bounds(th)[1])(theta)  # a record of a run is left behind
    twin = again(again(spec))
    np.testing.assert_array_equal(safety_bounds(twin, theta), safety_bounds(spec, theta))
    np.testing.assert_array_equal(candidate_bounds(twin)(theta), bounds(theta))
    _, values = by_hand("CM_[1,0] | [old]", theta, SAFETY)
    assert safety_bounds(twin, theta)[0] == pytest.approx(upper(values, len(values)) - 0.5, rel=1e-12)


RUN = {"num_iters": 300, "alpha_theta": 0.01, "alpha_lamb": 0.2, "beta_velocity": 0.5, "beta_rmsprop": 0.5}


def test_a_run_keeps_classes_apart_and_reaches_its_limits():
    spec = spec_of("PR_[0] <= 0.2", "PR_[1] <= 0.45", **RUN)
    algorithm = SeldonianAlgorithm(spec)
    passed, theta = algorithm.run()
    assert passed
    rates = probabilities(theta)[SAFETY].mean(0)
    assert rates[0] < 0.2
    assert rates[1] < 0.45


def test_rates_of_classes_in_groups_are_rows_of_one_evaluation():
    forwards = []
    for rows in WAYS:
        spec = spec_of("(PR_[1] | [old]) <= 0.5", "(CM_[1,0] | [new]) <= 0.9", "FNR_[2] <= 0.99", rows=rows)
        algorithm = SeldonianAlgorithm(spec)
        with gb.trace() as trace:
            algorithm.run()
        assert len(algorithm.cs_result["f_vals"]) == 3
        forwards.append(trace.counts["forward"])
    assert forwards == [3 * 1 + 3, 3 * 3 + 3]  # the safety test asks for each; FNR_[2] is the objective's


def test_models_of_the_engine_have_classes_too():
    model = MultiClassLogisticRegressionModel()
    start = np.random.default_rng(0).normal(size=(D + 1, K))
    spec = spec_of("TNR_[1] | [old,new]", model=model, initial_solution=start)
    ours = np.concatenate([start[1:].T.ravel(), start[0]])  # its first row is the intercept
    _, values = by_hand("TNR_[1] | [old,new]", ours, SAFETY)
    assert safety_bounds(spec, start)[0] == pytest.approx(upper(values, len(values)), rel=1e-12)


def test_trees_of_the_engine_are_made_right_for_its_own_specification():
    settings = {
        "regime": "supervised_learning",
        "sub_regime": "multiclass_classification",
        "columns": ["old", "new"],
    }
    trees = make_parse_trees_from_constraints(["(CM_[1,0] | [old]) <= 0.9"], [0.1], **settings)
    spec = SupervisedSpec(
        dataset(), SeldonianModel(net()), list(map(SweptTree.of, trees)), settings["sub_regime"]
    )
    theta = theta_of(spec)
    _, values = by_hand("CM_[1,0] | [old]", theta, SAFETY)
    assert safety_bounds(spec, theta)[0] == pytest.approx(upper(values, len(values)) - 0.9, rel=1e-12)


def test_a_data_set_of_its_own_keeps_the_class():
    half = np.arange(N) % 2 == 0
    own = dataset(X[half], Y[half], GROUPS[half])
    text = "PR_[2]-(0.4)"
    spec = spec_of("PR_[2] <= 0.4", additional_datasets={text: {"PR_[2]": {"dataset": own}}})
    theta = theta_of(spec)
    values = probabilities(theta)[half][80:, 2]
    assert safety_bounds(spec, theta)[0] == pytest.approx(upper(values, 120) - 0.4, rel=1e-12)


def test_a_spread_over_classes_has_all_bounds_that_it_needs():
    spec = spec_of("max(PR_[0],PR_[1]) - min(PR_[0],PR_[1]) <= 0.3")
    theta = theta_of(spec)
    P = probabilities(theta)[SAFETY]
    delta = 0.1 / 4  # two rates, two sides each
    uppers = [upper(P[:, k], 240, delta) for k in (0, 1)]
    lowers = [-upper(-P[:, k], 240, delta) for k in (0, 1)]
    wanted = max(uppers) - min(lowers) - 0.3
    assert safety_bounds(spec, theta)[0] == pytest.approx(wanted, rel=1e-12)
    assert np.isfinite(grad(lambda th: candidate_bounds(spec)(th)[0])(theta)).all()


def test_a_statistic_that_is_registered_with_the_engine_is_told_the_class(monkeypatch):
    from seldonian.parse_tree import nodes, zhat_funcs

    def odds(model, theta, X, Y, class_index, **kwargs):
        p = model.predict(theta, X)[:, class_index]
        return (p / (1 - p))[X[:, 0] > 0]

    monkeypatch.setitem(zhat_funcs.measure_function_vector_mapper, "Odds", odds)
    names = nodes.measure_functions_dict["supervised_learning"]["multiclass_classification"]
    monkeypatch.setitem(
        nodes.measure_functions_dict["supervised_learning"], "multiclass_classification", [*names, "Odds"]
    )
    monkeypatch.setattr(
        "seldonian.parse_tree.parse_tree.subscriptable_measure_functions",
        [*nodes.subscriptable_measure_functions, "Odds"],
    )
    spec = spec_of("(Odds_[3] | [old]) <= 2.0")
    theta = theta_of(spec)
    p = probabilities(theta)[OLD & (X[:, 0] > 0), 3]
    assert constraint_value(spec, theta) == pytest.approx((p / (1 - p)).mean() - 2, rel=1e-12)


class Doubled(MultiClassBaseNode):
    """A node of the user's own, over the engine's samples."""

    def zhat(self, **kwargs):
        return 2 * super().zhat(**kwargs)


def test_nodes_of_a_users_own_are_told_the_class_that_they_name():
    tree = read_constraint("PR_[2] <= 0.9", 0.1, "multiclass_classification", [])
    node = Doubled("PR_[2]", 2)
    node.__dict__.update(vars(tree.root.left))
    tree.root.left = node
    spec = SupervisedSpec(dataset(), SeldonianModel(net()), [SweptTree.of(tree)], "multiclass_classification")
    theta = theta_of(spec)
    for again in (spec, pickle.loads(pickle.dumps(spec))):
        _, values = by_hand("PR_[2]", theta, SAFETY)
        assert safety_bounds(again, theta)[0] == pytest.approx(upper(2 * values, 240) - 0.9, rel=1e-12)
        wanted = 2 * by_hand("PR_[2]", theta)[1].mean() - 0.9
        assert constraint_value(again, theta) == pytest.approx(wanted, rel=1e-12)
