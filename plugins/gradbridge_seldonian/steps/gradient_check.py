"""How the predictions of a class of five methods move with theta, by differences, and whether a gradient is that."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gradbridge.layout import Array

# One may agree by chance, and another lead over a kink.
_DIRECTIONS, _MAJORITY = 5, 3
# How many pieces of theta are looked at by themselves: a small part is lost in the movement of all.
_PIECES = 8
_FLOAT32 = float(np.finfo(np.float32).eps)
_FLOAT64 = 1e-12  # with what a computation loses of its digits


class Differences:
    """Central differences of the predictions, weighted by a cotangent.

    Args:
        theta: (P,) the point.
        here: the predictions there, floating.
        cotangent: of their shape.
        evaluate: theta ↦ predictions, None where it cannot be evaluated.
    """

    def __init__(
        self, theta: Array, here: Array, cotangent: Array, evaluate: Callable[[Array], Array | None]
    ) -> None:
        self._theta, self._evaluate = theta, evaluate
        self._here, self._cotangent = here.astype(np.float64), cotangent.astype(np.float64)
        self._scale = max(float(np.abs(theta).mean()), 0.1)
        self._draw = np.random.default_rng(0)
        self._coarse = max(_FLOAT32, float(np.finfo(here.dtype).eps))
        if here.dtype == np.float64 and self._is_precise():
            self._coarse = _FLOAT64
        self._step = self._coarse ** (1 / 3)
        # How far a difference is at least from the gradient, relative to both, before anything is said.
        self._far = 0.05 if self._coarse > _FLOAT64 else 0.01

    def apart(self, gradient: Array, sizes: Sequence[int] | None) -> float | None:
        """How far a gradient (P,) is from how the predictions move, relative.

        Args:
            gradient: it.
            sizes: of pieces of theta that are looked at by themselves, too; any, where they are not its size
                together; None for none.

        Returns:
            None where it is not, or where that cannot be told: a kink, steepness, rounding.
        """
        places = np.arange(self._theta.size)
        if (found := self._in_most(gradient, places, _MAJORITY)) is not None or sizes is None:
            return found
        if sum(sizes) == places.size and len(sizes) <= 4 * _PIECES:
            pieces = np.split(places, np.cumsum(sizes)[:-1])
        else:
            pieces = np.array_split(places, min(_PIECES, places.size or 1))
        looks = (self._in_most(gradient, piece, 1) for piece in pieces if 0 < piece.size < places.size)
        return next((found for found in looks if found is not None), None)

    def favours(self, ours: Array, theirs: Array) -> bool:
        """Whether the predictions clearly move as the first of two gradients says, and not as the other does."""
        direction = ours - theirs
        direction = direction / np.abs(direction).max() * self._scale
        own, other = float(ours @ direction), float(theirs @ direction)
        for step in (self._step, self._step / 8):
            there, doubt = self._moved(direction, step)
            if not doubt + abs(there - own) < 0.25 * abs(own - other):
                return False
        return True

    def _in_most(self, gradient: Array, places: Array, enough: int) -> float | None:
        """`apart` along directions that move these places alone; right in `enough` of them is right."""
        wrong: list[float] = []
        right = 0
        for _ in range(_DIRECTIONS):
            draw = self._draw.uniform(0.5, 1.5, places.size) * self._draw.choice([-1.0, 1.0], places.size)
            direction = np.zeros(self._theta.size)
            direction[places] = draw * self._scale
            ours = float(gradient @ direction)
            there, doubt = self._moved(direction, self._step)
            size = abs(there) + abs(ours)
            if not np.isfinite(size):
                return None
            if abs(there - ours) <= self._far * size + doubt:
                right += 1
            else:
                # Where it is steep, another step gives another difference, and nothing can be told.
                nearer, doubt = self._moved(direction, self._step / 8)
                off = abs(nearer - ours)
                if off > self._far * size + doubt and abs(nearer - there) < 0.25 * off:
                    wrong.append(off / (abs(nearer) + abs(ours)))
            if right >= enough or len(wrong) >= _MAJORITY:
                break
        return max(wrong) if len(wrong) >= _MAJORITY else None

    def _moved(self, direction: Array, step: float) -> tuple[float, float]:
        """(How the predictions move along a direction, how far that can be off: by a kink, or by rounding)."""
        ahead, behind = self._around(step * direction)
        if ahead is None or behind is None:
            return np.nan, np.nan
        # At a kink the slopes before and after differ, and a gradient is any between them.
        after = float(np.sum(self._cotangent * (ahead - self._here))) / step
        before = float(np.sum(self._cotangent * (self._here - behind))) / step
        noise = 16 * self._coarse * float(np.sum(np.abs(self._cotangent * self._here))) / step
        return (after + before) / 2, 2 * abs(after - before) + noise

    def _around(self, move: Array) -> tuple[Array | None, Array | None]:
        found = [self._evaluate(self._theta + sign * move) for sign in (1.0, -1.0)]
        if any(x is None or x.shape != self._here.shape for x in found):
            return None, None
        return found[0], found[1]

    def _is_precise(self) -> bool:
        """Whether it is float64 all the way: it moves as smoothly as that in small steps."""
        sign = self._draw.choice([-1.0, 1.0], self._theta.size)
        ahead, behind = self._around(2.0**-22 * self._scale * sign)
        if ahead is None or behind is None or np.array_equal(ahead, behind):
            return False
        size = float(np.abs(self._here).max(initial=0.0))
        bend = float(np.abs(ahead - 2 * self._here + behind).max(initial=0.0))
        return bend <= 1e-10 * size
