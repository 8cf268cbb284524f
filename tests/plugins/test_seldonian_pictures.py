"""Pictures of any run of the engine, in the words of who wrote the constraints."""

import copy
import functools
import pickle
import subprocess
import sys

import matplotlib
import matplotlib.image
import numpy as np
import pytest

pytest.importorskip("seldonian")
pytest.importorskip("torch")
import torch
from seldonian.dataset import SupervisedDataSet, SupervisedMetaData
from seldonian.models.models import BinaryLogisticRegressionModel
from seldonian.parse_tree.parse_tree import make_parse_trees_from_constraints
from seldonian.seldonian_algorithm import SeldonianAlgorithm
from seldonian.spec import SupervisedSpec

from gradbridge.errors import OptionError
from gradbridge_seldonian import SeldonianModel, plot_candidate_selection, plot_comparison, supervised_spec

CONSTRAINTS = ["PR >= 0.45", "abs((PR | [a]) - (PR | [b])) <= 0.25"]
BARRIERS = {
    "CMA-ES": {"maxiter": 6, "seed": 1},
    "Powell": {"maxiter": 2},
    "BFGS": {"maxiter": 2},
    "Nelder-Mead": {"maxiter": 30},
}


def colours(path):
    """How many different colours a picture has: a blank one has a single."""
    pixels = (matplotlib.image.imread(path)[..., :3] * 255).astype(np.uint8).reshape(-1, 3)
    return len(np.unique(pixels, axis=0))


def words(draw, path):
    """The text in a picture."""
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        return " ".join(
            draw(path.with_suffix(".svg")).read_text().replace("&gt;", ">").replace("&lt;", "<").split()
        )


def dataset(n=200):
    r = np.random.default_rng(5)
    X, group = r.normal(size=(n, 2)), r.integers(0, 2, n)
    y = (X @ [1.0, -2.0] + group + r.normal(size=n) > 0.5).astype(float)
    meta = SupervisedMetaData("classification", ["a", "b", "u", "v", "y"], ["u", "v"], ["y"], ["a", "b"])
    return SupervisedDataSet(X, y, np.stack([group == 0, group == 1], axis=1).astype(int), n, meta)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """CMA-ES leaves files where it runs."""
    monkeypatch.chdir(tmp_path)


def trained(optimizer, constraints=CONSTRAINTS):
    torch.manual_seed(0)
    model = SeldonianModel(torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Sigmoid()))
    options = (
        {} if optimizer == "adam" else {"optimization_technique": "barrier_function", "optimizer": optimizer}
    )
    spec = supervised_spec(dataset(), model, constraints, [0.1, 0.1], **options)
    spec.optimization_hyperparams.update(BARRIERS.get(optimizer, {"num_iters": 5}))
    algorithm = SeldonianAlgorithm(spec)
    algorithm.run()
    return algorithm


def by_hand(algorithm, theta):
    """Loss and bounds of PR on the candidate data, for an intercept after two weights, from the formulas alone."""
    from scipy.stats import t

    data = algorithm.candidate_dataset
    p = 1 / (1 + np.exp(-(data.features @ theta[:2] + theta[2])))
    loss = -np.mean(data.labels * np.log(p) + (1 - data.labels) * np.log(1 - p))
    spread = 2 * np.std(p, ddof=1) / np.sqrt(algorithm.n_safety) * t.ppf(0.9, algorithm.n_safety - 1)
    return loss, 0.45 - (p.mean() - spread)


@pytest.mark.parametrize("optimizer", BARRIERS)
def test_every_evaluation_of_a_barrier_run_is_recorded_and_drawn(tmp_path, optimizer):
    algorithm = trained(optimizer)
    result, history = algorithm.cs_result, algorithm.cs_result.history
    solution = result.xbest if optimizer == "CMA-ES" else result.x
    assert len(history.objective) == (result.evaluations if optimizer == "CMA-ES" else result.nfev)
    loss, bound = by_hand(algorithm, solution)
    np.testing.assert_allclose(history.objective[history.chosen], loss, rtol=1e-9)
    np.testing.assert_allclose(history.bounds[history.chosen, 0], bound, rtol=1e-9)
    violated = np.any(history.bounds > 0, axis=1)
    barrier = np.where(
        violated, 1e5 + np.where(history.bounds > 0, history.bounds, 0).sum(1), history.objective
    )
    lowest = result.fbest if optimizer == "CMA-ES" else result.fun
    np.testing.assert_allclose(barrier[history.chosen], lowest, rtol=1e-12)
    assert colours(plot_candidate_selection(algorithm, tmp_path / "one.png")) > 50
    told = words(lambda path: plot_candidate_selection(result, path, objective="loss"), tmp_path / "two")
    assert f"evaluation by {optimizer}" in told
    assert f"chosen: {history.chosen}" in told
    assert all(constraint in told for constraint in CONSTRAINTS)


