"""The parse trees of a specification, made from constraints or taken as they are, and what is said of their nodes."""

from __future__ import annotations

import copy
import functools
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradbridge.wording import suggestion
from gradbridge_seldonian.engine import ParseTree
from gradbridge_seldonian.evaluation.trees import check_columns, written
from gradbridge_seldonian.outputs import SpecError
from gradbridge_seldonian.specification.measures import read_constraint

#: How the engine bounds a node of its own.
BOUND_METHODS = ("ttest", "manual", "random")
#: Largest weight, up or down, whose exponential is a positive finite number.
_STEEPEST = 700
#: Sub-regimes of one meaning; the engine's own table of measure functions has only the second.
_SAME = {"binary_classification": "classification"}


@dataclass(frozen=True)
class Setting:
    """What the trees are for.

    Attributes:
        regime, sub_regime: as the engine names them.
        columns: of the groups that constraints may condition on.
        measures: the user's own measure functions, by name.
        without: statistics of the regime that are not for this model.
    """

    regime: str
    sub_regime: str | None
    columns: Sequence[str]
    measures: Mapping[str, Callable[..., Any]]
    without: Sequence[str] = ()


def trees(asked: Sequence[Any], ready: Any, setting: Setting) -> list[ParseTree]:
    """Trees that belong to the caller, one for each constraint.

    Args:
        asked: constraints, deltas, delta_vectors and infl_factors, as `supervised_spec` takes them.
        ready: `parse_trees` instead of these.
        setting: what they are for.

    Raises:
        SpecError: both or neither, counts and values that do not fit, trees of other data, and whatever the
            engine cannot parse.
    """
    if setting.measures and setting.regime != "custom":
        raise SpecError(
            "custom_measure_functions were given for supervised data, where the engine reads none: they are for a "
            "CustomDataSet"
        )
    for name, measure in setting.measures.items():
        if not callable(measure):
            raise SpecError(
                f"custom_measure_functions[{name!r}] must be a function, got {reprlib.repr(measure)}"
            )
    if ready is None:
        if asked[0] is None or asked[1] is None:
            raise SpecError("a specification needs constraints and deltas, or parse_trees")
        found = _made_each(*asked, setting)
    elif setting.measures or any(each is not None for each in asked):
        raise SpecError(
            "parse_trees were given, and they hold their constraints already; leave out constraints, deltas, "
            "delta_vectors, infl_factors and custom_measure_functions, or the trees"
        )
    else:
        found = _taken(ready, setting)
    _check_distinct(found)
    return found


def _made_each(
    constraints: Any, deltas: Any, delta_vectors: Any, infl_factors: Any, setting: Setting
) -> list[ParseTree]:
    _check_constraints(constraints, deltas)
    count = len(constraints)
    vectors = _one_each("delta_vectors", [None] * count if delta_vectors is None else delta_vectors, count)
    if isinstance(infl_factors, np.ndarray) and not infl_factors.ndim:
        infl_factors = infl_factors.item()
    if isinstance(infl_factors, (int, float, np.number)):
        infl_factors = [infl_factors] * count
    factors = _one_each("infl_factors", [None] * count if infl_factors is None else infl_factors, count)
    return [_made(*each, setting) for each in zip(constraints, deltas, vectors, factors)]


def _taken(trees: Any, setting: Setting) -> list[ParseTree]:
    """Copies of ready-made trees, if they are built and fit the data."""
    if isinstance(trees, ParseTree) or not isinstance(trees, Sequence):
        raise SpecError(
            f"parse_trees must be a list of the engine's ParseTrees, got a {type(trees).__name__}"
        )
    for tree in trees:
        if not isinstance(tree, ParseTree):
            raise SpecError(f"parse_trees must be the engine's ParseTrees, got a {type(tree).__name__}")
        entries = tree.base_node_dict.values()
        for what in ("delta", "infl_factor"):
            if not entries or any(e[f"{what}_lower"] is None and e[f"{what}_upper"] is None for e in entries):
                raise SpecError(
                    f"a tree of parse_trees, {tree.constraint_str!r}, is not built: its nodes have no {what}; call "
                    f"tree.build_tree(constraint_str, …)"
                )
        theirs, ours = (
            (regime, _SAME.get(sub, sub))
            for regime, sub in ((tree.regime, tree.sub_regime), (setting.regime, setting.sub_regime))
        )
        if theirs != ours:
            raise SpecError(
                f"the tree of {tree.constraint_str!r} was made for regime {tree.regime!r} and sub_regime "
                f"{tree.sub_regime!r}, and the data are of {setting.regime!r} and {setting.sub_regime!r}; make it "
                f"with these"
            )
        check_columns(tree, setting.columns, "the data")
    taken = list(copy.deepcopy(tuple(trees)))
    for tree in taken:  # as the others are: the runs know our specifications by it
        tree.written = written(tree)
    return taken


def _check_distinct(trees: Sequence[ParseTree]) -> None:
    """Refuse none, and two of the same constraint: the engine tells them apart by its text."""
    if not trees:
        raise SpecError("the engine needs at least one constraint, got none")
    texts = [tree.constraint_str for tree in trees]
    for text in texts:
        if texts.count(text) > 1:
            raise SpecError(f"the constraint {text!r} is there {texts.count(text)} times; give it once")


