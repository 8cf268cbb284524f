"""The engine's two runs, candidate selection and the safety test, as they are with models of ours in them.

A specification of the engine's own knows nothing of the models. It takes a built-in gradient of the
objective, which is that of a linear model with the intercept first, unless it is told otherwise; and
what leaves a run as a `ValueError` or `ZeroDivisionError` is counted as a trial without a solution by
the experiments package. Nothing of that can be seen from within a model, so the runs are surrounded
here, when a model class of ours is imported. With models of the engine's they are what they were.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gradbridge.errors import GradbridgeError, NonFiniteParamsError
from gradbridge_seldonian.engine import CandidateSelection, SafetyTest, SupervisedModel, objectives
from gradbridge_seldonian.outputs import tried

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
            options["use_builtin_primary_gradient_fn"] = False
            if _is_builtin(options.get("custom_primary_gradient_fn")):
                options["custom_primary_gradient_fn"] = None
            for tree in self.parse_trees:  # of an earlier run they hold the data of its safety test
                tree.reset_base_node_dict(reset_data=True)
        start = self.initial_solution
        is_finite = start is None or bool(np.isfinite(start).all())  # now: the optimizer writes into it
        with _said(is_finite):
            try:
                return run(self, **options)
            except SWALLOWED as error:
                if not isinstance(error, GradbridgeError):
                    _explain(self, error)
                raise

    return selecting


def _testing(run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    def testing(self: Any, *solution: Any, **options: Any) -> Any:
        with _said(True):
            return run(self, *solution, **options)

    return testing


@contextmanager
def _said(is_start_finite: bool) -> Iterator[None]:
    """Let no error of ours leave as one that is counted as a trial without a solution."""
    try:
        yield
    except NonFiniteParamsError as error:
        if is_start_finite:
            raise  # it diverged, which is such a trial: without check_finite= the engine says "NSF"
        raise EngineError(_worded(error)) from error
    except GradbridgeError as error:
        if not isinstance(error, SWALLOWED):
            raise
        raise EngineError(_worded(error)) from error


def _worded(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _explain(selection: Any, error: Exception) -> None:
    """Say it if the model is why the engine's own arithmetic failed: it raises, or its outputs are of a wrong shape."""
    if isinstance(selection.model, BridgedModel) and selection.regime == "supervised_learning":
        dataset = selection.candidate_dataset
        try:
            tried(selection.model, dataset, selection.initial_solution, dataset.meta.sub_regime)
        except Exception as reason:
            raise EngineError(_worded(reason)) from error


def _is_builtin(gradient: Any) -> bool:
    """Whether it is one of the engine's formulas for a linear model, given by hand."""
    name = getattr(gradient, "__name__", "")
    return name.startswith("gradient_") and getattr(objectives, name, None) is gradient


CandidateSelection.run = _selecting(CandidateSelection.run)
SafetyTest.run = _testing(SafetyTest.run)
