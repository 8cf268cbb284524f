"""The scenarios of the conformance kit as NumPy functions with their derivatives written down.

Each writes its second order in another way, so that the kit checks all of them.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from gradbridge.layout import Array
from gradbridge.testing import BackendUnderTest, Native, Outside
from gradbridge_numpy.rules import VJPRule


class UnderTest(BackendUnderTest):
    """The scenarios as plain functions with written rules."""

    backend: ClassVar[str] = "numpy"
    builds = True
    reasons: ClassVar[dict[str, str]] = {
        "dropout": "a plain function has no train mode",
        "batchnorm": "a plain function has no train mode",
        "outside_in_flight": "a rule that is written by hand is called for each pull, and reads what is there then",
    }

    def mlp(self, weight1: Array, bias1: Array, weight2: Array, bias2: Array) -> Native:
        """A function of a dict of parameters: a VJP, a JVP, and the JVP of each VJP."""

        def hidden(p: Any, x: Array) -> Any:
            return np.tanh(x @ p["weight1"] + p["bias1"])

        def mlp(p: Any, x: Array) -> Any:
            return hidden(p, x) @ p["weight2"] + p["bias2"]

        @VJPRule
        def of_params(ans: Array, p: Any, x: Array) -> Any:
            h = hidden(p, x)

            def pull(v: Array) -> Any:
                u = (v @ p["weight2"].T) * (1 - h**2)
                return {"weight1": x.T @ u, "bias1": u.sum(0), "weight2": h.T @ v, "bias2": v.sum(0)}

            return pull

        @VJPRule
        def of_x(ans: Array, p: Any, x: Array) -> Any:
            h = hidden(p, x)
            return lambda v: ((v @ p["weight2"].T) * (1 - h**2)) @ p["weight1"].T

        def moved(t: Any, s: Any, p: Any, x: Array) -> Any:
            """Tangent of the hidden layer where the params move by t and x by s."""
            return (1 - hidden(p, x) ** 2) * (s @ p["weight1"] + x @ t["weight1"] + t["bias1"])

        def along(t: Any, s: Any, p: Any, x: Array, v: Array) -> Any:
            """Tangents of both gradients."""
            h, dh = hidden(p, x), moved(t, s, p, x)
            u = (v @ p["weight2"].T) * (1 - h**2)
            du = (v @ t["weight2"].T) * (1 - h**2) - 2 * (v @ p["weight2"].T) * h * dh
            params = {
                "weight1": s.T @ u + x.T @ du,
                "bias1": du.sum(0),
                "weight2": dh.T @ v,
                "bias2": 0 * v.sum(0),
            }
            return params, du @ p["weight1"].T + u @ t["weight1"].T

        def still(p: Any) -> Any:
            return {name: np.zeros_like(array) for name, array in p.items()}

        of_params.defjvp(
            lambda t, gradient, p, x, v: along(t, 0 * x, p, x, v)[0],
            lambda t, gradient, p, x, v: along(still(p), t, p, x, v)[0],
        )
        of_x.defjvp(
            lambda t, gradient, p, x, v: along(t, 0 * x, p, x, v)[1],
            lambda t, gradient, p, x, v: along(still(p), t, p, x, v)[1],
        )
        jvp = (
            lambda t, ans, p, x: (
                moved(t, 0 * x, p, x) @ p["weight2"] + hidden(p, x) @ t["weight2"] + t["bias2"]
            ),
            lambda t, ans, p, x: moved(still(p), t, p, x) @ p["weight2"],
        )
        params = {"weight1": weight1, "bias1": bias1, "weight2": weight2, "bias2": bias2}
        return Native(mlp, params=params, vjp=(of_params, of_x), jvp=jvp)

    def embedding(self, table: Array) -> Native:
        """A function of one array of parameters; its gradient is a flat vector, and does not depend on them."""

        @VJPRule
        def of_table(ans: Array, table: Array, x: Array) -> Any:
            def pull(v: Array) -> Array:
                gradient = np.zeros_like(table)
                np.add.at(gradient, x, v)
                return gradient.ravel()

            return pull

        of_table.defvjp(None)
        return Native(lambda table, x: table[x], params=table, vjp=of_table)

    def energy(self) -> Native:
        """A function of two arrays, with rules to third order; the rest follows by symmetry."""
        of_x = VJPRule(lambda ans, x, y: lambda v: 2 * v * x * y)
        of_y = VJPRule(lambda ans, x, y: lambda v: v * x**2)
        of_xx, _ = of_x.defvjp(
            lambda gradient, x, y, v: lambda u: 2 * v * y * u,
            lambda gradient, x, y, v: lambda u: 2 * v * x * u,
        )
        of_y.defvjp(None, argnums=(1,))
        of_xx.defvjp(None, lambda gradient, x, y, v, u: lambda w: 2 * v * u * w)
        return Native(lambda x, y: np.sum(x**2 * y), vjp=(of_x, of_y))

    def reading(self, native: Native, outside: Outside) -> Native:
        """A rule reads what its function reads."""
        of_x = native.options["vjp"][0]
        return Native(outside.reading(native.model), vjp=(lambda ans, x: of_x(ans, x, outside.read()),))

    def outputs(self, scale: Array) -> Native:
        """A function that returns a dict with a tuple in it; its cotangent is one, too."""
        of_scale = VJPRule(lambda ans, s, x: lambda v: (v["scaled"] * x).sum(0) + 2 * v["rest"][1] * s)
        of_x = VJPRule(lambda ans, s, x: lambda v: v["scaled"] * s + 2 * v["rest"][0] * x)
        of_scale.defvjp(
            lambda gradient, s, x, v: lambda u: 2 * v["rest"][1] * u,
            lambda gradient, s, x, v: lambda u: v["scaled"] * u,
            lambda gradient, s, x, v: lambda u: {"scaled": x * u, "rest": (0 * x, 2 * np.sum(s * u))},
        )
        of_x.defvjp(
            lambda gradient, s, x, v: lambda u: (v["scaled"] * u).sum(0),
            lambda gradient, s, x, v: lambda u: 2 * v["rest"][0] * u,
        )
        return Native(
            lambda s, x: {"scaled": x * s, "rest": (x**2, np.sum(s**2))},
            params=scale,
            vjp=(of_scale, of_x),
        )

    def tied(self, weight: Array) -> Native:
        """A parameter that is used twice: the rule adds both. Its gradient is a flat vector, and so is that one's tangent."""

        @VJPRule
        def of_weight(ans: Array, w: Array, x: Array) -> Any:
            h = np.tanh(x @ w)
            return lambda v: (h.T @ v + x.T @ ((v @ w.T) * (1 - h**2))).ravel()

        @VJPRule
        def of_x(ans: Array, w: Array, x: Array) -> Any:
            return lambda v: ((v @ w.T) * (1 - np.tanh(x @ w) ** 2)) @ w.T

        def along(t: Array, s: Array, w: Array, x: Array, v: Array) -> Any:
            """Tangents of the weight's gradient and of x's."""
            h = np.tanh(x @ w)
            dh = (1 - h**2) * (s @ w + x @ t)
            u = (v @ w.T) * (1 - h**2)
            du = (v @ t.T) * (1 - h**2) - 2 * (v @ w.T) * h * dh
            return (dh.T @ v + s.T @ u + x.T @ du).ravel(), du @ w.T + u @ t.T

        of_weight.defjvp(lambda t, gradient, w, x, v: along(t, 0 * x, w, x, v)[0])
        # The weight's gradient moves with x as x's does with the weight; that one is left out.
        of_x.defjvp(
            lambda t, gradient, w, x, v: along(t, 0 * x, w, x, v)[1],
            lambda t, gradient, w, x, v: along(0 * w, t, w, x, v)[1],
        )
        return Native(lambda w, x: np.tanh(x @ w) @ w, params=weight, vjp=(of_weight, of_x))

    def unused(self, weight: Array, spare: Array) -> Native:
        """A rule of None declares that y has no influence, and so none on any derivative."""
        of_params = VJPRule(
            lambda ans, p, x, y: lambda v: {"weight": x.T @ (v * ans) / 4, "spare": np.zeros(4)}
        )
        of_x = VJPRule(lambda ans, p, x, y: lambda v: (v * ans) @ p["weight"].T / 4)

        def value(p: Any, x: Array) -> Any:
            return np.exp(x @ p["weight"] / 4)

        @of_params.defvjp
        def _(gradient: Any, p: Any, x: Array, y: Array, v: Array) -> Any:
            def pull(u: Any) -> Any:
                return {"weight": x.T @ (v * value(p, x) * (x @ u["weight"])) / 16, "spare": np.zeros(4)}

            return pull

        @of_x.defvjp(argnums=(1,))
        def _(gradient: Any, p: Any, x: Array, y: Array, v: Array) -> Any:
            return lambda u: (v * value(p, x) * (u @ p["weight"])) @ p["weight"].T / 16

        @of_x.defvjp(argnums=(0,))
        def _(gradient: Any, p: Any, x: Array, y: Array, v: Array) -> Any:
            def pull(u: Array) -> Any:
                w = v * value(p, x)
                both = x.T @ (w * (u @ p["weight"])) / 16 + u.T @ w / 4
                return {"weight": both, "spare": np.zeros(4)}

            return pull

        return Native(
            lambda p, x, y: value(p, x),
            params={"spare": spare, "weight": weight},
            vjp=(of_params, of_x, None),
        )

    def wave(self, scale: Array) -> Native:
        """A function of complex arrays: VJPs by the convention of autograd, and their JVPs."""

        def phase(x: Array) -> Array:
            return np.exp(1j * x)

        def cubed(z: Array) -> Array:
            return z * abs(z) ** 2

        def moved(t: Array, z: Array) -> Array:
            """Tangent of `cubed`."""
            return 2 * abs(z) ** 2 * t + z**2 * np.conj(t)

        def of_cube(c: Array, z: Array) -> Array:
            """VJP of `cubed`."""
            return 2 * abs(z) ** 2 * c + np.conj(z**2 * c)

        of_scale = VJPRule(lambda ans, s, x, z: lambda v: np.real(v[0] * phase(x) * cubed(z)).sum(0))
        of_x = VJPRule(lambda ans, s, x, z: lambda v: np.real(1j * v[0] * s * phase(x) * cubed(z)))
        of_z = VJPRule(lambda ans, s, x, z: lambda v: of_cube(v[0] * s * phase(x), z) + 2 * v[1] * np.conj(z))
        of_scale.defjvp(
            None,
            lambda t, gradient, s, x, z, v: np.real(1j * t * v[0] * phase(x) * cubed(z)).sum(0),
            lambda t, gradient, s, x, z, v: np.real(v[0] * phase(x) * moved(t, z)).sum(0),
        )
        of_x.defjvp(
            lambda t, gradient, s, x, z, v: np.real(1j * v[0] * t * phase(x) * cubed(z)),
            lambda t, gradient, s, x, z, v: np.real(-t * v[0] * s * phase(x) * cubed(z)),
            lambda t, gradient, s, x, z, v: np.real(1j * v[0] * s * phase(x) * moved(t, z)),
        )
        of_z.defjvp(
            lambda t, gradient, s, x, z, v: of_cube(v[0] * t * phase(x), z),
            lambda t, gradient, s, x, z, v: of_cube(1j * t * v[0] * s * phase(x), z),
            lambda t, gradient, s, x, z, v: (
                4 * np.real(np.conj(z) * t) * v[0] * s * phase(x)
                + np.conj(2 * z * t * v[0] * s * phase(x))
                + 2 * v[1] * np.conj(t)
            ),
        )
        return Native(
            lambda s, x, z: (s * phase(x) * cubed(z), abs(z) ** 2), params=scale, vjp=(of_scale, of_x, of_z)
        )

    def broadcast(self, scale: Array) -> Native:
        """A function of three arrays of different shapes, with rules of first order and a JVP."""

        def value(s: Array, t: Array, x: Array, m: Array) -> Array:
            return np.tanh(s * x + m)

        def of_scale(ans: Array, s: Array, t: Array, x: Array, m: Array) -> Any:
            return lambda v: (v * t[:, None] * (1 - value(s, t, x, m) ** 2) * x).sum(0)

        def of_t(ans: Array, s: Array, t: Array, x: Array, m: Array) -> Any:
            return lambda v: (v * value(s, t, x, m)).sum(1)

        def of_x(ans: Array, s: Array, t: Array, x: Array, m: Array) -> Any:
            return lambda v: v * t[:, None] * (1 - value(s, t, x, m) ** 2) * s

        def of_m(ans: Array, s: Array, t: Array, x: Array, m: Array) -> Any:
            return lambda v: (v * t[:, None] * (1 - value(s, t, x, m) ** 2)).sum(0)[None]

        jvp = (
            lambda d, ans, s, t, x, m: t[:, None] * (1 - value(s, t, x, m) ** 2) * x * d,
            lambda d, ans, s, t, x, m: value(s, t, x, m) * d[:, None],
            lambda d, ans, s, t, x, m: t[:, None] * (1 - value(s, t, x, m) ** 2) * s * d,
            lambda d, ans, s, t, x, m: t[:, None] * (1 - value(s, t, x, m) ** 2) * d,
        )
        return Native(
            lambda s, t, x, m: value(s, t, x, m) * t[:, None],
            params=scale,
            vjp=(of_scale, of_t, of_x, of_m),
            jvp=jvp,
        )

    def masked(self) -> Native:
        """A function of booleans and integers, which need no rule."""
        return Native(
            lambda x, m, k: np.where(m, k * x**2, x),
            vjp=(lambda ans, x, m, k: lambda v: v * np.where(m, 2.0 * k * x, 1.0), None, None),
        )

    def root(self, scale: Array) -> Native:
        """A function whose derivative may be infinite."""
        of_scale = VJPRule(lambda ans, s, x: lambda v: (v * np.sqrt(x)).sum(0))
        of_x = VJPRule(lambda ans, s, x: lambda v: v * s / (2 * np.sqrt(x)))
        return Native(lambda s, x: s * np.sqrt(x), params=scale, vjp=(of_scale, of_x))

    def switch(self) -> Native:
        """A function of a string and a number."""

        def of_x(ans: Array, x: Array, name: str, k: int) -> Any:
            return lambda v: v * (3 * k * x**2 if name == "cube" else 2 * k * x)

        return Native(lambda x, name, k: k * x**3 if name == "cube" else k * x**2, vjp=(of_x, None, None))

    def labels(self, scale: Array) -> Native:
        """A function that returns integers beside what has a derivative; their cotangents are zeros."""
        of_scale = VJPRule(lambda ans, s, x: lambda v: (v[0] * x).sum(0))
        of_x = VJPRule(lambda ans, s, x: lambda v: v[0] * s)
        return Native(lambda s, x: (s * x, np.argmax(x, 1)), params=scale, vjp=(of_scale, of_x))

    def state(self, model: Any) -> Any:
        """NumPy's global random state; functions have none of their own."""
        return str(np.random.get_state())  # noqa: NPY002
