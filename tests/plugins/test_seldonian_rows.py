"""Groups take their predictions from those for all rows, where and only where rows are independent."""

import copy
import pickle

import numpy as np
import pytest

pytest.importorskip("seldonian")
torch = pytest.importorskip("torch")

from seldonian.dataset import SupervisedDataSet, SupervisedMetaData  # noqa: E402
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge_seldonian import SeldonianModel, supervised_spec  # noqa: E402
from gradbridge_seldonian.engine import SeldonianAlgorithm  # noqa: E402
from gradbridge_seldonian.evaluation.rows import independent  # noqa: E402
from gradbridge_seldonian.specification.supervised import SpecError  # noqa: E402

RNG = np.random.default_rng(0)
N = 240
X = RNG.normal(size=(N, 3))
GROUPS = (RNG.random((N, 2)) < 0.5).astype(float)
Y = (RNG.random(N) < 1 / (1 + np.exp(-X[:, 0] - GROUPS[:, 0]))).astype(float)

GAP = "abs((FNR | [a]) - (FNR | [b])) <= 0.2"
FULL = {"num_iters": 12}
BATCHES = {"batch_size": 50, "n_epochs": 4}  # of 144 rows: 3 batches


def dataset(features=X, groups=GROUPS, labels=Y, sub_regime="classification"):
    meta = SupervisedMetaData(sub_regime, ["x", "a", "b", "y"], ["x"], ["y"], ["a", "b"])
    return SupervisedDataSet(features, labels, groups, len(labels), meta)


def logistic(**options):
    torch.manual_seed(0)
    return SeldonianModel(nn.Sequential(nn.Linear(3, 1), nn.Sigmoid(), nn.Flatten(0)), **options)


def spec_of(model, constraints=(GAP,), data=None, **settings):
    return supervised_spec(data or dataset(), model, constraints, [0.1] * len(constraints), **settings)


def selected(spec):
    """(solution, guest forwards in each iteration, the engine's record) of one candidate selection."""
    algorithm = SeldonianAlgorithm(spec)
    algorithm.set_initial_solution()
    with gb.trace() as t:
        solution = algorithm.run_candidate_selection()
    return solution, t.counts["forward"] / len(algorithm.cs_result["f_vals"]), algorithm.cs_result


def agree(make_model, constraints=(GAP,), **settings):
    """The forwards in each iteration, shared and not; the results are the same."""
    found = [
        selected(spec_of(make_model(), constraints, rows=rows, **settings)) for rows in ("auto", "together")
    ]
    for key in ("candidate_solution", "f_vals", "g_vals", "lamb_vals"):
        ours, plain = (np.asarray(record[key], float) for _, _, record in found)
        np.testing.assert_allclose(ours, plain, rtol=1e-12, atol=1e-13)
    return [forwards for _, forwards, _ in found]


class Centred(nn.Module):
    """Rows less their mean: no row is independent of the others."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return torch.sigmoid(self.linear(x - x.mean(0))).flatten()


class Attending(nn.Module):
    """Rows attend to each other; if `weight` is zero, not yet."""

    def __init__(self, weight):
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.weight = nn.Parameter(torch.tensor([weight]))

    def forward(self, x):
        seen = torch.softmax(x @ x.T, dim=-1) @ x
        return torch.sigmoid(self.linear(x + self.weight * seen)).flatten()


class Detached(nn.Module):
    """Rows less their mean, which no gradient tells."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return torch.sigmoid(self.linear(x - x.mean(0).detach())).flatten()


