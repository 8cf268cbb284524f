"""The engine's two runs, candidate selection and the safety test, as they are with models of ours in them.

A specification of the engine's own knows nothing of the models. It takes a built-in gradient of the
objective, which is that of a linear model with the intercept first, unless it is told otherwise; and
what leaves a run as a `ValueError` or `ZeroDivisionError` is counted as a trial without a solution by
the experiments package. Nothing of that can be seen from within a model, so the runs are surrounded
here, when a model class of ours is imported. With models of the engine's they are what they were.
"""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gradbridge.errors import GradbridgeError, NonFiniteParamsError
from gradbridge_seldonian.engine import CandidateSelection, SafetyTest, SupervisedModel, objectives
from gradbridge_seldonian.evaluation.trees import check_classes, check_columns, check_pieces
from gradbridge_seldonian.outputs import SpecError, tried

#: What the experiments package takes for a trial that found no solution.
SWALLOWED = (ValueError, ZeroDivisionError)


class EngineError(GradbridgeError, RuntimeError):
    """What is wrong with a model or a specification, as it leaves the engine; the error itself is the cause.

    It is no `ValueError`, whatever its cause is, because those are counted as trials without a solution.
    """


class _MadeUpStart:
    """`has_intercept`, which the engine reads in one place: where it makes up an initial solution.

    It does so where there is no `initial_solution_fn`, and in silence where that failed: zeros of the
    shape of a linear model. A model that says `has_intercept` itself gets them.
    """

    def __get__(self, model: Any, owner: type) -> Any:
        if model is None:
            return self
        raise EngineError(
            f"the engine is about to start {type(model).__name__} from zeros of a linear model's shape, because "
            f"the specification's initial_solution_fn is None or failed (the engine says neither). Give "
            f"initial_solution_fn={type(model).__name__}.initial_solution for the model's own parameters, or use "
            f"gradbridge_seldonian.supervised_spec, which tries the start before the engine does"
        )


class BridgedModel(SupervisedModel):
    """Base of the engine's models that compute through a bridge."""

    has_intercept: Any = _MadeUpStart()


def _selecting(run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    def selecting(self: Any, **options: Any) -> Any:
        if isinstance(self.model, BridgedModel):
            _refuse_untold_classes(self.parse_trees)
            options["use_builtin_primary_gradient_fn"] = False
            if is_builtin(options.get("custom_primary_gradient_fn")):
                options["custom_primary_gradient_fn"] = None
            for tree in self.parse_trees:  # of an earlier run they hold the data of its safety test
                tree.reset_base_node_dict(reset_data=True)
        is_finite = _is_finite(self.initial_solution)  # now: the optimizer writes into it
        with _heard(self.model, lambda: _look(self), is_finite):
            return run(self, **options)

    return selecting


def _testing(run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    def testing(self: Any, solution: Any, batch_size_safety: Any = None, **options: Any) -> Any:
        if isinstance(self.model, BridgedModel):
            _refuse_untold_classes(self.parse_trees)

        def look() -> None:
            if batch_size_safety is not None:
                check_pieces(batch_size_safety, self.safety_dataset.num_datapoints, self.parse_trees)

        with _heard(self.model, look, True):
            return run(self, solution, batch_size_safety=batch_size_safety, **options)

    return testing


@contextmanager
def _heard(model: Any, look: Callable[[], None], is_start_finite: bool) -> Iterator[None]:
    """Let nothing that is wrong with a model or a specification be counted as a trial without a solution.

    Args:
        model: of the run.
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
        if isinstance(error, GradbridgeError):
            raise EngineError(in_full(error)) from error
        if isinstance(model, BridgedModel):
            try:
                look()
            except (ZeroDivisionError, NonFiniteParamsError):
                pass  # too few data, or parameters that ran off: no mistake
            except Exception as reason:
                raise EngineError(in_full(reason)) from error
            if _is_within(model, error):
                raise EngineError(f"{type(model).__name__} failed: {in_full(error)}") from error
        raise


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


def _is_within(model: Any, error: BaseException) -> bool:
    """Whether an error comes from within a method of the model's class, such as a `predict` of the user's."""
    methods = (method for owner in type(model).__mro__ for method in vars(owner).values())
    codes = {getattr(inspect.unwrap(method), "__code__", None) for method in methods if callable(method)}
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


def is_builtin(gradient: Any) -> bool:
    """Whether it is one of the engine's formulas for a linear model, given by hand."""
    name = getattr(gradient, "__name__", "")
    return name.startswith("gradient_") and getattr(objectives, name, None) is gradient


CandidateSelection.run = _selecting(CandidateSelection.run)
SafetyTest.run = _testing(SafetyTest.run)
