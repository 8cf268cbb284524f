"""Constraints as users write them: read, and refused where no run could make sense of them.

What the engine makes of them is silent at best: a rate without a class among several is the mean over
all classes, and a statistic of fewer than five rows is bounded by infinity, which ends every run.
"""

from __future__ import annotations

import copy
import functools
import itertools
import keyword
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gradbridge.wording import in_short, suggestion
from gradbridge_seldonian.engine import (
    BaseNode,
    ParseTree,
    RLDataSet,
    SupervisedDataSet,
    bounds_required_dict,
    custom_base_node_dict,
    op_mapper,
    subscriptable_measure_functions,
)
from gradbridge_seldonian.evaluation.shared import has_own_zhat
from gradbridge_seldonian.evaluation.statistics import classes, is_engines, samples, statistic
from gradbridge_seldonian.outputs import SpecError

# The engine's bound on a statistic of fewer samples is infinite.
_LEAST = 5

# Bounds of statistics, alike and apart, to see whether a constraint makes something of any.
_TRIED = ((0.3, 0.3), (0.2, 0.7), (3.0, 4.0), (-1.0, 1.0), (-4.0, -3.0), (0.0, 0.0))

_FUNCTIONS = set(bounds_required_dict) - set(op_mapper.values())
_SYNTAX = (
    "Classes are written PR_[1] and CM_[true,predicted], groups (PR | [column]), both (PR_[1] | [column])"
)
_SYNTAX_OF_EPISODES = "Alternate rewards are written J_pi_new_IS_[1], groups (J_pi_new_IS | [column]), both (J_pi_new_IS_[1] | [column])"


def read_constraint(
    constraint: str,
    delta: float,
    sub_regime: str | None,
    columns: Sequence[str],
    delta_weight_method: str = "equal",
    delta_vector: Sequence[float] = (),
    infl_factor_method: str = "constant",
    infl_factors: float | Sequence[float] = 2,
    measures: Mapping[str, Callable[..., Any]] | None = None,
    without: Sequence[str] = (),
) -> ParseTree:
    """The engine's parse tree of a constraint, with the user's words as its attribute `written`.

    Args:
        constraint: such as ``"(PR_[1] | [a]) <= 0.6"``.
        delta: probability with which it may fail.
        sub_regime: of the data.
        columns: names of the columns that it may condition on.
        delta_weight_method, delta_vector, infl_factor_method, infl_factors: of `ParseTree.build_tree`.
        measures: the statistics of the custom regime, by name; None for supervised data.
        without: statistics of the regime that are not for this model, and not to be suggested.

    Raises:
        SpecError: it cannot be read; unknown names are told, with the nearest.
    """
    # The engine's tables have the one name, its data sets the other too.
    known = "classification" if sub_regime == "binary_classification" else sub_regime
    regime = "supervised_learning" if measures is None else "custom"
    if sub_regime == "all":  # the engine's only one of reinforcement learning
        regime = "reinforcement_learning"
    tree = ParseTree(delta, regime, known, columns=list(columns))
    if measures is not None:
        # Not by the engine's argument: that adds the names to a list that all trees share.
        tree.custom_measure_functions = dict(measures)
        tree.available_measure_functions = list(measures)
    try:
        tree.create_from_ast(constraint)
        tree.assign_bounds_needed()
    except Exception as error:  # of any class: it meets what it does not know with whatever fails first
        names = [name for name in tree.available_measure_functions if name not in without]
        why = _unknown(str(constraint), sub_regime, names, columns) or _misspelt(str(constraint))
        why = why or in_short(error).rstrip(".")
        syntax = _SYNTAX_OF_EPISODES if regime == "reinforcement_learning" else _SYNTAX
        raise SpecError(f"the constraint {constraint!r} cannot be read: {why}. {syntax}") from error
    if not tree.n_base_nodes:
        raise SpecError(
            f"the constraint {constraint!r} names no statistic of the data, and nothing can change it"
        )
    tree.assign_deltas(delta_weight_method, delta_vector=delta_vector)
    tree.assign_infl_factors(infl_factor_method, infl_factors)
    tree.written = constraint
    if why := _never(tree):
        raise SpecError(f"the constraint {constraint!r} has no value, whatever its statistics are: {why}")
    return tree


def _unknown(constraint: str, sub_regime: str | None, names: Sequence[str], columns: Sequence[str]) -> str:
    """What a constraint names that is not known; empty if nothing."""
    for column in columns:
        if column in constraint and (not column.isidentifier() or keyword.iskeyword(column)):
            return (
                f"a constraint names columns as Python does variables, and not {column!r}; rename that column"
            )
    groups = re.compile(r"\|\s*\[([^\]]*)\]")
    for name in re.findall(r"\w+", " ".join(groups.findall(constraint))):
        if name not in columns:
            have = ", ".join(columns) or "none"
            return f"{name!r} is not a sensitive column{_near(name, columns)}; the data have {have}"
    for name in re.findall(r"(?<![\w.])[A-Za-z_]\w*", groups.sub("", constraint)):
        bare = name.rstrip("_")
        others = [*custom_base_node_dict, *sorted(_FUNCTIONS)]
        if bare not in names and bare not in others and name != "e":
            near = _near(bare, [*names, *others])
            # The engine's reinforcement learning has one sub-regime, "all".
            of = {None: "the custom regime", "all": "reinforcement learning"}.get(sub_regime, sub_regime)
            return f"{bare!r} is not a statistic of {of}{near}; they are {', '.join(names) or 'none'}"
    return ""


