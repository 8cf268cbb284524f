"""A bridge over a program's network, and its answers."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd import grad, hessian, hessian_vector_product, jacobian, make_jvp, make_vjp

import gradbridge as gb
from fuzz.built import Guest
from fuzz.expecting import floating
from fuzz.points import Point
from fuzz.programs import Program, Query
from fuzz.surroundings import program as surrounding


class Asked:
    """The bridge of one program.

    Args:
        program: which one.
        guest: builds its model.
    """

    def __init__(self, program: Program, guest: Guest) -> None:
        self._program = program
        built = guest.build(program.network, program.style, program.model_dtype, program.frozen)
        made = gb.bridge(built.model, **built.options, **program.options)
        self.bridge = copy.deepcopy(made) if program.copied else made
        self.params: np.ndarray = self.bridge.params
        layout = self.bridge.layout
        self.arrays = [np.asarray(a) for a in layout.cut(self.params)]
        self.names = list(layout.names)
        #: Which outputs were dropped by the latest query in train mode.
        self.kept: Any = None

    def call(self, params: Any, inputs: list[Any]) -> Any:
        """The bridge, as the program calls it."""
        if self._program.as_tree:
            tree, start = {}, 0
            for name, array in zip(self.names, self.arrays):
                tree[name] = anp.reshape(params[start : start + array.size], array.shape)
                start += array.size
            params = tree
        if self._program.by_name:
            return self.bridge(params, inputs[0], second=inputs[1])
        return self.bridge(params, *inputs)

    def outputs(self, params: Any, inputs: list[Any]) -> list[Any]:
        """The floating outputs, in order."""
        return floating(self.call(params, inputs))

    def answer(self, query: Query, point: Point) -> list[Any]:
        """What the bridge says."""
        if query.kind.startswith("dropped"):
            return self._dropped(query, point)
        if query.kind in ("jacobian", "rows' gradients", "f.vjp", "f.jvp", "f.ggn"):
            return self._of_methods(query, point)
        if query.kind == "in flight":
            return self._in_flight(query, point)
        if query.kind == "model":
            native = importlib.import_module("fuzz.in_torch").native_outputs
            model = self.bridge.model(point.params)
            return [np.asarray(y) for y in floating(native(model, point.inputs, self._computes_in))]
        return self._within(query, point)

    @property
    def _computes_in(self) -> str:
        asked = self._program.options.get("dtype")
        if asked == "model":
            return self._program.model_dtype
        return asked or self._program.host_dtype

    def _within(self, query: Query, point: Point) -> list[Any]:
        total = surrounding(query.terms, query.joined, self.outputs)
        value, z = point.along(query.wrt, total), point.vector(query.wrt)
        v, w = point.like(z, z)
        match query.kind:
            case "value":
                return [value(z)]
            case "gradient" if query.wrt == "apart":
                arguments = point.arguments(query.wrt)
                gradients = grad(point.apart(query.wrt, total), tuple(range(len(arguments))))(*arguments)
                return [np.concatenate([np.ravel(g) for g in gradients])]
            case "gradient":
                return [grad(value)(z)]
            case "jvp":
                return list(make_jvp(value)(z)(v))
            case "hvp":
                return [hessian_vector_product(value)(z, v)]
            case "jvp of gradient":
                return [make_jvp(grad(value))(z)(v)[1]]
            case "hessian" if query.seed % 2:
                return [jacobian(grad(value))(z)]
            case "hessian":
                return [hessian(value)(z)]
            case _:
                product = hessian_vector_product(value)
                return [grad(lambda z: anp.dot(product(z, v), w))(z)]

    def _of_methods(self, query: Query, point: Point) -> list[Any]:
        f, arguments = self.bridge, point.arguments(query.wrt)
        positions = [0, *(i + 1 for i in point.moving)]
        wrt: Any = tuple(positions[1:] if query.wrt == "inputs" else positions)
        if len(wrt) == 1 and query.seed % 2:
            wrt = wrt[0]
        where = (point.params, *point.inputs)
        one = lambda values: values if isinstance(wrt, tuple) else values[0]  # noqa: E731
        several = lambda result: result if isinstance(wrt, tuple) else (result,)  # noqa: E731
        match query.kind:
            case "rows' gradients":
                return [f.row_gradients(*where)]
            case "jacobian":
                found = f.jacobian(*where, wrt=wrt, strategy=self._strategy(query))
                return [J for tree in several(found) for J in floating(tree)]
            case "f.vjp":
                return list(several(f.vjp(*where, cotangent=self._cotangent(point), wrt=wrt)))
            case "f.jvp":
                tangents = tuple(point.like(*arguments, salt=1))
                return floating(f.jvp(*where, tangent=one(tangents), wrt=wrt))
            case _:
                return list(
                    several(f.ggn(*where, vector=one(tuple(point.like(*arguments, salt=1))), wrt=wrt))
                )

    def _strategy(self, query: Query) -> str:
        """The one that was drawn, if it can be followed."""
        able, needs = (
            self.bridge.capabilities,
            {"rows": "Jacobian, per-example", "vjp": "Jacobian, batched VJP"},
        )
        if query.strategy in needs and not able[needs[query.strategy]]:
            return "auto"
        # PyTorch's own recurrent layers have no batching rule: such a declaration is refused.
        has_map = self._program.style != "module" or all(
            layer.kind != "rnn" for layer in self._program.network.every_layer
        )
        if query.strategy == "rows" and (query.rows == 1 or not has_map):
            return "auto"
        return query.strategy

    def _cotangent(self, point: Point) -> Any:
        outputs = self.outputs(point.params, point.inputs)
        given = point.like(*outputs)
        match self._program.network.output:
            case "tuple":
                return tuple(given)
            case "dict":
                return {"main": given[0], "beside": given[1]}
            case "labelled":
                return {"main": given[0], "label": None}
            case _:
                return given[0]

    def _in_flight(self, query: Query, point: Point) -> list[Any]:
        """Two calls before either is pulled back; the caller's arrays are overwritten in between."""
        flat = point.along(
            query.wrt, lambda p, xs: anp.concatenate([anp.ravel(y) for y in self.outputs(p, xs)])
        )
        z = point.vector(query.wrt)
        pull, y = make_vjp(flat)(z)
        pull_other, y_other = make_vjp(flat)(0.5 * z)
        pull_other(np.ones_like(y_other))
        z *= np.nan
        outputs, y = self.outputs(point.params, point.inputs), np.array(y)
        v = np.concatenate([c.ravel() for c in point.like(*outputs)])
        pulled = np.array(pull(v))
        assert np.array_equal(pulled, pull(v), equal_nan=True), "pulling back twice gave two results"
        start, found = 0, []
        for argument in point.arguments(query.wrt):
            found.append(pulled[start : start + argument.size].reshape(argument.shape))
            start += argument.size
        sizes = np.cumsum([o.size for o in outputs])[:-1]
        return [*found, *(part.reshape(o.shape) for part, o in zip(np.split(y, sizes), outputs))]

    def _dropped(self, query: Query, point: Point) -> list[Any]:
        main = point.along(query.wrt, lambda p, xs: self.outputs(p, xs)[0])
        z = point.vector(query.wrt)
        pull, y = make_vjp(main)(z)
        self.kept, (v, t) = y != 0, (point.like(y)[0], point.like(z, salt=1)[0])
        match query.kind:
            case "dropped vjp":
                return [pull(v)]
            case "dropped hvp":
                return [hessian_vector_product(lambda z: anp.sum(v * anp.sin(main(z))))(z, t)]
            case "dropped jvp":
                return [make_jvp(main)(z)(t)[1]]
            case _:
                again = main(z)  # where nothing is recorded torch has other kernels, which round otherwise
                same = np.array_equal(again != 0, y != 0) and np.allclose(again, y, rtol=1e-4, atol=1e-5)
                assert same, "the same call dropped other outputs"
                return [grad(lambda z: anp.sum(v * main(z)))(z)]
