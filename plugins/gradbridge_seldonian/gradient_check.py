"""Whether the gradient that a class of five methods gives is how its predictions move.

Two of the methods must agree on what theta means: update_model_params cuts it, and backward_pass joins its
gradient. Nothing fails where they do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradbridge.layout import Array

#: How many points are looked at: what works from the first run alone shows at the second.
POINTS = 2
_DIRECTIONS = 3
# What a difference is at least far from the gradient, relative to both, before anything is said: wrong by far.
_FAR = 0.05


class GradientCheck:
    """Holds the first gradients to differences of the values.

    Attributes:
        failure: what is wrong, in words; "" where nothing is known to be.
    """

    def __init__(self) -> None:
        self.failure = ""
        self._seen: list[Array] = []

    def awaits(self, theta: Array) -> bool:
        """Whether a gradient there is to be looked at."""
        return len(self._seen) < POINTS and not any(np.array_equal(theta, seen) for seen in self._seen)

    def look(
        self,
        theta: Array,
        here: Array,
        cotangent: Array,
        gradient: Array,
        evaluate: Callable[[Array], Array | None],
    ) -> float | None:
        """Compare a gradient.

        Args:
            theta: (P,) the point.
            here: the predictions there.
            cotangent: of their shape.
            gradient: (P,) what was made of it.
            evaluate: theta ↦ predictions, None where it cannot be evaluated.

        Returns:
            How far the gradient is from how the predictions move, relative; None where it is not, or where
            that cannot be told: a kink, steepness, rounding.
        """
        if here.dtype.kind != "f" or not cotangent.any():
            return None
        self._seen.append(theta.copy())
        # The native model may compute in less than its predictions' dtype.
        coarse = max(float(np.finfo(np.float32).eps), float(np.finfo(here.dtype).eps))
        step, draw, worst = coarse ** (1 / 3), np.random.default_rng(0), 0.0
        scale = max(float(np.abs(theta).mean()), 0.1)
        here, cotangent = here.astype(np.float64), cotangent.astype(np.float64)
        noise = 16 * coarse * float(np.sum(np.abs(cotangent * here))) / step
        for _ in range(_DIRECTIONS):
            direction = draw.normal(size=theta.shape) * scale
            ends = [evaluate(theta + sign * step * direction) for sign in (1.0, -1.0)]
            if any(end is None or end.shape != here.shape for end in ends):
                return None
            ahead, behind = ends
            after: Any = np.sum(cotangent * (ahead - here)) / step
            before: Any = np.sum(cotangent * (here - behind)) / step
            moved, ours = (after + before) / 2, float(gradient @ direction)
            size = abs(moved) + abs(ours)
            # At a kink the slopes before and after differ, and a gradient is any between them.
            tolerance = _FAR * size + 2 * abs(after - before) + noise
            if not np.isfinite(size) or abs(moved - ours) <= tolerance:
                return None
            worst = max(worst, abs(moved - ours) / size)
        return worst
