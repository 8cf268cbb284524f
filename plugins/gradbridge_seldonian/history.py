"""What an optimizer did, evaluation by evaluation, where the engine keeps its end alone.

The engine's gradient descent keeps its course. With CMA-ES and SciPy's optimizers each evaluation of the
objective and the constraints is noted here, and goes into the result.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradbridge_seldonian.evaluation.trees import written

#: The name under which a result has it.
ATTRIBUTE = "history"


@dataclass
class History:
    """The n evaluations of one candidate selection under k constraints.

    Attributes:
        objective: (n,) what is minimized, without the barrier; NaN where it was not computed.
        bounds: (n, k) upper bounds of the constraints as predicted for the safety test; at most 0 is satisfied.
        chosen: which evaluation gave the candidate solution; None if none did.
        constraints: as they were written.
        optimizer: its name.
    """

    objective: np.ndarray
    bounds: np.ndarray
    chosen: int | None
    constraints: list[str]
    optimizer: str


class _Recorder:
    """Notes what one `CandidateSelection` evaluates under a barrier."""

    def __init__(self, selection: Any) -> None:
        self._selection = selection
        self._barrier = selection.objective_with_barrier
        self._objective = selection.primary_objective
        self._value = float("nan")
        self._evaluations: list[tuple[bytes, float, list[float]]] = []
        selection.objective_with_barrier = self._evaluate
        selection.primary_objective = self._keep

    def _keep(self, *args: Any, **kwargs: Any) -> Any:
        value = self._objective(*args, **kwargs)
        self._value = float(value)
        return value

    def _evaluate(self, theta: Any) -> Any:
        self._value = float("nan")
        total = self._barrier(theta)
        sign = -1.0 if self._selection.regime == "reinforcement_learning" else 1.0  # a return is maximized
        bounds = [float(tree.root.upper) for tree in self._selection.parse_trees]
        self._evaluations.append((_digest(theta), sign * self._value, bounds))
        return total

    def leave(self) -> None:
        """Take the recorder off."""
        del self._selection.objective_with_barrier
        self._selection.primary_objective = self._objective

    def history(self, solution: Any) -> History:
        """What was noted, and where `solution` was."""
        trees = self._selection.parse_trees
        digests = [digest for digest, _, _ in self._evaluations]
        ours = None if isinstance(solution, str) else _digest(solution)
        return History(
            np.array([value for _, value, _ in self._evaluations]),
            np.array([bounds for _, _, bounds in self._evaluations]).reshape(len(digests), len(trees)),
            digests.index(ours) if ours in digests else None,
            list(map(written, trees)),
            self._selection.optimizer,
        )


def recorded(run: Callable[..., Any]) -> Callable[..., Any]:
    """`CandidateSelection.run`, whose result has the history of whatever optimizer."""

    @functools.wraps(run)
    def recording(self: Any, **options: Any) -> Any:
        if self.optimization_technique != "barrier_function":
            solution = run(self, **options)
            self.optimization_result["written"] = list(map(written, self.parse_trees))
            return solution
        recorder = _Recorder(self)
        try:
            solution = run(self, **options)
        finally:
            recorder.leave()
        # SciPy's result is a dict that prints all that is in it, and is to print as it did.
        object.__setattr__(self.optimization_result, ATTRIBUTE, recorder.history(solution))
        return solution

    return recording


def _digest(theta: Any) -> bytes:
    """Tells parameters (P,) from others, without keeping them."""
    return hashlib.blake2b((np.asarray(theta, dtype=np.float64) + 0.0).tobytes(), digest_size=16).digest()