def by_node(what: str, given: Any, trees: Sequence[ParseTree]) -> dict[str, dict[str, Any]]:
    """``{constraint: {base node: …}}`` in the engine's texts, each found among the trees.

    A constraint may be written as the user wrote it, ``"PR <= 0.9"``, or as the engine does, ``"PR-(0.9)"``.

    Raises:
        SpecError: another form, or a constraint or node that is not there; the nearest is suggested.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise SpecError(
            f"{what} must be a dictionary {{constraint: {{base node: …}}}}, got {reprlib.repr(given)}"
        )
    known = {tree.constraint_str: tree for tree in trees}
    found: dict[str, dict[str, Any]] = {}
    for constraint, nodes in given.items():
        text = _engines(constraint, trees)
        if text not in known:
            raise SpecError(
                f"{what} names the constraint {constraint!r}, which is not among {', '.join(map(repr, known))}; "
                f"{suggestion(text, known)}".rstrip("; ")
            )
        if not isinstance(nodes, Mapping):
            raise SpecError(
                f"{what}[{constraint!r}] must be a dictionary {{base node: …}}, got {reprlib.repr(nodes)}"
            )
        names = known[text].base_node_dict
        for name in nodes:
            if name not in names:
                raise SpecError(
                    f"{what}[{constraint!r}] names the base node {name!r}, and the constraint has "
                    f"{', '.join(map(repr, names))}; {suggestion(name, names)}".rstrip("; ")
                )
        found.setdefault(text, {}).update(nodes)
    return found


def bound_methods(given: Any, trees: Sequence[ParseTree]) -> dict[str, dict[str, str]]:
    """A new `base_node_bound_method_dict` of methods that the engine has."""
    what = "base_node_bound_method_dict"
    found = by_node(what, given, trees)
    for constraint, nodes in found.items():
        for name, method in nodes.items():
            if method not in BOUND_METHODS:
                raise SpecError(
                    f"{what}[{constraint!r}][{name!r}] must be one of {', '.join(map(repr, BOUND_METHODS))}, got "
                    f"{method!r}"
                )
    return found


def _check_constraints(constraints: Any, deltas: Any) -> None:
    if isinstance(constraints, str):
        raise SpecError("constraints must be a list of strings, got one string; put it in a list")
    for what, given in (("constraints", constraints), ("deltas", deltas)):
        if not isinstance(given, (Sequence, np.ndarray)) or isinstance(given, str):
            raise SpecError(
                f"{what} must be a list, one entry for each constraint, got {reprlib.repr(given)}"
            )
    for constraint in constraints:
        if not isinstance(constraint, str):
            raise SpecError(
                f"the constraint {reprlib.repr(constraint)} cannot be read: it is not a string; trees go to parse_trees="
            )
    if len(constraints) != len(deltas):
        raise SpecError(f"{len(constraints)} constraints need as many deltas, got {len(deltas)}")
    for delta in deltas:
        if not isinstance(delta, (int, float, np.number)) or not 0 < delta < 1:
            raise SpecError(f"a delta is a probability between 0 and 1, got {delta!r}")


def _one_each(what: str, given: Any, count: int) -> list[Any]:
    if not isinstance(given, (Sequence, np.ndarray)) or isinstance(given, str) or len(given) != count:
        raise SpecError(
            f"{what} must be a list with one entry for each of the {count} constraints, each None or a list of "
            f"numbers, got {reprlib.repr(given)}"
        )
    return list(given)


def _made(constraint: str, delta: Any, vector: Any, factors: Any, setting: Setting) -> ParseTree:
    measures = setting.measures if setting.regime == "custom" else None
    read = functools.partial(
        read_constraint,
        constraint,
        float(delta),
        setting.sub_regime,
        setting.columns,
        measures=measures,
        without=setting.without,
    )
    factors = 2 if factors is None else factors
    if isinstance(factors, (int, float, np.number)):
        how = {"infl_factors": _factor(constraint, factors)}
    else:
        listed = _numbers("infl_factors", constraint, factors, read().n_unique_bounds_tot)
        how = {"infl_factor_method": "manual", "infl_factors": [_factor(constraint, each) for each in listed]}
    if vector is None:
        return read(**how)
    weights = _numbers("delta_vectors", constraint, vector, read().n_unique_bounds_tot)
    if abs(max(weights)) > _STEEPEST:
        raise SpecError(
            f"delta_vectors are taken to the exponential, and that of {max(weights)} is not a number to share "
            f"{constraint!r} by; only their differences count, so subtract it"
        )
    return read(delta_weight_method="manual", delta_vector=weights, **how)


def _numbers(what: str, constraint: str, given: Any, count: int) -> list[float]:
    try:
        array = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SpecError(f"{what} must be numbers, got {reprlib.repr(given)} for {constraint!r}") from error
    if array.shape != (count,):
        raise SpecError(
            f"{what} must have a number for each of the {count} bounds that {constraint!r} needs (lower before upper, "
            f"in the order of its statistics), got shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise SpecError(f"{what} must be finite, got {reprlib.repr(given)} for {constraint!r}")
    return list(map(float, array))


def _factor(constraint: str, factor: Any) -> float:
    if isinstance(factor, bool) or not 0 <= factor < float("inf"):
        raise SpecError(f"infl_factors must be at least 0, got {factor!r} for {constraint!r}")
    return float(factor)


def _engines(constraint: Any, trees: Sequence[ParseTree]) -> Any:
    """The engine's text of a constraint, as it may be written on either side of an inequality."""
    if isinstance(constraint, str) and ("<=" in constraint or ">=" in constraint):
        try:
            return trees[0]._preprocess_constraint_str(constraint)
        except (AssertionError, NotImplementedError):
            return constraint
    return constraint
