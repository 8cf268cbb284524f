"""The strategies for a Jacobian, and which one the structure allows.

========  ==========================================================  ======================
strategy  what it does                                                cost, in backwards
========  ==========================================================  ======================
rows      each row of the outputs depends on its own row of the       outputs of one row
          inputs alone: all rows at once
vjp       one cotangent per output, many at once                      outputs
jvp       one tangent per number of the arguments, many at once       the arguments; 3 × without a
                                                                      forward mode in the guest
loop      one cotangent per output, one after the other               outputs
========  ==========================================================  ======================

That rows are independent is never assumed. What was computed row by row is compared with what the
model's own backward makes of random cotangents: a Jacobian E away from the true one would have to
satisfy vᵀE = 0 for a random v (R. Freivalds, Probabilistic machines can use less running time,
1977). Where that is not so the next strategy is taken. The first Jacobian by many cotangents or
tangents at once is looked at in the same way: batched rules of frameworks are other code than single ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gradbridge.derivatives.per_example import PerExampleStrategy
from gradbridge.derivatives.points import Linearization
from gradbridge.derivatives.problem import JacobianProblem, unit_arrays
from gradbridge.errors import DerivativeError, GradbridgeError, GuestError, OptionError, Unsupported
from gradbridge.execution import batched
from gradbridge.layout import Array

#: The strategies in words.
NAMES = {"rows": "per-example", "vjp": "batched VJP", "jvp": "JVPs", "loop": "one backward per output"}

# With fewer outputs than this a row by row computation and its check do not pay.
_FEW = 8


class Solver:
    """Follows the strategies for a Jacobian.

    Args:
        problem: to solve.
    """

    def __init__(self, problem: JacobianProblem) -> None:
        self._problem, self._rows = problem, PerExampleStrategy(problem)

    def solve(self, strategy: str) -> list[Array]:
        """A flat Jacobian for each position.

        Raises:
            OptionError: the strategy that was asked for cannot be followed.
        """
        problem = self._problem
        if not problem.total or not problem.arguments:
            problem.evaluation.require_inexact_output()
            return [problem.empty(p) for p in problem.wrt]
        if strategy != "auto":
            try:
                jacobians = self._followed(strategy)
            except Unsupported as error:
                if strategy not in _WHY_NOT:
                    raise
                raise OptionError(
                    f"strategy {strategy!r} was asked for the Jacobian of {problem.point.label}, and "
                    f"{_WHY_NOT[strategy]} ({error}); leave strategy= out"
                ) from error
            self._note(strategy)
            return jacobians
        candidates = self._candidates()
        for candidate in candidates:
            try:
                jacobians = self._followed(candidate)
            except DerivativeError:
                if candidate == "loop":
                    raise
                continue
            except GuestError as error:
                if candidate != "loop":
                    continue  # the loop asks for the least, and its error is the one to tell
                jacobians = self._pushed_after(error)
                candidate = "jvp"
            self._note(candidate)
            return jacobians
        raise AssertionError("the loop follows always")  # pragma: no cover

    def _pushed_after(self, error: GuestError) -> list[Array]:
        """By tangents, where the guest cannot pull back but has a forward mode (a while loop in JAX)."""
        try:
            return self._by_tangents()
        except GradbridgeError:
            raise error from error.__cause__

    def _note(self, strategy: str) -> None:
        problem = self._problem
        sizes = f"{problem.total} outputs and {problem.arguments} numbers of the arguments"
        problem.point.strategies_used.append(f"{NAMES[strategy]}, for {sizes}")

    def _candidates(self) -> list[str]:
        problem = self._problem
        if problem.total == 1:
            return ["loop"]
        pushes = not problem.point.call.adapter.refusal("pushforward_many")
        costs = {"vjp": problem.total, "jvp": problem.arguments + 2 if pushes else 3 * problem.arguments + 3}
        if problem.checks_rows and problem.total >= _FEW and self._rows.rows() is not None:
            costs["rows"] = 2 * problem.total // problem.shapes[0][0] + 4
        return [
            *(name for name in sorted(costs, key=costs.__getitem__) if costs[name] <= problem.total),
            "loop",
        ]

    def _followed(self, strategy: str) -> list[Array]:
        problem = self._problem
        call = problem.point.call
        audit, step = call.settings.audit, ("jacobian", strategy, call.spec.packed, problem.wrt)
        # Rows are compared each time: they may be independent here and not there.
        if strategy in ("loop", "rows"):
            return self.computed(strategy)
        if not audit.is_known_wrong(call.order, step):
            looks = audit.awaits(call.order, step)
            jacobians = self.computed(strategy)
            if not looks:
                return jacobians
            audit.found(call.order, step, problem.agrees_with_backward(jacobians))
            if not audit.is_known_wrong(call.order, step):
                return jacobians
        if strategy == "jvp":
            return self._by_tangents(can_batch=False)
        raise Unsupported(f"what {problem.point.label} gives for many at once is not what it gives for each")

    def computed(self, strategy: str) -> list[Array]:
        """A flat Jacobian for each position by one strategy, not compared with anything.

        Raises:
            Unsupported: it cannot be followed here.
        """
        follow: dict[str, Callable[[], list[Array]]] = {
            "rows": self._rows.solve,
            "vjp": self._by_cotangents,
            "jvp": self._by_tangents,
            "loop": self._by_loop,
        }
        return follow[strategy]()

    def _by_loop(self) -> list[Array]:
        problem = self._problem
        jacobians = [problem.empty(p) for p in problem.wrt]
        for index, cotangents in enumerate(problem.unit_cotangents(1)):
            one = problem.evaluation.pull([c[0] for c in cotangents], problem.wrt)
            for flat, gradient in zip(jacobians, one):
                flat[index] = gradient
        return jacobians

    def _by_cotangents(self) -> list[Array]:
        problem = self._problem
        jacobians = [problem.empty(p) for p in problem.wrt]
        start = 0
        for cotangents in problem.unit_cotangents(problem.chunk(problem.total + problem.arguments)):
            many = batched.pull_many(problem.evaluation, cotangents, problem.wrt, "batched VJP")
            stop = start + len(cotangents[0])
            for flat, gradients in zip(jacobians, many):
                flat[start:stop] = gradients
            start = stop
        return jacobians

    def _by_tangents(self, can_batch: bool = True) -> list[Array]:
        problem = self._problem
        linear = Linearization(problem.evaluation, problem.wrt)
        jacobians = [problem.empty(p) for p in problem.wrt]
        shapes = [problem.point.shape(p) for p in problem.wrt]
        starts = np.cumsum([0, *(int(np.prod(s)) for s in shapes)])
        chunk = problem.chunk(problem.total + problem.arguments)
        for flat, start, size in zip(jacobians, starts, np.diff(starts)):
            columns = flat.reshape(problem.total, size)
            for first in range(0, size, chunk):
                stop = min(first + chunk, size)
                tangents = unit_arrays(shapes, int(start) + first, int(start) + stop, problem.dtype)
                many: list[Array] | None = None
                if can_batch:
                    try:
                        many = linear.push_many(tangents)
                    except Unsupported:
                        can_batch = False
                if many is None:
                    each = [
                        self._floating(linear.push([t[i] for t in tangents])) for i in range(stop - first)
                    ]
                    many = [np.stack(moved) for moved in zip(*each)]
                parts = [m.reshape(stop - first, -1) for m in many]
                columns[:, first:stop] = np.concatenate(parts, axis=1).T
        return jacobians

    def _floating(self, leaves: list[Array]) -> list[Array]:
        problem = self._problem
        return [leaf for leaf, y in zip(leaves, problem.evaluation.outputs) if y.dtype.kind == "f"]


_WHY_NOT = {
    "rows": "its rows are not independent of each other, or its backend cannot compute per-example Jacobians",
    "vjp": "its backend cannot pull back several cotangents at once through it",
}
