"""The scenarios of the conformance kit in MyGrad."""

from __future__ import annotations

from typing import Any, ClassVar

import mygrad as mg

from gradbridge.extend import Array
from gradbridge.testing import BackendUnderTest, Native


class UnderTest(BackendUnderTest):
    """The scenarios, as functions of MyGrad's tensors."""

    backend: ClassVar[str] = "mygrad"
    reasons: ClassVar[dict[str, str]] = {
        "dropout": "MyGrad has no random layers",
        "batchnorm": "MyGrad keeps no running statistics",
        "wave": "MyGrad has no complex numbers",
    }

    def mlp(self, weight1: Array, bias1: Array, weight2: Array, bias2: Array) -> Any:
        """Two layers and a tanh."""
        params = {"w1": weight1, "b1": bias1, "w2": weight2, "b2": bias2}
        return Native(lambda p, x: mg.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"], params=params)

    def embedding(self, table: Array) -> Any:
        """A lookup."""
        return Native(lambda p, x: p[x], params=table)

    def energy(self) -> Any:
        """A function of tensors."""
        return lambda x, y: (x**2 * y).sum()

    def outputs(self, scale: Array) -> Any:
        """A dict with a tuple in it."""
        return Native(lambda p, x: {"scaled": x * p, "rest": (x**2, (p**2).sum())}, params=scale)

    def tied(self, weight: Array) -> Any:
        """One parameter, twice."""
        return Native(lambda p, x: mg.tanh(x @ p) @ p, params=weight)

    def unused(self, weight: Array, spare: Array) -> Any:
        """A parameter and an input without influence."""
        return Native(lambda p, x, y: mg.exp(x @ p["weight"] / 4), params={"weight": weight, "spare": spare})

    def broadcast(self, scale: Array) -> Any:
        """A vector, a matrix and a row."""
        return Native(lambda p, t, x, m: mg.tanh(p * x + m) * t[:, None], params=scale)

    def masked(self) -> Any:
        """Booleans and integers; where() takes its condition from NumPy alone."""
        return lambda x, m, k: mg.where(m.data, k * x**2, x)

    def root(self, scale: Array) -> Any:
        """A derivative that may be infinite."""
        return Native(lambda p, x: p * mg.sqrt(x), params=scale)

    def labels(self, scale: Array) -> Any:
        """Integers beside what has a derivative; argmax() is NumPy's."""
        return Native(lambda p, x: (p * x, mg.tensor(x.data.argmax(1), constant=True)), params=scale)

    def switch(self) -> Any:
        """A string and a number."""
        return lambda x, name, k: k * x**3 if name == "cube" else k * x**2
