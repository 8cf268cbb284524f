"""One sweep: the engine's own numbers, from half of its evaluations."""

import copy
import pickle

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad, hessian, jacobian, make_jvp
from autograd.extend import Box

pytest.importorskip("seldonian")
torch = pytest.importorskip("torch")

from seldonian.dataset import SupervisedDataSet, SupervisedMetaData  # noqa: E402
from torch import nn  # noqa: E402

from gradbridge_seldonian import SeldonianModel, supervised_spec  # noqa: E402
from gradbridge_seldonian.engine import (  # noqa: E402
    SeldonianAlgorithm,
    SupervisedSpec,
    make_parse_trees_from_constraints,
)
from gradbridge_seldonian.evaluation import objectives  # noqa: E402
from gradbridge_seldonian.evaluation.constraints import SweptTree  # noqa: E402
from gradbridge_seldonian.evaluation.sweep import Sweep, SweptObjective  # noqa: E402
from gradbridge_seldonian.evaluation.trees import nodes  # noqa: E402

RNG = np.random.default_rng(0)
N = 120
X = RNG.normal(size=(N, 3))
GROUPS = (RNG.random((N, 2)) < 0.5).astype(float)
Y = (RNG.random(N) < 1 / (1 + np.exp(-X[:, 0] - GROUPS[:, 0]))).astype(float)

CONSTRAINTS = [
    "abs((FNR | [a]) - (FNR | [b])) <= 0.2",
    "(PR | [a]) <= 0.9",
    "min((PR | [a])/(PR | [b]),(PR | [b])/(PR | [a])) >= 0.3",
    "FPR <= 0.7",
    "ACC >= 0.4",
    "max(FPR, FNR) - 0.9 <= 0.0",
]


def dataset(rows=N):
    meta = SupervisedMetaData(
        sub_regime="classification",
        all_col_names=["x0", "x1", "x2", "a", "b", "y"],
        feature_col_names=["x0", "x1", "x2"],
        label_col_names=["y"],
        sensitive_col_names=["a", "b"],
    )
    return SupervisedDataSet(
        features=X[:rows], labels=Y[:rows], sensitive_attrs=GROUPS[:rows], num_datapoints=rows, meta=meta
    )


def model():
    torch.manual_seed(0)
    return SeldonianModel(nn.Sequential(nn.Linear(3, 1), nn.Sigmoid(), nn.Flatten(0)))


def trees(constraints):
    return make_parse_trees_from_constraints(
        list(constraints),
        [0.1] * len(constraints),
        regime="supervised_learning",
        sub_regime="classification",
        columns=["a", "b"],
    )


def upper_bounds(tree, m, data=None, **changes):
    """θ ↦ the root's upper bound, as candidate selection asks for it."""

    def bound(theta):
        tree.reset_base_node_dict(reset_data=True)
        tree.propagate_bounds(
            **{
                "theta": theta,
                "tree_dataset_dict": {"all": data or dataset()},
                "model": m,
                "branch": "candidate_selection",
                "n_safety": 80,
                "regime": "supervised_learning",
                "sub_regime": "classification",
                **changes,
            }
        )
        return tree.root.upper

    return bound


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_bounds_and_gradients_are_the_engines(constraint):
    m = model()
    theirs = upper_bounds(trees([constraint])[0], m)
    ours = upper_bounds(SweptTree.of(trees([constraint])[0]), m)
    for k in range(4):
        theta = m.initial_solution() + 0.2 * k
        assert ours(theta) == pytest.approx(theirs(theta), rel=1e-12)
        np.testing.assert_allclose(grad(ours)(theta), grad(theirs)(theta), rtol=1e-10, atol=1e-13)


def test_a_value_and_its_gradient_cost_one_evaluation():
    m = model()
    bound = upper_bounds(SweptTree.of(trees(CONSTRAINTS[:1])[0]), m)
    calls = []
    predict = m.predict
    m.predict = lambda *args, **kwargs: calls.append(1) or predict(*args, **kwargs)
    for k in range(3):
        theta = m.initial_solution() + k
        bound(theta)
        grad(bound)(theta)
    assert len(calls) == 3 * 2  # one for each group


def test_changes_in_place_are_seen():
    m, data = model(), dataset()
    data.features = data.features.copy()
    tree, plain = SweptTree.of(trees(CONSTRAINTS[:1])[0]), trees(CONSTRAINTS[:1])[0]
    ours, theirs = upper_bounds(tree, m, data), upper_bounds(plain, m, data)
    theta = m.initial_solution()
    ours(theta)
    theta += 1.0
    np.testing.assert_allclose(grad(ours)(theta), grad(theirs)(theta), rtol=1e-10)
    ours(theta)
    data.features[:] = data.features[::-1].copy()
    np.testing.assert_allclose(grad(ours)(theta), grad(theirs)(theta), rtol=1e-10)


