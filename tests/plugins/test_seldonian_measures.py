"""Constraints that no run could make sense of are refused; statistics are right in batches, lists and copies."""

import numpy as np
import pytest
from scipy.stats import t as student

pytest.importorskip("seldonian")
torch = pytest.importorskip("torch")

from seldonian.dataset import SupervisedDataSet, SupervisedMetaData  # noqa: E402
from seldonian.models.models import LinearRegressionModel  # noqa: E402
from torch import nn  # noqa: E402

from gradbridge_seldonian import SeldonianModel, supervised_spec  # noqa: E402
from gradbridge_seldonian.engine import SeldonianAlgorithm, make_parse_trees_from_constraints  # noqa: E402
from gradbridge_seldonian.evaluation.constraints import SweptTree  # noqa: E402
from gradbridge_seldonian.specification.supervised import SpecError  # noqa: E402

RNG = np.random.default_rng(5)
N = 200
X = RNG.normal(size=(N, 2))
GROUPS = np.stack([np.arange(N) % 2 == 0, np.arange(N) % 2 == 1, np.arange(N) % 40 == 0], 1).astype(int)
COLUMNS = ["men", "women", "rare"]
BINARY = (X[:, 0] + RNG.normal(size=N) > 0).astype(float)
THREE = RNG.integers(0, 3, size=N)
SAFETY = slice(80, None)
KINDS = {"classification": (BINARY, 1), "multiclass_classification": (THREE, 3), "regression": (X[:, 1], 1)}


def dataset(sub_regime, features=X, labels=None, groups=GROUPS, columns=COLUMNS):
    labels = KINDS.get(sub_regime, KINDS["classification"])[0] if labels is None else labels
    meta = SupervisedMetaData(sub_regime, ["x0", "x1", *columns, "y"], ["x0", "x1"], ["y"], columns)
    return SupervisedDataSet(features, labels, groups, len(labels), meta)


def model(sub_regime, outputs=None):
    torch.manual_seed(0)
    outputs = outputs or KINDS.get(sub_regime, KINDS["classification"])[1]
    last = {"regression": nn.Identity(), "multiclass_classification": nn.Softmax(-1)}
    return SeldonianModel(nn.Sequential(nn.Linear(2, outputs), last.get(sub_regime, nn.Sigmoid())))


def spec_of(sub_regime, *constraints, data=None, **settings):
    settings = {"model": model(sub_regime), **settings}
    return supervised_spec(
        data or dataset(sub_regime),
        constraints=list(constraints),
        deltas=[0.1] * len(constraints),
        **settings,
    )


def safety_bound(spec, theta, **settings):
    algorithm = SeldonianAlgorithm(spec)
    passed, _ = algorithm.run_safety_test(theta, **settings)
    return passed, list(algorithm.get_st_upper_bounds().values())


def upper(values, delta=0.1):
    n = len(values)
    return values.mean() + values.std(ddof=1) / np.sqrt(n) * student.ppf(1 - delta, n - 1)


BIN, MULTI, LINE = "classification", "multiclass_classification", "regression"


