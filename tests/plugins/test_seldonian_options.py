"""Every option of `supervised_spec` gives the numbers of the engine's own specification with the same settings."""

import contextlib
import copy
import io

import autograd.numpy as anp
import numpy as np
import pytest

pytest.importorskip("seldonian")
torch = pytest.importorskip("torch")
from seldonian.dataset import (  # noqa: E402
    CustomDataSet,
    CustomMetaData,
    SupervisedDataSet,
    SupervisedMetaData,
)
from seldonian.models import objectives as engine_objectives  # noqa: E402
from seldonian.models.models import BinaryLogisticRegressionModel, LinearRegressionModel  # noqa: E402
from seldonian.parse_tree.parse_tree import ParseTree  # noqa: E402
from seldonian.seldonian_algorithm import SeldonianAlgorithm  # noqa: E402
from seldonian.spec import Spec, SupervisedSpec  # noqa: E402

from gradbridge_seldonian import SeldonianModel, supervised_spec  # noqa: E402

START = np.array([0.1, 0.2, -0.3])
TWO = ["PR <= 0.9", "abs((FPR | [a]) - (FPR | [b])) <= 0.4"]


def data(rows, seed, sub_regime="classification"):
    random = np.random.default_rng(seed)
    X, groups = random.normal(size=(rows, 2)), random.integers(0, 2, rows)
    Y = X @ [0.5, 1.0] + 0.4 * groups + 0.5 * random.normal(size=rows)
    if sub_regime != "regression":
        Y = (Y > 0.2).astype(float)
    meta = SupervisedMetaData(sub_regime, ["a", "b", "f", "g", "y"], ["f", "g"], ["y"], ["a", "b"])
    return SupervisedDataSet(X, Y, np.stack([groups == 0, groups == 1], 1).astype(int), rows, meta)


DATA = data(320, 0)


def logistic(p, x):
    return torch.sigmoid(p[0] + x @ p[1:])


def line(p, x):
    return p[0] + x @ p[1:]


def bridged(function=logistic):
    return SeldonianModel(function, backend="torch", params=torch.tensor(START))


def trees(constraints=TWO, sub_regime="classification", **built):
    made = [ParseTree(0.05, "supervised_learning", sub_regime, ["a", "b"]) for _ in constraints]
    for i, (tree, constraint) in enumerate(zip(made, constraints)):
        tree.build_tree(constraint, **{name: each[i] for name, each in built.items()})
    return made


def engines(settings=None, hyper=None, made=None, dataset=DATA, model=None, sub_regime="classification"):
    """The engine's own model and specification."""
    entries = {
        "lambda_init": np.full(2, 0.5), "alpha_theta": 0.005, "alpha_lamb": 0.005, "beta_velocity": 0.9,
        "beta_rmsprop": 0.95, "use_batches": False, "num_iters": 12, "gradient_library": "autograd",
        "hyper_search": None, "verbose": False, **(hyper or {}),
    }  # fmt: skip
    return SupervisedSpec(
        dataset=dataset,
        model=model or BinaryLogisticRegressionModel(),
        parse_trees=made or trees(),
        sub_regime=sub_regime,
        use_builtin_primary_gradient_fn=False,
        optimization_hyperparams=entries,
        **{"initial_solution_fn": lambda *ignored: START.copy(), **(settings or {})},
    )


def ours(*positional, **options):
    arguments = positional or (DATA, bridged(), TWO, [0.05, 0.05])
    return supervised_spec(*arguments, **{"initial_solution": START, "num_iters": 12, **options})


def found(spec):
    """What a run leaves: its course, its verdict, and the bounds of the safety test."""
    algorithm = SeldonianAlgorithm(spec)
    with contextlib.redirect_stdout(io.StringIO()):
        passed, _ = algorithm.run()
    course, keys = algorithm.cs_result, ("f_vals", "g_vals", "lamb_vals", "candidate_solution")
    if hasattr(course, "xbest"):
        numbers = [course.xbest, course.fbest]
    else:
        numbers = [course[key] for key in keys] if "f_vals" in course else [course.x, course.fun]
    bounds = [algorithm.st_result[tree.constraint_str].root.upper for tree in algorithm.parse_trees]
    assert np.isfinite(bounds).all()
    return [passed, *numbers, bounds]


