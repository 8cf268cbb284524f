"""`supervised_spec` answers a wrong name, value or combination with `SpecError`, before the engine sees it."""

import autograd.numpy as anp
import numpy as np
import pytest

pytest.importorskip("seldonian")
torch = pytest.importorskip("torch")
from seldonian.dataset import (  # noqa: E402
    CustomDataSet,
    CustomMetaData,
    RLDataSet,
    RLMetaData,
    SupervisedDataSet,
    SupervisedMetaData,
)
from seldonian.models import objectives as engine_objectives  # noqa: E402
from seldonian.models.models import BinaryLogisticRegressionModel  # noqa: E402
from seldonian.parse_tree.parse_tree import ParseTree  # noqa: E402
from seldonian.seldonian_algorithm import SeldonianAlgorithm  # noqa: E402

from gradbridge_seldonian import SeldonianModel, supervised_spec  # noqa: E402
from gradbridge_seldonian.specification.supervised import SpecError  # noqa: E402

RNG = np.random.default_rng(0)
PR, GAP = "PR <= 0.9", "abs((FPR | [a]) - (FPR | [b])) <= 0.4"


def data(rows=40, sub_regime="classification", columns=("a", "b"), features=None):
    X = RNG.normal(size=(rows, 2))
    groups = np.stack([X[:, 0] > 0, X[:, 0] <= 0], 1).astype(int)
    meta = SupervisedMetaData(sub_regime, [*columns, "f", "g", "y"], ["f", "g"], ["y"], list(columns))
    return SupervisedDataSet(X if features is None else features, (X[:, 1] > 0) * 1.0, groups, rows, meta)


def custom(rows=40, groups=40):
    meta = CustomMetaData(["f", "g", "a", "b"], ["a", "b"])
    return CustomDataSet(RNG.normal(size=(rows, 2)), np.ones((groups, 2)), rows, meta)


def model():
    return SeldonianModel(torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Sigmoid()))


def tree(
    constraint=PR, regime="supervised_learning", sub_regime="classification", columns=("a", "b"), built=True
):
    made = ParseTree(0.05, regime, sub_regime, list(columns))
    if built:
        made.build_tree(constraint)
    else:
        made.create_from_ast(constraint)
    return made


BARRIER = {"optimization_technique": "barrier_function"}
READY = {"constraints": None, "deltas": None}
PAIR = {"candidate_dataset": data(), "safety_dataset": data()}
CUSTOM = {
    "dataset": custom(),
    "constraints": ["SIZE <= 2.0"],
    "custom_measure_functions": {"SIZE": lambda m, theta, data, **k: m.predict(theta, data)},
    "primary_objective": lambda m, theta, data, **k: anp.mean(m.predict(theta, data)),
}


def in_torch(model, theta, X, Y, **ignored):
    found = torch.as_tensor(np.asarray(model.predict(theta, X)))
    return torch.nn.functional.mse_loss(found, torch.as_tensor(Y)).item()


def of_a_native_model(model, theta, X, Y, **ignored):
    return float((model.native(theta)(torch.as_tensor(X)).ravel() - torch.as_tensor(Y)).abs().mean())