def test_other_sizes_of_the_safety_data_are_seen():
    m = model()
    tree, plain = SweptTree.of(trees(CONSTRAINTS[:1])[0]), trees(CONSTRAINTS[:1])[0]
    theta = m.initial_solution()
    upper_bounds(tree, m)(theta)
    for n in (80, 500):
        np.testing.assert_allclose(
            grad(upper_bounds(tree, m, n_safety=n))(theta),
            grad(upper_bounds(plain, m, n_safety=n))(theta),
            rtol=1e-10,
        )


def test_several_constraints_have_their_own_rows_in_a_jacobian():
    m = model()
    ours = [upper_bounds(SweptTree.of(tree), m) for tree in trees(CONSTRAINTS)]
    theirs = [upper_bounds(tree, m) for tree in trees(CONSTRAINTS)]
    theta = m.initial_solution()
    for bounds in (ours, theirs):
        [bound(theta) for bound in bounds]
    found, expected = (
        jacobian(lambda t, b=bounds: anp.array([bound(t) for bound in b]))(theta) for bounds in (ours, theirs)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)


def test_second_derivatives_and_tangents_go_past_the_record():
    m = model()
    tree, plain = SweptTree.of(trees(CONSTRAINTS[:1])[0]), trees(CONSTRAINTS[:1])[0]
    ours, theirs = upper_bounds(tree, m), upper_bounds(plain, m)
    theta = m.initial_solution() + 0.1
    ours(theta)
    np.testing.assert_allclose(hessian(ours)(theta), hessian(theirs)(theta), rtol=1e-8, atol=1e-11)
    t = np.arange(4.0)
    ours(theta)
    assert make_jvp(ours)(theta)(t)[1] == pytest.approx(float(grad(theirs)(theta) @ t), rel=1e-10)


def test_no_graph_stays_in_the_tree():
    m = model()
    tree = SweptTree.of(trees(CONSTRAINTS[:1])[0])
    upper_bounds(tree, m)(m.initial_solution())
    for node in nodes(tree.root):
        assert not isinstance(node.lower, Box)
        assert not isinstance(node.upper, Box)


def test_the_safety_test_is_the_engines():
    m = model()
    theta = m.initial_solution()
    kwargs = {"branch": "safety_test", "batch_size_safety": None}
    ours, theirs = SweptTree.of(trees(CONSTRAINTS[:1])[0]), trees(CONSTRAINTS[:1])[0]
    assert upper_bounds(ours, m, **kwargs)(theta) == upper_bounds(theirs, m, **kwargs)(theta)


def test_trees_and_objectives_pickle_and_copy():
    m = model()
    for twin in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        tree, objective = (
            SweptTree.of(trees(CONSTRAINTS[:1])[0]),
            SweptObjective(objectives.binary_logistic_loss),
        )
        theta = m.initial_solution()
        upper_bounds(tree, m)(theta)
        assert upper_bounds(twin(tree), m)(theta) == upper_bounds(tree, m)(theta)
        assert twin(objective)(m, theta, X, Y) == objective(m, theta, X, Y)


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_specification_pickles_and_copies_after_a_run_too(twin):
    spec = supervised_spec(dataset(), model(), CONSTRAINTS[:2], [0.1, 0.1], num_iters=5)
    solution = settled(spec)
    np.testing.assert_array_equal(settled(twin(spec)), solution)


def test_the_logistic_loss_is_the_engines_to_second_order():
    from seldonian.models.objectives import binary_logistic_loss as theirs

    m = model()
    theta = m.initial_solution() + 0.3
    ours = objectives.binary_logistic_loss
    assert ours(m, theta, X, Y) == pytest.approx(theirs(m, theta, X, Y), rel=1e-12)
    for order in (grad, hessian):
        np.testing.assert_allclose(
            order(lambda t: ours(m, t, X, Y))(theta), order(lambda t: theirs(m, t, X, Y))(theta), rtol=1e-9
        )
    t = np.arange(4.0)
    assert make_jvp(lambda q: ours(m, q, X, Y))(theta)(t)[1] == pytest.approx(
        float(grad(lambda q: theirs(m, q, X, Y))(theta) @ t), rel=1e-10
    )


def test_a_sweep_stops_recording_when_nobody_asks_for_gradients():
    recorded = []

    def function(theta):
        recorded.append(type(theta).__name__)
        return anp.sum(theta**2)

    sweep = Sweep()
    for k in range(4):
        sweep(np.arange(3.0) + k, [], function)
    assert recorded == ["ArrayBox", "ndarray", "ndarray", "ndarray"]
    theta = np.arange(3.0)
    np.testing.assert_allclose(grad(lambda t: sweep(t, [], function))(theta), 2 * theta)
    sweep(theta, [], function)
    del recorded[:]
    np.testing.assert_allclose(grad(lambda t: 3 * sweep(t, [], function))(theta), 6 * theta)
    assert recorded == []