def same(one, other, tolerance=1e-12):
    for a, b in zip(one if isinstance(one, list) else found(one), found(other), strict=True):
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), tolerance, tolerance)


@pytest.mark.parametrize(
    "hyper",
    [
        {"lambda_init": np.array([0.1, 2.0])},
        {"alpha_theta": 0.02, "alpha_lamb": 0.03},
        {"beta_velocity": 0.5, "beta_rmsprop": 0.0},
        {"clip_theta": (-0.31, 0.11)},
        {"use_batches": True, "batch_size": 70, "n_epochs": 3},
        {"num_iters": 5, "gradient_library": "autograd", "hyper_search": None},
    ],
)
def test_an_entry_is_the_engines_as_an_argument_and_in_the_dictionary(hyper):
    own = engines(hyper=hyper)
    in_dictionary = {"num_iters": 12, **hyper}
    same(own, ours(optimization_hyperparams=in_dictionary, num_iters=None))
    named = {k: v for k, v in hyper.items() if k not in ("gradient_library", "hyper_search", "use_batches")}
    same(own, ours(**{"num_iters": None if "batch_size" in hyper else 12, **named}))


def test_clipping_by_arrays_keeps_each_parameter_in_its_own_range():
    limits = (np.array([0.05, 0.1, -0.35]), np.array([0.12, 0.22, -0.3]))
    same(engines(hyper={"clip_theta": limits}), ours(clip_theta=limits))
    same(engines(hyper={"clip_theta": limits}), ours(clip_theta=[list(limits[0]), list(limits[1])]))
    same(engines(hyper={"clip_theta": (-0.31, 0.11)}), ours(clip_theta=np.array([-0.31, 0.11])))


def test_the_dictionary_goes_under_the_arguments_and_is_not_changed():
    given = {"alpha_theta": 0.02, "verbose": False}
    spec = ours(optimization_hyperparams=given, alpha_lamb=0.03)
    assert given == {"alpha_theta": 0.02, "verbose": False}
    assert spec.optimization_hyperparams is not given
    same(engines(hyper={**given, "alpha_lamb": 0.03}), spec)


@pytest.mark.parametrize(
    ("vectors", "factors"),
    [
        ([None, [0.3, 1.0, -2.0, 0.5]], None),
        ([[0.0], np.array([3.0, 0.0, 0.0, 1.0])], 1.5),
        (None, [3, [1.0, 2.0, 0.5, 0]]),
        (None, [None, 0.7]),
    ],
)
def test_shares_of_delta_and_inflation_factors_are_the_engines(vectors, factors):
    built = {}
    if vectors is not None:
        built["delta_weight_method"] = ["equal" if v is None else "manual" for v in vectors]
        built["delta_vector"] = [[] if v is None else v for v in vectors]
    if factors is not None:
        each = factors if isinstance(factors, list) else [factors] * 2
        built["infl_factor_method"] = ["manual" if isinstance(f, list) else "constant" for f in each]
        built["infl_factors"] = [2 if f is None else f for f in each]
    own = engines(made=trees(**built))
    same(own, ours(delta_vectors=vectors, infl_factors=factors))
    same(own, ours(DATA, bridged(), parse_trees=trees(**built)))


def test_ready_made_trees_are_copied():
    made = trees()
    before = copy.deepcopy([tree.base_node_dict for tree in made])
    for _ in range(2):
        SeldonianAlgorithm(ours(DATA, bridged(), parse_trees=made)).run()
    assert [tree.base_node_dict for tree in made] == before
    assert all("zhat" not in vars(node) for tree in made for node in (tree.root.left, tree.root.right))


