"""Whether a model that was asked for float64 computes in less somewhere on the way.

Between neighbouring arguments a smooth function moves by its derivative; one that passes through
float32 moves in steps of 6e-8. So the second difference at steps of 1e-6 tells: 1e-12 of curvature
for the one, 6e-8 of rounding for the other. What is steep enough to look the same shrinks with the
square of the step; rounding does not shrink.

Source: J. J. Moré and S. M. Wild (2011), Estimating Computational Noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.borders import INEXACT
from gradbridge.errors import GradbridgeError
from gradbridge.layout import Array

#: (step, what is more than curvature, by how much a second difference shrinks at a sixteenth of the step unless it is
#: rounding): single precision shows at small steps, half precision at larger ones alone, where kinks show, too.
_LOOKS = ((1e-6, 1e-10, 16.0), (1e-3, 3e-5, 4.0), (3e-2, 1e-3, 4.0))
_JUMP = 0.1


def coarse_steps(
    call: Any, values: Sequence[Any], outputs: Sequence[Array], wrt: tuple[int, ...]
) -> float | None:
    """The steps that the outputs move in, relative to them; None where they move as float64 does.

    Args:
        call: to evaluate; nobody observes it.
        values: its arguments.
        outputs: at these.
        wrt: which of them the first call could be pulled back to: the same ones, so that nothing is compiled anew.
    """
    moving = [
        i for i, v in enumerate(values) if isinstance(v, np.ndarray) and v.dtype == np.float64 and v.size
    ]
    if not moving:
        return None
    draw = np.random.default_rng(1)
    directions = {
        i: np.where(values[i] == 0, 0.01, np.abs(values[i])) * draw.uniform(0.5, 1.0, size=values[i].shape)
        for i in moving[:1]
    }

    def noise(step: float) -> float:
        points = []
        for count in (1, 2):
            moved = [v + count * step * directions[i] if i in directions else v for i, v in enumerate(values)]
            points.append(call.evaluate_at(moved, wrt).outputs)
        most = 0.0
        for here, near, far in zip(outputs, *points):
            if here.dtype.kind in INEXACT and here.size and here.shape == near.shape == far.shape:
                scale = float(np.max(np.abs(here)))
                if np.isfinite(scale) and scale:
                    most = max(most, float(np.max(np.abs(here - 2 * near + far))) / scale)
        return most

    try:
        for step, least, shrinks in _LOOKS:
            level = noise(step)
            if least < level < _JUMP:
                smaller = noise(step / 16)
                if smaller > max(least, level / shrinks):
                    return max(level, smaller)
    except GradbridgeError:
        pass  # such arguments are not for it
    return None
