"""The networks that are timed: an MLP with tanh between its layers, in each framework and in autograd.numpy."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import autograd.numpy as anp
import numpy as np

import gradbridge as gb

# sizes of the layers, rows of the input
SIZES = {
    "tiny": ((10, 1), 100),
    "small": ((32, 64, 1), 256),
    "large": ((256, 512, 512, 512, 10), 256),
    "many": ((8,) * 81, 32),
}
FRAMEWORKS = ("torch", "jax", "tensorflow")


class Native(NamedTuple):
    """A model of one framework, and what the framework itself computes with it on the same data.

    Attributes:
        bridge: over the model, computing in the model's own precision.
        step: value and gradient of the sum of squares of its outputs, compiled where the framework compiles.
        product: a direction, (P,) → a function of no arguments that gives the Hessian of that sum times
            the direction, as arrays in the layout's order.
    """

    bridge: gb.Bridge
    step: Callable[[], object]
    product: Callable[[np.ndarray], Callable[[], Sequence[object]]]


def available() -> list[str]:
    """The frameworks that work here."""
    return [name for name in FRAMEWORKS if gb.backends()[name].available]


def native(framework: str, name: str, dtype: str = "float32") -> tuple[Native, np.ndarray]:
    """A network of `SIZES` in one framework, and its data.

    Args:
        framework: one of `FRAMEWORKS`.
        name: which network.
        dtype: of its parameters, its data and its computation.
    """
    sizes, rows = SIZES[name]
    X = np.random.default_rng(0).normal(size=(rows, sizes[0])).astype(dtype)
    make = importlib.import_module(f"benchmarks.native_{framework}").make
    return make(sizes, X), X


def sum_of_squares(f: Callable[..., object], *inputs: object) -> Callable[[np.ndarray], object]:
    """The loss of all benchmarks, as a function of the params."""
    return lambda params: anp.sum(f(params, *inputs) ** 2)


def in_autograd(sizes: Sequence[int], outputs_first: bool = False) -> Callable[..., object]:
    """The same network in autograd.numpy, as a function of the flat vector and its input.

    Args:
        sizes: of the layers.
        outputs_first: whether a weight's first axis is its outputs', as in PyTorch.
    """

    def network(params: np.ndarray, X: np.ndarray) -> object:
        start = 0
        for i, (a, b) in enumerate(itertools.pairwise(sizes)):
            weight = params[start : start + a * b]
            weight = weight.reshape((b, a)).T if outputs_first else weight.reshape((a, b))
            X = anp.dot(X, weight) + params[start + a * b : start + a * b + b]
            X = X if i == len(sizes) - 2 else anp.tanh(X)
            start += a * b + b
        return X

    return network
