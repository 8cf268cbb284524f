"""Whether the rows of a model are independent of each other, as far as a few of them tell.

What is computed for some rows together must be what it is for them apart: their outputs, what a
cotangent on one half of them pulls back to the other (exact zeros), and the gradients of what all
rows share, which also tell of a dependence that happens to add nothing at this point.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge import trees
from gradbridge.borders import INEXACT
from gradbridge.errors import DerivativeError, GuestError
from gradbridge.protocol import Adapter, Array, Signature


def seem_independent(
    adapter: Adapter, loaded: Any, inputs: Sequence[Any], rowed: Sequence[bool], signature: Signature
) -> bool:
    """Look at a few rows together, and at two halves of them apart.

    Args:
        adapter: the model; no state of its moves.
        loaded: what its `update` returned.
        inputs: leaves, of two rows or more; a few.
        rowed: for each, whether its first axis are the rows.
        signature: of the call.
    """
    count = next(len(x) for x, yes in zip(inputs, rowed) if yes)
    draw = np.random.default_rng(0)
    half = draw.permutation(count) < count // 2
    for positions in _positions(adapter, inputs):
        try:
            return _agree(adapter, loaded, inputs, rowed, signature, positions, half, draw)
        except (DerivativeError, GuestError):
            if not positions:
                raise
    raise AssertionError("the last positions are none")  # pragma: no cover


def close(together: Array, apart: Array, scale: float | None = None) -> bool:
    """Whether two arrays are the same to the rounding of sums in another order.

    Args:
        together, apart: the arrays.
        scale: the size of the numbers that were summed up; None takes that of `apart`.
    """
    if together.shape != apart.shape:
        return False
    if together.dtype.kind not in INEXACT:
        return bool(np.array_equal(together, apart))
    tolerance = float(np.finfo(together.dtype).eps) ** 0.7
    if scale is None:
        scale = float(np.max(np.abs(apart), initial=0.0, where=np.isfinite(apart)))
    return bool(np.allclose(together, apart, rtol=tolerance, atol=tolerance * scale, equal_nan=True))


def _positions(adapter: Adapter, inputs: Sequence[Any]) -> list[tuple[int, ...]]:
    """What is differentiated: all that may be; where that cannot be, the params alone; or nothing."""
    params = (0,) if adapter.layout.size else ()
    floating = [i for i, x in enumerate(inputs, 1) if type(x) is np.ndarray and x.dtype.kind in INEXACT]
    return list(dict.fromkeys([(*params, *floating), params, ()]))


def _agree(
    adapter: Adapter,
    loaded: Any,
    inputs: Sequence[Any],
    rowed: Sequence[bool],
    signature: Signature,
    positions: tuple[int, ...],
    half: Array,
    draw: np.random.Generator,
) -> bool:
    signature = signature.replayed()
    together, residuals = adapter.forward(loaded, inputs, signature, positions)
    outputs = trees.flatten(together)[0]
    weights = [draw.normal(size=y.shape) * (y.dtype.kind in INEXACT) for y in outputs]
    for part in (half, ~half):
        some = [x[part] if yes else x for x, yes in zip(inputs, rowed)]
        alone, kept = adapter.forward(loaded, some, signature, positions)
        leaves = trees.flatten(alone)[0]
        if not all(len(y) == len(half) and close(y[part], a) for y, a in zip(outputs, leaves)):
            return False
        if not positions or not any(np.any(w) for w in weights):
            continue
        pulled = [np.where(_column(part, w), w, 0.0) for w in weights]
        adapter.zero(residuals)
        of_all = adapter.backward(residuals, pulled, positions)
        adapter.zero(kept)
        of_part = adapter.backward(kept, [w[part] for w in weights], positions)
        for position, among, apart in zip(positions, of_all, of_part):
            if position and rowed[position - 1]:
                if np.any(among[~part]) or not close(among[part], apart):
                    return False
            elif not close(among, apart):
                return False
    return True


def _column(rows: Array, like: Array) -> Array:
    return rows.reshape(-1, *(1,) * (like.ndim - 1))
