"""The engine's two runs, candidate selection and the safety test, as they are with models of ours in them.

A specification of the engine's own knows nothing of the models. It takes a built-in gradient of the
objective, which is that of a linear model with the intercept first, unless it is told otherwise; and
what leaves a run as a `ValueError` or `ZeroDivisionError` is counted as a trial without a solution by
the experiments package; and where a start fails, the engine makes one up. Nothing of that can be seen from
within a model, so the runs are surrounded here, when a model class of ours is imported. With models of the
engine's in specifications of the engine's they are what they were, and recorded (`history`).
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np

from gradbridge.errors import GradbridgeError, NonFiniteParamsError
from gradbridge.outside import is_installed
from gradbridge_seldonian.engine import (
    CandidateSelection,
    SafetyTest,
    SeldonianAlgorithm,
    SupervisedModel,
    objectives,
)
from gradbridge_seldonian.evaluation.labels import signed
from gradbridge_seldonian.evaluation.probabilities import check_probabilities, rates
from gradbridge_seldonian.evaluation.trees import check_classes, check_columns, check_pieces
from gradbridge_seldonian.history import recorded
from gradbridge_seldonian.outputs import SpecError, checked_start, tried

#: What the experiments package takes for a trial that found no solution.
SWALLOWED = (ValueError, ZeroDivisionError)


class EngineError(GradbridgeError, RuntimeError):
    """What is wrong with a model or a specification, as it leaves the engine; the error itself is the cause.

    It is not a `ValueError`, whatever its cause is, because those are counted as trials without a solution.
    """


class _MadeUpStart:
    """`has_intercept`, which the engine reads in one place: where it makes up an initial solution.

    It does so where there is no `initial_solution_fn`: zeros of the shape of a linear model. A model that says `has_intercept` itself gets them.
    """

    def __get__(self, model: Any, owner: type) -> Any:
        if model is None:
            return self
        raise EngineError(
            f"the engine is about to start {type(model).__name__} from zeros of a linear model's shape, because "
            f"the specification's initial_solution_fn is None. Give "
            f"initial_solution_fn={type(model).__name__}.initial_solution for the model's own parameters, or use "
            f"gradbridge_seldonian.supervised_spec, which starts from them"
        )


class BridgedModel(SupervisedModel):
    """Base of the engine's models that compute through a bridge."""

    has_intercept: Any = _MadeUpStart()


#: Roots of the names of modules that are not a user's, wherever they were installed.
_ROOTS = ("gradbridge", CandidateSelection.__module__.partition(".")[0])


def _is_ours(run: Any) -> bool:
    """Whether a run is of a model of ours, or of a specification that `supervised_spec` made."""
    if isinstance(run.model, BridgedModel):
        return True
    return run.regime != "reinforcement_learning" and any(hasattr(t, "written") for t in run.parse_trees)