class Faint(nn.Module):
    """A coupling far below rounding, which only a gradient tells."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return torch.sigmoid(self.linear(x) + 1e-25 * x.sum()).flatten()


class Embedded(nn.Module):
    """Integer inputs; if `centred`, less their mean over the rows."""

    def __init__(self, centred=False):
        super().__init__()
        self.embedding, self.centred = nn.Embedding(5, 1), centred

    def forward(self, x):
        found = self.embedding(x)[:, :, 0].sum(1)
        return torch.sigmoid(found - found.mean() if self.centred else found)


@pytest.mark.parametrize("settings", [FULL, BATCHES])
def test_an_iteration_is_one_forward_and_the_solution_the_same(settings):
    assert agree(logistic, **settings) == [1.0, 3.0]


@pytest.mark.parametrize(
    "constraints",
    [
        [GAP, "(PR | [a]) <= 0.9", "min((PR | [a])/(PR | [b]),(PR | [b])/(PR | [a])) >= 0.3"],
        ["(PR | [a, b]) <= 0.9", "(ACC | [b]) - ACC <= 0.3", "FPR <= 0.7"],
        ["max(FPR, FNR) - 0.9 <= 0.0", "ACC >= 0.4"],
    ],
)
def test_several_constraints_share_one_forward_too(constraints):
    assert agree(logistic, constraints, **FULL)[0] == 1.0


def test_nodes_without_columns_share_whatever_the_rows_are():
    model = SeldonianModel(Centred())
    spec = spec_of(model, ["max(FPR, FNR) - 0.9 <= 0.0"], **FULL)
    algorithm = SeldonianAlgorithm(spec)
    algorithm.set_initial_solution()
    with gb.trace() as t:
        algorithm.run_candidate_selection()
    assert (t.counts["forward"], t.counts["backward"]) == (12, 2 * 12)  # the objective's and the tree's


def test_several_classes_share_as_well():
    def model():
        torch.manual_seed(0)
        return SeldonianModel(nn.Linear(3, 3), output="logits")

    data = dataset(labels=RNG.integers(0, 3, N), sub_regime="multiclass_classification")
    constraints = ["abs((ACC | [a]) - (ACC | [b])) <= 0.3", "(ACC | [a]) >= 0.2"]
    assert agree(model, constraints, data=data, **FULL)[0] == 1.0


@pytest.mark.parametrize("make", [Centred, lambda: Attending(1.0), lambda: Attending(0.0), Detached, Faint])
def test_rows_that_see_each_other_are_not_shared(make):
    def model():
        torch.manual_seed(0)
        return SeldonianModel(make())

    assert independent(model(), X, model().initial_solution()) is False
    assert agree(model, **FULL) == [3.0, 3.0]
    with pytest.raises(SpecError, match="'independent' was asked for, .* are not independent of each other"):
        spec_of(model(), rows="independent")


def test_integer_inputs_are_told_by_their_outputs():
    data = dataset(RNG.integers(0, 5, size=(N, 2)))

    def model(centred=False):
        torch.manual_seed(0)
        return SeldonianModel(Embedded(centred))

    assert agree(model, data=data, **FULL) == [1.0, 3.0]
    assert agree(lambda: model(centred=True), data=data, **FULL) == [3.0, 3.0]


class Rounding(nn.Module):
    """Rounds otherwise for other numbers of rows, as matrix products do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return torch.sigmoid(self.linear(x)).flatten() * (1 + 1e-8 * len(x))


def test_single_precision_is_looked_at_in_its_own_rounding():
    for dtype, found in (("float32", True), ("float64", False)):
        torch.manual_seed(0)
        model = SeldonianModel(Rounding(), dtype=dtype)
        assert independent(model, X, model.initial_solution()) is found
        assert selected(spec_of(model, **FULL))[1] == (1.0 if found else 3.0)


def test_what_cannot_be_told_is_not_shared_unless_it_is_declared():
    same = np.ones((N, 3))  # all rows alike tell nothing of each other
    assert independent(logistic(), same, logistic().initial_solution()) is None
    assert independent(logistic(), X[:1], logistic().initial_solution()) is None
    with pytest.warns(gb.errors.GradbridgeWarning, match="predicts the same"):
        spec = spec_of(logistic(), data=dataset(same))
    assert all(tree._shared.bridge is None for tree in spec.parse_trees)
    with pytest.warns(gb.errors.GradbridgeWarning, match="predicts the same"):
        spec = spec_of(logistic(), data=dataset(same), rows="independent")
    assert all(tree._shared.bridge is spec.model.bridge for tree in spec.parse_trees)


