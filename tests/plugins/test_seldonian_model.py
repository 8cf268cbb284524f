"""Models of other frameworks in the real Seldonian Engine."""

import copy
import multiprocessing
import pickle

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, jacobian

pytest.importorskip("seldonian")
torch = pytest.importorskip("torch")
from seldonian.dataset import SupervisedDataSet, SupervisedMetaData  # noqa: E402
from seldonian.models import objectives as engine_objectives  # noqa: E402
from seldonian.models.models import (  # noqa: E402
    BinaryLogisticRegressionModel,
    LinearRegressionModel,
    MultiClassLogisticRegressionModel,
)
from seldonian.parse_tree.parse_tree import make_parse_trees_from_constraints  # noqa: E402
from seldonian.seldonian_algorithm import SeldonianAlgorithm  # noqa: E402
from seldonian.spec import SupervisedSpec  # noqa: E402
from seldonian.utils.tutorial_utils import make_synthetic_regression_dataset  # noqa: E402
from sklearn.datasets import load_diabetes, load_iris  # noqa: E402
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import OptionError, OutputError  # noqa: E402
from gradbridge_seldonian import SeldonianModel, supervised_spec  # noqa: E402
from gradbridge_seldonian.evaluation import objectives  # noqa: E402
from gradbridge_seldonian.specification.supervised import SpecError  # noqa: E402

LINE = ["Mean_Squared_Error >= 1.25", "Mean_Squared_Error <= 2.0"]
GAP = "abs((FNR | [sex_1]) - (FNR | [sex_2])) <= 0.2"
RNG = onp.random.default_rng(0)


def line_data():
    onp.random.seed(0)  # noqa: NPY002, the engine's generator draws from it
    return make_synthetic_regression_dataset(num_points=1000)


def diabetes(rows=442):
    loaded = load_diabetes(scaled=False)
    X = onp.delete(loaded.data, 1, axis=1)[:rows]
    sex = loaded.data[:rows, 1]
    names = [f"x{i}" for i in range(9)]
    groups = ["sex_1", "sex_2"]
    return SupervisedDataSet(
        (X - X.mean(0)) / X.std(0),
        (loaded.target[:rows] > 140).astype(float),
        onp.stack([sex == 1, sex == 2], 1).astype(int),
        rows,
        SupervisedMetaData("classification", [*groups, *names, "y"], names, ["y"], groups),
    )


def logistic():
    torch.manual_seed(0)
    return gb.build("linear", 9, activation="sigmoid", backend="torch")


def test_the_line_of_the_tutorial_ends_where_the_tutorial_says():
    spec = supervised_spec(
        line_data(), SeldonianModel(nn.Linear(1, 1)), LINE, [0.1, 0.1], initial_solution=onp.zeros(2)
    )
    passed, (slope, intercept) = SeldonianAlgorithm(spec).run()
    assert passed
    assert f"{intercept:.6f} {slope:.6f}" == "0.169114 0.173815"
    assert abs(intercept - 0.16911355) < 1e-8
    assert abs(slope - 0.1738146) < 1e-7


def test_a_torch_model_follows_the_engines_numpy_model_on_the_fairness_problem():
    data, start = diabetes(), 0.1 * onp.random.default_rng(3).normal(size=10)
    paths = []
    for model in (SeldonianModel(logistic()), BinaryLogisticRegressionModel()):
        spec = supervised_spec(data, model, [GAP], [0.1], initial_solution=start, num_iters=120)
        algorithm = SeldonianAlgorithm(spec)
        algorithm.run()
        paths.append(algorithm.cs_result)
    ours, engines = paths
    onp.testing.assert_allclose(
        ours["candidate_solution"], engines["candidate_solution"], rtol=1e-9, atol=1e-9
    )
    for key in ("f_vals", "g_vals", "lamb_vals"):
        onp.testing.assert_allclose(ours[key], engines[key], rtol=1e-9, atol=1e-9)


def test_mini_batches_follow_the_engines_numpy_model_too():
    solutions = []
    for model in (SeldonianModel(gb.build("linear", 1, backend="torch")), LinearRegressionModel()):
        spec = supervised_spec(
            line_data(), model, LINE, [0.1, 0.1], initial_solution=onp.zeros(2), batch_size=100, n_epochs=10
        )
        solutions.append(SeldonianAlgorithm(spec).run()[1])
    onp.testing.assert_allclose(solutions[0], solutions[1], rtol=1e-9)


