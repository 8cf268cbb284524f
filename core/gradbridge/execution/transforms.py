"""Computations made of others: tangents pushed through one, and the Jacobians of its rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.closures import Surroundings
from gradbridge.errors import GradbridgeError, InputError, Unsupported
from gradbridge.execution.model_adapter import ModelAdapter
from gradbridge.execution.programs import LRUCache
from gradbridge.execution.pullbacks import PullbackModel
from gradbridge.framework import Computation, Form, Framework, Model, Program, filled
from gradbridge.notices import notice, tried
from gradbridge.protocol import ArraySpec
from gradbridge.wording import in_short

T = TypeVar("T")

#: A computation → another one, of the same leaves and more.
Transform = Callable[[Computation], Computation]

_IN_WORDS = {
    "pushforward": "forward mode",
    "pushforward_many": "forward mode for many tangents",
    "row_jacobians": "map over its rows",
}


class TransformingAdapter(ModelAdapter):
    """The half of `FunctionalAdapter` that transforms a whole computation: forward mode, and per-example Jacobians."""

    framework: Framework
    source: Model
    _surroundings: Surroundings | None
    _tells_of_trying = False
    _noise: int | None
    _programs: LRUCache[Program]
    _refused: dict[tuple[str, Any], str]  # transforms that were tried in vain
    refusals_met: dict[str, str]

    @abstractmethod
    def _leaves(
        self, loaded: Sequence[Any], inputs: Sequence[Any], noise: int, lent: bool = False
    ) -> tuple[list[Any], dict[int, Any]]:
        """(all leaves of a computation, {index of an input: what is not an array and so a constant of it})."""

    def pushforward(
        self,
        loaded: Sequence[Any],
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        tangents: Sequence[Any],
    ) -> tuple[Any, list[Any]]:
        form, floats, others = self._push(loaded, inputs, spec, wrt, tangents, False)
        count = sum(form.floating)
        moved = iter(floats[count:])
        outputs = form.assemble(form.merge(floats[:count], others))
        return outputs, [
            next(moved) if yes else np.zeros(shape) for yes, shape in zip(form.floating, form.shapes)
        ]

    def pushforward_many(
        self,
        loaded: Sequence[Any],
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        tangents: Sequence[Any],
    ) -> list[Any]:
        if self.source.draws:
            raise Unsupported(f"{self.label} draws random numbers, which a map would draw otherwise")
        form, floats, _ = self._push(loaded, inputs, spec.replayed(), wrt, tangents, True)
        moved, lead = iter(floats), tangents[0].shape[:1]
        return [
            next(moved) if yes else np.zeros((*lead, *shape))
            for yes, shape in zip(form.floating, form.shapes)
        ]

    def _push(
        self,
        loaded: Sequence[Any],
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        tangents: Sequence[Any],
        many: bool,
    ) -> tuple[Any, ...]:
        framework, operation = self.framework, "pushforward_many" if many else "pushforward"
        if self.refusal(operation):
            raise Unsupported(self.refusal(operation))
        noise = spec.noise if self._noise is None else self._noise

        def run() -> tuple[Any, ...]:
            leaves, constants = self._leaves(loaded, inputs, noise)
            places = self._places(wrt, spec, constants)
            program = self._program(
                spec, constants, (), (operation, wrt), lambda fn: pushed(framework, fn, places, many)
            )
            natives = [framework.asarray(t, leaves[i].dtype) for t, i in zip(tangents, places)]
            floats, others, form, after, _ = program.run([*leaves, *natives])
            if after and not spec.replay:
                self._move(after)
            return form, floats, others

        step = partial(self._moved.alone, run) if self.source.moves and not spec.replay else run
        return self._transformed(operation, (spec.structure, wrt), step, inputs, noise)

    def row_jacobians(
        self,
        loaded: Sequence[Any],
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        has_rows: tuple[bool, ...],
    ) -> list[list[Any]]:
        if self.source.draws:
            raise Unsupported(
                f"{self.label} draws random numbers, which a map over rows would draw otherwise"
            )
        if self.refusal("row_jacobians"):
            raise Unsupported(self.refusal("row_jacobians"))
        framework, spec = self.framework, spec.replayed()

        def run() -> list[list[Any]]:
            leaves, constants = self._leaves(loaded, inputs, spec.noise)
            k = 1 if spec.packed else len(self.layout)
            shared = self._places(wrt, spec, constants)
            with_rows = tuple(k + i for i, yes in enumerate(has_rows) if yes)
            rows = self._places(with_rows, spec, constants)
            program = self._program(
                spec,
                constants,
                (),
                ("rows", wrt, has_rows),
                lambda fn: per_example(framework, fn, shared, rows),
                rows,
            )
            gradients, _, form, _, _ = program.run(leaves)
            rest = iter(gradients)
            return [[next(rest) for _ in wrt] for _ in form.shapes]

        return self._transformed("row_jacobians", (spec.structure, wrt, has_rows), run, inputs, spec.noise)

    def _transformed(
        self, operation: str, key: Any, run: Callable[[], T], inputs: Sequence[Any], noise: int
    ) -> T:
        """Run a transform of the user's function. What one refuses, it refuses in many ways, and again."""
        if (operation, key) in self._refused:
            raise Unsupported(self._refused[operation, key])
        remembers = True
        try:
            return self._isolated(run, inputs, noise, True)
        except Unsupported as error:
            reason = str(error)
        except GradbridgeError as error:
            reason = in_short(error.__cause__ or error)
            # Inputs that do not fit the model say nothing about others; the other way tells what is wrong.
            remembers = not isinstance(error, InputError)
        reason = f"{self.label} has no {_IN_WORDS[operation]} here: {reason}"
        if remembers:
            self._refused[operation, key] = self.refusals_met[operation] = reason
        raise Unsupported(reason)

    def output_spec(self, inputs: Sequence[Any], spec: CallSpec) -> Any:
        framework, model = self.framework, self.source
        is_tried = type(framework).shapes is Framework.shapes and not isinstance(model, PullbackModel)
        if is_tried and not self._tells_of_trying:
            self._tells_of_trying = True
            notice(tried(self.label))
        weights = [ArraySpec(s, d) for s, d in zip(self.layout.shapes, model.dtypes)]

        def run() -> Any:
            leaves, constants = list[Any](weights), {}
            for index, leaf in enumerate(inputs):
                if isinstance(leaf, ArraySpec):
                    # The dtype that it has behind the border, found with an array of no size.
                    empty = np.empty((0,) * len(leaf.shape), leaf.dtype)
                    leaves.append(ArraySpec(leaf.shape, model.leaf(framework, index, empty, inputs).dtype))
                else:
                    constants[index] = leaf
            if isinstance(model, PullbackModel):
                return tuple(map(ArraySpec.of, model.specs(leaves)))
            leaves += [ArraySpec(tuple(x.shape), x.dtype) for x in model.extras(0)]
            specs, form = framework.shapes(self._computation(constants, replace(spec, packed=False)), leaves)
            return form.of_arrays().assemble([ArraySpec.of(s) for s in specs])

        return self._isolated(run, inputs, 0, False)

    # -- programs -----------------------------------------------------------------------------

    def _places(self, wrt: tuple[int, ...], spec: CallSpec, constants: dict[int, Any]) -> tuple[int, ...]:
        if not constants:
            return wrt
        k = 1 if spec.packed else len(self.layout)
        return tuple(p - sum(k + i < p for i in constants) for p in wrt)

    def _program(
        self,
        spec: CallSpec,
        constants: dict[int, Any],
        wrt: tuple[int, ...],
        way: tuple[Any, ...] = (),
        transform: Transform | None = None,
        rows: Sequence[int] | None = None,
    ) -> Program:
        state = self._surroundings and self._surroundings()
        key: Any = (way, spec.structure, wrt, spec.packed, state)
        statics = tuple((i, self.framework.constant_key(x)) for i, x in constants.items())
        if any(static is None for _, static in statics):
            return self._traced(spec, constants, wrt, False, transform, rows)
        if statics:
            key = (*key, statics)
        return self._programs.get(key, lambda: self._traced(spec, constants, wrt, True, transform, rows))

    def _traced(
        self,
        spec: CallSpec,
        constants: dict[int, Any],
        wrt: tuple[int, ...],
        reusable: bool,
        transform: Transform | None,
        rows: Sequence[int] | None,
    ) -> Program:
        compute, k = self._computation(constants, spec), 1 if spec.packed else len(self.layout)
        if transform is not None:
            compute = transform(compute)
        elif rows is None and self.source.any_rows:
            rows = range(k, k + spec.count - len(constants))
        program = self.framework.trace(compute, self._places(wrt, spec, constants), reusable, rows or ())
        program.state = 0 if self._surroundings is None else self._surroundings()
        return program


