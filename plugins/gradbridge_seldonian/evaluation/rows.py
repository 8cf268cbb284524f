"""Whether the rows of a model are independent of each other: looked at, never assumed.

If they are, what the model predicts for a group of data points is so many rows of what it predicts
for all of them, and need not be computed again (`gradbridge_seldonian.evaluation.shared`). A model that centres
its inputs by the mean of the batch, or lets rows attend to each other, predicts something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gradbridge import Bridge
from gradbridge.call_spec import CallSpec
from gradbridge.derivatives.independence import seem_independent
from gradbridge.errors import GradbridgeError
from gradbridge.layout import Array
from gradbridge.protocol import Adapter
from gradbridge_seldonian.model import SeldonianModel

#: What `supervised_spec` may be told of the rows.
ROWS = ("auto", "independent", "together")

# Rows that are looked at, and ways of halving them.
_SEEN = 128
_SPLITS = 3
_PAIRS = 4


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
    if not all(type(x) is np.ndarray for x in inputs):
        return None  # as a table of pandas, whose rows are taken in other ways
    random = np.random.default_rng(0)
    seen = min(_SEEN, len(inputs[0]), max(most or _SEEN, 4)) // 2 * 2
    if not seen:
        return None
    some = np.sort(random.choice(len(inputs[0]), seen, replace=False))
    inputs = [x[some] for x in inputs]
    told = False
    for number, theta in enumerate(_points(model.bridge, start, random)):
        try:
            found = _independent_at(model, inputs, theta)
        except GradbridgeError:
            found = None
        if found is False:
            return False
        told |= bool(found and number)  # at the start alone it could be hidden
    return True if told else None


def seem_dependent(bridge: Bridge, inputs: Sequence[Array], start: Array) -> bool:
    """Look whether rows have other outputs among others than in smaller company, down to alone.

    Where that cannot be seen, because numbers are not finite or are the same for all rows, it is not.

    Args:
        bridge: the model, whether or not it draws random numbers.
        inputs: a few rows each, two at least.
        start: (P,) parameters, near which it is looked at.
    """
    adapter, spec = bridge.adapter, CallSpec.of_arrays(len(inputs))
    rows, has_rows = len(inputs[0]), (True,) * len(inputs)
    pairs = [[x[i : i + 2] for x in inputs] for i in range(0, min(rows - 1, 2 * _PAIRS), 2)]
    for theta in _points(bridge, start, np.random.default_rng(0)):
        loaded = adapter.update(adapter.layout.cut(theta))
        for some in (*pairs, inputs):  # a pair's halves are rows alone
            gradients = adapter.traits.is_gradient_cheap and some is inputs
            try:
                found = seem_independent(adapter, loaded, some, has_rows, spec, gradients)
            except GradbridgeError:
                # Such as a batch's statistics of one row; or it fails at these parameters for any.
                found = not _runs(adapter, loaded, inputs, spec)
            if found is False:
                return True
    return False


def _runs(adapter: Adapter, loaded: Any, inputs: Sequence[Array], spec: CallSpec) -> bool:
    try:
        adapter.forward(loaded, inputs, spec, ())
    except GradbridgeError:
        return False
    return True


def _points(bridge: Bridge, start: Array, random: np.random.Generator) -> Iterator[Array]:
    """The start, and two points around it: by about what an initialisation would draw, and by less."""
    scales = [
        np.full(size, 0.1 if len(shape) < 2 else np.sqrt(min(shape) / max(size, 1)))
        for shape, size in zip(bridge.layout.shapes, bridge.layout.sizes)
    ]
    step = random.normal(size=start.size) * np.concatenate([np.empty(0), *scales])
    yield start
    yield start + step
    yield start + 0.1 * step


def _independent_at(model: SeldonianModel, inputs: Sequence[Array], theta: Array) -> bool | None:
    # The adapter tells in the precision that it computes in; the bridge, in that of the parameters.
    adapter = model.bridge.adapter
    loaded, spec = adapter.update(adapter.layout.cut(theta)), CallSpec.of_arrays(len(inputs))
    output, _ = adapter.forward(loaded, inputs, spec, ())
    if not hasattr(output, "shape") or tuple(output.shape[:1]) != (len(inputs[0]),):
        return None
    together = adapter.border.view(output)
    if not np.isfinite(together).all() or all_alike(together):
        return None
    gradients = adapter.traits.is_gradient_cheap
    has_rows = (True,) * len(inputs)
    looks = [
        seem_independent(adapter, loaded, inputs, has_rows, spec, gradients and not split, split)
        for split in range(_SPLITS)
    ]
    return False if False in looks else None if None in looks else True


def all_alike(predictions: Any) -> bool:
    """Whether all rows are equal."""
    return bool(np.all(predictions == predictions[:1]))