def test_an_iteration_costs_one_forward_for_each_data_set_it_looks_at():
    spec = supervised_spec(line_data(), SeldonianModel(nn.Linear(1, 1)), LINE, [0.1, 0.1], num_iters=20)
    algorithm = SeldonianAlgorithm(spec)
    algorithm.set_initial_solution()
    with gb.trace() as t:
        algorithm.run_candidate_selection()
    assert t.counts["forward"] == 20
    unhelped = SeldonianModel(nn.Linear(1, 1), reuse=0)
    algorithm = SeldonianAlgorithm(supervised_spec(line_data(), unhelped, LINE, [0.1, 0.1], num_iters=20))
    algorithm.set_initial_solution()
    with gb.trace() as t:
        algorithm.run_candidate_selection()
    assert t.counts["forward"] == 20 * 3  # the objective and two constraints, once each


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Linear(4, 1), (5,)),
        (nn.Sequential(nn.Linear(4, 1), nn.Sigmoid(), nn.Flatten(0)), (5,)),
        (nn.Linear(4, 3), (5, 3)),
    ],
)
def test_predictions_have_the_shapes_that_the_engine_takes(model, shape):
    m = SeldonianModel(model)
    X = RNG.normal(size=(5, 4))
    assert m.predict(m.initial_solution(), X).shape == shape
    assert jacobian(m.predict)(m.initial_solution(), X).shape == (*shape, m.bridge.layout.size)


def test_logits_become_probabilities():
    X = RNG.normal(size=(5, 4)) * 100
    one, three = nn.Linear(4, 1).double(), nn.Linear(4, 3).double()
    for module, activation in ((one, nn.Sigmoid()), (three, nn.Softmax(dim=1))):
        logits = SeldonianModel(module, output="logits")
        direct = SeldonianModel(nn.Sequential(module, activation))
        theta = direct.initial_solution()
        onp.testing.assert_allclose(logits.predict(theta, X), direct.predict(theta, X), atol=1e-14)
        g = [grad(lambda t, m=m: np.sum(m.predict(t, X) ** 2))(theta) for m in (logits, direct)]
        onp.testing.assert_allclose(g[0], g[1], atol=1e-12)


def test_features_in_a_list_are_the_inputs_of_a_model_of_several():
    m = SeldonianModel(nn.Bilinear(2, 3, 1))
    X = [RNG.normal(size=(5, 2)), RNG.normal(size=(5, 3))]
    assert m.predict(m.initial_solution(), X).shape == (5,)


def test_the_initial_solution_is_the_models_own_and_the_optimizer_cannot_write_to_it():
    m = SeldonianModel(nn.Linear(1, 1))
    spec = supervised_spec(line_data(), m, LINE, [0.1, 0.1], num_iters=3)
    before = m.initial_solution()
    algorithm = SeldonianAlgorithm(spec)
    assert onp.array_equal(algorithm.set_initial_solution(), before)
    algorithm.run_candidate_selection()
    assert onp.array_equal(SeldonianAlgorithm(spec).set_initial_solution(), before)
    assert onp.array_equal(m.initial_solution(), before)


def _predict_in_a_child(model, theta, X, queue):
    queue.put(grad(lambda t: np.sum(model.predict(t, X) ** 2))(theta))


def test_it_copies_pickles_and_forks():
    m = SeldonianModel(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)))
    X, theta = RNG.normal(size=(5, 4)), m.initial_solution()
    expected = grad(lambda t: np.sum(m.predict(t, X) ** 2))(theta)
    for twin in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert onp.array_equal(grad(lambda t, m=twin: np.sum(m.predict(t, X) ** 2))(theta), expected)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_predict_in_a_child, args=(m, theta, X, queue))
    child.start()
    assert onp.array_equal(queue.get(timeout=60), expected)
    child.join()


def test_a_whole_specification_pickles():
    spec = supervised_spec(line_data(), SeldonianModel(nn.Linear(1, 1)), LINE, [0.1, 0.1], num_iters=5)
    again = pickle.loads(pickle.dumps(spec))
    first, second = SeldonianAlgorithm(spec).run(), SeldonianAlgorithm(again).run()
    assert onp.array_equal(first[1], second[1])