def _starting(run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    def starting(self: Any, *args: Any, **options: Any) -> Any:
        given, failed = self.spec, []
        function = given.initial_solution_fn
        if function is None or not _is_ours(self):
            return run(self, *args, **options)

        def start(*data: Any) -> Any:
            try:
                return function(*data)
            except BaseException as error:  # the engine drops it, whatever it is
                failed.append(error)
                raise

        self.spec = copy.copy(given)
        self.spec.initial_solution_fn = start
        try:
            found = run(self, *args, **options)
            if not failed:
                checked_start(found, len(self.parse_trees), given.optimization_technique)
        except Exception as error:
            failed = failed or [error]
        finally:
            self.spec = given
        if not failed:
            return found
        if isinstance(failed[0], EngineError) or not isinstance(failed[0], Exception):
            raise failed[0]
        raise EngineError(
            f"the specification's initial_solution_fn failed: {in_full(failed[0])}"
        ) from failed[0]

    return starting


def _selecting(run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    def selecting(self: Any, **options: Any) -> Any:
        if _is_ours(self) and self.regime == "supervised_learning":
            self.candidate_dataset = signed(self.candidate_dataset)
            self.labels = self.candidate_dataset.labels
        if isinstance(self.model, BridgedModel):
            _refuse_untold_classes(self.parse_trees)
            options["use_builtin_primary_gradient_fn"] = False
            if is_builtin(options.get("custom_primary_gradient_fn")):
                options["custom_primary_gradient_fn"] = None
            for tree in self.parse_trees:  # of an earlier run they hold the data of its safety test
                tree.reset_base_node_dict(reset_data=True)
        is_finite = _is_finite(self.initial_solution)  # now: the optimizer writes into it
        handed = (
            self.primary_objective,
            options.get("custom_primary_gradient_fn"),
            vars(self).get("reg_func"),
        )
        with _heard(self, handed, lambda: _look(self), is_finite):
            return run(self, **options)

    return selecting


def _testing(run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    def testing(self: Any, solution: Any, batch_size_safety: Any = None, **options: Any) -> Any:
        supervised, data = self.regime == "supervised_learning", self.safety_dataset
        if _is_ours(self) and supervised:
            self.safety_dataset = data = signed(data)
        if isinstance(self.model, BridgedModel):
            _refuse_untold_classes(self.parse_trees)

        def look() -> None:
            if batch_size_safety is not None:
                check_pieces(batch_size_safety, data.num_datapoints, self.parse_trees)

        with _heard(self, (), look, True):
            if _is_ours(self) and supervised:
                _check_rates(self, solution, batch_size_safety)
            return run(self, solution, batch_size_safety=batch_size_safety, **options)

    return testing


def _check_rates(run: Any, solution: Any, size: int | None) -> None:
    """Refuse a safety test whose rates would be of numbers that are not probabilities; a run may have led there."""
    data, readers = run.safety_dataset, rates(run.parse_trees)
    if readers and "classification" in (data.meta.sub_regime or ""):
        X = data.features  # all at once, as the objective's nodes ask for them, or as many as may be
        X = X if size is None else [x[:size] for x in X] if type(X) is list else X[:size]
        check_probabilities(run.model, run.model.predict(solution, X), data.meta.sub_regime, readers)


@contextmanager
def _heard(
    run: Any, handed: Iterable[Any], look: Callable[[], None], is_start_finite: bool
) -> Iterator[None]:
    """Let nothing that is wrong with a model or a specification be counted as a trial without a solution.

    Args:
        run: of the engine.
        handed: functions that it will call, besides the model and those of its trees.
        look: looks for what may be wrong, where the engine's own arithmetic failed over a model of ours; raises it.
        is_start_finite: whether the run began with finite parameters.
    """
    try:
        yield
    except NonFiniteParamsError as error:
        if is_start_finite:
            raise  # it diverged, which is such a trial: without check_finite= the engine says "NSF"
        raise EngineError(in_full(error)) from error
    except SWALLOWED as error:
        model = run.model
        if isinstance(error, GradbridgeError):
            raise EngineError(in_full(error)) from error
        if isinstance(model, BridgedModel):
            try:
                look()
            except (ZeroDivisionError, NonFiniteParamsError):
                pass  # too few data, or parameters that ran off: no mistake
            except Exception as reason:
                raise EngineError(in_full(reason)) from error
            if _is_within(_codes(vars(owner).values() for owner in type(model).__mro__), error):
                raise EngineError(f"{type(model).__name__} failed: {in_full(error)}") from error
        if _is_ours(run) and (where := _users_frame(run, handed, error)):
            raise EngineError(f"{where} failed: {in_full(error)}") from error
        raise
    except ArithmeticError as error:
        # What the engine knows of an interval; the user's own says what it says.
        if type(error) is not ArithmeticError or not _is_ours(run) or _users_frame(run, handed, error):
            raise
        raise EngineError(f"the engine cannot bound a constraint: {in_full(error)}") from error


def _refuse_untold_classes(trees: Any) -> None:
    try:
        check_classes(trees)
    except SpecError as error:
        raise EngineError(in_full(error)) from error


def in_full(error: BaseException) -> str:
    """Its class and its words."""
    return f"{type(error).__name__}: {error}"


def _is_finite(start: Any) -> bool:
    try:
        return bool(np.isfinite(np.asarray(start, dtype=np.float64)).all())
    except (TypeError, ValueError):
        return True  # no numbers: nothing that could diverge


def _look(selection: Any) -> None:
    """Raise what is wrong already where training starts: predictions of a wrong shape, columns, the objective."""
    model, start, dataset = selection.model, selection.initial_solution, selection.candidate_dataset
    if selection.regime == "supervised_learning" and dataset.num_datapoints:
        sub_regime = dataset.meta.sub_regime
        tried(model, dataset, start, sub_regime)
        for tree in selection.parse_trees:
            if tree.constraint_str not in selection.additional_datasets:
                check_columns(tree, dataset.sensitive_col_names, "the data")
        selection.primary_objective(model, start, dataset.features, dataset.labels, sub_regime=sub_regime)


def _users_frame(run: Any, handed: Iterable[Any], error: BaseException) -> str:
    """The code of the user's that an error comes from or through, in words; empty where the engine failed by itself.

    The user's is what is neither ours, the engine's, nor of an installed package; and what was handed to the run, wherever
    that is installed.
    """
    measures = (getattr(tree, "custom_measure_functions", None) or {} for tree in run.parse_trees)
    functions = [handed, *(measure.values() for measure in measures)]
    codes = _codes(functions)
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    found = [
        frame for frame in frames if not _is_engines(frame) and (frame.f_code in codes or _is_own(frame))
    ]
    if not found:
        return ""
    code = found[0].f_code
    return f"{code.co_name} ({code.co_filename}, line {code.co_firstlineno})"


def _is_engines(frame: FrameType) -> bool:
    root = str(frame.f_globals.get("__name__")).partition(".")[0]
    return root in _ROOTS or root.startswith("gradbridge_")


def _is_own(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    if file[:1] != "<":
        return not is_installed(file)
    # Generated, by the module in whose names it runs: a prompt, a string, or a library's own templates.
    root = str(frame.f_globals.get("__name__")).partition(".")[0]
    return getattr(sys.modules.get(root), "__file__", None) is None or not is_installed(
        sys.modules[root].__file__
    )


def _codes(groups: Iterable[Iterable[Any]]) -> set[Any]:
    """The code of functions, without what was wrapped around them."""
    functions = (_bare(each) for group in groups for each in group if callable(each))
    return {getattr(each, "__code__", None) for each in functions} - {None}


def _bare(function: Any) -> Any:
    function = inspect.unwrap(function)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    return function if hasattr(function, "__code__") else getattr(type(function), "__call__", function)  # noqa: B004


def _is_within(codes: set[Any], error: BaseException) -> bool:
    """Whether an error comes from within some code, such as a `predict` of the user's."""
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


def is_builtin(gradient: Any) -> bool:
    """Whether it is one of the engine's formulas for a linear model, given by hand."""
    gradient = _bare(gradient)
    name = getattr(gradient, "__name__", "")
    return name.startswith("gradient_") and getattr(objectives, name, None) is gradient


SeldonianAlgorithm.set_initial_solution = _starting(SeldonianAlgorithm.set_initial_solution)
# The record within: a function of the user's that it stands in for is to be known from its own code.
CandidateSelection.run = _selecting(recorded(CandidateSelection.run))
SafetyTest.run = _testing(SafetyTest.run)
