"""Whether the gradient that a class of five methods gives is how its predictions move.

Two of the methods must agree on what theta means: update_model_params cuts it, and backward_pass joins its
gradient. Nothing fails where they do not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gradbridge.layout import Array

#: How many gradients are looked at: what was kept from the first one shows at another cotangent, or another theta.
GRADIENTS = 3
# One may agree by chance, and another lead over a kink.
_DIRECTIONS, _MAJORITY = 5, 3
# What a difference is at least far from the gradient, relative to both, before anything is said: wrong by far.
_FAR = 0.05


class GradientCheck:
    """Holds the first gradients to differences of the values.

    Attributes:
        failure: what is wrong, in words; "" where nothing is known to be.
    """

    def __init__(self) -> None:
        self.failure = ""
        self._seen: list[tuple[Array, Array]] = []

    def awaits(self, theta: Array, cotangent: Array) -> bool:
        """Whether their gradient is to be looked at."""
        seen = any(np.array_equal(theta, t) and np.array_equal(cotangent, c) for t, c in self._seen)
        return len(self._seen) < GRADIENTS and not seen

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
        self._seen.append((theta.copy(), cotangent.copy()))
        # The native model may compute in less than its predictions' dtype.
        coarse = max(float(np.finfo(np.float32).eps), float(np.finfo(here.dtype).eps))
        step, draw, said = coarse ** (1 / 3), np.random.default_rng(0), []
        scale = max(float(np.abs(theta).mean()), 0.1)
        here, cotangent = here.astype(np.float64), cotangent.astype(np.float64)

        def moved(direction: Array, step: float) -> tuple[float, float]:
            """(How the predictions move along a direction, how far that can be off: by a kink, or by rounding)."""
            ahead, behind = (evaluate(theta + sign * step * direction) for sign in (1.0, -1.0))
            if ahead is None or behind is None or ahead.shape != here.shape or behind.shape != here.shape:
                return np.nan, np.nan
            # At a kink the slopes before and after differ, and a gradient is any between them.
            after = float(np.sum(cotangent * (ahead - here))) / step
            before = float(np.sum(cotangent * (here - behind))) / step
            noise = 16 * coarse * float(np.sum(np.abs(cotangent * here))) / step
            return (after + before) / 2, 2 * abs(after - before) + noise

        for _ in range(_DIRECTIONS):
            direction = draw.normal(size=theta.shape) * scale
            ours = float(gradient @ direction)
            there, doubt = moved(direction, step)
            size = abs(there) + abs(ours)
            if not np.isfinite(size):
                return None
            if abs(there - ours) <= _FAR * size + doubt:
                said.append(0.0)
            else:
                # Where it is steep, another step gives another difference, and nothing can be told.
                nearer, doubt = moved(direction, step / 8)
                apart = abs(nearer - ours)
                if apart > _FAR * size + doubt and abs(nearer - there) < 0.25 * apart:
                    said.append(apart / (abs(nearer) + abs(ours)))
            wrong = [x for x in said if x]
            if max(len(wrong), len(said) - len(wrong)) >= _MAJORITY:
                return max(wrong) if len(wrong) >= _MAJORITY else None
        return None
