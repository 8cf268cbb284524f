"""What a system is to this benchmark: it differentiates a program, and a network may be written in it."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

import gradbridge as gb

#: Weights of an MLP, (inputs, outputs) and (outputs,) for each of its layers.
Weights = list[tuple[np.ndarray, np.ndarray]]

#: Computes the value and the gradient, a tree or list of arrays, and has waited for both.
Step = Callable[[], tuple[Any, Any]]


class Guest(NamedTuple):
    """A network of one system, bridged.

    Attributes:
        bridge: over it.
        tree: its weights, in the form in which a program passes them: of NumPy, ``f(tree, X)``.
    """

    bridge: gb.Bridge
    tree: Any


class System(ABC):
    """An autodiff system.

    Attributes:
        name: of its backend.
        label: its name in the tables.
        dtype: of the arrays of its programs.
        ways: how its programs run; the first compiles nothing.
        usual: the one that its users take where time counts.
        passes_vectors: whether its programs also pass params as one flat vector.
        layer: what a bridge as a layer of this system's own kind is called in the tables; "" if there is none.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    dtype: ClassVar[str] = "float32"
    ways: ClassVar[tuple[str, ...]] = ("eager",)
    usual: ClassVar[str] = "eager"
    layer: ClassVar[str] = ""
    passes_vectors: ClassVar[bool] = False

    @abstractmethod
    def guest(self, weights: Weights) -> Guest:
        """An MLP with tanh between its layers as a model of this system, bridged."""

    @abstractmethod
    def alone(self, weights: Weights, X: np.ndarray, way: str) -> Step:
        """The same network in a program of this system and of no other; the loss is the sum of squares."""

    @abstractmethod
    def program(self, f: Callable[[Any, Any], Any], tree: Any, X: np.ndarray, way: str) -> Step:
        """A program that takes the sum of squares of a function of (weights, X), and its gradient by the weights.

        Args:
            f: differentiable in this system.
            tree: of arrays of NumPy, or one.
            X: of NumPy.
            way: one of `ways`.
        """

    @abstractmethod
    def empty(self, way: str) -> Step:
        """The same of the identity of three numbers, as an operation of its own by this system's means for such."""

    def as_layer(self, bridge: gb.Bridge, X: np.ndarray) -> Step:
        """A program over the bridge as a layer, the first way; for systems that have `layer`."""
        raise NotImplementedError


def random_weights(sizes: Sequence[int]) -> Weights:
    """Weights that keep the size of what goes through, the same in every system."""
    rng = np.random.default_rng(0)
    return [
        (rng.normal(size=(a, b)) / np.sqrt(a), rng.normal(size=b) / 10) for a, b in itertools.pairwise(sizes)
    ]


def cast(tree: Any, dtype: str) -> Any:
    """The same tree of arrays in another dtype."""
    if isinstance(tree, dict):
        return {name: cast(part, dtype) for name, part in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(cast(part, dtype) for part in tree)
    return np.asarray(tree, dtype)
