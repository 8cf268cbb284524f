"""What the user's own code raises in a run leaves it as an error, not as a trial without a solution."""

import functools
import pickle

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
from seldonian.models.models import SupervisedModel  # noqa: E402
from seldonian.parse_tree import zhat_funcs  # noqa: E402
from seldonian.parse_tree.nodes import measure_functions_dict  # noqa: E402
from seldonian.parse_tree.parse_tree import make_parse_trees_from_constraints  # noqa: E402
from seldonian.seldonian_algorithm import SeldonianAlgorithm  # noqa: E402
from seldonian.spec import SupervisedSpec  # noqa: E402
from torch import nn  # noqa: E402

from gradbridge_seldonian import SeldonianModel, supervised_spec  # noqa: E402
from gradbridge_seldonian.runs import EngineError  # noqa: E402

RNG = np.random.default_rng(2)
X = RNG.normal(size=(150, 2))
Y = (X.sum(1) + 0.3 * RNG.normal(size=150) > 0).astype(float)
DATA = SupervisedDataSet(
    X, Y, [], 150, SupervisedMetaData("classification", ["f", "g", "y"], ["f", "g"], ["y"], [])
)
ROWS = CustomDataSet(np.column_stack([X, Y]), [], 150, CustomMetaData(["f", "g", "y"]))


def model():
    torch.manual_seed(0)
    return SeldonianModel(nn.Sequential(nn.Linear(2, 1), nn.Sigmoid()))


START = model().initial_solution()


def moved(theta):
    """Whether training has left the start, so that nothing which was tried there tells."""
    return 1e-9 < np.abs(theta - START).max() < 0.05


class Own(SupervisedModel):
    """A user's model on the engine's base, without a bridge."""

    has_intercept = True

    def predict(self, theta, X):
        return 1 / (1 + anp.exp(-(X @ theta[1:] + theta[0])))


def loss(model, theta, X, Y, **ignored):
    return anp.mean((model.predict(theta, X) - Y) ** 2)


def picky(model, theta, X, Y, **ignored):
    if len(X) < 20:
        raise ValueError("too few rows for my loss")
    return loss(model, theta, X, Y)


def divides(model, theta, X, Y, **ignored):
    chosen = [] if len(X) < 20 else [1.0]
    return loss(model, theta, X, Y) + 0.0 / len(chosen)


def emptied(model, theta, X, Y, **ignored):
    return loss(model, theta, X, Y) + 0.0 * np.max(Y[25:])


def slope(model, theta, X, Y):
    return (model.predict(theta, X) - Y) @ np.column_stack([X, np.ones(len(X))]) / len(X)


def slope_that_ends(model, theta, X, Y):
    return np.array([].index(1)) if moved(theta) else slope(model, theta, X, Y)


def penalty_that_ends(theta):
    return 0.0 if np.array_equal(theta, START) else int("no number")


BATCHES = {"batch_size": 25, "n_epochs": 1}  # of 60 candidate rows, so that the last has 10


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"primary_objective": picky, **BATCHES}, "picky .*ValueError: too few rows"),
        ({"primary_objective": divides, **BATCHES}, "divides .*ZeroDivisionError"),
        ({"primary_objective": emptied, **BATCHES}, "emptied .*ValueError: zero-size"),
        ({"custom_primary_gradient_fn": slope_that_ends}, "slope_that_ends .*ValueError: 1 is not in list"),
        (
            {
                "optimization_technique": "barrier_function",
                "regularization_hyperparams": {"reg_func": penalty_that_ends},
            },
            "penalty_that_ends .*ValueError: invalid literal",
        ),
    ],
)
def test_an_error_through_the_users_code_leaves_a_supervised_run(settings, said):
    settings = {"num_iters": 4, **settings}
    if "batch_size" in settings or "optimization_technique" in settings:
        del settings["num_iters"]
    spec = supervised_spec(DATA, model(), ["PR <= 0.9"], [0.1], **settings)
    for each in (spec, pickle.loads(pickle.dumps(spec))):
        with pytest.raises(EngineError, match=said) as raised:
            SeldonianAlgorithm(each).run()
        assert not isinstance(raised.value, (ValueError, ZeroDivisionError))


INSTALLED = """
import autograd.numpy as anp

def loss(model, theta, X, Y, **ignored):
    if len(X) < 20:
        raise ValueError("of the company's")
    return anp.mean((model.predict(theta, X) - Y) ** 2)

class Weighted:
    def __call__(self, model, theta, X, Y, **ignored):
        return 2.0 * loss(model, theta, X, Y)
"""


@pytest.mark.parametrize("name", ["loss", "Weighted"])
def test_an_objective_may_be_of_an_installed_package(name):
    of = {"__name__": "company.losses"}
    exec(compile(INSTALLED, "/venv/lib/python3/site-packages/company/losses.py", "exec"), of)
    objective = of[name]() if name != "loss" else of[name]
    spec = supervised_spec(DATA, model(), ["PR <= 0.9"], [0.1], primary_objective=objective, **BATCHES)
    with pytest.raises(EngineError, match="ValueError: of the company's"):
        SeldonianAlgorithm(spec).run()


