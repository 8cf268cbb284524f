"""What is expected: the same network in `autograd.numpy`, differentiated by autograd in reverse, in float64."""

from __future__ import annotations

import itertools
from typing import Any

import autograd.numpy as np
from autograd import grad, jacobian
from autograd.extend import Box

from fuzz.in_autograd import Words
from fuzz.interpreter import interpret
from fuzz.points import Point
from fuzz.programs import Program, Query
from fuzz.surroundings import program as surrounding


class Expected:
    """The reference of one program.

    Args:
        program: which one.
        names: names in the bridge's layout, for messages alone.
        arrays: the bridge's present parameters, cut, in the order of its vector.
    """

    def __init__(self, program: Program, names: list[str], arrays: list[Any]) -> None:
        self._program = program
        self._weights = program.network.weights()
        self._places = [
            (_place(array, self._weights, name), array.shape) for name, array in zip(names, arrays)
        ]

    def outputs(self, params: Any, inputs: list[Any]) -> list[Any]:
        """The floating outputs, in order."""
        inputs = [_constant(x) if i in self._program.constant_inputs else x for i, x in enumerate(inputs)]
        weights, start = dict(self._weights), 0
        for (name, axes), shape in self._places:
            size = int(np.prod(shape))
            weights[name] = np.transpose(np.reshape(params[start : start + size], shape), axes)
            start += size
        return floating(interpret(self._program.network, weights.__getitem__, tuple(inputs), Words))

    def answer(self, query: Query, point: Point) -> list[Any]:
        """What a query's answer should be, as float64 arrays."""
        if query.kind in ("jacobian", "rows' gradients", "f.vjp", "f.jvp", "f.ggn", "in flight", "model"):
            return self._of_methods(query, point)
        value = point.along(query.wrt, surrounding(query.terms, query.joined, self.outputs))
        z = point.vector(query.wrt)
        v, w = point.like(z, z)
        match query.kind:
            case "value":
                return [value(z)]
            case "gradient":
                return [grad(value)(z)]
            case "jvp":
                return [value(z), grad(value)(z) @ v]
            case "hvp" | "jvp of gradient":
                return [grad(lambda z: np.dot(grad(value)(z), v))(z)]
            case "hessian":
                return [jacobian(grad(value))(z)]
            case _:
                along = grad(lambda z: np.dot(grad(value)(z), v))
                return [grad(lambda z: np.dot(along(z), w))(z)]

    def dropped(self, query: Query, point: Point, kept: Any) -> list[Any]:
        """The same in train mode, where `kept` says which outputs the bridge did not drop."""
        rate = self._program.network.dropout
        main = point.along(query.wrt, lambda p, xs: self.outputs(p, xs)[0] * kept / (1 - rate))
        z = point.vector(query.wrt)
        v, t = point.like(kept.astype(float))[0], point.like(z, salt=1)[0]
        match query.kind:
            case "dropped hvp":
                value = lambda z: np.sum(v * np.sin(main(z)))  # noqa: E731
                return [grad(lambda z: np.dot(grad(value)(z), t))(z)]
            case "dropped jvp":
                return [jacobian(main)(z) @ t]
            case _:
                return [grad(lambda z: np.sum(v * main(z)))(z)]

    def _of_methods(self, query: Query, point: Point) -> list[Any]:
        outputs = self.outputs(point.params, point.inputs)
        if query.kind == "model":
            return outputs
        sizes = [y.size for y in outputs]
        cuts = list(itertools.accumulate(sizes))[:-1]
        arguments = point.arguments(query.wrt)
        flat = point.along(
            query.wrt, lambda p, xs: np.concatenate([np.ravel(y) for y in self.outputs(p, xs)])
        )
        J = jacobian(flat)(point.vector(query.wrt))
        columns = np.cumsum([a.size for a in arguments])[:-1]
        v, t = np.concatenate([c.ravel() for c in point.like(*outputs)]), point.like(*arguments, salt=1)
        t = np.concatenate([one.ravel() for one in t])
        cut = lambda row: [c.reshape(a.shape) for c, a in zip(np.split(row, columns), arguments)]  # noqa: E731
        match query.kind:
            case "jacobian":
                return [
                    block.reshape(y.shape + a.shape)
                    for a, by in zip(arguments, np.split(J, columns, 1))
                    for y, block in zip(outputs, np.split(by, cuts))
                ]
            case "rows' gradients":
                return [J]
            case "f.jvp":
                return [part.reshape(y.shape) for part, y in zip(np.split(J @ t, cuts), outputs)]
            case "f.ggn":
                return cut(J.T @ (J @ t))
            case "in flight":
                return [*cut(v @ J), *outputs]
            case _:
                return cut(v @ J)


def floating(tree: Any) -> list[Any]:
    """The floating arrays of an output, in order: of a tuple, or of a dict with its known names."""
    if isinstance(tree, tuple):
        return list(tree)
    if isinstance(tree, (dict, np.numpy_boxes.ArrayBox)) or hasattr(tree, "keys"):
        try:
            return [tree[name] for name in ("main", "beside") if name in tree]
        except (TypeError, ValueError, IndexError):
            return [tree]
    return list(tree) if type(tree).__name__ == "SequenceBox" else [tree]


def _constant(x: Any) -> Any:
    while isinstance(x, Box):
        x = x._value
    return x


def _place(array: Any, weights: dict[str, Any], name: str) -> tuple[str, tuple[int, ...]]:
    """Which parameter of the network an array of the layout is, with its axes in which order: by its values."""
    for ours, values in weights.items():
        for axes in itertools.permutations(range(array.ndim)):
            moved = np.transpose(array, axes)
            if moved.shape == values.shape and np.array_equal(moved, values):
                return ours, axes
    raise AssertionError(f"parameter {name!r} of the bridge is none of the network's, or has other values")
