"""The engine's parse trees, evaluated in one sweep, with their confidence bounds in one step each.

Where the rows of a model are independent, the nodes take theirs from one evaluation of all. Their
statistics are told the class that a node names, and every bound that a tree asks for is computed.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import Box, defjvp, defvjp, primitive

from gradbridge_seldonian.engine import BaseNode, ParseTree, tinv
from gradbridge_seldonian.evaluation.shared import Shared, has_own_zhat
from gradbridge_seldonian.evaluation.statistics import classes, masked, samples, value
from gradbridge_seldonian.evaluation.sweep import Sweep
from gradbridge_seldonian.evaluation.trees import base_nodes, nodes, written


class SweptTree(ParseTree):
    """A parse tree of the engine that gives the same bounds, and their gradient without a second evaluation.

    Bounds of the nodes are numbers after an evaluation at numbers, as in the engine.

    Attributes:
        written: the constraint in the user's words; `constraint_str` is what the engine made of them.
    """

    written: str

    @classmethod
    def of(cls, tree: Any) -> SweptTree:
        """The same tree; the nodes are shared, the given one is not used any more."""
        own = cls.__new__(cls)
        own.__dict__.update(tree.__dict__)
        own.written = written(tree)
        own._sweep, own._shared, own._of = Sweep(), Shared(), {}
        own._sharing = [node for node in own.base_nodes() if has_own_zhat(node)]
        own._unite_appearances()
        for node in own.base_nodes():
            _quicken(node)
            _set_right(node, own._shared)
        return own

    def base_nodes(self) -> list[Any]:
        """The leaves that are statistics of the data; several may be of one name."""
        return list(base_nodes(self))

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

    def _unite_appearances(self) -> None:
        """Let a statistic that a constraint names several times have all bounds that any of them needs.

        The engine computes those that the first needs: in ``max(A, B) - min(A, B)`` the lower ones
        would stay at −∞. Both sides share the confidence of the one.
        """
        for name, entry in self.base_node_dict.items():
            same = [node for node in self.base_nodes() if node.name == name]
            for side, other in (("lower", "upper"), ("upper", "lower")):
                entry[f"{side}_needed"] = any(getattr(node, f"will_{side}_bound") for node in same)
                if entry[f"{side}_needed"] and entry[f"delta_{side}"] is None and entry[f"delta_{other}"]:
                    entry[f"delta_{side}"] = entry[f"delta_{other}"] = entry[f"delta_{other}"] / 2
                    entry[f"infl_factor_{side}"] = entry[f"infl_factor_{other}"]
            for node in same:
                for side in ("lower", "upper"):
                    setattr(node, f"will_{side}_bound", entry[f"{side}_needed"])
                    setattr(node, f"delta_{side}", entry[f"delta_{side}"])
                    setattr(node, f"infl_factor_{side}", entry[f"infl_factor_{side}"])

    def _propagator_helper(self, node: Any, **kwargs: Any) -> None:
        """See the engine. A bound that is not a number is none: NaN would pass the safety test."""
        self._forget_other_data(node, kwargs)
        super()._propagator_helper(node, **kwargs)
        if isinstance(node, BaseNode):
            node.lower = self._protect_nan(node.lower, "lower")
            node.upper = self._protect_nan(node.upper, "upper")

    def _evaluator_helper(self, node: Any, **kwargs: Any) -> None:
        self._forget_other_data(node, kwargs)
        super()._evaluator_helper(node, **kwargs)

    def _forget_other_data(self, node: Any, kwargs: dict[str, Any]) -> None:
        """Keep a node's rows for one data set alone: the safety test takes what it finds, candidate data too."""
        datasets = kwargs.get("tree_dataset_dict")
        if datasets and isinstance(node, BaseNode):
            dataset = datasets.get(node.name, datasets.get("all"))
            if dataset is not None:
                before = self._of.get(node.name)
                if before is not None and before() is not dataset:
                    self.base_node_dict[node.name]["data_dict"] = None
                self._of[node.name] = weakref.ref(dataset)

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
        for node in nodes(self.root):
            node.lower, node.upper = _plain(node.lower), _plain(node.upper)
        for entry in self.base_node_dict.values():
            entry.update({key: _plain(entry[key]) for key in ("lower", "upper") if key in entry})

    def __getstate__(self) -> dict[str, Any]:
        # The last bound may be traced: its graph belongs to a run, and cannot be pickled. Nor do copies
        # keep the rows that were taken last: they would not know of which data they are.
        self._unbox()
        entries = {name: {**entry, "data_dict": None} for name, entry in self.base_node_dict.items()}
        return {**self.__dict__, "base_node_dict": entries, "_of": {}}


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


def _set_right(node: Any, shared: Shared) -> None:
    """Let a node's statistic be told what the node names, and share rows; methods of its own stay."""
    own = type(node)
    if own.zhat is BaseNode.zhat:
        node.zhat = functools.partial(_zhat, node, shared)
    elif classes(node):
        node.zhat = functools.partial(own.zhat, node, **classes(node))
    if own.mask_data is BaseNode.mask_data:
        node.mask_data = functools.partial(masked, node)
    if own.calculate_value is BaseNode.calculate_value:
        node.calculate_value = functools.partial(value, node)


def _zhat(node: Any, shared: Shared, model: Any, **kwargs: Any) -> Any:
    if kwargs["regime"] != "supervised_learning":
        return BaseNode.zhat(node, model=model, **kwargs)
    return samples(node, shared.model_for(node, model), **kwargs)


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