@pytest.mark.parametrize(
    ("sub_regime", "constraint", "said"),
    [
        (
            MULTI,
            "PR_[3] <= 0.5",
            r"'PR_\[3\] <= 0.5': PR_\[3\] names class 3, and the model predicts classes 0 to 2",
        ),
        (MULTI, "(CM_[0,7] | [men]) <= 0.5", "names class 7, and the model predicts classes 0 to 2"),
        (MULTI, "CM_[True,0] <= 0.5", "names class True, and classes are numbers from 0"),
        (MULTI, "CM_['a',1] <= 0.5", "names class 'a', and classes are numbers from 0"),
        (MULTI, "CM_[0.0,1] <= 0.5", "names class 0.0, and"),
        (MULTI, "PR <= 0.5", r"PR is of one class among several; say which, as in PR_\[0\]"),
        (MULTI, "abs((FNR | [men]) - (FNR | [women])) <= 0.1", r"FNR is of one class among .* FNR_\[0\]"),
        (MULTI, "CM <= 0.5", r"say which, as in CM_\[0,1\], the true class and the predicted one"),
        (MULTI, "PR_[-1] <= 0.5", r"names class '-1', and .* from 0 on. Classes are written PR_\[1\]"),
        (MULTI, "(FNR_[1.0] | [men]) <= 0.5", "names class '1.0', and classes are numbers from 0 on"),
        (MULTI, "PR_['a'] <= 0.5", "cannot be read"),
        (MULTI, "PR_[0,1] <= 0.5", "has 2 between its brackets, and PR takes 1"),
        (MULTI, "CM_[0] <= 0.5", "has 1 between its brackets, and CM takes 2"),
        (BIN, "", "it is empty"),
        (BIN, "0.1 <= PR <= 0.9", "it has two inequalities"),
        (BIN, "PR == 0.9", "its inequality is written with <= or >="),
        (BIN, "PR/0 <= 0.9", "has no value, whatever its statistics are: ZeroDivisionError"),
        (BIN, "FNR/(1 - 1) <= 0.9", "has no value, whatever its statistics are: ZeroDivisionError"),
        (BIN, "(0 - 2)**PR <= 0.9", "has no value, whatever its statistics are: ArithmeticError"),
        (MULTI, "PR[1] <= 0.5", "cannot be read"),
        (MULTI, "ACC_[1] >= 0.5", "cannot be read"),
        (BIN, "PR_[1] <= 0.5", r"has one output, the probability of class 1; write PR for PR_\[1\]"),
        (BIN, "(FPR_[0] | [men]) <= 0.5", r"write FNR for FPR_\[0\]"),
        ("binary_classification", "TNR_[2] <= 0.5", "so that 0 and 1 are all"),
        (BIN, "CM_[0,1] <= 0.5", "'CM' is not a statistic of classification; they are PR, NR"),
        (
            BIN,
            "FPRR <= 0.5",
            r"'FPRR' is not a statistic of classification, did you mean 'FPR'\?; they are PR",
        ),
        (LINE, "Mean_Square_Error <= 0.5", "did you mean 'Mean_Squared_Error'"),
        (LINE, "PR_[1] <= 0.5", "'PR' is not a statistic of regression"),
        (
            BIN,
            "(PR | [woman]) <= 0.5",
            r"'woman' is not a sensitive column, did you mean 'women'\?; the data have men, women, rare",
        ),
        (BIN, "sqrt(PR) <= 0.5", "'sqrt' is not a statistic"),
        (BIN, "PR | [men] <= 0.5", "cannot be read"),
        (BIN, "PR < 0.5", "cannot be read: its inequality is written with <= or >="),
        (BIN, "PR <= ", "cannot be read: RuntimeError"),
        (BIN, "-(-PR) <= 0.5", "cannot be read"),
        (BIN, None, "cannot be read"),
        (BIN, "0.2 <= 0.5", "names no statistic of the data"),
        (BIN, "(MED_MF | [men]) <= 0.5", "cannot be conditioned on columns"),
        (BIN, "(PR | [men,women]) <= 0.5", "looks at 0 of the 80 rows of the candidate data"),
        (BIN, "(PR | [rare]) <= 0.5", r"PR \| \[rare\] looks at 2 of the 80 rows of the candidate data"),
        (
            MULTI,
            "min(PR_[0],FNR_[1]) <= (TPR_[2] | [rare])",
            r"TPR_\[2\] \| \[rare\] looks at [0-2] of the 80 rows",
        ),
    ],
)
def test_what_cannot_be_bounded_is_refused_when_the_specification_is_made(sub_regime, constraint, said):
    with pytest.raises(SpecError, match=said):
        spec_of(sub_regime, "ACC >= 0.1" if sub_regime != LINE else "Mean_Error <= 9", constraint)


def test_a_class_that_no_label_has_can_be_predicted_but_not_missed():
    four = model(MULTI, outputs=4)
    spec = spec_of(MULTI, "PR_[3] <= 0.5", model=four)
    theta = spec.model.initial_solution()
    values = four.predict(theta, X)[SAFETY, 3]
    assert safety_bound(spec, theta)[1] == pytest.approx([upper(values) - 0.5], rel=1e-12)
    with pytest.raises(SpecError, match=r"FNR_\[3\] looks at 0 of the 80 rows"):
        spec_of(MULTI, "FNR_[3] <= 0.5", model=four)


def test_too_few_rows_are_met_in_the_part_that_lacks_them():
    late = GROUPS.copy()
    late[:, 2] = np.arange(N) < 70
    with pytest.raises(SpecError, match=r"PR \| \[rare\] looks at 0 of the 120 rows of the safety data"):
        spec_of(BIN, "(PR | [rare]) <= 0.5", data=dataset(BIN, groups=late))
    with pytest.raises(
        SpecError, match="looks at 4 of the 20 rows of the candidate data's batch 3.*another batch_size"
    ):
        batches = dataset(BIN, groups=np.stack([GROUPS[:, 0], GROUPS[:, 1], np.arange(N) % 20 > 15], 1))
        batches.sensitive_attrs[:60, 2] = 1
        spec_of(BIN, "(PR | [rare]) <= 0.5", data=batches, batch_size=20, n_epochs=1)
    with pytest.raises(SpecError, match="PR looks at 1 of the 1 rows of the candidate data's batch 1"):
        spec_of(BIN, "PR <= 0.5", batch_size=79, n_epochs=1)
    with pytest.raises(SpecError, match="infinite in a safety test this small"):
        few = GROUPS.copy()
        few[:, 2] = (np.arange(N) % 38 == 0) | (np.arange(N) > 190)
        spec_of(BIN, "(PR | [rare]) <= 0.5", data=dataset(BIN, groups=few), frac_data_in_safety=0.05)
    with pytest.raises(SpecError, match="PR looks at 0 of the 0 rows of the candidate data"):
        spec_of(BIN, "PR <= 0.5", frac_data_in_safety=0.999)
    even = GROUPS[:, [0, 1, 0]]
    spec = spec_of(BIN, "(PR | [rare]) <= 0.5", data=dataset(BIN, groups=even), batch_size=16, n_epochs=1)
    algorithm = SeldonianAlgorithm(spec)
    algorithm.run()
    assert np.isfinite(algorithm.cs_result["g_vals"]).all()