def test_data_sets_of_their_own_need_no_third():
    pair = {"candidate_dataset": data(90, 1), "safety_dataset": data(120, 2)}
    same(engines(pair, dataset=None), ours(None, bridged(), TWO, [0.05] * 2, **pair))
    same(engines(pair, dataset=DATA), ours(DATA, bridged(), TWO, [0.05] * 2, **pair))


@pytest.mark.parametrize("batches", [{}, {"batch_size": 64, "n_epochs": 2, "num_iters": None}])
def test_additional_data_sets_are_the_engines_and_stay_as_they_were(batches):
    def additional():
        pair = {"candidate_dataset": data(90, 4), "safety_dataset": data(70, 5), "batch_size": 40}
        return {"PR-(0.9)": {"PR": {"dataset": data(200, 3)}}, engine_text(TWO[1]): {"FPR | [a]": pair}}

    given = additional()
    hyper = {**batches, "use_batches": True} if batches else {}
    own = engines({"additional_datasets": additional()}, hyper)
    same(own, ours(additional_datasets=given, **batches))
    assert {text: {n: sorted(e) for n, e in nodes.items()} for text, nodes in given.items()} == {
        "PR-(0.9)": {"PR": ["dataset"]},
        engine_text(TWO[1]): {"FPR | [a]": ["batch_size", "candidate_dataset", "safety_dataset"]},
    }
    as_written = {TWO[0]: given["PR-(0.9)"], TWO[1]: given[engine_text(TWO[1])]}
    same(
        engines({"additional_datasets": additional()}, hyper), ours(additional_datasets=as_written, **batches)
    )


def engine_text(constraint):
    return trees([constraint])[0].constraint_str


@pytest.mark.parametrize(
    "settings",
    [
        {"frac_data_in_safety": 0.3},
        {"regularization_hyperparams": {"reg_coef": 0.3}},
        {"primary_objective": engine_objectives.Error_Rate},
        {
            # Not quite autograd's, so that it shows which of them was taken.
            "custom_primary_gradient_fn": lambda model, theta, X, Y: (
                (1 + 1e-5) * (model.predict(theta, X) - Y) @ np.column_stack([np.ones(len(X)), X]) / len(X)
            ),
            "primary_objective": engine_objectives.binary_logistic_loss,
        },
    ],
)
def test_a_setting_is_the_engines(settings):
    same(engines(settings), ours(**settings))


def test_a_safety_test_in_pieces_is_the_engines():
    constraints = ["PR <= 0.9", "abs((NR | [a]) - (NR | [b])) <= 0.4"]
    own = engines({"batch_size_safety": 7}, made=trees(constraints))
    same(own, ours(DATA, bridged(), constraints, [0.05] * 2, batch_size_safety=7))
    same(engines(), ours(batch_size_safety=7))  # of rates by label, which the engine does not put together


def test_bounds_given_by_hand_are_the_engines():
    def fixed():
        made = trees()
        made[0].root.left.lower, made[0].root.left.upper = 0.2, 0.8
        return made

    methods = {TWO[0]: {"PR": "manual"}}
    own = engines({"base_node_bound_method_dict": {"PR-(0.9)": {"PR": "manual"}}}, made=fixed())
    same(own, ours(DATA, bridged(), parse_trees=fixed(), base_node_bound_method_dict=methods))