def test_a_run_with_the_engines_own_model_and_specification_is_recorded_too(tmp_path):
    constraint = "PR <= 0.75"
    spec = SupervisedSpec(
        dataset=dataset(),
        model=BinaryLogisticRegressionModel(),
        parse_trees=make_parse_trees_from_constraints([constraint], [0.1], sub_regime="classification"),
        sub_regime="classification",
        optimization_technique="barrier_function",
        optimizer="CMA-ES",
        optimization_hyperparams={"maxiter": 3, "seed": 1, "verbose": False},
    )
    algorithm = SeldonianAlgorithm(spec)
    algorithm.run()
    assert len(algorithm.cs_result.history.objective) == algorithm.cs_result.evaluations
    assert "PR-(0.75) <= 0" in words(lambda path: plot_candidate_selection(algorithm, path), tmp_path / "one")


FIRST = """
import sys, gradbridge_seldonian
getattr(gradbridge_seldonian, sys.argv[1])
import autograd.numpy as anp, numpy as np
from seldonian.dataset import SupervisedDataSet, SupervisedMetaData
from seldonian.models.models import LinearRegressionModel
from seldonian.seldonian_algorithm import SeldonianAlgorithm
X = np.linspace(-1.0, 1.0, 40)[:, None]
data = SupervisedDataSet(X, X[:, 0], [], 40, SupervisedMetaData("regression", ["x", "y"], ["x"], ["y"], []))
of = {"__name__": "company", "np": anp}
exec(compile('''
def loss(model, theta, X, Y, **ignored):
    if abs(theta).max() > 0.1:
        raise ValueError("of the company's")
    return np.mean((model.predict(theta, X) - Y) ** 2)
''', "/venv/lib/python3/site-packages/company.py", "exec"), of)
def run(**options):
    spec = gradbridge_seldonian.supervised_spec(
        data, LinearRegressionModel(), ["Mean_Squared_Error <= 2.0"], [0.1], initial_solution=np.zeros(2),
        optimization_technique="barrier_function", optimizer="BFGS", maxiter=2, **options)
    algorithm = SeldonianAlgorithm(spec)
    algorithm.run()
    return algorithm.cs_result
assert len(run().history.objective)
try:
    run(primary_objective=of["loss"])
except gradbridge_seldonian.EngineError as error:
    assert "of the company's" in str(error)
else:
    sys.exit("the error was swallowed")
"""


@pytest.mark.parametrize("name", ["EngineError", "SupervisedStepsModel", "plot_candidate_selection"])
def test_runs_are_the_same_whatever_is_imported_first(name):
    done = subprocess.run([sys.executable, "-c", FIRST, name], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_gradient_descent_is_drawn_from_the_algorithm_as_from_its_result(tmp_path):
    algorithm = trained("adam")
    one = plot_candidate_selection(algorithm, tmp_path / "one.png")
    two = plot_candidate_selection(algorithm.cs_result, tmp_path / "two.png")
    assert one.read_bytes() == two.read_bytes()
    told = words(lambda path: plot_candidate_selection(algorithm, path), tmp_path / "three")
    assert all(constraint in told for constraint in CONSTRAINTS)
    assert "0.45-(PR)" not in told


def test_where_nothing_satisfies_the_constraints_it_is_said_which_was_chosen(tmp_path):
    impossible = ["PR >= 0.45", "PR <= 0.01"]
    for optimizer in ("adam", "CMA-ES"):
        algorithm = trained(optimizer, impossible)
        result = algorithm.cs_result
        if optimizer == "adam":
            _, bound = by_hand(algorithm, result["candidate_solution"])
            (chosen,) = np.flatnonzero(np.isclose(result["g_vals"][:, 0], bound, rtol=1e-9, atol=0))
        else:
            chosen = result.history.chosen
        told = words(functools.partial(plot_candidate_selection, algorithm), tmp_path / "one")
        assert f"chosen: {chosen}, as none satisfies all" in told


def test_a_run_that_stopped_at_a_nan_is_drawn_and_says_so(tmp_path):
    result = {
        "f_vals": np.array([1.0, np.nan]), "g_vals": np.array([[0.5], [np.nan]]), "lamb_vals": np.ones((2, 1)),
        "constraint_strs": ["PR-(0.9)"], "best_index": None, "found_feasible_solution": False,
        "candidate_solution": "NSF",
    }  # fmt: skip
    told = words(lambda path: plot_candidate_selection(result, path), tmp_path / "one")
    assert "stopped: not finite" in told
    assert "PR-(0.9) <= 0" in told


def test_a_recorded_result_prints_as_before_copies_and_pickles():
    for optimizer in ("Powell", "CMA-ES"):
        result = trained(optimizer).cs_result
        assert "history" not in repr(result)
        for again in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
            np.testing.assert_array_equal(again.history.bounds, result.history.bounds)


def test_an_error_in_a_barrier_run_is_the_users_own():
    torch.manual_seed(0)
    model = SeldonianModel(torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Sigmoid()))

    calls = []

    def objective(model, theta, X, Y, **kwargs):
        calls.append(theta)
        if len(calls) > 3:  # not where training starts already: supervised_spec tries that
            raise ArithmeticError("mine")
        return np.mean((model.predict(theta, X) - Y) ** 2)

    spec = supervised_spec(
        dataset(),
        model,
        CONSTRAINTS,
        [0.1, 0.1],
        primary_objective=objective,
        optimization_technique="barrier_function",
        optimizer="Powell",
    )
    with pytest.raises(ArithmeticError, match="mine"):
        SeldonianAlgorithm(spec).run()


