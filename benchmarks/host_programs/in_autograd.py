"""HIPS autograd: the host of float64 programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd import value_and_grad
from autograd.extend import defvjp, primitive

import gradbridge as gb
from benchmarks.host_programs.system import Guest, Step, System, Weights


def network(params: Weights, x: Any) -> Any:
    """An MLP with tanh between its layers."""
    for weight, bias in params[:-1]:
        x = anp.tanh(anp.dot(x, weight) + bias)
    weight, bias = params[-1]
    return anp.dot(x, weight) + bias


class Autograd(System):
    """Weights as the vector that its optimizers want, and as a list of arrays."""

    name, label, dtype = "autograd", "autograd", "float64"
    passes_vectors = True

    def guest(self, weights: Weights) -> Guest:
        outputs = len(weights[-1][1])
        # Compiled programs of other hosts ask for shapes, which autograd knows only after it has computed.
        f = gb.bridge(
            network, params=weights, backend="autograd", outputs=lambda x: ((x.shape[0], outputs), x.dtype)
        )
        return Guest(f, weights)

    def alone(self, weights: Weights, X: np.ndarray, way: str) -> Step:
        return self.program(network, weights, X, way)

    def program(self, f: Callable[[Any, Any], Any], tree: Any, X: np.ndarray, way: str) -> Step:
        through = value_and_grad(lambda p: anp.sum(f(p, X) ** 2))
        return lambda: through(tree)

    def empty(self, way: str) -> Step:
        p = np.ones(3)
        return lambda: _empty_program(p)


@primitive
def _empty(p: np.ndarray) -> np.ndarray:
    return p


defvjp(_empty, lambda ans, p: lambda g: g)
_empty_program = value_and_grad(lambda p: anp.sum(_empty(p) ** 2))
