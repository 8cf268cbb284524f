"""`supervised_spec` meets bad data before the engine does, and its objectives are the engine's."""

import inspect
import warnings

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad

pytest.importorskip("seldonian")
torch = pytest.importorskip("torch")
from seldonian.dataset import SupervisedDataSet, SupervisedMetaData  # noqa: E402
from seldonian.models import objectives as engine_objectives  # noqa: E402
from seldonian.models.models import (  # noqa: E402
    BinaryLogisticRegressionModel,
    MultiClassLogisticRegressionModel,
)
from seldonian.parse_tree.parse_tree import make_parse_trees_from_constraints  # noqa: E402
from seldonian.seldonian_algorithm import SeldonianAlgorithm  # noqa: E402
from seldonian.spec import SupervisedSpec  # noqa: E402
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import GradbridgeWarning, OptionError  # noqa: E402
from gradbridge_seldonian import SeldonianModel, supervised_spec  # noqa: E402
from gradbridge_seldonian.evaluation import objectives  # noqa: E402
from gradbridge_seldonian.runs import EngineError  # noqa: E402
from gradbridge_seldonian.specification.supervised import SpecError  # noqa: E402

RNG = onp.random.default_rng(0)
X = RNG.normal(size=(20, 2))
GROUPS = onp.stack([X[:, 0] > 0, X[:, 0] <= 0], 1).astype(int)


def data(labels, sub_regime, features=X, groups=GROUPS):
    meta = SupervisedMetaData(sub_regime, ["a", "b", "f", "g", "y"], ["f", "g"], ["y"], ["a", "b"])
    return SupervisedDataSet(features, labels, groups, len(labels), meta)


def probabilities(outputs=1):
    torch.manual_seed(0)
    last = nn.Sigmoid() if outputs == 1 else nn.Softmax(dim=1)
    return SeldonianModel(nn.Sequential(nn.Linear(2, outputs), last))


BINARY = (X[:, 1] > 0).astype(float)


@pytest.mark.parametrize(
    ("dataset", "outputs", "said"),
    [
        (data(BINARY[:, None], "classification"), 1, r"labels must be of shape \(n,\), got \(20, 1\)"),
        (data(BINARY[:19], "classification"), 1, "19 labels and 20 rows of features"),
        (data(BINARY, "classification", groups=GROUPS[:7]), 1, "20 labels and 7 rows of sensitive_attrs"),
        (data(BINARY * onp.nan, "classification"), 1, "labels must be finite numbers, got"),
        (data(BINARY + 1, "classification"), 1, r"needs labels 0 and 1, got 1.0, 2.0"),
        (data(BINARY, "multiclass_classification"), 2, "needs integer labels .*labels.astype"),
        (
            data(BINARY.astype(int) * 2, "multiclass_classification"),
            2,
            r"needs predictions of shape \(n, 3\)",
        ),
        (data(BINARY, "clustering"), 1, "sub_regime must be one of regression, .*got 'clustering'"),
    ],
)
def test_data_that_does_not_fit_says_so(dataset, outputs, said):
    with pytest.raises(SpecError, match=said):
        supervised_spec(dataset, probabilities(outputs), ["ACC >= 0.5"], [0.1])


def test_a_specification_needs_a_constraint():
    with pytest.raises(SpecError, match="at least one constraint"):
        supervised_spec(data(BINARY, "classification"), probabilities(), [], [])


def test_an_initial_solution_of_the_wrong_length_is_met_before_the_engine_starts():
    with pytest.raises(SpecError, match=r"params of shape \(3,\), got \(2,\).*initial_solution"):
        supervised_spec(
            data(BINARY, "classification"),
            probabilities(),
            ["ACC >= 0.5"],
            [0.1],
            initial_solution=onp.zeros(2),
        )


def test_an_initial_solution_function_that_fails_is_not_swallowed():
    def fail(model, X, Y):
        raise RuntimeError("no solution from here")

    with pytest.raises(SpecError, match="initial_solution failed: RuntimeError: no solution from here"):
        supervised_spec(
            data(BINARY, "classification"), probabilities(), ["ACC >= 0.5"], [0.1], initial_solution=fail
        )