def test_what_cannot_be_drawn_is_refused_with_what_to_do(tmp_path):
    algorithm = SeldonianAlgorithm(
        supervised_spec(dataset(), SeldonianModel(torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Sigmoid())),
                        CONSTRAINTS, [0.1, 0.1])
    )  # fmt: skip
    with pytest.raises(OptionError, match=r"has not selected a candidate yet.*run\(\) it first"):
        plot_candidate_selection(algorithm, tmp_path / "one.png")
    for other in (None, {"xbest": np.zeros(2)}, 3.0):
        with pytest.raises(OptionError, match=f"got a {type(other).__name__}.*engine keeps no history"):
            plot_candidate_selection(other, tmp_path / "one.png")
    assert not list(tmp_path.iterdir())


def test_a_measure_with_its_bound_is_drawn_with_both_numbers(tmp_path):
    measures = [
        ("gap", {"one": (0.168, 0.293), "two": (0.067, 0.133)}, 0.2),
        ("loss", {"one": 1.25, "two": 2.0}, None),
    ]
    told = words(
        lambda path: plot_comparison("A title", measures, path, note="first\nsecond"), tmp_path / "one"
    )
    assert all(
        number in told for number in ("0.168", "bound 0.293", "0.067", "bound 0.133", "1.250", "2.000")
    )
    assert "(dashed: limit 0.2)" in told


def test_words_with_dollars_and_long_constraints_are_drawn_as_they_are(tmp_path):
    algorithm = trained("adam")
    long = " + ".join(f"(PR | [group_{i}])" for i in range(12)) + " <= 3"
    told = words(
        lambda path: plot_candidate_selection(algorithm, path, title="$5 or $6_", constraints=[long, "a$b"]),
        tmp_path / "one",
    )
    assert "$5 or $6_" in told
    assert "a$b" in told
    assert "(PR | [group_11]) <= 3" in told


@pytest.mark.parametrize("optimizer", ["adam", "Powell"])
@pytest.mark.parametrize("names", [["one"], ["a", "b", "c"], "ab", [1, 2]])
def test_there_is_a_label_for_each_constraint(optimizer, names, tmp_path):
    with pytest.raises(OptionError, match="a label for each of the 2 constraints"):
        plot_candidate_selection(trained(optimizer), tmp_path / "one", constraints=names)


def test_pictures_take_results_with_wild_and_infinite_values(tmp_path):
    steps = 30
    result = {
        "f_vals": np.linspace(2, 1, steps),
        "g_vals": np.column_stack([np.linspace(5, -1, steps), np.r_[np.inf, np.zeros(steps - 1)]]),
        "lamb_vals": np.ones((steps, 2)),
        "constraint_strs": ["a <= 1", "b <= 2"],
        "best_index": 20,
        "found_feasible_solution": True,
    }
    assert colours(plot_candidate_selection(result, tmp_path / "deep" / "one.png")) > 50
    two = plot_comparison("t", [("loss", {"a": 1.0, "b": -2.0}, 0.5)], tmp_path / "two.png", note="n")
    assert colours(two) > 20
