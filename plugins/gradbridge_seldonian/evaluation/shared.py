"""Predictions that the nodes of one parse tree share: asked for once, for all data points, in a sweep.

Each base node of the engine asks the model for the rows of its group. The objective has asked it for
all rows at the same θ, so that a bridge that remembers has them, and a node only takes its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from autograd.extend import defjvp, defvjp, primitive

from gradbridge.execution.reuse import same_content
from gradbridge.protocol import Array
from gradbridge_seldonian.engine import BaseNode
from gradbridge_seldonian.evaluation.rows import can_share

# Multiply-adds that cost no more than the calls of the model that are saved (about 0.1 ms).
_FREE = 1 << 16


class Shared:
    """What the nodes of one tree may share. Belongs to the tree; `begin` and `end` surround a sweep."""

    def __init__(self) -> None:
        self._bridge: Any = None
        self._is_independent: Callable[[], bool] = bool
        self._parts: dict[str, Part] = {}

    @property
    def bridge(self) -> Any:
        """The one whose rows are independent of each other; None if those of no bridge are known to be.

        Only nodes that look at all data points share then.
        """
        return self._bridge if self._is_independent() else None

    def allow(self, bridge: Any, is_independent: Callable[[], bool]) -> None:
        """Let groups share the predictions of a bridge, where its rows turn out to be independent."""
        self._bridge, self._is_independent = bridge, is_independent

    def begin(self, theta: Any, nodes: Iterable[Any], entries: Any, kwargs: dict[str, Any]) -> None:
        """Plan which node takes which rows of which data set.

        Args:
            theta: (P,) that predictions will be asked for at, perhaps traced.
            nodes: base nodes of the tree.
            entries: the tree's `base_node_dict`.
            kwargs: what the engine hands `propagate_bounds`.
        """
        self.end()
        model, datasets = kwargs["model"], kwargs["tree_dataset_dict"]
        if not can_share(model):
            return
        wanted: dict[tuple[int, bool], tuple[Any, dict[str, Array | None]]] = {}
        for node in nodes:
            entry, of_objective = entries[node.name], node.name not in datasets
            dataset = datasets.get("all" if of_objective else node.name)
            if entry["bound_computed"] or entry["bound_method"] in ("manual", "random") or dataset is None:
                continue
            known = not node.conditional_columns or model.bridge is self.bridge
            rows = _rows(node, dataset) if known else ()
            if not isinstance(rows, tuple):
                parts = wanted.setdefault((id(dataset), of_objective), (dataset.features, {}))[1]
                parts[node.name] = rows
        for (_, of_objective), (features, parts) in wanted.items():
            if _pays(model, features, list(parts.values()), of_objective):
                whole = Whole(model, theta, features)
                self._parts.update({name: Part(whole, rows) for name, rows in parts.items()})

    def end(self) -> None:
        """Forget the sweep, and its graph with it."""
        self._parts = {}

    def model_for(self, node: Any, model: Any) -> Any:
        """The model as a node sees it: itself, or one that answers with its rows of the whole."""
        return self._parts.get(node.name, model)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": {}}


class Whole:
    """A model's predictions for one data set at one θ, made when they are first asked for."""

    def __init__(self, model: Any, theta: Any, features: Any) -> None:
        self.model, self.theta, self.features = model, theta, features
        self._made: Any = None

    def predictions(self) -> Any:
        """(n, …), traced if θ is."""
        if self._made is None:
            self._made = self.model.predict(self.theta, self.features)
        return self._made


class Part:
    """A model that predicts some rows of a data set by taking them from the predictions for all.

    Args:
        whole: the predictions for all.
        rows: (m,) indices, increasing; None for all of them.
    """

    def __init__(self, whole: Whole, rows: Array | None) -> None:
        self._whole, self._rows = whole, rows

    def predict(self, theta: Any, X: Any, **kwargs: Any) -> Any:
        """Predictions; whatever is not exactly those rows goes to the model itself."""
        whole, rows = self._whole, self._rows
        if theta is whole.theta and not kwargs:
            if rows is None:
                if X is whole.features:
                    return whole.predictions()
            elif same_content(X, whole.features[rows]):
                predictions = whole.predictions()
                if len(predictions) == len(whole.features):
                    return take(predictions, rows)
        return whole.model.predict(theta, X, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # before there is a whole to ask, as in a copy that is being made
            raise AttributeError(name)
        return getattr(self._whole.model, name)


def _rows(node: Any, dataset: Any) -> Array | tuple[()] | None:
    """Which rows a node looks at, as `BaseNode.mask_data` takes them; None for all, () if it cannot be told."""
    if not node.conditional_columns:
        return None
    attributes, names = dataset.sensitive_attrs, dataset.sensitive_col_names
    if (
        type(dataset.features) is not np.ndarray
        or type(attributes) is not np.ndarray
        or attributes.ndim != 2
        or len(attributes) != len(dataset.features)
        or not all(column in names for column in node.conditional_columns)
    ):
        return ()  # the engine makes of it what it can
    columns = [attributes[:, names.index(column)] == 1 for column in node.conditional_columns]
    return np.flatnonzero(np.logical_and.reduce(columns) if len(columns) > 1 else columns[0])


def _pays(model: Any, features: Any, parts: list[Array | None], of_objective: bool) -> bool:
    """Whether the whole, pulled back once, costs less than each part by itself.

    In rows that the guest computes: a forward is one, a backward about two. The forward of the whole
    is remembered if the objective made it. A model so small that the calls cost more than the rows
    shares in any case. It depends on the sizes alone, so a run can be repeated.
    """
    n = len(features[0] if type(features) is list else features)
    forwards = {None if rows is None else rows.tobytes(): n if rows is None else len(rows) for rows in parts}
    if of_objective:
        forwards[None] = 0
    pulled = sum(n if rows is None else len(rows) for rows in parts)
    apart = sum(forwards.values()) + 2 * pulled
    together = 2 * n + (0 if of_objective else n)
    if len(parts) == 1 and parts[0] is None:
        return False  # it is the whole already
    if together <= apart:
        return True
    width = 1 if type(features) is list else math.prod(features.shape[1:])
    return of_objective and (together - apart) * max(model.bridge.layout.size, width) <= _FREE


def has_own_zhat(node: Any) -> bool:
    """Whether a node's samples come from the engine's own method, which asks the model for its rows alone."""
    return all(getattr(type(node), name) is getattr(BaseNode, name) for name in ("zhat", "calculate_bounds"))


@primitive
def take(predictions: Any, rows: Array) -> Any:
    """predictions[rows], with a pullback that takes a tenth of what autograd's own does."""
    return predictions[rows]


@primitive
def put(v: Any, rows: Array, n: int) -> Any:
    """The pullback of `take`: zeros, with v in these rows."""
    whole = np.zeros((n, *v.shape[1:]), v.dtype)
    whole[rows] = v
    return whole


def _pull_take(answer: Any, predictions: Any, rows: Array) -> Any:
    n = len(predictions)
    return lambda v: put(v, rows, n)


defvjp(take, _pull_take, None)
defvjp(put, lambda answer, v, rows, n: lambda w: take(w, rows), None, None)
defjvp(take, lambda t, answer, predictions, rows: take(t, rows), None)
defjvp(put, lambda t, answer, v, rows, n: put(t, rows, n), None, None)
