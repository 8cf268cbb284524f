"""The engine's parse trees, evaluated in one sweep, with their confidence bounds in one step each.

Where the rows of a model are independent, the nodes take theirs from one evaluation of all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import Box, defjvp, defvjp, primitive

from gradbridge_seldonian.engine import BaseNode, ParseTree, tinv
from gradbridge_seldonian.shared import Shared, has_own_zhat
from gradbridge_seldonian.sweep import Sweep


class SweptTree(ParseTree):
    """A parse tree of the engine that gives the same bounds, and their gradient without a second evaluation.

    Bounds of the nodes are numbers after an evaluation at numbers, as in the engine.
    """

    @classmethod
    def of(cls, tree: Any) -> SweptTree:
        """The same tree; the nodes are shared, the given one is not used any more."""
        own = cls.__new__(cls)
        own.__dict__.update(tree.__dict__)
        own._sweep, own._shared = Sweep(), Shared()
        own._sharing = []
        for node in own.base_nodes():
            _quicken(node)
            if has_own_zhat(node):
                node.zhat = functools.partial(_shared_zhat, node, own._shared)
                own._sharing.append(node)
        return own

    def base_nodes(self) -> list[Any]:
        """The leaves that are statistics of the data; several may be of one name."""
        return [node for node in self._nodes(self.root) if isinstance(node, BaseNode)]

    def share_rows(self, bridge: Any, is_independent: Callable[[], bool]) -> None:
        """Let nodes take their rows from predictions for all, where the rows of this bridge are independent."""
        self._shared.allow(bridge, is_independent)

    def propagate_bounds(self, **kwargs: Any) -> None:
        """See the engine. In candidate selection the upper bound of the root comes from the sweep."""
        if (
            kwargs.get("branch") != "candidate_selection"
            or kwargs.get("regime") != "supervised_learning"
            or "tree_dataset_dict" not in kwargs
            or self.root is None
            or self.root.will_lower_bound
        ):
            super().propagate_bounds(**kwargs)
            return
        self.root.upper = self._sweep(kwargs["theta"], _data(kwargs), lambda t: self._upper(t, kwargs))

    def _protect_nan(self, bound: Any, bound_type: str) -> Any:
        """See the engine; looks at the number in a box, which costs a third of a traced look."""
        if _plain(bound) == _plain(bound):
            return bound
        return float("-inf") if bound_type == "lower" else float("inf")

    def _upper(self, theta: Any, kwargs: dict[str, Any]) -> Any:
        self._shared.begin(theta, self._sharing, self.base_node_dict, kwargs)
        try:
            super().propagate_bounds(**{**kwargs, "theta": theta})
        finally:
            self._shared.end()
        upper = self.root.upper
        if isinstance(theta, Box):
            self._unbox()
        return upper

    def _unbox(self) -> None:
        """Make numbers of the bounds: a box would keep the graph of this evaluation alive in the tree."""
        for node in self._nodes(self.root):
            node.lower, node.upper = _plain(node.lower), _plain(node.upper)
        for entry in self.base_node_dict.values():
            entry.update({key: _plain(entry[key]) for key in ("lower", "upper") if key in entry})

    def __getstate__(self) -> dict[str, Any]:
        # The last bound may be traced: its graph belongs to a run, and cannot be pickled.
        self._unbox()
        return self.__dict__

    def _nodes(self, node: Any) -> Iterator[Any]:
        if node is not None:
            yield node
            yield from self._nodes(node.left)
            yield from self._nodes(node.right)


def _data(kwargs: dict[str, Any]) -> list[Any]:
    """All that bounds depend on besides θ."""
    found = [kwargs["model"], kwargs.get("n_safety"), kwargs.get("sub_regime")]
    for name, dataset in kwargs["tree_dataset_dict"].items():
        features = dataset.features if type(dataset.features) is list else [dataset.features]
        labels = dataset.labels if type(dataset.labels) is list else [dataset.labels]
        found += [name, *features, *labels, dataset.sensitive_attrs, dataset.num_datapoints]
    return found


def _plain(value: Any) -> Any:
    while isinstance(value, Box):
        value = value._value
    return value


def _shared_zhat(node: Any, shared: Shared, model: Any, **kwargs: Any) -> Any:
    return BaseNode.zhat(node, model=shared.model_for(node, model), **kwargs)


def _quicken(node: Any) -> None:
    """Give a node whose t-test bounds are the engine's own the same bounds in one step of autograd's."""
    own = type(node)
    if all(
        getattr(own, name) is getattr(BaseNode, name)
        for name in (
            "calculate_bounds",
            "predict_HC_lowerbound",
            "predict_HC_upperbound",
            "predict_HC_upper_and_lowerbound",
        )
    ):
        node.predict_HC_lowerbound = functools.partial(_predicted, node, "lower")
        node.predict_HC_upperbound = functools.partial(_predicted, node, "upper")


def _predicted(node: Any, side: str, data: Any, datasize: Any, delta: Any, **kwargs: Any) -> Any:
    """The bound that the safety test will find, predicted: mean ± factor · s / √n · t(1 − δ, n − 1)."""
    if kwargs.get("bound_method") != "ttest":
        return getattr(BaseNode, f"predict_HC_{side}bound")(node, data, datasize, delta, **kwargs)
    factor = -node.infl_factor_lower if side == "lower" else node.infl_factor_upper
    return _ttest_bound(data, factor / np.sqrt(datasize) * _quantile(1.0 - delta, datasize - 1))


@functools.lru_cache(maxsize=1024)
def _quantile(p: float, degrees: int) -> float:
    """Of Student's t distribution; the same few in every iteration, and each takes 50 µs."""
    return float(tinv(p, degrees))


@primitive
def _ttest_bound(data: Any, factor: float) -> Any:
    """mean + factor · s of (n,) data, s the standard deviation with Bessel's correction."""
    n = len(data)
    mean = data.sum() / n
    around = data - mean
    return mean + factor * np.sqrt(around.dot(around) / (n - 1))


def _slope(answer: Any, data: Any, factor: float) -> Any:
    """∂ bound / ∂ data, (n,), from s = (bound − mean) / factor; differentiable again."""
    n = len(data)
    if not factor:
        return np.full(n, 1 / n)
    mean = (anp if isinstance(data, Box) else np).sum(data) / n
    return 1 / n + factor**2 / ((n - 1) * (answer - mean)) * (data - mean)


defvjp(_ttest_bound, lambda answer, data, factor: lambda v: v * _slope(answer, data, factor), None)
defjvp(_ttest_bound, lambda t, answer, data, factor: anp.sum(t * _slope(answer, data, factor)), None)