def test_a_specification_of_the_engines_own_takes_the_model():
    trees = make_parse_trees_from_constraints(LINE, [0.1, 0.1])
    model = SeldonianModel(nn.Linear(1, 1))
    spec = SupervisedSpec(
        line_data(), model, trees, "regression", initial_solution_fn=SeldonianModel.initial_solution,
        use_builtin_primary_gradient_fn=False,
    )  # fmt: skip
    spec.optimization_hyperparams = {**spec.optimization_hyperparams, "num_iters": 3, "verbose": False}
    spec.optimization_hyperparams["lambda_init"] = onp.array([0.5, 0.5])
    algorithm = SeldonianAlgorithm(spec)
    assert onp.array_equal(algorithm.set_initial_solution(), model.initial_solution())
    algorithm.run_candidate_selection()


@pytest.mark.parametrize("name", ["Mean_Squared_Error", "Mean_Error", "binary_logistic_loss"])
def test_objectives_of_one_output_equal_the_engines(name):
    model = BinaryLogisticRegressionModel() if "logistic" in name else LinearRegressionModel()
    X, Y, theta = RNG.normal(size=(30, 3)), (RNG.normal(size=30) > 0) * 1.0, RNG.normal(size=4)
    ours, engines = getattr(objectives, name), getattr(engine_objectives, name)
    assert onp.isclose(ours(model, theta, X, Y), engines(model, theta, X, Y), rtol=1e-13)
    g = [grad(lambda t, f=f: f(model, t, X, Y))(theta) for f in (ours, engines)]
    onp.testing.assert_allclose(g[0], g[1], rtol=1e-12, atol=1e-14)


def test_objectives_of_several_outputs_equal_the_engines():
    iris = load_iris()
    model, theta = MultiClassLogisticRegressionModel(), RNG.normal(size=(5, 3))
    calls = [
        lambda home, t: home.multiclass_logistic_loss(model, t, iris.data, iris.target),
        lambda home, t: home.confusion_matrix(model, t, iris.data, iris.target, 1, 2),
    ]
    for call in calls:
        values = [call(home, theta) for home in (objectives, engine_objectives)]
        assert onp.isclose(*values, rtol=1e-12)
        g = [grad(lambda t, h=home, c=call: c(h, t))(theta) for home in (objectives, engine_objectives)]
        onp.testing.assert_allclose(g[0], g[1], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"constraints": LINE[0]}, "got one string"),
        ({"deltas": [0.1]}, "2 constraints need as many deltas, got 1"),
        ({"deltas": [0.1, 1.5]}, "between 0 and 1, got 1.5"),
        ({"lambda_init": [1.0, 2.0, 3.0]}, "one for each of the 2 constraints"),
        ({"initial_solution": onp.array([onp.nan, 0.0])}, "1 values that are not finite"),
        ({"batch_size": 10}, "both batch_size and n_epochs"),
        ({"model": SeldonianModel(nn.Linear(1, 2))}, "give it a single output"),
        ({"model": LinearRegressionModel()}, "does not say where to start"),
    ],
)
def test_a_specification_whose_parts_do_not_fit_says_so(change, said):
    arguments = {
        "model": SeldonianModel(nn.Linear(1, 1)),
        "constraints": LINE,
        "deltas": [0.1, 0.1],
        **change,
    }
    model = arguments.pop("model")
    with pytest.raises(SpecError, match=said):
        supervised_spec(line_data(), model, **arguments)


def test_features_that_the_model_does_not_take_are_met_before_the_engine_starts():
    with pytest.raises(gb.errors.InputError, match=r"expects \(…, 3\), got \(4, 1\)"):
        supervised_spec(line_data(), SeldonianModel(nn.Linear(3, 1)), LINE, [0.1, 0.1])


def test_models_that_return_several_arrays_are_refused():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(OutputError, match="takes one array of predictions"):
        SeldonianModel(Two()).predict(onp.empty(0), onp.ones(2))


def test_options_that_cannot_be_are_refused():
    with pytest.raises(OptionError):
        SeldonianModel(nn.Linear(1, 1), output="odds")
    with pytest.raises(OptionError):
        SeldonianModel(gb.bridge(nn.Linear(1, 1)), reuse=3)