@pytest.mark.parametrize(
    "make",
    [
        lambda: logistic(mode="train"),
        lambda: logistic(reuse=0),
        lambda: type("Own", (SeldonianModel,), {"predict": lambda *a: SeldonianModel.predict(*a)})(
            nn.Sequential(nn.Linear(3, 1), nn.Sigmoid())
        ),
    ],
)
def test_random_models_and_those_that_remember_nothing_go_as_before(make):
    assert selected(spec_of(make(), **FULL))[1] >= 3.0
    with pytest.raises(SpecError, match="needs a SeldonianModel .* in eval mode"):
        spec_of(make(), rows="independent")


def test_another_word_for_rows_is_refused():
    with pytest.raises(SpecError, match="rows must be one of 'auto', 'independent', 'together', got 'apart'"):
        spec_of(logistic(), rows="apart")


def test_a_small_group_of_a_large_model_is_cheaper_alone():
    groups = np.zeros((N, 2))
    groups[::12] = 1

    def model():
        torch.manual_seed(0)
        return SeldonianModel(nn.Sequential(nn.Linear(3, 999), nn.Tanh(), nn.Linear(999, 1), nn.Sigmoid()))

    assert agree(model, ["(PR | [a]) <= 0.9"], data=dataset(groups=groups), **FULL) == [2.0, 2.0]
    assert agree(model, ["abs((PR | [a]) - PR) <= 0.9"], data=dataset(groups=groups), **FULL)[0] == 1.0


def test_copies_of_a_specification_share_among_themselves():
    spec = spec_of(logistic(), **FULL)
    twins = copy.deepcopy(spec), pickle.loads(pickle.dumps(spec))
    solution, _, _ = selected(spec)
    for twin in twins:
        again, forwards, _ = selected(twin)
        np.testing.assert_array_equal(again, solution)
        assert forwards == 1.0


def test_numeric_gradients_are_not_asked_for():
    def plain(params, x):
        return 1 / (1 + np.exp(-(x @ params["w"])))

    model = SeldonianModel(plain, backend="numpy", params={"w": np.ones(3)}, gradient="numeric")
    with gb.trace() as t:
        assert independent(model, X, model.initial_solution()) is True
    assert t.counts["backward"] == 0


def test_lists_of_features_go_as_before():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.bilinear = nn.Bilinear(3, 3, 1)

        def forward(self, x, y):
            return torch.sigmoid(self.bilinear(x, y))

    def model():
        torch.manual_seed(0)
        return SeldonianModel(Two())

    data = dataset([X, X[:, ::-1].copy()])
    assert agree(model, ["max(FPR, FNR) - 0.9 <= 0.0"], data=data, **FULL) == [1.0, 1.0]


def test_mini_batches_bound_the_rows_that_are_looked_at():
    rows = []
    for settings in ({}, {"batch_size": 72, "n_epochs": 1}):
        model, seen = logistic(), []
        forward = model.bridge.adapter.forward

        def watched(loaded, inputs, *rest, seen=seen, forward=forward):
            seen.append(len(inputs[0]))
            return forward(loaded, inputs, *rest)

        model.bridge.adapter.forward = watched
        spec_of(model, **settings)
        rows.append(max(seen))
    assert rows == [128, 72]


def test_without_groups_nothing_is_looked_at():
    model = logistic()
    with gb.trace() as t:
        spec_of(model, ["FPR <= 0.7"])
    assert t.counts["forward"] == 3  # the model is tried on a few rows, at the start and away from it


class Root(nn.Module):
    """Its slope is infinite where a prediction is 0, and finite nowhere near."""

    def forward(self, x):
        y = self.linear(x).flatten()
        return torch.sqrt(y * (y > 0)) / 10

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)


def test_gradients_that_are_not_finite_tell_nothing():
    torch.manual_seed(0)
    model = SeldonianModel(Root())
    assert independent(model, X, model.initial_solution()) is None
