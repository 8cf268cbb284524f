"""Whether the rows of a model are independent of each other: looked at, never assumed.

If they are, what the model predicts for a group of data points is so many rows of what it predicts
for all of them, and need not be computed again (`gradbridge_seldonian.shared`). A model that centres
its inputs by the mean of the batch, or lets rows attend to each other, predicts something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gradbridge.errors import DerivativeError, GradbridgeError
from gradbridge.protocol import Array
from gradbridge_seldonian.model import SeldonianModel

#: What `supervised_spec` may be told of the rows.
ROWS = ("auto", "independent", "together")

# Words in an adapter's `gradient_note`: a gradient that costs an evaluation or more for each number.
_DEAR = ("numeric", "for each number")

# Rows that are looked at, and ways of halving them.
_SEEN = 128
_SPLITS = 3


def can_share(model: Any) -> bool:
    """Whether a model's predictions depend on θ and the features alone, and are remembered.

    A bridge has a memory only in eval mode and where it draws no random numbers. Without one the
    rows of all data points would have to be computed anew, which the groups alone may undercut.
    """
    return (
        isinstance(model, SeldonianModel)
        and type(model).predict is SeldonianModel.predict
        and "predict" not in vars(model)
        and model.bridge.memory is not None
        and not model.bridge.adapter.stochastic
    )


def independent(model: SeldonianModel, X: Any, start: Array, most: int | None = None) -> bool | None:
    """Look whether some rows of `X` are predicted alike alone and among others, and pull on themselves alone.

    At the start, and near it, because layers that start at zero hide what they will do.

    Args:
        model: one that `can_share`.
        X: features, an array with a row for each data point, or a list of them.
        start: (P,) where training starts.
        most: rows that the model is ever given at once, in mini-batches.

    Returns:
        Whether they are, as far as can be seen. None where it cannot be seen: the model failed on
        such rows, or gave numbers that are not finite or the same for all of them.
    """
    inputs = X if type(X) is list else [X]
    random = np.random.default_rng(0)
    seen = min(_SEEN, len(inputs[0]), max(most or _SEEN, 4)) // 2 * 2
    if not seen:
        return None
    some = np.sort(random.choice(len(inputs[0]), seen, replace=False))
    inputs = [x[some] for x in inputs]
    told = False
    for number, theta in enumerate(_points(model, start, random)):
        try:
            found = _independent_at(model, inputs, theta, random)
        except GradbridgeError:
            found = None
        if found is False:
            return False
        told |= bool(found and number)  # at the start alone it could be hidden
    return True if told else None


def _points(model: SeldonianModel, start: Array, random: np.random.Generator) -> Iterator[Array]:
    """The start, and two points around it: by about what an initialisation would draw, and by less."""
    scales = [
        np.full(size, 0.1 if len(shape) < 2 else np.sqrt(min(shape) / max(size, 1)))
        for shape, size in zip(model.bridge.layout.shapes, model.bridge.layout.sizes)
    ]
    step = random.normal(size=start.size) * np.concatenate([np.empty(0), *scales])
    yield start
    yield start + step
    yield start + 0.1 * step


def _independent_at(
    model: SeldonianModel, inputs: Sequence[Array], theta: Array, random: np.random.Generator
) -> bool | None:
    bridge, rows = model.bridge, len(inputs[0])
    together = bridge(theta, *inputs)
    if np.shape(together)[:1] != (rows,) or not np.isfinite(together).all() or all_alike(together):
        return None
    tolerance = _tolerance(np.ascontiguousarray(together))
    size = np.max(np.abs(together))
    for _ in range(_SPLITS):
        half = random.permutation(rows) < rows // 2
        for part in (half, ~half):
            alone = bridge(theta, *(x[part] for x in inputs))
            if np.shape(alone) != together[part].shape:
                return None
            if not np.allclose(alone, together[part], rtol=tolerance, atol=tolerance * size):
                return False
    if any(word in bridge.adapter.gradient_note for word in _DEAR):
        return True
    for position, x in enumerate(inputs, 1):
        if x.dtype.kind == "f":
            for part in (half, ~half):
                # A coupling too weak to be told from rounding still shows in a gradient that is not 0.
                cotangent = random.normal(size=together.shape)
                cotangent[~part] = 0.0
                try:
                    pulled = bridge.vjp(theta, *inputs, cotangent=cotangent, wrt=position)
                except DerivativeError:
                    break  # none to look at: held constant, or the guest has none
                if not np.isfinite(pulled).all():
                    return None
                if np.any(pulled[~part]):
                    return False
    return True


def _tolerance(predictions: Array) -> float:
    """What other ways of summing up may differ by, in the precision that the predictions tell of.

    The parameters' dtypes do not: a model may compute in another than its own.
    """
    with np.errstate(over="ignore"):
        single = predictions.astype(np.float32)
    if predictions.dtype.kind == "f" and not np.array_equal(single, predictions):
        return float(np.finfo(np.float64).eps) ** 0.7
    bits = single.view(np.uint32)
    zeros = next((n for n in (16, 13) if not np.any(bits & (2**n - 1))), 0)  # bfloat16, float16, float32
    return float(2.0 ** (zeros - 23)) ** 0.7


def all_alike(predictions: Any) -> bool:
    """Whether all rows are equal."""
    return bool(np.all(predictions == predictions[:1]))
