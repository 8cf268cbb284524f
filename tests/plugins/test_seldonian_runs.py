"""In the engine's own specifications: a gradient of the model's own, a start of its own, and no error that is swallowed."""

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad

pytest.importorskip("seldonian")
torch = pytest.importorskip("torch")
from seldonian.dataset import (  # noqa: E402
    CustomDataSet,
    CustomMetaData,
    SupervisedDataSet,
    SupervisedMetaData,
)
from seldonian.models import objectives as engine_objectives  # noqa: E402
from seldonian.models.models import LinearRegressionModel  # noqa: E402
from seldonian.parse_tree.parse_tree import ParseTree, make_parse_trees_from_constraints  # noqa: E402
from seldonian.seldonian_algorithm import SeldonianAlgorithm  # noqa: E402
from seldonian.spec import Spec, SupervisedSpec  # noqa: E402
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import GradbridgeError  # noqa: E402
from gradbridge_seldonian import SeldonianModel, SupervisedPytorchBaseModel, supervised_spec  # noqa: E402
from gradbridge_seldonian.evaluation.constraints import SweptTree  # noqa: E402
from gradbridge_seldonian.runs import EngineError  # noqa: E402
from gradbridge_seldonian.specification.checks import SpecError  # noqa: E402

RNG = np.random.default_rng(0)
N = 120
X, GROUPS = RNG.normal(size=(N, 2)), RNG.integers(0, 2, N)
SCORE = X @ [0.5, 1.0] + 0.4 * GROUPS + 0.5 * RNG.normal(size=N)
LABELS = {
    "regression": SCORE,
    "classification": (SCORE > 0).astype(float),
    "multiclass_classification": np.digitize(SCORE, [-0.5, 0.5]),
}
CONSTRAINT = {
    "regression": "Mean_Squared_Error <= 3.0",
    "classification": "PR <= 0.8",
    "multiclass_classification": "ACC >= 0.2",
}


def data(sub_regime="regression", features=X):
    meta = SupervisedMetaData(sub_regime, ["a", "b", "f", "g", "y"], ["f", "g"], ["y"], ["a", "b"])
    groups = np.stack([GROUPS == 0, GROUPS == 1], 1).astype(int)
    return SupervisedDataSet(features, LABELS[sub_regime], groups, N, meta)


def plain(model, sub_regime="regression", hyper=None, dataset=None, **settings):
    """A specification of the engine's own, with its defaults for what concerns the gradient."""
    entries = {
        "lambda_init": np.array([0.5]), "alpha_theta": 0.01, "alpha_lamb": 0.01, "beta_velocity": 0.9,
        "beta_rmsprop": 0.95, "use_batches": False, "num_iters": 8, "gradient_library": "autograd",
        "hyper_search": None, "verbose": False, **(hyper or {}),
    }  # fmt: skip
    return SupervisedSpec(
        dataset=dataset or data(sub_regime),
        model=model,
        sub_regime=sub_regime,
        optimization_hyperparams=entries,
        **{
            "initial_solution_fn": getattr(model, "initial_solution", None),
            "parse_trees": make_parse_trees_from_constraints(
                [CONSTRAINT[sub_regime]], [0.1], sub_regime=sub_regime, columns=["a", "b"]
            ),
            **settings,
        },
    )


def course(spec):
    algorithm = SeldonianAlgorithm(spec)
    algorithm.run()
    return algorithm.cs_result


class Steps(SupervisedPytorchBaseModel):
    def create_model(self, **kwargs):
        return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1), nn.Flatten(0)).double()


MODELS = {
    "regression": lambda: SeldonianModel(nn.Linear(2, 1)),  # of a linear model's length, the intercept last
    "classification": lambda: SeldonianModel(
        nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), output="logits"
    ),
    "multiclass_classification": lambda: SeldonianModel(nn.Linear(2, 3), output="logits"),
}