def test_columns_that_python_could_not_name_are_to_be_renamed():
    for column in ("sex-1", "class", "race=white"):
        data = dataset(BIN, groups=GROUPS, columns=[column, "men", "women"])
        with pytest.raises(SpecError, match=f"not '{column}'; rename that column"):
            spec_of(BIN, f"(PR | [{column}]) <= 0.5", data=data)


def test_bounds_that_are_given_by_hand_need_no_rows():
    text = "(PR | [rare])-(0.5)"
    methods = {text: {"PR | [rare]": "manual"}}
    assert spec_of(BIN, "(PR | [rare]) <= 0.5", base_node_bound_method_dict=methods).parse_trees


def test_groups_without_columns_are_refused():
    bare = dataset(BIN)
    bare.sensitive_attrs = []
    with pytest.raises(
        SpecError, match=r"needs sensitive_attrs with the columns men, .* an array of shape \(0,\)"
    ):
        spec_of(BIN, "(PR | [men]) <= 0.5", data=bare)
    narrow = dataset(BIN, groups=GROUPS[:, :1])
    with pytest.raises(SpecError, match=r"the columns men, women, rare and an array of shape \(\d+, 1\)"):
        spec_of(BIN, "(PR | [men]) <= 0.5", data=narrow)


@pytest.mark.parametrize("constraint", ["FPR <= 0.6", "(FNR | [men]) <= 0.6", "(TPR | [women]) >= 0.2"])
def test_the_safety_test_in_batches_counts_every_row_once(constraint):
    spec = spec_of(BIN, constraint)
    theta = spec.model.initial_solution()
    whole = safety_bound(spec, theta)[1]
    for batch in (1, 3, 50):
        assert safety_bound(spec, theta, batch_size_safety=batch)[1] == pytest.approx(whole, rel=1e-12)
    p = spec.model.predict(theta, X)
    if constraint.startswith("FPR"):
        assert whole == pytest.approx([upper(p[SAFETY][BINARY[SAFETY] == 0]) - 0.6], rel=1e-12)