def _misspelt(constraint: str) -> str:
    """What is wrong with its inequality, or with the classes that it names; empty if nothing is seen."""
    if not constraint.strip():
        return "it is empty"
    if len(re.findall("[<>]=", constraint)) > 1:
        return "it has two inequalities; make two constraints of them"
    if re.search("[<>=]", re.sub("[<>]=", "", constraint)):
        return "its inequality is written with <= or >=; for an equality, bound abs(… - …)"
    for name, inside in re.findall(r"(?<![\w.])([A-Za-z]\w*?)_?\[([^\]]*)\]", constraint):
        numbers, count = inside.split(","), 2 if name == "CM" else 1
        for number in numbers:
            if not number.strip().isdecimal():
                return f"{name}_[{inside}] names class {number.strip()!r}, and classes are numbers from 0 on"
        if len(numbers) != count:
            return f"{name}_[{inside}] has {len(numbers)} between its brackets, and {name} takes {count}"
    return ""


def _never(tree: ParseTree) -> str:
    """Why no bounds of its statistics give the constraint one, such as a division by 0; empty if some do."""
    why = ""
    for (lower, upper), apart in itertools.product(_TRIED, (0.0, 9.0, -9.0)):
        copied = copy.deepcopy(tree)
        for number, entry in enumerate(copied.base_node_dict.values()):
            far = number * apart
            entry.update(lower=lower + far, upper=upper + far, bound_computed=True)
        try:
            copied._propagator_helper(copied.root)
        except ArithmeticError as error:
            why = in_short(error)
        else:
            return ""
    return why


def _near(name: str, known: Sequence[str]) -> str:
    found = suggestion(name, known, cutoff=0.5).strip()
    return found and f", {found}"


def check_classes(trees: Sequence[Any], outputs: tuple[int, ...]) -> None:
    """Refuse constraints on classes that the model does not predict.

    Args:
        trees: `SweptTree`s.
        outputs: shape of one row's prediction, () or (classes,).

    Raises:
        SpecError: a class is out of range.
    """
    for tree in trees:
        for node in tree.base_nodes():
            known = is_engines(node.measure_function_name)
            for index in classes(node).values() if outputs and known else ():
                if type(index) is int and index >= outputs[0]:
                    raise SpecError(
                        f"the constraint {tree.written!r}: {node.name} names class {index}, and the model predicts "
                        f"classes 0 to {outputs[0] - 1}"
                    )


def check_measures(spec: Any) -> None:
    """Refuse constraints whose classes make no sense, and statistics that can never be bounded.

    By the data alone: the model is not asked.

    Args:
        spec: a `SupervisedSpec`, its parse trees `SweptTree`s.

    Raises:
        SpecError: a rate that needs a class and has none, a class where there are none, or that is not a number; a
            column that the data have not; too few rows of candidate data, of one mini-batch of them, or of
            safety data.
    """
    for tree in spec.parse_trees:
        for node in {node.name: node for node in tree.base_nodes()}.values():
            if not has_own_zhat(node):
                continue  # a kind of its own, that looks at what it will
            try:
                _check_named(node, spec.sub_regime)
                if _is_bounded_by_rows(spec, tree, node):
                    check_rows(node, spec, tree, functools.partial(_count, sub_regime=spec.sub_regime))
            except SpecError as error:
                raise SpecError(f"the constraint {tree.written!r}: {error}") from None


def _check_named(node: Any, sub_regime: str) -> None:
    name, named = node.measure_function_name, classes(node)
    if statistic(name) is None:
        raise SpecError(f"{name} chooses its rows by itself, and cannot be conditioned on columns")
    if not is_engines(name):
        return  # what its classes are is its own affair
    if sub_regime != "multiclass_classification":
        if named:
            index = named.get("class_index")
            same = {1: name, 0: name.translate(str.maketrans("PN", "NP"))}.get(index)
            instead = f"; write {same} for {name}_[{index}]" if same else ", so that 0 and 1 are all"
            raise SpecError(
                f"{node.name} names a class, and the model of a {sub_regime} has one output, the probability of "
                f"class 1{instead}"
            )
        return
    if not named and name in subscriptable_measure_functions:
        of = "CM_[0,1], the true class and the predicted one" if name == "CM" else f"{name}_[0]"
        raise SpecError(f"{name} is of one class among several; say which, as in {of}")
    for index in named.values():
        if type(index) is not int or index < 0:
            raise SpecError(f"{node.name} names class {index!r}, and classes are numbers from 0 on")


