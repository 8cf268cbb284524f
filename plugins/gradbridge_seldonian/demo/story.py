"""What a story of the demonstration is made of: runs of the engine, and what is told and drawn of them."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import gradbridge
from gradbridge_seldonian.engine import SeldonianAlgorithm

#: A constraint that nothing violates stands in for none, because the engine asks for one.
FREE = 1e6

Tick = Callable[[], None]


class LeftOut(Exception):
    """A story that cannot be told with this backend; the message says why."""


@dataclass(frozen=True)
class Setting:
    """What a story is told with.

    Attributes:
        build: `gradbridge.build` with the backend filled in.
        tick: to be called once an iteration.
        quick: whether a tenth of the iterations will do.
        workers: over how many workers of a Ray cluster rows are computed, where a story can; None in this process.
    """

    build: Callable[..., Any]
    tick: Tick
    quick: bool = False
    workers: int | None = None


@dataclass
class Outcome:
    """One run of the engine.

    Attributes:
        name: e.g. ``"constrained"``.
        theta: (P,) the candidate solution.
        passed: whether it passed the safety test of the real constraints.
        bounds: upper bound of each real constraint on the safety data, in their order; at most 0
            passes.
        selection: the engine's record of candidate selection.
        loss: the primary objective on the safety data.
        forwards: guest forwards in candidate selection; 0 where there is no guest.
        predictions: on the safety features, (n,) or (n, k).
    """

    name: str
    theta: np.ndarray
    passed: bool
    bounds: list[float]
    selection: dict[str, Any]
    loss: float
    forwards: int
    predictions: np.ndarray


@dataclass
class Story:
    """A problem, its outcomes, and all that is told of them.

    Attributes:
        title: what it is about.
        constraints: as they are written.
        deltas: probability with which each may fail.
        outcomes: the runs, first the constrained one.
        rows: (heading, cell of an outcome) of the table, after the safety test's.
        notes: sentences below the table.
        pictures: {what it shows: how it is drawn to a path}; what it shows ends the file's name.
        data: how much data the safety test saw, e.g. ``"221 safety rows"``.
        is_good: whether it reached what it must on every machine.
    """

    title: str
    constraints: tuple[str, ...]
    deltas: tuple[float, ...]
    outcomes: list[Outcome]
    rows: list[tuple[str, Callable[[Outcome], str]]]
    data: str
    notes: list[str] = field(default_factory=list)
    pictures: dict[str, Callable[[pathlib.Path], pathlib.Path]] = field(default_factory=dict)
    is_good: bool = True


class Counted:
    """A primary objective that ticks when the optimizer asks for its value: once an iteration."""

    def __init__(self, objective: Callable[..., Any], tick: Tick) -> None:
        self._objective, self._tick = objective, tick
        self.__name__ = getattr(objective, "__name__", "")

    def __call__(self, model: Any, theta: Any, *data: Any, **kwargs: Any) -> Any:
        """The objective itself."""
        if isinstance(theta, np.ndarray):  # traced when its gradient is asked for
            self._tick()
        return self._objective(model, theta, *data, **kwargs)


def weighed(free: bool, first: float, step: float) -> dict[str, Any]:
    """Hyperparameters that weigh constraints: by a first multiplier and its step size, or not at all."""
    # The engine's momentum corrections multiply up; short memories keep them tame.
    weights = {"lambda_init": 0.0, "alpha_lamb": 0.0} if free else {"lambda_init": first, "alpha_lamb": step}
    return {**weights, "beta_velocity": 0.5, "beta_rmsprop": 0.5}


def select(name: str, spec: Any, tick: Tick) -> tuple[np.ndarray, dict[str, Any], int]:
    """Candidate selection.

    Args:
        name: of the outcome, for the error.
        spec: the engine's; its objective will tick.
        tick: called once an iteration.

    Returns:
        The candidate solution (P,), the engine's record, and how many guest forwards there were.
    """
    spec.primary_objective = Counted(spec.primary_objective, tick)
    algorithm = SeldonianAlgorithm(spec)
    algorithm.set_initial_solution()
    with gradbridge.trace() as t:
        theta = algorithm.run_candidate_selection()
    if isinstance(theta, str):
        raise RuntimeError(f"candidate selection of {name!r} diverged; the engine says {theta!r}")
    return theta, algorithm.cs_result, t.counts["forward"]


def run(name: str, model: Any, make_spec: Callable[..., Any], tick: Tick, free: bool = False) -> Outcome:
    """Candidate selection and safety test of one model.

    Args:
        name: of the outcome.
        model: an engine model.
        make_spec: `supervised_spec` with all but the constraints' strictness filled in; called with
            ``free=True`` for a spec whose constraints nothing violates.
        tick: called once an iteration.
        free: whether to train without the constraints. The safety test is that of the real ones.
    """
    theta, record, guest_forwards = select(name, make_spec(model, free=free), tick)
    judge = SeldonianAlgorithm(make_spec(model, free=False))
    passed, _ = judge.run_safety_test(theta)
    safety = judge.safety_dataset
    objective = judge.spec.primary_objective
    return Outcome(
        name,
        theta,
        bool(passed),
        [float(tree.root.upper) for tree in judge.st_result.values()],
        record,
        float(objective(model, theta, safety.features, safety.labels)),
        guest_forwards,
        np.asarray(model.predict(theta, safety.features)),
    )


def both(model: Callable[[], Any], make_spec: Callable[..., Any], tick: Tick) -> tuple[list[Outcome], Any]:
    """The outcomes with and without the constraints, and the engine's safety data set."""
    one, other = model(), model()
    outcomes = [
        run("constrained", one, make_spec, tick),
        run("unconstrained", other, make_spec, tick, free=True),
    ]
    return outcomes, SeldonianAlgorithm(make_spec(one, free=False)).safety_dataset


def forwards(outcome: Outcome) -> str:
    """A cell: guest forwards per iteration."""
    return f"{outcome.forwards / len(outcome.selection['f_vals']):.2f}" if outcome.forwards else "–"
