"""How the predictions that groups share are used: bounds, solutions and derivatives are what they were."""

import copy

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad, hessian, make_jvp

pytest.importorskip("seldonian")
torch = pytest.importorskip("torch")

from seldonian.dataset import SupervisedDataSet, SupervisedMetaData  # noqa: E402
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge_seldonian import SeldonianModel, supervised_spec  # noqa: E402
from gradbridge_seldonian.engine import SeldonianAlgorithm  # noqa: E402
from gradbridge_seldonian.evaluation.shared import put, take  # noqa: E402

RNG = np.random.default_rng(0)
N = 240
X = RNG.normal(size=(N, 3))
GROUPS = (RNG.random((N, 2)) < 0.5).astype(float)
Y = (RNG.random(N) < 1 / (1 + np.exp(-X[:, 0] - GROUPS[:, 0]))).astype(float)

GAP = "abs((FNR | [a]) - (FNR | [b])) <= 0.2"
FULL = {"num_iters": 12}


def dataset(features=X, groups=GROUPS, labels=Y, sub_regime="classification"):
    meta = SupervisedMetaData(sub_regime, ["x", "a", "b", "y"], ["x"], ["y"], ["a", "b"])
    return SupervisedDataSet(features, labels, groups, len(labels), meta)


def logistic(**options):
    torch.manual_seed(0)
    return SeldonianModel(nn.Sequential(nn.Linear(3, 1), nn.Sigmoid(), nn.Flatten(0)), **options)


def spec_of(model, constraints=(GAP,), data=None, **settings):
    return supervised_spec(data or dataset(), model, constraints, [0.1] * len(constraints), **settings)


class Centred(nn.Module):
    """Rows less their mean: no row is independent of the others."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return torch.sigmoid(self.linear(x - x.mean(0))).flatten()


@pytest.mark.parametrize("members", [0, 4])
def test_groups_that_are_too_small_are_unbounded_as_before(members):
    groups = GROUPS.copy()
    groups[:, 1] = 0
    groups[:members, 1] = 1
    bounds = []
    for rows in ("auto", "together"):
        spec = spec_of(logistic(), rows=rows)
        bounds.append(bound_of(spec, dataset(groups=groups))(spec.model.initial_solution()))
    assert bounds == [np.inf, np.inf]


def bound_of(spec, data=None, **changes):
    """θ ↦ the upper bound of the first constraint, as candidate selection asks for it."""
    tree, data = spec.parse_trees[0], data or spec.dataset

    def bound(theta):
        tree.reset_base_node_dict(reset_data=changes.pop("reset", True))
        tree.propagate_bounds(
            theta=theta,
            tree_dataset_dict=changes.get("datasets", {"all": data}),
            model=spec.model,
            branch="candidate_selection",
            n_safety=80,
            regime="supervised_learning",
            sub_regime="classification",
        )
        return tree.root.upper

    return bound


def test_data_of_a_nodes_own_go_as_before():
    additional = {
        "abs((FNR | [a]) - (FNR | [b]))-(0.2)": {
            "FNR | [a]": {"dataset": dataset(X[::2], GROUPS[::2], Y[::2])},
            "FNR | [b]": {"dataset": dataset(X[::-1].copy(), GROUPS[::-1].copy(), Y[::-1].copy())},
        }
    }
    settings = {"additional_datasets": additional, **FULL}
    found = []
    for rows in ("auto", "together"):
        algorithm = SeldonianAlgorithm(spec_of(logistic(), rows=rows, **copy.deepcopy(settings)))
        algorithm.set_initial_solution()
        with gb.trace() as t:
            solution = algorithm.run_candidate_selection()
        found.append((solution, [step.shapes for step in t.steps if step.name == "forward"]))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-12)
    assert found[0][1] == found[1][1]
    assert len(found[0][1]) == 12 * 3


def test_rows_of_other_data_are_predicted_by_the_model_itself():
    """Data that the tree prepared before, and that are no rows of the set any more."""
    spec, plain = spec_of(logistic()), spec_of(logistic(), rows="together")
    data = dataset(X.copy())
    theta = spec.model.initial_solution()
    for one in (spec, plain):
        bound_of(one, data)(theta)
    data.features[:] = data.features[::-1].copy()
    bounds = [bound_of(one, data, reset=False)(theta) for one in (spec, plain)]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-12)
    bounds = [bound_of(one, data)(theta) for one in (spec, plain)]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-12)


def test_another_model_in_the_specification_is_not_taken_for_independent():
    spec, plain = spec_of(logistic()), spec_of(logistic(), rows="together")
    spec.model = plain.model = SeldonianModel(Centred())
    theta = spec.model.initial_solution()
    assert bound_of(spec)(theta) == bound_of(plain)(theta)


def test_second_derivatives_and_tangents_go_through_the_rows():
    spec, plain = spec_of(logistic()), spec_of(logistic(), rows="together")
    theta = spec.model.initial_solution() + 0.1
    ours, theirs = bound_of(spec), bound_of(plain)
    np.testing.assert_allclose(grad(ours)(theta), grad(theirs)(theta), rtol=1e-12)
    np.testing.assert_allclose(hessian(ours)(theta), hessian(theirs)(theta), rtol=1e-9, atol=1e-12)
    t = np.arange(4.0)
    assert make_jvp(ours)(theta)(t)[1] == pytest.approx(float(grad(theirs)(theta) @ t), rel=1e-11)


def test_taking_rows_and_putting_them_back_are_each_others_pullbacks():
    p, rows = RNG.normal(size=(6, 2)), np.array([1, 2, 5])

    def ours(q):
        return anp.sum(take(q, rows) ** 3)

    np.testing.assert_allclose(grad(ours)(p), grad(lambda q: anp.sum(q[rows] ** 3))(p))
    v = RNG.normal(size=(3, 2))
    np.testing.assert_allclose(grad(lambda w: anp.sum(put(w, rows, 6) ** 3))(v), 3 * v**2)
    np.testing.assert_allclose(make_jvp(lambda w: put(w, rows, 6))(v)(v)[1], put(v, rows, 6))


def test_a_barrier_method_shares_without_gradients():
    found = []
    for rows in ("auto", "together"):
        spec = spec_of(logistic(), rows=rows)
        spec.optimization_technique, spec.optimizer = "barrier_function", "Nelder-Mead"
        spec.optimization_hyperparams["maxiter"] = 15
        algorithm = SeldonianAlgorithm(spec)
        algorithm.set_initial_solution()
        with gb.trace() as t:
            found.append((algorithm.run_candidate_selection(), t))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-9)
    assert found[0][1].counts["forward"] * 3 == found[1][1].counts["forward"]