def test_equal_predictions_at_the_start_are_warned_of():
    thrice = [onp.concatenate([x] * 3) for x in (BINARY, X, GROUPS)]
    dataset, gap = data(thrice[0], "classification", *thrice[1:]), ["abs((PR | [a]) - (PR | [b])) <= 0.2"]
    with pytest.warns(GradbridgeWarning, match="predicts the same for all 60 rows"):
        supervised_spec(dataset, probabilities(), gap, [0.1], initial_solution=onp.zeros(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        supervised_spec(dataset, probabilities(), gap, [0.1])


def test_specifications_share_no_hyperparameters():
    dataset = data(BINARY, "classification")
    one, two = (supervised_spec(dataset, probabilities(), ["ACC >= 0.5"], [0.1]) for _ in range(2))
    one.optimization_hyperparams["num_iters"] = 3
    one.optimization_hyperparams["lambda_init"][0] = 9.0
    assert two.optimization_hyperparams["num_iters"] == 200
    assert two.optimization_hyperparams["lambda_init"][0] == 0.5
    default = inspect.signature(SupervisedSpec.__init__).parameters["optimization_hyperparams"].default
    assert default is not one.optimization_hyperparams
    assert default["lambda_init"] == 0.5


def test_a_bridge_brings_its_own_dtype():
    bridge = gb.bridge(nn.Linear(2, 1), dtype="float64")
    assert SeldonianModel(bridge).bridge is bridge
    with pytest.raises(OptionError, match="a Bridge is complete"):
        SeldonianModel(bridge, dtype="float32")


@pytest.mark.parametrize("sub_regime", ["classification", "multiclass_classification"])
def test_the_error_rate_equals_the_engines(sub_regime):
    if sub_regime == "classification":
        model, theta, Y = BinaryLogisticRegressionModel(), RNG.normal(size=3), BINARY
    else:
        model, theta = MultiClassLogisticRegressionModel(), RNG.normal(size=(3, 4))
        Y = RNG.integers(0, 4, size=20)
    rates = [
        lambda t, home=home: home.Error_Rate(model, t, X, Y, sub_regime=sub_regime)
        for home in (objectives, engine_objectives)
    ]
    assert onp.isclose(rates[0](theta), rates[1](theta), rtol=1e-13)
    onp.testing.assert_allclose(grad(rates[0])(theta), grad(rates[1])(theta), rtol=1e-11, atol=1e-14)


def test_an_objective_means_over_rows_also_where_the_features_are_a_list():
    model = SeldonianModel(nn.Bilinear(2, 2, 1))
    theta, Y = model.initial_solution(), RNG.normal(size=20)
    mean = objectives.Mean_Error(model, theta, [X, X], Y)
    assert onp.isclose(mean, np.mean(model.predict(theta, [X, X]) - Y), rtol=1e-12)


WIDE = RNG.normal(size=(120, 2))
SCORE = WIDE @ [1.0, 0.7]


def course(spec):
    algorithm = SeldonianAlgorithm(spec)
    algorithm.run()
    return algorithm.cs_result


def wide(labels, sub_regime="classification"):
    return data(labels, sub_regime, WIDE, onp.stack([WIDE[:, 0] > 0, WIDE[:, 0] <= 0], 1).astype(int))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint64", "bool", "int8"])
@pytest.mark.parametrize("objective", [None, engine_objectives.binary_logistic_loss])
@pytest.mark.parametrize("plain", [False, True])
def test_labels_without_a_minus_are_the_numbers_that_they_are(dtype, objective, plain):
    def run(labels):
        given = wide(labels)
        spec = supervised_spec(
            given, probabilities(), ["ACC >= 0.4"], [0.1], num_iters=6, primary_objective=objective
        )
        if plain:  # the engine's own
            trees = make_parse_trees_from_constraints(["ACC >= 0.4"], [0.1], sub_regime="classification")
            spec = SupervisedSpec(
                given, probabilities(), trees, "classification", primary_objective=objective,
                initial_solution_fn=SeldonianModel.initial_solution,
                optimization_hyperparams=spec.optimization_hyperparams,
            )  # fmt: skip
        assert spec.dataset is given and given.labels.dtype == labels.dtype  # noqa: PT018
        return course(spec)

    found, truth = run((SCORE > 0).astype(dtype)), run((SCORE > 0).astype(float))
    assert (truth["f_vals"] > 0).all()
    for key in ("f_vals", "g_vals", "candidate_solution"):
        onp.testing.assert_allclose(found[key], truth[key], rtol=1e-12)


def test_unsigned_labels_of_a_regression_have_differences():
    counts = (10 + SCORE * 2).astype("uint8")
    away = lambda model, theta, X, Y, **ignored: np.mean((model.predict(theta, X) - Y + np.mean(-Y)) ** 2)

    def run(labels):
        made = SeldonianModel(nn.Linear(2, 1))
        return course(
            supervised_spec(
                wide(labels, "regression"), made, ["Mean_Error <= 3.0"], [0.1], num_iters=4,
                primary_objective=away, initial_solution=onp.array([0.3, 0.1, 9.0]),
            )
        )  # fmt: skip

    onp.testing.assert_allclose(run(counts)["f_vals"], run(counts.astype(float))["f_vals"], rtol=1e-12)


class Flat(MultiClassLogisticRegressionModel):
    def predict(self, theta, X):
        return super().predict(np.reshape(theta, (3, 3)), X)


def test_rows_of_parameters_are_no_constraints():
    given, theta = (
        wide(onp.digitize(SCORE, [-0.7, 0.7]), "multiclass_classification"),
        RNG.normal(size=(3, 3)),
    )
    three = ["PR_[0] <= 0.2", "PR_[1] <= 0.9", "ACC >= 0.1"]
    for rows in (theta, lambda *ignored: theta, theta[0, 0]):
        with pytest.raises(SpecError, match=r"must be of shape \(P,\), got .*reshape theta"):
            supervised_spec(
                given, MultiClassLogisticRegressionModel(), three, [0.1] * 3, initial_solution=rows
            )
    settings = {"num_iters": 3, "lambda_init": 5.0}
    one = [
        course(supervised_spec(given, model, three[:1], [0.1], initial_solution=start, **settings))["f_vals"]
        for model, start in ((MultiClassLogisticRegressionModel(), theta), (Flat(), theta.ravel()))
    ]
    onp.testing.assert_allclose(*one, rtol=1e-12)
    supervised_spec(given, Flat(), three, [0.1] * 3, initial_solution=theta.ravel())


CLASSES = onp.digitize(SCORE, [-0.7, 0.7])


@pytest.mark.parametrize(
    ("labels", "net", "constraint", "start"),
    [
        (SCORE > 0, nn.Linear(2, 1), "FNR <= 0.9", None),
        (SCORE > 0, nn.Linear(2, 1), "PR <= 0.9", onp.zeros(3)),
        (SCORE > 0, nn.Sequential(nn.Linear(2, 1), nn.Tanh()), "ACC >= 0.4", None),
        (CLASSES, nn.Linear(2, 3), "PR_[1] <= 0.9", onp.zeros(9)),
        (CLASSES, nn.Sequential(nn.Linear(2, 3), nn.Sigmoid()), "ACC >= 0.2", None),
    ],
)
def test_what_a_rate_reads_are_probabilities(labels, net, constraint, start):
    torch.manual_seed(3)
    kind = "classification" if labels.dtype == bool else "multiclass_classification"
    given = wide(labels * 1, kind)
    said = "reads predictions as probabilities, and SeldonianModel predicts .*output='logits'"
    with pytest.raises(SpecError, match=said):
        supervised_spec(given, SeldonianModel(net), [constraint], [0.1], initial_solution=start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradbridgeWarning)  # of equal predictions at zero
        supervised_spec(
            given, SeldonianModel(net, output="logits"), [constraint], [0.1], initial_solution=start
        )


def test_a_safety_test_does_not_pass_on_numbers_that_are_no_rates():
    trees = make_parse_trees_from_constraints(["FNR <= 0.9"], [0.1], sub_regime="classification")
    plain = SupervisedSpec(wide((SCORE > 0) * 1.0), SeldonianModel(nn.Linear(2, 1)), trees, "classification")
    with pytest.raises(EngineError, match="FNR reads predictions as probabilities"):
        SeldonianAlgorithm(plain).run_safety_test(onp.array([1.0, 1.0, 9.0]))