@pytest.mark.parametrize(
    ("optimizer", "hyper"),
    [
        ("Powell", {"maxiter": 1}),
        ("Nelder-Mead", {"maxiter": 12}),
        ("BFGS", {"maxiter": 1}),
        ("CG", {"maxiter": 1}),
        ("CMA-ES", {"maxiter": 4, "seed": 3, "sigma0": 0.4}),
        ("CMA-ES", {"maxiter": 3, "seed": 5}),
    ],
)
def test_the_barrier_function_takes_its_optimizers_options(optimizer, hyper, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # CMA-ES may write there
    settings = {"optimization_technique": "barrier_function", "optimizer": optimizer}
    penalty = {
        "regularization_hyperparams": {"reg_coef": 0.01, "reg_func": lambda theta: 0.1 * theta[0] ** 2}
    }
    # Differences of the objective, which BFGS and CG take, hold half of the digits, and the barrier is a cliff.
    tolerance = 1e-3 if optimizer in ("BFGS", "CG") else 1e-10
    own = found(engines({**settings, **penalty}, hyper))
    named = ours(num_iters=None, **settings, **penalty, **hyper)
    same(own, named, tolerance)
    same(own, named, tolerance)  # the engine's own trees would hold the safety data by now
    same(own, ours(num_iters=None, **settings, **penalty, optimization_hyperparams=hyper), tolerance)


def test_the_barrier_function_begins_with_powell():
    spec = ours(num_iters=None, optimization_technique="barrier_function")
    assert spec.optimizer == "Powell"
    assert spec.optimization_hyperparams == {"hyper_search": None, "verbose": False}


def test_a_start_from_a_function_sees_the_candidate_data_alone_in_each_run():
    seen = []

    def fit(model, X, Y):
        seen.append(len(Y))
        return LinearRegressionModel().fit(X, Y)

    constraints = ["Mean_Squared_Error <= 3.0", "Mean_Error <= 2.0"]
    dataset = data(100, 7, "regression")
    own = engines(
        {"initial_solution_fn": fit},
        {},
        trees(constraints, "regression"),
        dataset,
        LinearRegressionModel(),
        "regression",
    )
    spec = ours(dataset, bridged(line), constraints, [0.05] * 2, initial_solution=fit)
    same(own, spec)
    assert set(seen) == {40}
    spec.dataset = data(50, 8, "regression")  # as each trial of an experiment does
    SeldonianAlgorithm(spec).set_initial_solution()
    assert seen[-1] == 20


def test_a_linear_model_of_the_engines_may_keep_the_engines_formula():
    own = engines()
    own.use_builtin_primary_gradient_fn = True
    same(
        own,
        ours(DATA, BinaryLogisticRegressionModel(), TWO, [0.05] * 2, use_builtin_primary_gradient_fn=True),
    )


def test_binary_classification_is_classification():
    same(engines(), ours(data(320, 0, "binary_classification"), bridged(), TWO, [0.05] * 2))


@pytest.mark.parametrize("batches", [{}, {"batch_size": 64, "n_epochs": 2}])
def test_the_custom_regime_is_the_engines(batches):
    meta = CustomMetaData(["f", "g", "y", "a", "b"], ["a", "b"])
    rows = np.column_stack([DATA.features, DATA.labels])
    dataset = CustomDataSet(rows, DATA.sensitive_attrs, len(rows), meta)
    measures = {"RATE": lambda model, theta, data, **kwargs: model.predict(theta, data[:, :2])}

    def loss(model, theta, data, **kwargs):
        return anp.mean((model.predict(theta, data[:, :2]) - data[:, 2]) ** 2)

    constraints = ["abs((RATE | [a]) - (RATE | [b])) <= 0.4"]
    tree = ParseTree(0.05, "custom", None, ["a", "b"], measures)
    tree.build_tree(constraints[0])
    hyper = {**engines().optimization_hyperparams, "lambda_init": np.array([0.5])}
    hyper.update({**batches, "use_batches": True} if batches else {})
    own = Spec(
        dataset, BinaryLogisticRegressionModel(), 0.6, loss, lambda *ignored: START.copy(), [tree],
        use_builtin_primary_gradient_fn=False, optimization_hyperparams=hyper,
    )  # fmt: skip
    iterations = {"num_iters": None if batches else 12, **batches, "primary_objective": loss}
    made = ours(dataset, bridged(), constraints, [0.05], custom_measure_functions=measures, **iterations)
    same(own, made)
    same(own, ours(dataset, bridged(), parse_trees=[tree], **iterations))
    assert type(made) is Spec
    assert "RATE" not in ParseTree(0.05, "supervised_learning", "classification").available_measure_functions
