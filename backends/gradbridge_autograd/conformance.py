"""The scenarios of the conformance kit as functions of ``autograd.numpy``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import autograd.numpy as anp
from autograd.tracer import trace_stack

from gradbridge.layout import Array
from gradbridge.testing import BackendUnderTest, Native


class UnderTest(BackendUnderTest):
    """Functions of ``autograd.numpy``, and no models: autograd has none."""

    backend: ClassVar[str] = "autograd"
    reasons: ClassVar[Mapping[str, str]] = {
        "dropout": "autograd has functions only, without random numbers of their own",
        "batchnorm": "autograd has functions only, without statistics that move",
    }

    def mlp(self, weight1: Array, bias1: Array, weight2: Array, bias2: Array) -> Native:
        """Two linear maps and a tanh."""

        def mlp(params: Any, x: Any) -> Any:
            hidden = anp.tanh(anp.dot(x, params["weight1"]) + params["bias1"])
            return anp.dot(hidden, params["weight2"]) + params["bias2"]

        tree = {"weight1": weight1, "bias1": bias1, "weight2": weight2, "bias2": bias2}
        return Native(mlp, params=tree)

    def embedding(self, table: Array) -> Native:
        """Indexing by an array of integers."""
        return Native(lambda params, x: params["table"][x], params={"table": table})

    def energy(self) -> Any:
        """A function of arrays."""
        return lambda x, y: anp.sum(x**2 * y)

    def outputs(self, scale: Array) -> Native:
        """A function that returns a dict with a tuple in it."""

        def outputs(params: Any, x: Any) -> Any:
            return {"scaled": x * params["scale"], "rest": (x**2, anp.sum(params["scale"] ** 2))}

        return Native(outputs, params={"scale": scale})

    def tied(self, weight: Array) -> Native:
        """A function that uses its one parameter twice."""

        def tied(params: Any, x: Any) -> Any:
            return anp.dot(anp.tanh(anp.dot(x, params["weight"])), params["weight"])

        return Native(tied, params={"weight": weight})

    def unused(self, weight: Array, spare: Array) -> Native:
        """A function that ignores a parameter and an input."""

        def unused(params: Any, x: Any, y: Any) -> Any:
            return anp.exp(anp.dot(x, params["weight"]) / 4)

        return Native(unused, params={"weight": weight, "spare": spare})

    def wave(self, scale: Array) -> Native:
        """A function of complex arrays."""

        def wave(params: Any, x: Any, z: Any) -> Any:
            square = anp.real(z * anp.conj(z))
            return params["scale"] * anp.exp(1j * x) * z * square, square

        return Native(wave, params={"scale": scale})

    def broadcast(self, scale: Array) -> Native:
        """A function of a vector, a matrix and a row."""
        return Native(lambda p, t, x, m: anp.tanh(p * x + m) * t[:, None], params=scale)

    def masked(self) -> Any:
        """A function of booleans and integers."""
        return lambda x, m, k: anp.where(m, k * x**2, x)

    def root(self, scale: Array) -> Native:
        """A function whose derivative may be infinite."""
        return Native(lambda p, x: p * anp.sqrt(x), params=scale)

    def switch(self) -> Any:
        """A function of a string and a number."""
        return lambda x, name, k: k * x**3 if name == "cube" else k * x**2

    def labels(self, scale: Array) -> Native:
        """A function that returns integers beside what has a derivative."""
        return Native(lambda p, x: (p * x, anp.argmax(x, 1)), params=scale)

    def state(self, model: Any) -> Any:
        """autograd's counter of open traces, its only global state."""
        return trace_stack.top
