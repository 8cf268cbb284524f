"""Whether a guest's forward mode is the transpose of its reverse mode: looked at, not believed.

Frameworks have two derivatives written for most operations, by different people at different times,
and hooks and custom gradients change one of them alone. So the first tangent that a bridge pushes
is compared with what the model's own backward says, by ⟨v, J t⟩ = ⟨Jᵀ v, t⟩ with a random v; where
that does not hold, forward mode is not used any more and JVPs are made from the pullback.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge import trees
from gradbridge.audit.comparison import both_sides
from gradbridge.borders import INEXACT
from gradbridge.call_spec import CallSpec
from gradbridge.errors import GradbridgeError
from gradbridge.protocol import Adapter


def passes_adjoint_test(
    adapter: Adapter,
    loaded: Any,
    inputs: Sequence[Any],
    spec: CallSpec,
    wrt: tuple[int, ...],
    tangents: Sequence[Any],
    pushed: Sequence[Any],
    precision: float,
) -> bool | None:
    """Whether pushed tangents agree with what the guest's backward pulls back.

    Args:
        adapter, loaded, inputs, spec, wrt, tangents: as for `Adapter.pushforward`.
        pushed: the tangents of the outputs that it returned.
        precision: that the model was seen to compute in, where it is coarser than its outputs' dtype; else 0.

    Returns:
        None where it cannot be told: the guest cannot pull back here, or numbers are not finite.
    """
    view = adapter.border.view
    try:
        outputs, residuals = adapter.forward(loaded, inputs, spec, wrt)
        leaves = [view(y) for y in trees.flatten(outputs)[0]]
        draw = np.random.default_rng(0)
        cotangents = [draw.normal(size=y.shape) * (y.dtype.kind in INEXACT) for y in leaves]
        gradients = adapter.pull(residuals, cotangents, wrt)
    except GradbridgeError:
        return None
    if [tuple(t.shape) for t in pushed] != [v.shape for v in cotangents]:
        return None  # whoever uses them says what is wrong
    ahead = [v * view(t) for v, t in zip(cotangents, pushed)]
    a, b, size = both_sides(ahead, [view(g) * view(t) for g, t in zip(gradients, tangents)])
    if not np.isfinite(size):
        return None
    precisions = [float(np.finfo(y.dtype).eps) for y in leaves if y.dtype.kind in INEXACT]
    return not precisions or abs(a - b) <= max(*precisions, precision) ** 0.7 * size
