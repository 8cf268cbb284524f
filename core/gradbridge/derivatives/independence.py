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
from gradbridge.audit.comparison import distances, rounding
from gradbridge.borders import INEXACT
from gradbridge.call_spec import CallSpec
from gradbridge.errors import DerivativeError, GuestError
from gradbridge.execution.steps import check_results
from gradbridge.layout import Array
from gradbridge.protocol import Adapter


def seem_independent(
    adapter: Adapter,
    loaded: Any,
    inputs: Sequence[Any],
    has_rows: Sequence[bool],
    spec: CallSpec,
    gradients: bool = True,
    seed: int = 0,
) -> bool | None:
    """Look at a few rows together, and at two halves of them apart.

    Args:
        adapter: the model; no state of its moves.
        loaded: what its `update` returned.
        inputs: leaves, of two rows or more; a few.
        has_rows: for each, whether its first axis are the rows.
        spec: of the call.
        gradients: False looks at the outputs alone, where a gradient costs many evaluations.
        seed: of the halves.

    Returns:
        None where gradients are not finite, and so tell nothing of the rows.
    """
    count = next(len(x) for x, yes in zip(inputs, has_rows) if yes)
    draw = np.random.default_rng(seed)
    half = draw.permutation(count) < count // 2
    for wrt in _candidates(adapter, inputs) if gradients else ((),):
        try:
            return _agree(adapter, loaded, inputs, has_rows, spec, wrt, half, draw)
        except (DerivativeError, GuestError):
            if not wrt:
                raise
    raise AssertionError("the last of them is nothing")  # pragma: no cover


def close(together: Array, apart: Array, precision: float) -> bool:
    """Whether two arrays are the same to the rounding of sums in another order.

    Args:
        together, apart: the arrays.
        precision: that they were computed in.
    """
    if together.shape != apart.shape:
        return False
    if together.dtype.kind not in INEXACT:
        return bool(np.array_equal(together, apart))
    tolerance = precision**0.7
    scale = float(np.max(np.abs(apart), initial=0.0, where=np.isfinite(apart)))
    return bool(np.allclose(together, apart, rtol=tolerance, atol=tolerance * scale, equal_nan=True))


def visible_precision(outputs: Sequence[Array]) -> float:
    """The coarsest precision that outputs were computed in: 2⁻⁵² for float64, 2⁻⁷ for bfloat16.

    Guests hand out bfloat16 as float32, which has nothing in the lower half of its bits then.
    """
    precisions = [2.0**-52]
    for y in outputs:
        if y.dtype.kind in INEXACT:
            precisions.append(float(np.finfo(y.dtype).eps))
        # Zeros are of any precision, so they do not make it a coarse one.
        is_told = y.dtype == np.float32 and 2 * np.count_nonzero(y) > y.size
        if is_told and not np.any(np.ascontiguousarray(y).view(np.uint32) & 0xFFFF):
            precisions.append(2.0**-7)
    return max(precisions)


def _candidates(adapter: Adapter, inputs: Sequence[Any]) -> list[tuple[int, ...]]:
    """What is differentiated: all that may be; where that cannot be, the weights alone; or nothing."""
    k = len(adapter.layout)
    weights = tuple(range(k))
    floating = [i for i, x in enumerate(inputs, k) if type(x) is np.ndarray and x.dtype.kind in INEXACT]
    return list(dict.fromkeys([(*weights, *floating), weights, ()]))


def _agree(
    adapter: Adapter,
    loaded: Any,
    inputs: Sequence[Any],
    has_rows: Sequence[bool],
    spec: CallSpec,
    wrt: tuple[int, ...],
    half: Array,
    draw: np.random.Generator,
) -> bool | None:
    spec, view, k = spec.replayed(), adapter.border.view, len(adapter.layout)

    def run(leaves: Sequence[Any]) -> tuple[list[Array], Any]:
        returned, residuals = adapter.forward(loaded, leaves, spec, wrt)
        return [view(y) for y in trees.flatten(returned)[0]], residuals

    outputs, residuals = run(inputs)
    if any(not y.ndim or len(y) != len(half) for y in outputs):
        return False
    precision = visible_precision(outputs)
    weights = [draw.normal(size=y.shape) * (y.dtype.kind in INEXACT) for y in outputs]
    pulls = bool(wrt) and any(np.any(w) for w in weights)
    for part in (half, ~half):
        pulled = [np.where(_column(part, w), w, 0.0) for w in weights]

        some = [x[part] if yes else x for x, yes in zip(inputs, has_rows)]

        def gradients(
            residuals: Any, cotangents: Sequence[Array] = pulled, of: Sequence[Any] = inputs
        ) -> list[Array]:
            if not pulls:
                return []
            natives = adapter.pull(residuals, cotangents, wrt)
            shapes = [*adapter.layout.shapes, *map(np.shape, of)]
            check_results(adapter, natives, wrt, [shapes[i] for i in wrt], kinds=["fc"] * len(wrt))
            return [view(g) for g in natives]

        alone, kept = run(some)
        of_all, of_part = gradients(residuals), gradients(kept, [w[part] for w in weights], some)
        if not all(np.isfinite(gradient).all() for gradient in (*of_all, *of_part)):
            return None
        own = [i >= k and has_rows[i - k] for i in wrt] if pulls else []
        if any(np.any(among[~part]) for among, yes in zip(of_all, own) if yes):
            return False
        rows = [*(True for _ in outputs), *own]
        among = [x[part] if yes else x for x, yes in zip((*outputs, *of_all), rows)]
        if all(close(a, b, precision) for a, b in zip(among, (*alone, *of_part))):
            continue
        # What is zero but for rounding differs by all of itself: it does so between neighbouring inputs, too.
        unit = max((float(np.finfo(y.dtype).eps) for y in outputs if y.dtype.kind in INEXACT), default=0.0)

        def compute(
            moved: list[Any], cotangents: list[Any], rows: Sequence[bool] = rows, part: Array = part
        ) -> list[Array]:
            near, kept = run(moved)
            return [x[part] if yes else x for x, yes in zip((*near, *gradients(kept, cotangents)), rows)]

        noise = rounding(compute, inputs, pulled, among, unit, draw, 7)
        for a, b, n in zip(among, (*alone, *of_part), noise):
            if a.shape != b.shape or not (
                close(a, b, precision) or np.max(distances(a, b), initial=0.0) <= 16 * np.max(n, initial=0.0)
            ):
                return False
    return True


def _column(rows: Array, like: Array) -> Array:
    return rows.reshape(-1, *(1,) * (like.ndim - 1))