def additional(entry, constraint=PR, node="PR"):
    return {"additional_datasets": {constraint: {node: entry}}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        # names
        ({"num_iter": 3}, "no argument 'num_iter'; did you mean 'num_iters'?"),
        ({"initial_solution_fn": None}, "did you mean 'initial_solution'?"),
        ({"frac_data_in_safty": 0.5}, "did you mean 'frac_data_in_safety'?"),
        ({"delta_vector": [1.0]}, "did you mean 'delta_vectors'?"),
        ({"sub_regime": "classification"}, "metadata"),
        ({"xyz": 1}, "no argument 'xyz'$"),
        ({"optimization_hyperparams": {"alpha_thetta": 0.1}}, "'alpha_thetta', .*did you mean 'alpha_theta'"),
        ({"optimization_hyperparams": {"debug": True}}, r"algorithm.run\(debug=True\)"),
        ({"optimization_hyperparams": {"write_logfile": True}}, r"write_cs_logfile=True"),
        ({"regularization_hyperparams": {"reg_coeff": 0.1}}, "did you mean 'reg_coef'"),
        # values of entries, as arguments and in the dictionary
        ({"optimization_hyperparams": [("num_iters", 3)]}, "optimization_hyperparams must be a dictionary"),
        ({"optimization_hyperparams": {"gradient_library": "jax"}}, "gradient_library must be one of 'autograd'"),
        ({"optimization_hyperparams": {"hyper_search": "grid"}}, "hyper_search must be one of None"),
        ({"optimization_hyperparams": {"num_iters": 0}}, "num_iters must be a whole number of at least 1, got 0"),
        ({"num_iters": 2.5}, "num_iters must be a whole number"),
        ({"batch_size": "10", "n_epochs": 1}, "batch_size must be a whole number of at least 1, got '10'"),
        ({"alpha_theta": 0.0}, "alpha_theta must be a positive number"),
        ({"alpha_lamb": -0.1}, "alpha_lamb must be a number of at least 0"),
        ({"beta_velocity": 1.0}, "beta_velocity must be a number of at least 0 and below 1"),
        ({"beta_rmsprop": True}, "beta_rmsprop must be"),
        ({"clip_theta": 3.0}, "clip_theta must be None or a pair"),
        ({"clip_theta": np.zeros(3)}, "clip_theta must be None or a pair"),
        ({"clip_theta": ("a", "b")}, "clip_theta must be None or a pair"),
        ({"clip_theta": ([0.0, 1.0], [2.0, 3.0, 4.0])}, "clip_theta must be None or a pair"),
        ({"initial_solution": lambda *ignored: 1 / 0}, "function initial_solution failed: ZeroDivisionError"),
        ({"initial_solution": np.zeros(5)}, r"params of shape \(3,\), got \(5,\).*initial_solution must fit"),
        ({"primary_objective": in_torch}, "the gradient of primary_objective failed .*TypeError.*autograd.numpy"),
        ({"primary_objective": of_a_native_model}, "the gradient of primary_objective failed .*autograd.numpy"),
        ({"clip_theta": (1.0, -1.0)}, "the first not above the second"),
        ({"clip_theta": (np.zeros(2), 1.0)}, r"of the parameters' shape \(3,\), got shape \(2,\)"),
        ({"lambda_init": "half"}, "lambda_init must be one number or one for each"),
        ({"lambda_init": -0.5}, "lambda_init must be finite and at least 0"),
        ({"lambda_init": [1.0, 2.0]}, "one for each of the 1 constraints, got shape"),
        ({"verbose": "yes"}, "verbose must be True or False"),
        # contradictions
        ({"alpha_theta": 0.1, "optimization_hyperparams": {"alpha_theta": 0.2}}, "0.1 as an argument and 0.2 in"),
        ({"batch_size": 10}, "both batch_size and n_epochs"),
        ({"optimization_hyperparams": {"n_epochs": 10}}, "both batch_size and n_epochs"),
        ({"use_batches": True}, "use_batches=True needs both"),
        ({"batch_size": 5, "n_epochs": 1, "num_iters": 3}, "either num_iters"),
        ({"use_batches": False, "batch_size": 5, "n_epochs": 1}, "batch_size=5 does nothing with use_batches=False"),
        ({"use_batches": True, "batch_size": 5, "n_epochs": 1, "num_iters": 3}, "num_iters=3 does nothing with"),
        # optimizers
        ({"optimization_technique": "barrier"}, "optimization_technique must be one of 'gradient_descent'"),
        ({"optimizer": "Powell"}, "belongs to optimization_technique='barrier_function'"),
        ({"optimizer": "sgd"}, "optimizer must be one of 'adam', got 'sgd'"),
        ({**BARRIER, "optimizer": "adam"}, "belongs to optimization_technique='gradient_descent'"),
        ({"maxiter": 5}, "maxiter=5 does nothing with .*'adam'.* read by Powell, CG, Nelder-Mead, BFGS, CMA-ES"),
        ({**BARRIER, "num_iters": 5}, "num_iters=5 does nothing with .*'Powell'; it is read by adam"),
        ({**BARRIER, "optimizer": "CG", "seed": 5}, "seed=5 does nothing with .*'CG'; it is read by CMA-ES"),
        ({**BARRIER, "optimizer": "CMA-ES", "seed": 0}, "seed must be .* at least 1"),
        ({**BARRIER, "optimizer": "CMA-ES", "sigma0": -1.0}, "sigma0 must be a positive number"),
        ({"regularization_hyperparams": {"reg_func": np.sum}}, "reg_func.*='barrier_function' alone"),
        ({"regularization_hyperparams": {"reg_coef": "a"}}, "reg_coef.* must be a finite number"),
        # constraints
        ({"deltas": 0.1}, "deltas must be a list"),
        ({"deltas": ["0.1"]}, "between 0 and 1, got '0.1'"),
        ({"constraints": None}, "needs constraints and deltas, or parse_trees"),
        ({"constraints": [tree()]}, "cannot be read: it is not a string; .*parse_trees="),
        ({"constraints": [PR, PR], "deltas": [0.1, 0.1]}, r"'PR-\(0.9\)' is there 2 times"),
        ({"constraints": ["PRR <= 0.9"]}, "'PRR <= 0.9' cannot be read: .*did you mean 'PR'"),
        ({"constraints": ["PR <= 0.9)"]}, "cannot be read"),
        ({"constraints": ["(PR | [c]) <= 0.9"]}, "cannot be read: 'c' is not a sensitive column"),
        ({"constraints": ["0.2 <= 0.9"]}, "no statistic of the data"),
        ({"delta_vectors": [[1.0, 2.0]]}, r"a number for each of the 1 bounds that 'PR <= 0.9' needs"),
        ({"delta_vectors": [0.5, 0.5]}, "one entry for each of the 1 constraints"),
        ({"delta_vectors": [[1e4]]}, "taken to the exponential, and that of 10000.0"),
        ({"delta_vectors": [[-800.0]]}, "only their differences count"),
        ({"delta_vectors": [[np.nan]]}, "delta_vectors must be finite"),
        ({"infl_factors": -1}, "infl_factors must be at least 0, got -1"),
        ({"infl_factors": [[1.0, 2.0]]}, "infl_factors must have a number for each of the 1 bounds"),
        ({"infl_factors": "2"}, "infl_factors must be a list with one entry"),
        # ready-made trees
        ({"parse_trees": [tree()]}, "parse_trees were given, .* leave out constraints"),
        ({**READY, "parse_trees": tree()}, "parse_trees must be a list"),
        ({**READY, "parse_trees": [PR]}, "must be the engine's ParseTrees, got a str"),
        ({**READY, "parse_trees": []}, "at least one constraint"),
        ({**READY, "parse_trees": [tree(), tree()]}, "is there 2 times"),
        ({**READY, "parse_trees": [tree(built=False)]}, "is not built: its nodes have no delta;"),
        ({**READY, "parse_trees": [tree("Mean_Error <= 1", sub_regime="regression")]}, "sub_regime 'regression', and the data"),
        ({**READY, "parse_trees": [tree("(PR | [c]) <= 1", columns="c")]}, r"conditions on 'c', .*columns of the data: a, b"),
        # data
        ({"dataset": None}, "dataset must be the engine's SupervisedDataSet .*got None"),
        ({"dataset": np.ones((3, 2))}, r"got a ndarray of shape \(3, 2\)"),
        ({"dataset": RLDataSet([], RLMetaData([]))}, "got a RLDataSet"),
        ({"candidate_dataset": data()}, "safety_dataset is missing"),
        ({**PAIR, "safety_dataset": data(sub_regime="regression")}, "of one sub_regime, got 'classification' and 'regression'"),
        ({**PAIR, "candidate_dataset": data(columns=("a", "c"))}, "of one sensitive_col_names"),
        ({"frac_data_in_safety": 1.0}, "frac_data_in_safety must be a number between 0 and 1"),
        ({"batch_size_safety": 0}, "batch_size_safety must be"),
        # nodes
        ({"base_node_bound_method_dict": {"PR <= 0.8": {}}}, r"names the constraint 'PR <= 0.8', .*did you mean 'PR-"),
        ({"base_node_bound_method_dict": {PR: {"PRR": "ttest"}}}, "base node 'PRR', .*did you mean 'PR'"),
        ({"base_node_bound_method_dict": {PR: {"PR": "hoeffding"}}}, "must be one of 'ttest', 'manual', 'random'"),
        ({"base_node_bound_method_dict": ["PR"]}, "must be a dictionary"),
        (additional({"data": data()}), "must be a dictionary with 'dataset'"),
        (additional({"dataset": data(sub_regime="regression")}), "data like the objective's"),
        (additional({"dataset": data(), "batch_size": 0}), r"\['batch_size'\] must be a whole number"),
        (additional({"dataset": data(), "batch_size": 17}), "has 16 rows for candidate selection, fewer than .* 17"),
        ({**additional({"dataset": data(20)}), "batch_size": 9, "n_epochs": 1}, "has 8 rows .*'batch_size' of its own"),
        (additional({"dataset": data()}, node="NR"), "names the base node 'NR'"),
        ({**additional({"dataset": data(columns=("c", "b"))}, GAP, "FPR | [a]"), "constraints": [GAP]}, "conditions on 'a'"),
        ({**additional({"dataset": data()}), **BARRIER}, "additional_datasets .* only gradient descent makes"),
        # objectives and gradients
        ({"primary_objective": "loss"}, "primary_objective must be a function"),
        ({"primary_objective": lambda m, t, X, Y, **k: m.predict(t, X)}, r"must return one number, got .*\(16,\)"),
        ({"primary_objective": lambda m, t, X, Y: 0.0}, "failed at the initial solution: TypeError"),
        ({"primary_objective": lambda m, t, X, Y, **k: X @ Y}, "failed at the initial solution: ValueError"),
        ({"custom_primary_gradient_fn": 3}, "custom_primary_gradient_fn must be a function"),
        ({"custom_primary_gradient_fn": lambda model, theta, X, Y: np.ones(2)}, r"shape \(3,\), got shape \(2,\)"),
        ({"custom_primary_gradient_fn": lambda m, t, X, Y: t}, "failed at the initial solution: TypeError"),
        ({**BARRIER, "regularization_hyperparams": {"reg_func": lambda theta: theta}}, "reg_func.*must return one number"),
        ({"custom_primary_gradient_fn": engine_objectives.gradient_binary_logistic_loss}, "custom_primary.*formulas are"),
        ({"use_builtin_primary_gradient_fn": True}, "formulas are those of its own linear models"),
        (
            {"use_builtin_primary_gradient_fn": True, "model": BinaryLogisticRegressionModel(),
             "initial_solution": np.zeros(3), "primary_objective": engine_objectives.Error_Rate},
            "no formula for the objective 'Error_Rate'",
        ),
        ({"initial_solution": "zeros"}, "the initial solution must be an array of numbers"),
        ({"model": None}, r"model must be one of the engine's, .*got None: it has no predict\(theta, X\)"),
        ({"model": torch.nn.Linear(2, 1)}, r"got a Linear: it is a native model of torch; .*SeldonianModel\(model\)"),
        ({"model": SeldonianModel}, "it is a class, not an object of it"),
        ({"rows": "some"}, "rows must be one of 'auto'"),
        # the custom regime
        ({"custom_measure_functions": {"SIZE": np.sum}}, "for supervised data, where the engine reads none"),
        ({**CUSTOM, "custom_measure_functions": {"SIZE": 3}}, "must be a function, got 3"),
        ({**CUSTOM, "custom_measure_functions": {}}, "cannot be read"),
        ({**CUSTOM, "primary_objective": None}, "the custom regime has no objective of its own"),
        ({**CUSTOM, **BARRIER}, "the engine has only 'gradient_descent'"),
        ({**CUSTOM, "candidate_dataset": custom(), "safety_dataset": custom()}, "engine cannot run so"),
        ({**CUSTOM, "primary_objective": lambda m, t, data, **k: data}, "must return one number"),
        ({**CUSTOM, "dataset": custom(rows=40, groups=0), "constraints": ["(SIZE | [a]) <= 2.0"]}, "and 0 rows of"),
        ({**CUSTOM, "custom_measure_functions": {"SIZE": lambda m, theta, data: theta}}, "'SIZE.*failed at the initial"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_with_its_name(change, said):
    arguments = {"dataset": data(), "model": model(), "constraints": [PR], "deltas": [0.1], **change}
    with pytest.raises(SpecError, match=said):
        supervised_spec(**arguments)


def test_entries_of_another_optimizer_may_stay_in_a_dictionary():
    entries = {"seed": 3, "maxiter": 7, "use_batches": False, "batch_size": 10, "n_epochs": 2, "num_iters": 3}
    spec = supervised_spec(data(), model(), [PR], [0.1], optimization_hyperparams=entries)
    assert {k: spec.optimization_hyperparams[k] for k in entries} == entries
    spec = supervised_spec(
        data(), model(), [PR], [0.1], **BARRIER, optimization_hyperparams={"alpha_theta": 0.1, "maxiter": 7}
    )
    assert spec.optimization_hyperparams["maxiter"] == 7


def test_what_is_said_twice_in_one_voice_is_no_contradiction():
    entries = {"alpha_theta": 0.1, "clip_theta": [-1.0, 1.0]}
    spec = supervised_spec(
        data(),
        model(),
        [PR],
        [0.1],
        alpha_theta=0.1,
        clip_theta=(-1.0, 1.0),
        optimization_hyperparams=entries,
    )
    assert spec.optimization_hyperparams["clip_theta"] == (-1.0, 1.0)


@pytest.mark.parametrize("objective", [in_torch, of_a_native_model])
def test_an_objective_without_a_gradient_is_one_for_optimizers_that_ask_for_none(objective):
    barrier = {**BARRIER, "maxiter": 1, "optimizer": "Nelder-Mead"}
    spec = supervised_spec(data(), model(), [PR], [0.1], primary_objective=objective, **barrier)
    algorithm = SeldonianAlgorithm(spec)
    algorithm.set_initial_solution()
    assert np.isfinite(algorithm.run_candidate_selection()).all()