@pytest.mark.parametrize("hyper", [{}, {"use_batches": True, "batch_size": 32, "n_epochs": 3}])
@pytest.mark.parametrize("sub_regime", list(MODELS))
def test_a_specification_of_the_engines_own_descends_along_the_models_gradient(sub_regime, hyper):
    model = MODELS[sub_regime]()
    found = course(plain(model, sub_regime, hyper))
    truth = course(plain(model, sub_regime, hyper, use_builtin_primary_gradient_fn=False))
    for key in ("f_vals", "g_vals", "candidate_solution"):
        np.testing.assert_allclose(found[key], truth[key], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("given", [None, engine_objectives.gradient_Mean_Squared_Error])
def test_five_methods_and_a_formula_given_by_hand_are_no_trap_either(given):
    model = Steps()
    start = model.initial_solution()
    begin = {"initial_solution_fn": lambda *ignored: start.copy()}
    found = course(plain(model, custom_primary_gradient_fn=given, **begin))
    truth = course(plain(model, use_builtin_primary_gradient_fn=False, **begin))
    np.testing.assert_allclose(found["f_vals"], truth["f_vals"], rtol=1e-12)


def test_the_engines_formula_is_another_models_gradient():
    """What the trap is, and that models of the engine's go on as they did."""
    model, theta = SeldonianModel(nn.Linear(2, 1)), np.array([0.3, -0.2, 1.0])
    formula = engine_objectives.gradient_Mean_Squared_Error(model, theta, X, SCORE)
    own = grad(lambda t: engine_objectives.Mean_Squared_Error(model, t, X, SCORE))(theta)
    assert not np.allclose(formula, own, rtol=0.1)
    asked = []

    def counted(model, theta, X, Y):
        asked.append(len(Y))
        return engine_objectives.gradient_Mean_Squared_Error(model, theta, X, Y)

    course(plain(LinearRegressionModel(), custom_primary_gradient_fn=counted))
    assert len(asked) == 8


def test_the_custom_regime_takes_the_models_gradient_by_default():
    rows = np.column_stack([X, SCORE])
    dataset = CustomDataSet(rows, [], N, CustomMetaData(["f", "g", "y"]))

    def error(model, theta, data, **kwargs):
        return (model.predict(theta, data[:, :2]) - data[:, 2]) ** 2

    def made(**settings):
        tree = ParseTree(0.1, "custom", None, [], {"ERROR": error})
        tree.build_tree("ERROR <= 3.0")
        model = SeldonianModel(nn.Linear(2, 1).double())
        model.bridge.model(np.zeros(3))
        hyper = plain(model).optimization_hyperparams
        start = lambda model, data: np.array([0.3, -0.2, 1.0])
        return Spec(
            dataset, model, 0.6, lambda *a, **k: anp.mean(error(*a, **k)), start, [tree],
            optimization_hyperparams=hyper, **settings,
        )  # fmt: skip

    found, truth = course(made()), course(made(use_builtin_primary_gradient_fn=False))
    np.testing.assert_allclose(found["f_vals"], truth["f_vals"], rtol=1e-12)


def fails(*ignored):
    raise ValueError("the solver did not converge")


@pytest.mark.parametrize(
    ("start", "said"), [(None, "is None.*supervised_spec"), (fails, "failed: .*not converge")]
)
@pytest.mark.parametrize("make", [MODELS["regression"], Steps])
def test_a_start_that_the_engine_would_make_up_is_refused(make, start, said):
    with pytest.raises(EngineError, match=said):
        course(plain(make(), initial_solution_fn=start))


def test_a_model_that_says_has_intercept_gets_the_engines_zeros():
    class Declared(SeldonianModel):
        has_intercept = True

    spec = plain(Declared(nn.Linear(2, 1)), initial_solution_fn=None)
    assert np.array_equal(SeldonianAlgorithm(spec).set_initial_solution(), np.zeros(3))
    model = SeldonianModel(nn.Linear(2, 1, bias=False))
    model.has_intercept = False
    spec = plain(model, initial_solution_fn=None)
    assert np.array_equal(SeldonianAlgorithm(spec).set_initial_solution(), np.zeros(2))


def squared(p, x):
    return x @ p


def squared_vjp(ans, p, x):
    return lambda v: np.concatenate([v @ x, [0.0]])


def written_badly():
    """A model without a framework whose written gradient has a component too many."""
    f = gb.bridge(squared, backend="numpy", params=np.ones(2), audit="off")
    f.adapter.defvjp(squared_vjp, None)
    return SeldonianModel(f)


class Short(Steps):
    def backward_pass(self, external_grad):
        return super().backward_pass(external_grad)[:-1]


class Wrong(SeldonianModel):
    def predict(self, theta, X, **kwargs):
        return super().predict(theta, X.reshape(7, -1))


class Picky(SeldonianModel):
    """Fails for the rows of one group alone."""

    def predict(self, theta, X, **kwargs):
        if len(X) not in (4, 48):
            raise ValueError("of 48 rows, please")
        return super().predict(theta, X)


def no_number(model, theta, X, Y, **kwargs):
    return anp.mean((model.predict(theta, X)[:, None] - Y[:3]) ** 2 + np.ones(5))


def of_other_columns():
    meta = SupervisedMetaData("regression", ["c", "f", "g", "y"], ["f", "g"], ["y"], ["c"])
    return SupervisedDataSet(X, SCORE, np.ones((N, 1)), N, meta)


def grouped(**settings):
    return {
        "parse_trees": make_parse_trees_from_constraints(["(Mean_Error | [a]) <= 3"], [0.1], columns=["a"]),
        **settings,
    }


@pytest.mark.parametrize(
    ("make", "settings", "said"),
    [
        (
            MODELS["regression"],
            {"initial_solution_fn": lambda *a: np.zeros(7)},
            r"ParamsShapeError: .*\(3,\), got \(7,\)",
        ),
        (
            Steps,
            {"initial_solution_fn": lambda *a: np.zeros(2)},
            r"ParamsShapeError: .*Steps expects theta of shape",
        ),
        (MODELS["regression"], {"dataset": data(features=X[:, :1])}, r"InputError: .*got \(\d+, 1\)"),
        (Short, {}, "GradientShapeError: backward_pass of Short"),
        (written_badly, {}, r"GradientShapeError: .*\(2,\)"),
        (
            lambda: SeldonianModel(nn.Linear(2, 3)),
            {},
            r"SpecError: regression needs predictions of shape \(n,\)",
        ),
        (lambda: Wrong(nn.Linear(2, 1)), {}, "ValueError: cannot reshape"),
        (lambda: Picky(nn.Linear(2, 1)), grouped(), "Picky failed: ValueError: of 48 rows"),
        (
            MODELS["regression"],
            {"primary_objective": no_number},
            "ValueError: operands could not be broadcast",
        ),
        (MODELS["regression"], grouped(dataset=of_other_columns()), "SpecError: .*conditions on 'a', .*: c"),
    ],
)
def test_what_is_wrong_with_a_model_is_no_trial_without_a_solution(make, settings, said):
    heard(plain(make(), **settings), said)
    if "GradientShape" not in said:  # which the barrier function does not ask for
        barrier = {"optimization_technique": "barrier_function", "optimizer": "Nelder-Mead"}
        heard(plain(make(), **settings, **barrier), said)


def heard(spec, said):
    with pytest.raises(GradbridgeError, match=said) as raised:
        SeldonianAlgorithm(spec).run()
    assert not isinstance(raised.value, (ValueError, ZeroDivisionError))
    assert isinstance(raised.value.__cause__, ValueError)


def test_the_safety_test_swallows_nothing_either():
    algorithm = SeldonianAlgorithm(plain(MODELS["regression"]()))
    with pytest.raises(EngineError, match=r"ParamsShapeError: .*got \(5,\)"):
        algorithm.run_safety_test(np.zeros(5))
    trees = make_parse_trees_from_constraints(["FPR <= 0.9"], [0.1], sub_regime="classification")
    pieces = plain(MODELS["classification"](), "classification", parse_trees=trees, batch_size_safety=7)
    with pytest.raises(EngineError, match="SpecError: batch_size_safety=7 .*'FPR'"):
        SeldonianAlgorithm(pieces).run()


@pytest.mark.parametrize(
    "constraint", ["PR_[1] <= 0.6", "(FNR_[2] | [a]) <= 0.9", "abs((TPR_[0] | [a]) - (TPR_[0] | [b])) <= 0.9"]
)
def test_a_class_that_the_engines_own_trees_keep_to_themselves_is_refused_in_both_runs(constraint):
    kind = "multiclass_classification"
    trees = make_parse_trees_from_constraints([constraint], [0.1], sub_regime=kind, columns=["a", "b"])
    spec = plain(MODELS[kind](), kind, parse_trees=trees)
    for run in (lambda a: a.run(), lambda a: a.run_safety_test(MODELS[kind]().initial_solution())):
        with pytest.raises(EngineError, match=r"SpecError: .* names a class in .*supervised_spec"):
            run(SeldonianAlgorithm(spec))
    told = plain(MODELS[kind](), kind, parse_trees=[SweptTree.of(tree) for tree in trees])
    assert np.isfinite(course(told)["f_vals"]).all()


def test_a_model_class_of_the_users_over_a_bridge_is_heard_too():
    class Own(LinearRegressionModel):
        f = gb.bridge(nn.Linear(2, 1))

        def predict(self, theta, X):
            return self.f(theta, X)[:, 0]

    with pytest.raises(EngineError, match="ParamsShapeError"):
        course(
            plain(Own(), initial_solution_fn=lambda *a: np.zeros(4), use_builtin_primary_gradient_fn=False)
        )


def test_outside_of_the_engine_errors_are_what_they_were():
    with pytest.raises(gb.errors.ParamsShapeError):
        MODELS["regression"]().predict(np.zeros(7), X)
    with pytest.raises(gb.errors.GradientShapeError):
        grad(lambda t: anp.sum(written_badly().predict(t, X)))(np.ones(2))
    with pytest.raises(SpecError):
        supervised_spec(data(), MODELS["regression"](), ["Mean_Squared_Error <= 3.0"], [1.5])


def test_a_trial_that_finds_no_solution_is_one():
    model, constraint = MODELS["classification"](), ["max(PR - 2.0, 0.0)**(-1) <= 4.0"]
    spec = supervised_spec(data("classification"), model, constraint, [0.1], num_iters=3)
    with pytest.raises(ZeroDivisionError, match="cannot be raised to a negative power"):
        SeldonianAlgorithm(spec).run()


def test_too_few_data_for_an_objective_are_a_trial_without_a_solution():
    spec = plain(MODELS["regression"](), frac_data_in_safety=0.999)  # which leaves no row
    with pytest.raises(ZeroDivisionError):
        SeldonianAlgorithm(spec).run()


def test_a_run_that_diverged_is_a_trial_without_a_solution():
    diverged = supervised_spec(
        data(),
        SeldonianModel(nn.Linear(2, 1), check_finite=True),
        ["Mean_Squared_Error <= 3.0"],
        [0.1],
        alpha_theta=1e308,
    )
    with pytest.raises(gb.errors.NonFiniteParamsError), np.errstate(all="ignore"):
        SeldonianAlgorithm(diverged).run()


def test_a_start_that_is_not_finite_is_no_trial_that_diverged():
    model = SeldonianModel(nn.Linear(2, 1), check_finite=True)
    with pytest.raises(EngineError, match="initial_solution_fn .* not finite"):
        course(plain(model, initial_solution_fn=lambda *a: np.array([0.0, np.nan, 0.0])))
