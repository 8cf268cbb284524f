"""Dense layers at a point: their first and second derivatives by hand.

Source:
    Rumelhart, Hinton & Williams (1986), Learning representations by back-propagating errors, eqs.
    4 to 6, for the gradient. B. Pearlmutter (1994), Fast exact multiplication by the Hessian, for
    its derivative along a direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gradbridge.errors import HigherOrderError
from gradbridge.layout import Array
from gradbridge_numpy.forms import Jet, Leaves

if TYPE_CHECKING:
    from gradbridge.architectures import Architecture, Layer


class Motion(NamedTuple):
    """How everything moves along a direction.

    Attributes:
        params: tangents of the weights by name.
        before: tangent of each layer before its activation.
        values: tangents of the input and the output of each layer.
    """

    params: Mapping[str, Array]
    before: list[Array]
    values: list[Array]


class DenseJet(Jet):
    """A stack of dense layers, evaluated. Its weights and its input are one place: they take one pass.

    Args:
        label: what errors call it.
        architecture: the layers.
        params: by name, in the order of the layout.
        values: the input and the output of each layer.
    """

    def __init__(
        self, label: str, architecture: Architecture, params: Mapping[str, Array], values: list[Array]
    ) -> None:
        self._label, self._architecture = label, architecture
        self._params, self._values = params, values
        self.tree = self._squeezed(values[-1])
        self.answer = [self.tree]
        self.arguments = ((0, len(params) + 1),)

    def form(
        self, places: tuple[int, ...], free: int, fills: Sequence[Leaves | None], wanted: Sequence[int]
    ) -> list[Array] | None:
        self.require(places, free)
        motions = [self._motion(fill) for fill in fills[1:] if fill is not None]
        if free == 0:
            return [self._squeezed(motions[0].values[-1] if len(motions) == 1 else self._second(*motions))]
        (cotangent,) = fills[0] or [None]
        v = np.asarray(cotangent, self._values[-1].dtype)
        v = v[..., None] if self._architecture.squeeze else v
        gradients = self._gradients_along(v, motions[0]) if motions else self._gradients(v)
        return [gradients[leaf] for leaf in wanted]

    def require(self, places: tuple[int, ...], free: int) -> None:
        if len(places) > 3:
            raise HigherOrderError(
                f"a third derivative of {self._label} was asked for, and its derivatives are written by hand up to "
                f"the second; use gradbridge.build(…, backend='torch') or another framework for more"
            )

    def zeros(self, place: int, leaf: int) -> Array:
        return np.zeros_like([*self._params.values(), self._values[0]][leaf] if place >= 0 else self.tree)

    # -- private ------------------------------------------------------------------------------

    def _squeezed(self, output: Array) -> Array:
        return output[..., 0] if self._architecture.squeeze else output

    def _backwards(self) -> list[tuple[Layer, Array, Array]]:
        """Each layer with its input and output, the last one first."""
        return list(zip(self._architecture.layers, self._values, self._values[1:]))[::-1]

    def _gradients(self, v: Array) -> list[Array]:
        """A cotangent of the last layer → gradients of the weights and the input."""
        gradients: dict[str, Array] = {}
        for layer, x, y in self._backwards():
            v = pull(layer.activation, y, v)
            rows = v.reshape(-1, layer.outputs)
            gradients[f"{layer.name}.bias"] = rows.sum(0)
            gradients[f"{layer.name}.weight"] = x.reshape(-1, layer.inputs).T @ rows
            v = v @ self._params[f"{layer.name}.weight"].T
        return [*(gradients[name] for name in self._params), v]

    def _gradients_along(self, v: Array, motion: Motion) -> list[Array]:
        """How `_gradients` move along a direction: the Hessian of ⟨v, f⟩ times it."""
        dv = np.zeros_like(v)
        gradients: dict[str, Array] = {}
        tangents = zip(reversed(motion.values[:-1]), reversed(motion.values[1:]))
        for (layer, x, y), (dx, dy) in zip(self._backwards(), tangents):
            weight, dweight = (p[f"{layer.name}.weight"] for p in (self._params, motion.params))
            dv = pull(layer.activation, y, dv) + pull_along(layer.activation, y, v, dy)
            v = pull(layer.activation, y, v)
            rows, drows = (a.reshape(-1, layer.outputs) for a in (v, dv))
            gradients[f"{layer.name}.bias"] = drows.sum(0)
            gradients[f"{layer.name}.weight"] = (
                x.reshape(-1, layer.inputs).T @ drows + dx.reshape(-1, layer.inputs).T @ rows
            )
            dv = dv @ weight.T + v @ dweight.T
            v = v @ weight.T
        return [*(gradients[name] for name in self._params), dv]

    def _motion(self, fill: Leaves) -> Motion:
        """Forward mode by hand."""
        dtype = self._values[-1].dtype
        moved = [self.zeros(0, i) if t is None else np.asarray(t, dtype) for i, t in enumerate(fill)]
        dparams = dict(zip(self._params, moved))
        before: list[Array] = []
        values = moved[-1:]
        for layer, x, y in zip(self._architecture.layers, self._values, self._values[1:]):
            dz = values[-1] @ self._params[f"{layer.name}.weight"]
            dz = dz + x @ dparams[f"{layer.name}.weight"] + dparams[f"{layer.name}.bias"]
            before.append(dz)
            values.append(pull(layer.activation, y, dz))
        return Motion(dparams, before, values)

    def _second(self, one: Motion, other: Motion) -> Array:
        """D²f along two directions: the second-order tangent of the output."""
        both = np.zeros_like(self._values[0])
        for i, layer in enumerate(self._architecture.layers):
            name, y = f"{layer.name}.weight", self._values[i + 1]
            dz = both @ self._params[name]
            dz = dz + one.values[i] @ other.params[name] + other.values[i] @ one.params[name]
            both = pull_along(layer.activation, y, one.before[i], other.values[i + 1])
            both = both + pull(layer.activation, y, dz)
        return both


def pull(name: str | None, y: Array, v: Array) -> Array:
    """Pull a cotangent back through an activation, from its output.

    The Jacobians of all of them are symmetric, so that it pushes a tangent forward, too.
    """
    if name == "tanh":
        return v * (1.0 - y**2)
    if name == "relu":
        return v * (y > 0)
    if name == "sigmoid":
        return v * y * (1.0 - y)
    if name == "softmax":
        softmax: Array = y * (v - (v * y).sum(-1, keepdims=True))
        return softmax
    return v


def pull_along(name: str | None, y: Array, v: Array, dy: Array) -> Array:
    """How `pull` of a cotangent moves with the activation's output."""
    if name == "tanh":
        return -2.0 * v * y * dy
    if name == "sigmoid":
        return v * dy * (1.0 - 2.0 * y)
    if name == "softmax":
        softmax: Array = dy * (v - (v * y).sum(-1, keepdims=True)) - y * (v * dy).sum(-1, keepdims=True)
        return softmax
    return np.zeros_like(v)  # a line, and relu almost everywhere