def _is_bounded_by_rows(spec: Any, tree: Any, node: Any) -> bool:
    """Whether the number of rows decides if a node has a bound, and the labels alone decide which they are."""
    own = type(node)
    if (
        own.calculate_data_forbound is not BaseNode.calculate_data_forbound
        or own.mask_data is not BaseNode.mask_data
    ):
        return False
    method = spec.base_node_bound_method_dict.get(tree.constraint_str, {}).get(node.name)
    method = method or tree.base_node_dict[node.name]["bound_method"]
    return is_engines(node.measure_function_name) and method not in ("manual", "random")


def check_rows(
    node: Any, spec: Any, tree: Any, count_of: Callable[[Any, Any], int], of: str = "rows"
) -> None:
    """Refuse a base node that looks at too few data points to be bounded.

    Args:
        node: of `tree`.
        spec: the engine's specification.
        tree: a parse tree of it.
        count_of: (node, data set) → how many samples the node has there.
        of: what the data points are.

    Raises:
        SpecError: in the candidate data, in one mini-batch of them, or in the safety data.
    """
    primary = (
        {"candidate_dataset": spec.candidate_dataset, "safety_dataset": spec.safety_dataset}
        if spec.candidate_dataset
        else {"dataset": spec.dataset}
    )
    given = spec.additional_datasets.get(tree.constraint_str, {}).get(node.name, primary)
    candidate, safety = _parts(given, spec.frac_data_in_safety)
    n_safety = _parts(primary, spec.frac_data_in_safety)[1].num_datapoints
    for what, part in [*_steps(spec, candidate), ("safety data", safety)]:
        n = part.num_datapoints
        count = count_of(node, part)
        # What candidate selection takes for the number of rows in the safety test.
        predicted = count if part is safety else round(count / max(n, 1) * n_safety)
        if count < _LEAST or predicted < 2:
            small = "" if count < _LEAST else " in a safety test this small"
            batches = ", another batch_size" if "batch" in what else ""
            groups = " (those with a 1 in the column)" if node.conditional_columns and not count else ""
            raise SpecError(
                f"{node.name} looks at {count} of the {n} {of} of the {what}{groups}, and the engine's bound by so few is "
                f"infinite{small}, so that no solution would ever be found; give more data{batches}, shuffle them "
                f"if they are sorted, or leave it out"
            )


def _parts(given: dict[str, Any], fraction: float) -> tuple[Any, Any]:
    """The data of candidate selection and of the safety test, split as the engine does."""
    if "dataset" not in given:
        return given["candidate_dataset"], given["safety_dataset"]
    first = round(given["dataset"].num_datapoints * (1.0 - fraction))
    return _rows(given["dataset"], slice(first)), _rows(given["dataset"], slice(first, None))


def _steps(spec: Any, candidate: Any) -> Iterator[tuple[str, Any]]:
    """What candidate selection looks at in one step."""
    told = spec.optimization_hyperparams
    if not (spec.optimization_technique == "gradient_descent" and told.get("use_batches")):
        yield "candidate data", candidate
    elif not spec.additional_datasets:  # whose batches the engine takes as it goes
        size = told["batch_size"]
        for number, start in enumerate(range(0, candidate.num_datapoints, size)):
            yield f"candidate data's batch {number}", _rows(candidate, slice(start, start + size))


def _rows(data: Any, rows: slice) -> Any:
    if data.regime == "reinforcement_learning":
        return RLDataSet(data.episodes[rows], data.meta, data.sensitive_attrs[rows])
    labels = data.labels[rows]  # in place of the features, which nobody looks at
    return SupervisedDataSet(labels, labels, data.sensitive_attrs[rows], len(labels), data.meta)


def _count(node: Any, data: Any, sub_regime: str) -> int:
    """How many samples a node's statistic has in a data set, whatever the model predicts."""
    names, shape = data.sensitive_col_names, np.shape(data.sensitive_attrs)
    missing = [column for column in node.conditional_columns if column not in names]
    if missing or (node.conditional_columns and (len(shape) != 2 or shape[1] != len(names))):
        raise SpecError(
            f"{node.name} needs sensitive_attrs with the columns {', '.join(node.conditional_columns)}, got "
            f"the columns {', '.join(names) or 'none'} and an array of shape {shape}"
        )
    told = {"regime": "supervised_learning", "branch": "candidate_selection", "n_safety": 0}
    rows = node.calculate_data_forbound(theta=None, dataset=_rows(data, slice(None)), model=None, **told)
    several = sub_regime == "multiclass_classification"
    columns = max([*classes(node).values(), data.labels.max(initial=0)]) + 1 if several else None
    return len(samples(node, _Blank(columns), None, rows, sub_regime=sub_regime, **told))


class _Blank:
    """A model that predicts zeros, (n,) or (n, columns)."""

    def __init__(self, columns: int | None) -> None:
        self._columns = columns

    def predict(self, theta: Any, X: Any) -> Any:
        return np.broadcast_to(0.0, len(X) if self._columns is None else (len(X), self._columns))
