"""The scenarios of the conformance kit as NumPy functions with their gradients written down."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from gradbridge.protocol import Array
from gradbridge.testing import BackendUnderTest, Native


class UnderTest(BackendUnderTest):
    """See `gradbridge.testing.BackendUnderTest`."""

    backend: ClassVar[str] = "numpy"
    reasons: ClassVar[dict[str, str]] = {
        "dropout": "a plain function has no train mode",
        "batchnorm": "a plain function has no train mode",
    }

    def mlp(self, weight1: Array, bias1: Array, weight2: Array, bias2: Array) -> Native:
        """A function of a dict of parameters, with rules for it and for x."""

        def mlp(p: Any, x: Array) -> Any:
            return np.tanh(x @ p["weight1"] + p["bias1"]) @ p["weight2"] + p["bias2"]

        def of_params(ans: Array, p: Any, x: Array) -> Any:
            h = np.tanh(x @ p["weight1"] + p["bias1"])

            def pull(v: Array) -> Any:
                u = (v @ p["weight2"].T) * (1 - h**2)
                return {"weight1": x.T @ u, "bias1": u.sum(0), "weight2": h.T @ v, "bias2": v.sum(0)}

            return pull

        def of_x(ans: Array, p: Any, x: Array) -> Any:
            h = np.tanh(x @ p["weight1"] + p["bias1"])
            return lambda v: ((v @ p["weight2"].T) * (1 - h**2)) @ p["weight1"].T

        params = {"weight1": weight1, "bias1": bias1, "weight2": weight2, "bias2": bias2}
        return Native(mlp, params=params, vjp=(of_params, of_x))

    def embedding(self, table: Array) -> Native:
        """A function of one array of parameters; its gradient is a flat vector."""

        def of_table(ans: Array, table: Array, x: Array) -> Any:
            def pull(v: Array) -> Array:
                gradient = np.zeros_like(table)
                np.add.at(gradient, x, v)
                return gradient.ravel()

            return pull

        return Native(lambda table, x: table[x], params=table, vjp=of_table)

    def energy(self) -> Native:
        """A function of two arrays."""
        return Native(
            lambda x, y: np.sum(x**2 * y),
            vjp=(lambda ans, x, y: lambda v: 2 * v * x * y, lambda ans, x, y: lambda v: v * x**2),
        )

    def outputs(self, scale: Array) -> Native:
        """A function that returns a dict with a tuple in it; its cotangent is one, too."""
        return Native(
            lambda s, x: {"scaled": x * s, "rest": (x**2, np.sum(s**2))},
            params=scale,
            vjp=(
                lambda ans, s, x: lambda v: (v["scaled"] * x).sum(0) + 2 * v["rest"][1] * s,
                lambda ans, s, x: lambda v: v["scaled"] * s + 2 * v["rest"][0] * x,
            ),
        )

    def tied(self, weight: Array) -> Native:
        """A parameter that is used twice: the rule adds both."""

        def of_weight(ans: Array, w: Array, x: Array) -> Any:
            h = np.tanh(x @ w)
            return lambda v: h.T @ v + x.T @ ((v @ w.T) * (1 - h**2))

        return Native(
            lambda w, x: np.tanh(x @ w) @ w,
            params=weight,
            vjp=(
                lambda ans, w, x: lambda v: of_weight(ans, w, x)(v).ravel(),
                lambda ans, w, x: lambda v: ((v @ w.T) * (1 - np.tanh(x @ w) ** 2)) @ w.T,
            ),
        )

    def unused(self, weight: Array, spare: Array) -> Native:
        """A rule of None declares that y has no influence."""
        return Native(
            lambda p, x, y: np.exp(x @ p["weight"] / 4),
            params={"spare": spare, "weight": weight},
            vjp=(
                lambda ans, p, x, y: lambda v: {"weight": x.T @ (v * ans) / 4, "spare": np.zeros(4)},
                lambda ans, p, x, y: lambda v: (v * ans) @ p["weight"].T / 4,
                None,
            ),
        )

    def state(self, model: Any) -> Any:
        """NumPy's global random state; functions have none of their own."""
        return str(np.random.get_state())  # noqa: NPY002
