"""What `supervised_spec` finds out by computing with a model: at once, or where the specification is used.

Experiments fork processes for their trials. JAX and TensorFlow, once started, do not come along
(`gradbridge.forks`), so a specification does not start them: what it would compute waits for the run.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradbridge.layout import Array
from gradbridge.notices import notice
from gradbridge_seldonian.evaluation.probabilities import check_probabilities, rates
from gradbridge_seldonian.evaluation.rows import all_alike, can_share, independent
from gradbridge_seldonian.outputs import SpecError, tried
from gradbridge_seldonian.specification.measures import check_classes
from gradbridge_seldonian.specification.trials import Minimized, called, try_measures

#: {key of a look: what it found}, in this process: each trial of an experiment has a copy of the specification.
_found: dict[str, bool] = {}


class FirstLook:
    """Something that is computed with a model once in each process that asks for it.

    Args:
        model: the engine's model; it decides when. A framework that must be started for it, and would not
            survive a fork, makes the look wait until it is called.
        look: computes; its errors are those of the first call. Pickles.
    """

    def __init__(self, model: Any, look: Callable[[], bool]) -> None:
        self._look, self._key = look, uuid.uuid4().hex
        runtime = model.bridge.adapter.traits.runtime if hasattr(model, "bridge") else None
        if runtime is None or runtime.is_started():
            self()

    def __call__(self) -> bool:
        """What was found."""
        if self._key not in _found:
            _found[self._key] = self._look()
        return _found[self._key]


class Looked:
    """An objective of the user's, before which something is looked at."""

    def __init__(self, objective: Callable[..., Any], look: Callable[[], Any]) -> None:
        functools.update_wrapper(self, objective)
        self._objective, self._look = objective, look

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._look()
        return self._objective(*args, **kwargs)


def look_at(
    model: Any,
    trees: Sequence[Any],
    read: Sequence[Any],
    start: np.ndarray,
    seen: tuple[Any, ...],
    minimized: Minimized,
    rows: tuple[str, bool, int | None],
) -> bool:
    """All that is computed with a model before the engine does: whether its rows are independent.

    Args:
        model: of the specification.
        trees: its constraints.
        read: the data sets.
        start: (P,)
        seen: features and labels of candidate selection.
        minimized: the objective and its gradient.
        rows: the argument of that name, whether constraints have groups, and how many rows come at once.
    """
    sub_regime = read[0].meta.sub_regime
    readers = rates(trees) + ["the objective"] * (minimized.own is None)
    for each in read:
        check_classes(trees, _try_model(model, each, start, sub_regime, readers))
    minimized.try_at(model, start, seen, {"sub_regime": sub_regime})
    return _rows_are_independent(model, read[0], start, *rows)


def look_at_custom(
    model: Any, trees: Sequence[Any], dataset: Any, start: np.ndarray, seen: tuple[Any], minimized: Minimized
) -> bool:
    """The same for the custom regime, where nothing is shared."""
    minimized.try_at(model, start, seen, {})
    try_measures(trees, model, start, dataset, *seen)
    return False


def _try_model(
    model: Any, dataset: Any, start: np.ndarray, sub_regime: str, readers: Sequence[str]
) -> tuple[int, ...]:
    """Predict a few rows, to see that the shapes fit, and that probabilities are some; warn where all are equal.

    Args:
        model, dataset, start, sub_regime: of the specification.
        readers: names of what reads predictions as probabilities.

    Returns:
        The shape of one row's prediction, () or (classes,).
    """

    def looked() -> Array:
        found = tried(model, dataset, start, sub_regime)
        check_probabilities(model, found, sub_regime, readers)
        step = 3.0 * np.random.default_rng(0).normal(size=start.shape)
        for away in (start + step, start - step) if sub_regime != "regression" and readers else ():
            try:  # equal logits of zero are in range where training starts, and nowhere else
                with np.errstate(all="ignore"):
                    there = tried(model, dataset, away, sub_regime)
            except Exception:  # a model may not be defined there, and no run needs it to be
                continue
            check_probabilities(model, there, sub_regime, readers)
        return found

    name = f"predict of {type(model).__name__}"
    found = called(name, looked)
    alike = sub_regime != "regression" and all_alike(found)
    if alike and all_alike(called(name, lambda: model.predict(start, dataset.features))):
        notice(
            f"{type(model).__name__} predicts the same for all {len(dataset.labels)} rows at the initial solution. A constraint "
            f"on rates then has a standard deviation of zero, which has no gradient, and the engine gives up with "
            f"'NSF' at its first step; start elsewhere, e.g. at the model's own parameters",
        )
    return tuple(found.shape[1:])


def _rows_are_independent(
    model: Any, dataset: Any, start: np.ndarray, rows: str, grouped: bool, batch_size: int | None
) -> bool:
    """Whether groups may take their predictions from those for all rows; see `supervised_spec`."""
    # Of a list of features groups are not shared: each is asked for by itself.
    useful = grouped and type(dataset.features) is not list and can_share(model)
    if rows == "together" or (rows == "auto" and not useful):
        return False
    if not can_share(model):
        raise SpecError(
            f"rows='independent' was asked for, so that groups take their predictions from those for all rows. "
            f"That needs a SeldonianModel with its own predict, in eval mode, that draws no random numbers and "
            f"remembers evaluations (reuse=1 or more), and {type(model).__name__} is none; leave rows= out"
        )
    found = independent(model, dataset.features, start, batch_size)
    if found is False and rows == "independent":
        raise SpecError(
            f"rows='independent' was asked for, and the rows of {type(model).__name__} over "
            f"{model.bridge.adapter.label} are not independent of each other: some of them are predicted "
            f"differently alone and among others, or have a gradient in others; leave rows= out"
        )
    return rows == "independent" or found is True
