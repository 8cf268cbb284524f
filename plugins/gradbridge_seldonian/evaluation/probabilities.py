"""Whether what is read as probabilities is some: the engine's rates bound the predictions, whatever they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gradbridge.layout import Array
from gradbridge_seldonian.evaluation.statistics import is_engines
from gradbridge_seldonian.evaluation.trees import base_nodes
from gradbridge_seldonian.outputs import SpecError

# What the rounding of a softmax in float16 may add.
_TOLERANCE = 1e-2


def rates(trees: Iterable[Any]) -> list[str]:
    """The statistics of the engine's that trees name; in classification all of them are means of probabilities."""
    return [
        node.name for tree in trees for node in base_nodes(tree) if is_engines(node.measure_function_name)
    ]


def check_probabilities(model: Any, predictions: Array, sub_regime: Any, readers: Sequence[str]) -> None:
    """Refuse a classifier's predictions that are not probabilities, where something reads them as such.

    Args:
        model: of the engine, to be named.
        predictions: (n,) or (n, classes)
        sub_regime: as the engine names it.
        readers: names of what reads probabilities.

    Raises:
        SpecError: predictions outside of [0, 1], or of several classes that do not sum to 1.
    """
    found = np.asarray(predictions)
    if not readers or "classification" not in (sub_regime or "") or not found.size:
        return
    low, high = found.min(), found.max()
    why = ""
    if low < -_TOLERANCE or high > 1.0 + _TOLERANCE:
        why = f"predicts numbers from {low:.4g} to {high:.4g}"
    elif found.ndim == 2 and np.abs(found.sum(axis=1) - 1.0).max(initial=0.0) > _TOLERANCE:
        sums = found.sum(axis=1)
        why = f"predicts classes whose numbers sum to {sums.min():.4g} to {sums.max():.4g} in a row"
    if why:
        raise SpecError(
            f"{readers[0]} reads predictions as probabilities, and {type(model).__name__} {why}. Let it return "
            f"probabilities; SeldonianModel(…, output='logits') makes them of logits"
        )