@pytest.mark.parametrize("batches", [{"num_iters": 30}, {"batch_size": 24, "n_epochs": 10}])
def test_candidate_selection_takes_the_engines_own_path(batches):
    """The whole optimization with the engine's own trees and objective, and with ours."""
    m = model()
    ours = supervised_spec(dataset(), m, CONSTRAINTS[3:5], [0.1, 0.1], **batches)
    theirs = SupervisedSpec(
        dataset=dataset(),
        model=m,
        parse_trees=trees(CONSTRAINTS[3:5]),
        sub_regime="classification",
        primary_objective=objectives.binary_logistic_loss,
        use_builtin_primary_gradient_fn=False,
        initial_solution_fn=lambda *ignored: m.initial_solution(),
        optimization_hyperparams=copy.deepcopy(ours.optimization_hyperparams),
    )
    solutions = []
    for spec in (ours, theirs):
        algorithm = SeldonianAlgorithm(spec)
        algorithm.set_initial_solution()
        solutions.append(algorithm.run_candidate_selection())
    np.testing.assert_allclose(solutions[0], solutions[1], rtol=1e-9, atol=1e-12)


def settled(spec):
    """The candidate solution."""
    algorithm = SeldonianAlgorithm(spec)
    algorithm.set_initial_solution()
    return algorithm.run_candidate_selection()


@pytest.mark.parametrize("batches", [{"num_iters": 30}, {"batch_size": 24, "n_epochs": 10}])
def test_the_gradient_of_the_objective_is_handed_over_as_it_was_recorded(batches, monkeypatch):
    spec, plain = (supervised_spec(dataset(), model(), CONSTRAINTS[3:5], [0.1] * 2, **batches) for _ in "ab")
    twin = pickle.loads(pickle.dumps(spec))
    expected = []
    with monkeypatch.context() as m:
        m.setattr(type(plain), "custom_primary_gradient_fn", None)  # autograd's pass, as without us
        expected.append(settled(plain))
    traced = []
    own = objectives.binary_logistic_loss

    def loss(model, theta, X, Y, **kwargs):
        traced.append(isinstance(theta, Box))
        return own(model, theta, X, Y, **kwargs)

    spec.primary_objective._objective = loss
    for one in (spec, twin, copy.deepcopy(twin)):
        np.testing.assert_allclose(settled(one), expected[0], rtol=1e-12)
    steps = 30 if "num_iters" in batches else 2 * 10  # 48 rows
    assert traced == [True] * steps  # one recorded evaluation an iteration, and no other


def test_a_gradient_without_a_record_is_computed():
    objective = SweptObjective(objectives.binary_logistic_loss)
    m = model()
    theta = m.initial_solution()
    expected = grad(lambda t: objectives.binary_logistic_loss(m, t, X, Y))(theta)
    np.testing.assert_allclose(objective.gradient(m, theta, X, Y), expected, rtol=1e-13)
    objective(m, theta + 1, X, Y)
    np.testing.assert_allclose(objective.gradient(m, theta, X, Y), expected, rtol=1e-13)
    objective = SweptObjective(objectives.binary_logistic_loss)
    objective(m, theta, X, Y)
    objective.gradient(m, theta, X, Y)[:] = np.nan  # it is the caller's
    np.testing.assert_allclose(objective.gradient(m, theta, X, Y), expected, rtol=1e-13)


def regularize(spec):
    spec.regularization_hyperparams = {"reg_coef": 0.5}


def replace_objective(spec):
    spec.primary_objective = objectives.Error_Rate


def give_gradient(spec):
    spec.custom_primary_gradient_fn = lambda model, theta, X, Y: 0.1 * theta


@pytest.mark.parametrize("change", [regularize, replace_objective, give_gradient])
def test_what_is_changed_in_a_specification_is_heeded(change):
    m = model()
    ours = supervised_spec(dataset(), m, CONSTRAINTS[3:5], [0.1, 0.1], num_iters=30)
    theirs = SupervisedSpec(
        dataset=dataset(),
        model=m,
        parse_trees=trees(CONSTRAINTS[3:5]),
        sub_regime="classification",
        primary_objective=objectives.binary_logistic_loss,
        use_builtin_primary_gradient_fn=False,
        initial_solution_fn=lambda *ignored: m.initial_solution(),
        optimization_hyperparams=copy.deepcopy(ours.optimization_hyperparams),
    )
    unchanged = settled(ours)
    change(ours)
    change(theirs)
    np.testing.assert_allclose(settled(ours), settled(theirs), rtol=1e-9, atol=1e-12)
    assert not np.allclose(settled(ours), unchanged, rtol=1e-3)