def test_the_engines_own_specifications_of_its_own_models_are_as_they_were():
    class Small(Own):
        def predict(self, theta, X):
            return super().predict(theta, X if len(X) != 10 else X.reshape(7, -1))

    def plain(start, made):
        ours = supervised_spec(
            DATA, made, ["PR <= 0.9"], [0.1], initial_solution=np.full(3, 0.3), num_iters=2
        )
        trees = make_parse_trees_from_constraints(["PR <= 0.9"], [0.1], sub_regime="classification")
        hyper = {**ours.optimization_hyperparams, "use_batches": True, **BATCHES}
        return SupervisedSpec(
            DATA, made, trees, "classification", initial_solution_fn=start, optimization_hyperparams=hyper,
            use_builtin_primary_gradient_fn=False,
        )  # fmt: skip

    with pytest.raises(ValueError, match="cannot reshape"):
        SeldonianAlgorithm(plain(lambda *ignored: np.full(3, 0.3), Small())).run()
    algorithm = SeldonianAlgorithm(plain(lambda *ignored: [].index(1), Own()))
    assert np.array_equal(algorithm.set_initial_solution(), np.zeros(3))


def parts(model, theta, data, **ignored):
    return (model.predict(theta, data[:, :2]) - data[:, 2]) ** 2


def mean(model, theta, data, **ignored):
    return anp.mean(parts(model, theta, data))


def later(f, when, model, theta, data, **ignored):
    if when(theta, data):
        raise ValueError("not this one")
    return f(model, theta, data)


WHEN = {
    "a small batch": lambda theta, data: len(data) < 20,
    "the safety data": lambda theta, data: len(data) == 90,
    "a step": lambda theta, data: moved(getattr(theta, "_value", theta)),
    "a trace": lambda theta, data: hasattr(theta, "_value") and moved(theta._value),
}


@pytest.mark.parametrize(
    ("what", "when"),
    [
        *[("measure", when) for when in WHEN],
        *[("objective", when) for when in WHEN if when != "the safety data"],
    ],
)
def test_an_error_through_the_users_code_leaves_a_run_of_the_custom_regime(what, when):
    chosen = {"measure": parts, "objective": mean}
    chosen[what] = functools.partial(later, chosen[what], WHEN[when])
    spec = supervised_spec(
        ROWS, model(), ["ERROR <= 0.9"], [0.1], custom_measure_functions={"ERROR": chosen["measure"]},
        primary_objective=chosen["objective"], **(BATCHES if when == "a small batch" else {"num_iters": 3}),
    )  # fmt: skip
    with pytest.raises(EngineError, match="later .*ValueError: not this one"):
        SeldonianAlgorithm(spec).run()


def test_a_statistic_that_a_user_added_is_the_users(monkeypatch):
    def samples(model, theta, X, Y, **ignored):
        return model.predict(theta, X) if len(X) > 60 else [].index(7)

    known = {**measure_functions_dict["supervised_learning"]}
    known["classification"] = [*known["classification"], "OWN"]
    monkeypatch.setitem(measure_functions_dict, "supervised_learning", known)
    monkeypatch.setitem(zhat_funcs.measure_function_vector_mapper, "OWN", samples)
    spec = supervised_spec(DATA, model(), ["OWN <= 0.9"], [0.1], num_iters=2)
    with pytest.raises(EngineError, match="samples .*ValueError: 7 is not in list"):
        SeldonianAlgorithm(spec).run()


def test_a_model_of_the_users_without_a_bridge_is_heard_in_a_specification_of_ours():
    class Small(Own):
        def predict(self, theta, X):
            return super().predict(theta, X if len(X) != 10 else X.reshape(7, -1))

    spec = supervised_spec(DATA, Small(), ["PR <= 0.9"], [0.1], initial_solution=np.full(3, 0.3), **BATCHES)
    with pytest.raises(EngineError, match="predict .*ValueError: cannot reshape"):
        SeldonianAlgorithm(spec).run()


def test_arithmetic_that_bounds_cannot_do_says_so():
    spec = supervised_spec(DATA, model(), ["(PR - FNR)**0.5 <= 0.9"], [0.1], num_iters=2)
    with pytest.raises(EngineError, match="cannot bound a constraint: ArithmeticError"):
        SeldonianAlgorithm(spec).run()


@pytest.mark.parametrize("make", [model, Own])
@pytest.mark.parametrize(
    ("second", "said"),
    [
        (lambda: [].index(3), "ValueError: 3 is not in list"),
        (lambda: {}["db gone"], "KeyError: 'db gone'"),
        (lambda: np.array([0.1, np.nan, 0.0]), "1 values that are not finite"),
        (lambda: "nothing", "could not convert string"),
        (lambda: np.zeros((3, 1)), r"must be of shape \(P,\), got \(3, 1\)"),
    ],
)
def test_a_start_that_fails_in_a_run_is_told_in_its_own_words(make, second, said):
    calls = []

    def start(model, X, Y):
        calls.append(len(Y))
        return np.full(3, 0.3) if len(calls) == 1 else second()

    constraints = ["PR <= 0.9", "FNR <= 0.95"]
    spec = supervised_spec(DATA, make(), constraints, [0.1] * 2, num_iters=2, initial_solution=start)
    algorithm = SeldonianAlgorithm(spec)
    with pytest.raises(EngineError, match=said):
        algorithm.run()
    assert algorithm.spec is spec


def test_a_start_that_is_interrupted_interrupts():
    calls = []

    def start(model, X, Y):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return np.full(3, 0.3)

    spec = supervised_spec(DATA, Own(), ["PR <= 0.9"], [0.1], num_iters=2, initial_solution=start)
    with pytest.raises(KeyboardInterrupt):
        SeldonianAlgorithm(spec).run()
