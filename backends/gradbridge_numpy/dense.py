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
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Array
from gradbridge_numpy.pullbacks import Leaves, Point

if TYPE_CHECKING:
    from gradbridge.architectures import Architecture, Layer

#: The arguments.
PARAMS, INPUT = 0, 1


class Moved(NamedTuple):
    """How everything moves along a direction.

    Attributes:
        params: tangents of the parameters by name.
        before: tangent of each layer before its activation.
        values: tangents of the input and the output of each layer.
    """

    params: Mapping[str, Array]
    before: list[Array]
    values: list[Array]


class DensePoint(Point):
    """A stack of dense layers, evaluated.

    Args:
        label: what errors call it.
        architecture: the layers.
        layout: of the params.
        params: by name.
        values: the input and the output of each layer.
    """

    def __init__(
        self,
        label: str,
        architecture: Architecture,
        layout: ParameterLayout,
        params: Mapping[str, Array],
        values: list[Array],
    ) -> None:
        self._label, self._architecture, self._layout = label, architecture, layout
        self._params, self._values = params, values
        self.answer = [values[-1][..., 0] if architecture.squeeze else values[-1]]

    def form(
        self, places: tuple[int, ...], free: int, fills: Sequence[Leaves | None], wanted: Sequence[int]
    ) -> list[Array] | None:
        """See `Point.form`.

        Raises:
            HigherOrderError: it is of third order.
        """
        self.require(places, free)
        moves = [self._moved(place, fill) for place, fill in zip(places[1:], fills[1:]) if fill is not None]
        if free == 0:
            found = moves[0].values[-1] if len(moves) == 1 else self._moved_twice(*moves)
            return [found[..., 0] if self._architecture.squeeze else found]
        (cotangent,) = fills[0] or (None,)
        assert cotangent is not None
        gradient = self.gradient_along(cotangent, moves[0]) if moves else self.gradient(cotangent)
        return [gradient[places[free]].copy()]

    def require(self, places: tuple[int, ...], free: int) -> None:
        """See `Point.require`."""
        if len(places) > 3:
            raise HigherOrderError(
                f"a third derivative of {self._label} was asked for, and its derivatives are written by hand up to "
                f"the second; use gradbridge.build(…, backend='torch') or another framework for more"
            )

    def gradient(self, cotangent: Array) -> tuple[Array, Array]:
        """A cotangent of the output → gradients with respect to the params and the input."""
        v = self._cotangent(cotangent)
        gradients: dict[str, Array] = {}
        for layer, x, y in self._backwards():
            v = pull(layer.activation, y, v)
            rows = v.reshape(-1, layer.outputs)
            gradients[f"{layer.name}.bias"] = rows.sum(0)
            gradients[f"{layer.name}.weight"] = x.reshape(-1, layer.inputs).T @ rows
            v = v @ self._params[f"{layer.name}.weight"].T
        return self._layout.ravel(gradients), v

    def gradient_along(self, cotangent: Array, move: Moved) -> tuple[Array, Array]:
        """How `gradient` moves along a direction: the Hessian of ⟨v, f⟩ times it."""
        v = self._cotangent(cotangent)
        dv = np.zeros_like(v)
        gradients: dict[str, Array] = {}
        tangents = zip(reversed(move.values[:-1]), reversed(move.values[1:]))
        for (layer, x, y), (dx, dy) in zip(self._backwards(), tangents):
            weight, dweight = (p[f"{layer.name}.weight"] for p in (self._params, move.params))
            dv = pull(layer.activation, y, dv) + pull_along(layer.activation, y, v, dy)
            v = pull(layer.activation, y, v)
            rows, drows = (a.reshape(-1, layer.outputs) for a in (v, dv))
            gradients[f"{layer.name}.bias"] = drows.sum(0)
            gradients[f"{layer.name}.weight"] = (
                x.reshape(-1, layer.inputs).T @ drows + dx.reshape(-1, layer.inputs).T @ rows
            )
            dv = dv @ weight.T + v @ dweight.T
            v = v @ weight.T
        return self._layout.ravel(gradients), dv

    def pushed(self, tangents: Mapping[int, Array]) -> Array:
        """Tangents of the params and the input → that of the output."""
        found = self._along(tangents).values[-1]
        return found[..., 0] if self._architecture.squeeze else found

    # -- private ------------------------------------------------------------------------------

    def _cotangent(self, cotangent: Array) -> Array:
        v = cotangent.astype(self._values[-1].dtype)
        return v[..., None] if self._architecture.squeeze else v

    def _backwards(self) -> list[tuple[Layer, Array, Array]]:
        """Each layer with its input and output, the last one first."""
        return list(zip(self._architecture.layers, self._values, self._values[1:]))[::-1]

    def _moved(self, place: int, fill: Leaves) -> Moved:
        (tangent,) = fill
        assert tangent is not None
        return self._along({place: tangent})

    def _along(self, tangents: Mapping[int, Array]) -> Moved:
        """Forward mode by hand."""
        dtype = self._values[-1].dtype
        flat = tangents.get(PARAMS)
        dparams = self._layout.unravel(np.zeros(self._layout.size) if flat is None else flat)
        dparams = {name: array.astype(dtype) for name, array in dparams.items()}
        start = tangents.get(INPUT)
        before: list[Array] = []
        values = [np.zeros_like(self._values[0]) if start is None else start.astype(dtype)]
        for layer, x, y in zip(self._architecture.layers, self._values, self._values[1:]):
            dz = values[-1] @ self._params[f"{layer.name}.weight"]
            dz = dz + x @ dparams[f"{layer.name}.weight"] + dparams[f"{layer.name}.bias"]
            before.append(dz)
            values.append(pull(layer.activation, y, dz))
        return Moved(dparams, before, values)

    def _moved_twice(self, one: Moved, other: Moved) -> Array:
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