class Two(nn.Module):
    """A softmax of two inputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, a, b):
        return torch.softmax(self.linear(torch.cat([a, b], -1)), -1)


@pytest.mark.parametrize("inputs", [1, 2])
def test_groups_and_classes_of_several_inputs(inputs):
    net = SeldonianModel(Two()) if inputs == 2 else model(MULTI)
    features = [X, X**2][:inputs]
    spec = spec_of(
        MULTI,
        "ACC >= 0.1",
        "(FPR_[1] | [men]) <= 0.6",
        "(CM_[2,0] | [women]) <= 0.7",
        data=dataset(MULTI, features=features),
        model=net,
        num_iters=2,
    )
    theta = net.initial_solution()
    P, men = net.predict(theta, features)[SAFETY], GROUPS[SAFETY, 0] == 1
    labels = THREE[SAFETY]
    wanted = [
        0.1 + upper(-P[np.arange(120), labels]),
        upper(P[men & (labels != 1), 1]) - 0.6,
        upper(P[~men & (labels == 2), 0]) - 0.7,
    ]
    for batch in (None, 11):
        assert safety_bound(spec, theta, batch_size_safety=batch)[1] == pytest.approx(wanted, rel=1e-12)
    algorithm = SeldonianAlgorithm(spec)
    algorithm.run()
    assert np.isfinite(algorithm.cs_result["g_vals"]).all()


def test_a_bound_that_is_no_number_does_not_pass():
    spec = spec_of(LINE, "Mean_Error")
    assert safety_bound(spec, np.array([0.0, 0.0, -9.0]))[0]
    spec = spec_of(LINE, "Mean_Error", "max(Mean_Error,Mean_Squared_Error)")
    assert safety_bound(spec, np.array([0.0, 0.0, np.nan])) == (False, [np.inf, np.inf])


def test_the_safety_test_looks_at_safety_data_whatever_was_evaluated_before():
    spec = spec_of(BIN, "(PR | [men]) <= 0.6")
    theta, algorithm = spec.model.initial_solution(), SeldonianAlgorithm(spec)
    wanted = safety_bound(spec_of(BIN, "(PR | [men]) <= 0.6"), theta)[1]
    algorithm.set_initial_solution()
    selection = algorithm.candidate_selection()
    selection.calculate_batches(0, 80, 0, 1)
    selection.get_constraint_upper_bounds(theta)
    algorithm.run_safety_test(theta)
    assert list(algorithm.get_st_upper_bounds().values()) == pytest.approx(wanted, rel=1e-12)


def evaluated(spec, theta, data):
    tree = spec.parse_trees[0]
    tree.evaluate_constraint(
        theta=theta,
        tree_dataset_dict={"all": data},
        model=spec.model,
        regime="supervised_learning",
        sub_regime=spec.sub_regime,
        branch="safety_test",
    )
    return tree.root.value


def test_a_constraint_over_no_rows_has_no_value():
    spec = spec_of(MULTI, "(FNR_[2] | [men]) <= 0.9")
    theta = spec.model.initial_solution()
    none = dataset(MULTI, labels=np.minimum(THREE, 1))
    with pytest.raises(SpecError, match=r"FNR_\[2\] \| \[men\] looks at none of these data points"):
        evaluated(spec, theta, none)


def test_nodes_with_samples_of_their_own_have_the_mean_of_them_for_a_value():
    spec = spec_of(LINE, "MED_MF <= 0.5")
    theta = spec.model.initial_solution()
    np.random.seed(3)  # noqa: NPY002 - the engine's generator
    found = evaluated(spec, theta, spec.dataset)
    np.random.seed(3)  # noqa: NPY002 - the engine's generator
    node = spec.parse_trees[0].base_nodes()[0]
    data = node.calculate_data_forbound(dataset=spec.dataset)
    samples = spec.model.predict(theta, data["X_male"]) - data["Y_male"]
    samples = samples - (spec.model.predict(theta, data["X_female"]) - data["Y_female"])
    assert found == pytest.approx(samples.mean() - 0.5, rel=1e-12)


def test_nodes_with_bounds_of_their_own_keep_them():
    engine = LinearRegressionModel()
    spec = spec_of(LINE, "CVaRSQE <= 5.0", model=engine, initial_solution=np.zeros(3))
    tree = make_parse_trees_from_constraints(["CVaRSQE <= 5.0"], [0.1], columns=COLUMNS)[0]
    theta = np.array([0.1, 0.2, 0.3])
    ours, theirs = SeldonianAlgorithm(spec), SeldonianAlgorithm(spec)
    theirs.spec.parse_trees, kept = [tree], spec.parse_trees
    theirs.run_safety_test(theta)
    spec.parse_trees = kept
    ours.run_safety_test(theta)
    assert ours.st_result[tree.constraint_str].root.upper == theirs.st_result[tree.constraint_str].root.upper


def test_a_tree_keeps_the_users_words():
    words = "0.6 >= (PR | [men])"
    tree = spec_of(BIN, words).parse_trees[0]
    assert tree.written == words
    assert tree.constraint_str != words
    bare = SweptTree.of(make_parse_trees_from_constraints(["PR >= 0.1"], [0.1], sub_regime=BIN)[0])
    assert bare.written == "0.1-(PR) <= 0"


def test_the_other_name_of_two_classes_is_a_sub_regime_too():
    name = "binary_classification"
    ours, theirs = spec_of(name, "(FNR | [men]) <= 0.5"), spec_of(BIN, "(FNR | [men]) <= 0.5")
    theta = ours.model.initial_solution()
    assert safety_bound(ours, theta)[1] == safety_bound(theirs, theta)[1]


@pytest.mark.parametrize(
    "constraint",
    ["PR/(1 - PR) <= 9", "PR/(FNR - 1) <= 9", "1/max(PR - 0.5, 0.1) <= 10", "(PR - FNR + 2)**0.5 <= 9"],
)
def test_what_has_a_value_for_some_statistics_is_no_nonsense(constraint):
    spec_of(BIN, constraint)


def test_tables_of_pandas_are_features_as_for_the_engine():
    pandas = pytest.importorskip("pandas")
    constraint = "abs((PR | [men]) - (PR | [women])) <= 0.4"
    found, truth = (
        safety_bound(
            spec_of(BIN, constraint, data=dataset(BIN, features=features)), np.array([1.0, -0.5, 0.2])
        )
        for features in (pandas.DataFrame(X, columns=["x0", "x1"]), X)
    )
    assert found[0] == truth[0]
    np.testing.assert_allclose(found[1], truth[1], rtol=1e-12)
