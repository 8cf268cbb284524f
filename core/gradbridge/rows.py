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
    adapter: Adapter,
    loaded: Any,
    inputs: Sequence[Any],
    rowed: Sequence[bool],
    signature: Signature,
    gradients: bool = True,
    seed: int = 0,
) -> bool | None:
    """Look at a few rows together, and at two halves of them apart.

    Args:
        adapter: the model; no state of its moves.
        loaded: what its `update` returned.
        inputs: leaves, of two rows or more; a few.
        rowed: for each, whether its first axis are the rows.
        signature: of the call.
        gradients: False looks at the outputs alone, where a gradient costs many evaluations.
        seed: of the halves.

    Returns:
        None where gradients are not finite, and so tell nothing of the rows.
    """
    count = next(len(x) for x, yes in zip(inputs, rowed) if yes)
    draw = np.random.default_rng(seed)
    half = draw.permutation(count) < count // 2
    for positions in _positions(adapter, inputs) if gradients else ((),):
        try:
            return _agree(adapter, loaded, inputs, rowed, signature, positions, half, draw)
        except (DerivativeError, GuestError):
            if not positions:
                raise
    raise AssertionError("the last positions are none")  # pragma: no cover


def close(together: Array, apart: Array, precision: float | None = None) -> bool:
    """Whether two arrays are the same to the rounding of sums in another order.

    Args:
        together, apart: the arrays.
        precision: that they were computed in; None takes that of their dtype.
    """
    if together.shape != apart.shape:
        return False
    if together.dtype.kind not in INEXACT:
        return bool(np.array_equal(together, apart))
    tolerance = (precision or precision_of([together])) ** 0.7
    scale = float(np.max(np.abs(apart), initial=0.0, where=np.isfinite(apart)))
    return bool(np.allclose(together, apart, rtol=tolerance, atol=tolerance * scale, equal_nan=True))


def precision_of(outputs: Sequence[Array]) -> float:
    """The coarsest precision that outputs were computed in: 2⁻⁵² for float64, 2⁻⁷ for bfloat16.

    Guests hand out bfloat16 as float32, which has nothing in the lower half of its bits then.
    """
    found = [2.0**-52]
    for y in outputs:
        if y.dtype.kind in INEXACT:
            found.append(float(np.finfo(y.dtype).eps))
        # Zeros are of any precision, so they do not make it a coarse one.
        is_told = y.dtype == np.float32 and 2 * np.count_nonzero(y) > y.size
        if is_told and not np.any(np.ascontiguousarray(y).view(np.uint32) & 0xFFFF):
            found.append(2.0**-7)
    return max(found)


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
) -> bool | None:
    signature = signature.replayed()
    together, residuals = adapter.forward(loaded, inputs, signature, positions)
    outputs = trees.flatten(together)[0]
    precision = precision_of(outputs)
    weights = [draw.normal(size=y.shape) * (y.dtype.kind in INEXACT) for y in outputs]
    for part in (half, ~half):
        some = [x[part] if yes else x for x, yes in zip(inputs, rowed)]
        alone, kept = adapter.forward(loaded, some, signature, positions)
        leaves = trees.flatten(alone)[0]
        if not all(len(y) == len(half) and close(y[part], a, precision) for y, a in zip(outputs, leaves)):
            return False
        if not positions or not any(np.any(w) for w in weights):
            continue
        pulled = [np.where(_column(part, w), w, 0.0) for w in weights]
        adapter.zero(residuals)
        of_all = adapter.backward(residuals, pulled, positions)
        adapter.zero(kept)
        of_part = adapter.backward(kept, [w[part] for w in weights], positions)
        if not all(np.isfinite(gradient).all() for gradient in (*of_all, *of_part)):
            return None
        for position, among, apart in zip(positions, of_all, of_part):
            if position and rowed[position - 1]:
                if np.any(among[~part]) or not close(among[part], apart, precision):
                    return False
            elif not close(among, apart, precision):
                return False
    return True


def _column(rows: Array, like: Array) -> Array:
    return rows.reshape(-1, *(1,) * (like.ndim - 1))
