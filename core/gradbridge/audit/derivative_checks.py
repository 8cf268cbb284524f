"""Derivatives at one point, each held to an independent one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradbridge.audit import orders
from gradbridge.audit.comparison import both_sides, precision_of
from gradbridge.audit.report import Finding
from gradbridge.borders import INEXACT
from gradbridge.derivatives.problem import JacobianProblem
from gradbridge.derivatives.strategies import Solver
from gradbridge.execution import derivation, steps
from gradbridge.layout import Array
from gradbridge.protocol import Adapter

#: Outputs times arguments, up to which all ways to a Jacobian are tried.
_SMALL = 200_000


class DerivativeChecks:
    """The half of an examination that looks at derivatives."""

    _point: Any
    _call: Any
    _evaluation: Any
    _adapter: Adapter
    _values: Sequence[Any]
    _wrt: tuple[int, ...]
    _cotangents: list[Array]
    _draw: np.random.Generator

    def differences(self) -> Finding:
        """Gradients against the values: ⟨c, f(x + h t) - f(x - h t)⟩ / 2h against ⟨g, t⟩, in random directions."""
        evaluation, worst = self._evaluation, 0.0
        gradients = evaluation.pull(self._cotangents, self._wrt)
        coarse = precision_of(evaluation)
        step = coarse ** (1 / 3)
        for _ in range(3):
            directions = {
                i: self._draw.normal(size=np.shape(self._values[i]))
                * max(float(np.abs(self._values[i]).mean()), 1e-3)
                for i in self._wrt
            }
            ends = []
            for sign in (1.0, -1.0):
                values = list(self._values)
                for i, direction in directions.items():
                    values[i] = (values[i] + sign * step * direction).astype(values[i].dtype)
                outputs = self._call.evaluate_at(values, ()).outputs
                ends.append(outputs)
            moved = [
                float(np.sum(np.real(c * (a - b)))) / (2 * step)
                for c, a, b in zip(self._cotangents, *ends)
                if a.dtype.kind in INEXACT
            ]
            pulled = [float(np.sum(np.real(g * directions[i]))) for i, g in zip(self._wrt, gradients)]
            size = sum(map(abs, moved)) + sum(map(abs, pulled))
            worst = max(worst, abs(sum(moved) - sum(pulled)) / size if size else 0.0)
        figure = f"{worst:.1e}"
        if not np.isfinite(worst):
            return Finding("", "-", figure, "numbers are not finite here")
        if worst > 100 * coarse**0.5:
            return Finding(
                "",
                "note",
                figure,
                "differences of the outputs disagree with the gradient: a custom rule, a kink, or a fault",
            )
        return Finding("", "right", figure, "relative, in three random directions")

    def forward_mode(self) -> Finding:
        """JVPs against VJPs."""
        tangents = [self._draw.normal(size=np.shape(self._values[i])) for i in self._wrt]
        pushed = steps.pushed(self._call, self._values, self._wrt, tangents)[1]
        view = self._adapter.border.view
        gradients = self._evaluation.pull(self._cotangents, self._wrt)
        ahead = [c * view(t) for c, t in zip(self._cotangents, pushed)]
        a, b, size = both_sides(ahead, [g * t for g, t in zip(gradients, tangents)])
        apart = abs(a - b) / size if size else 0.0
        if apart > precision_of(self._evaluation) ** 0.7:
            return Finding(
                "", "WRONG", f"{apart:.1e}", "⟨v, Jt⟩ is not ⟨Jᵀv, t⟩: JVPs are made from the gradient"
            )
        return Finding("", "right", f"{apart:.1e}", "⟨v, Jt⟩ = ⟨Jᵀv, t⟩, relative")

    def order(self, order: int) -> Finding:
        """A derivative of a derivative against a difference of that."""
        evaluation = self._evaluation
        for _ in range(order):
            call = derivation.derivative(evaluation, self._wrt)
            cotangents = [self._draw.normal(size=y.shape) for y in evaluation.outputs]
            first = len(evaluation.values)
            behind = tuple(first + i for i, y in enumerate(evaluation.outputs) if y.dtype.kind in INEXACT)
            evaluation = call.evaluate_at([*evaluation.values, *cotangents], (*self._wrt, *behind))
        derivative = derivation.derivative(evaluation, self._wrt)
        try:
            apart = orders.difference(evaluation, derivative, self._wrt)
        except orders.StaleError as error:
            return Finding("", "-", "", f"nothing can be determined here: {error}")
        if apart is None:
            return Finding(
                "", "-", "", "nothing can be determined here: a kink, or numbers that are not finite"
            )
        if apart:
            return Finding("", "WRONG", "", f"{apart}; a bridge refuses it")
        return Finding("", "right", "", "it agrees with differences of the derivative of one order less")

    def jacobian(self, strategy: str) -> Finding | None:
        """A Jacobian by one strategy against one backward."""
        wrt = tuple(i for i in self._wrt if np.asarray(self._values[i]).dtype.kind == "f")
        if any(y.dtype.kind == "c" for y in self._evaluation.outputs):
            return None
        problem = JacobianProblem(replace(self._point, strategies_used=[]), wrt, 1 << 24, checks_rows=True)
        if not problem.total or not problem.arguments:
            return None
        if problem.total * problem.arguments > _SMALL:
            return Finding(
                "", "-", "", "too large to try for nothing: the first one is compared when it is asked for"
            )
        solver = Solver(problem)
        jacobians = solver.computed(strategy)
        if problem.agrees_with_backward(jacobians):
            return Finding(
                "", "right", f"{problem.total}×{problem.arguments}", "vᵀJ is what one backward gives"
            )
        return Finding("", "WRONG", "", "vᵀJ is not what one backward gives; another way is taken")
