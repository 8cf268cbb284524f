"""A network as a guest's model, whatever the framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from fuzz.interpreter import interpret
from fuzz.networks import Network


@dataclass(frozen=True)
class Built:
    """A model, and how it is bridged.

    Attributes:
        model: what `gradbridge.bridge` is given.
        options: for it, besides those that are drawn.
        names: of the inputs in the model's signature, for ``nondiff=``.
    """

    model: Any
    options: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ("first", "second")


class Guest(Protocol):
    """One framework.

    Attributes:
        styles: the kinds of models that it has.
        queries: how many are asked of each bridge, at least and at most.
    """

    styles: tuple[str, ...]
    queries: tuple[int, int]

    def build(self, network: Network, style: str, dtype: str, frozen: frozenset[str]) -> Built:
        """A model.

        Args:
            network: what it computes.
            style: one of `styles`.
            dtype: of its parameters.
            frozen: names of parameters that are not trained; functions have none of them.
        """


def function_of(network: Network, weights: Mapping[str, Any], words: Any, backend: str) -> Built:
    """A network as a function of a tree of its parameters; in which form they come is drawn with it.

    Args:
        network: what it computes.
        weights: arrays that the framework takes.
        words: its operations.
        backend: its name.
    """
    form, names = ("dict", "list", "nested")[network.seed % 3], tuple(weights)

    def function(params: Any, first: Any, second: Any = None) -> Any:
        inputs = (first,) if second is None else (first, second)
        return interpret(network, _from_tree(params, names, form).__getitem__, inputs, words)

    return Built(function, {"params": _tree_of(weights, form), "backend": backend})


def _tree_of(weights: Mapping[str, Any], form: str) -> Any:
    """Parameters of a function: ``"dict"`` {name: array}, ``"list"``, or ``"nested"`` by layers."""
    if form == "list":
        return list(weights.values())
    if form == "dict":
        return dict(weights)
    nested: dict[str, dict[str, Any]] = {}
    for name, array in weights.items():
        layer, own = name.split(".")
        nested.setdefault(layer, {})[own] = array
    return nested


def _from_tree(tree: Any, names: tuple[str, ...], form: str) -> dict[str, Any]:
    """The way back."""
    if form == "list":
        return dict(zip(names, tree))
    if form == "dict":
        return dict(tree)
    return {name: tree[name.split(".")[0]][name.split(".")[1]] for name in names}


def cast(weights: Mapping[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """Weights in the dtype of a model."""
    return {name: np.asarray(array, dtype) for name, array in weights.items()}