def pushed(framework: Framework, compute: Computation, places: Sequence[int], many: bool) -> Computation:
    """(*leaves, *tangents) ↦ tangents of the floating outputs, after the outputs themselves unless `many`.

    Args:
        framework: pushes.
        compute: what is pushed through.
        places: of the leaves that move, in the order of the tangents.
        many: whether the tangents have a leading axis.
    """

    def push(every: list[Any]) -> tuple[list[Any], list[Any], Form, Sequence[Any]]:
        count = len(every) - len(places)
        leaves, tangents = every[:count], every[count:]
        rest: list[Any] = []

        def of(values: list[Any]) -> list[Any]:
            floats, *rest[:] = compute(filled(leaves, places, values))
            return floats

        outputs, moved = framework.jvp(of, [leaves[i] for i in places], tangents, many)
        others, form, after = rest
        shapes = tuple(tuple(y.shape) for y in form.merge(outputs, others))
        lead = tuple(tangents[0].shape[:1]) if many else ()
        moved = [framework.zeros((*lead, *y.shape), y) if t is None else t for y, t in zip(outputs, moved)]
        form = replace(form, shapes=shapes)
        return (moved, [], form, ()) if many else ([*outputs, *moved], others, form, after)

    return push


def per_example(
    framework: Framework, compute: Computation, shared: Sequence[int], rows: Sequence[int]
) -> Computation:
    """leaves ↦ for each floating output, for each shared leaf: (rows, *shape of an output's row, *leaf shape).

    Args:
        framework: maps its VJP over the rows.
        compute: what is differentiated, of a batch.
        shared: places of the leaves that all rows share, and that it is differentiated by.
        rows: places of the leaves whose first axis are the rows.
    """

    def jacobians(leaves: list[Any]) -> tuple[list[Any], list[Any], Form, Sequence[Any]]:
        shapes: list[tuple[int, ...]] = []

        def of_row(*row: Any) -> list[Any]:
            alone = filled(leaves, rows, [framework.row(x) for x in row])

            def flat(values: list[Any]) -> list[Any]:
                outputs = compute(filled(alone, shared, values))[0]
                shapes[:] = [tuple(y.shape[1:]) for y in outputs]
                return [framework.reshape(y, (-1,)) for y in outputs]

            wanted = [leaves[i] for i in shared]
            outputs, pull = framework.vjp(flat, wanted)
            sizes = [int(y.shape[0]) for y in outputs]

            def pulled(*cotangents: Any) -> list[Any]:
                gradients = pull(list(cotangents))
                return [
                    framework.zeros(tuple(w.shape), w) if g is None else g for g, w in zip(gradients, wanted)
                ]

            gradients = []
            for index, size in enumerate(sizes):
                units = [
                    framework.eye(size, y) if i == index else framework.zeros((size, sizes[i]), y)
                    for i, y in enumerate(outputs)
                ]
                if size == 1:  # no map within the map: half of the time of a model with one output
                    one = pulled(*(framework.reshape(unit, (unit.shape[1],)) for unit in units))
                    gradients += [framework.row(g) for g in one]
                else:
                    gradients += framework.vmap(pulled)(*units)
            return gradients

        gradients = iter(framework.vmap(of_row)(*[leaves[i] for i in rows]))
        shaped = []
        for shape in shapes:
            shaped += [
                framework.reshape(g, (g.shape[0], *shape, *g.shape[2:]))
                for g in islice(gradients, len(shared))
            ]
        return shaped, [], Form(None, (), tuple(shapes)), ()

    return jacobians
