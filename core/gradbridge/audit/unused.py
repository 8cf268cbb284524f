"""Params without a gradient in the first differentiated call: without influence, or with one that no derivative follows."""

from __future__ import annotations

from collections.abc import Collection, MutableMapping, Sequence
from typing import Any

import numpy as np

from gradbridge.audit.comparison import agree
from gradbridge.borders import is_inexact
from gradbridge.errors import GradbridgeError
from gradbridge.layout import Array
from gradbridge.notices import notice

#: So many params are looked at one by one.
_FEW = 8


def note_unused(
    call: Any,
    evaluation: Any,
    gradients: Sequence[Array] | None,
    tolerance: float,
    notes: MutableMapping[str, str],
) -> None:
    """Note which params have no influence, and warn of those that the outputs do change with.

    Whether they change is looked at where the record leads to some params and not to others: it costs a forward, and
    where they do one more for each of these, if they are few.

    Args:
        call: that was evaluated, with nobody who observes it.
        evaluation: of it.
        gradients: of a random cotangent by `evaluation.wrt`; None where there are none.
        tolerance: of what repeats the same steps.
        notes: of the audit.
    """
    adapter = call.adapter
    names, count = adapter.layout.names, len(adapter.layout)
    leaves = call.arguments.leaves(evaluation.wrt)
    if gradients is None or not count or not set(range(count)) <= set(leaves):
        return
    is_vector = call.arguments.vectors[:1] == (True,)
    by_argument = dict(zip(evaluation.wrt, gradients))
    by_weight = adapter.layout.cut(by_argument[0]) if is_vector else [by_argument[i] for i in range(count)]
    unused = [i for i, g in enumerate(by_weight) if not np.any(g)]
    unreached = set(adapter.unreached(evaluation.residuals)) if unused else set()
    doubtful = [i for i in unused if i in unreached] if len(unreached) < len(leaves) else []

    def changes(weights: Collection[int]) -> bool:
        values = list(evaluation.values)
        parts = list(adapter.layout.cut(values[0])) if is_vector else values[:count]
        parts = [moved(part, i, True) if i in weights else part for i, part in enumerate(parts)]
        values = [adapter.layout.join(parts), *values[1:]] if is_vector else [*parts, *values[count:]]
        try:
            outputs = call.evaluate_at(values, evaluation.wrt).outputs
        except GradbridgeError:
            return False  # such params are not for it
        return not agree(evaluation.outputs, outputs, tolerance)

    cut = doubtful if doubtful and changes(doubtful) else []
    if len(cut) <= _FEW:
        cut = [i for i in cut if changes([i])]
    if cut:
        named = ", ".join(names[i] for i in cut[:_FEW])
        if len(cut) > _FEW:
            named = f"some of {named} … ({len(cut)} in all)"
        notes["cut"] = f"outputs change with {named}, and no derivative follows"
        notice(
            f"the outputs of {adapter.label} change with {named}, and no derivative leads there, so that the gradient is "
            f"zero: the model takes numbers out of its framework (NumPy, .item(), detach, no_grad); compute with the "
            f"framework's operations; or where that is meant, freeze them before bridging (requires_grad_(False)), or leave them out "
            f"of the params"
        )
    rest = [names[i] for i in unused if i not in cut]
    if rest and len(unused) < count:
        notes["unused"] = f"no influence on the outputs here: {', '.join(rest)}"


def moved(value: Any, index: int, is_weight: bool) -> Any:
    """Another argument of the same kind: rows of inputs in reverse; what is floating a hundredth away, no sign changed."""
    if not isinstance(value, np.ndarray) or not value.size:
        return value
    other = value if is_weight or not value.ndim or len(value) < 2 else value[::-1]
    if not is_inexact(value):
        return np.ascontiguousarray(other)
    factors = 1 + 0.01 * np.random.default_rng(index).uniform(0.5, 1.0, size=value.shape)
    farther = other * factors
    if is_weight:  # many a parameter starts at zero, and few models mind
        farther = np.where(other == 0, 0.01 * factors, farther)
    return farther.astype(value.dtype)
