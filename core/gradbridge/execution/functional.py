"""`FunctionalAdapter`: a `Framework` and a `Model` make an `Adapter`, once for every framework."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.errors import GradbridgeError, GuestError, NotDifferentiableError, Unsupported
from gradbridge.execution.programs import LRUCache
from gradbridge.execution.pullbacks import PullbackModel
from gradbridge.execution.recorded import RecordedPullback
from gradbridge.execution.residuals import Residuals
from gradbridge.execution.transforms import T, TransformingAdapter
from gradbridge.framework import Computation, Form, Framework, Model, Program, RunAgain, filled
from gradbridge.inspection import Stranger
from gradbridge.protocol import Adapter

_dtype_of = attrgetter("dtype")


class FunctionalAdapter(TransformingAdapter):
    """A model of a framework, in terms of the framework's transforms.

    Args:
        framework: the autodiff primitives.
        model: how the native model is called.
    """

    results_are_typed = True

    def __init__(self, framework: Framework, model: Model) -> None:
        self.framework, self.source = framework, model
        self.label, self.layout = model.label, model.layout
        self.argument_names = model.argument_names
        packs = len(set(model.dtypes)) == 1 and self.layout.size < framework.packs_below
        self.traits = replace(framework.traits, packs=packs)
        self.border = framework.border(self.layout, model.dtypes)
        self._conjugates = framework.traits.conjugates
        # What most models leave as it is is not called for each input of each call.
        self._has_own_leaf = type(model).leaf is not Model.leaf
        self._has_extras = type(model).extras is not Model.extras
        self._surroundings = model.surroundings
        self._programs: LRUCache[Program] = LRUCache()
        self._derivatives: LRUCache[FunctionalAdapter] = LRUCache()
        self._noise = None  # of a pullback: that of the call whose derivative it is
        self._refused, self.refusals_met = {}, {}

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether the model draws random numbers or moves state."""
        return self.source.draws

    def weights(self) -> Sequence[Any]:
        return self.source.weights()

    def model(self, weights: Sequence[Any]) -> Any:
        return self.source.native(weights)

    def update(self, weights: Sequence[Any]) -> list[Any]:
        return self._isolated(partial(self._loaded, weights, False, False), (), None, False)

    def update_flat(self, vector: Any, packed: bool) -> list[Any]:
        return self._isolated(partial(self._loaded, vector, True, packed), (), None, False)

    def forward(
        self, loaded: Sequence[Any], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        noise = spec.noise if self._noise is None else self._noise
        run = partial(self._run, loaded, None, inputs, spec, wrt, noise)
        return self._isolated(run, inputs, noise, bool(wrt))

    def evaluate(
        self, weights: Any, inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...], flat: bool
    ) -> tuple[Any, Any]:
        # Both steps in one isolation: entering it costs as much as the forward of a small model.
        noise = spec.noise if self._noise is None else self._noise
        run = partial(self._run, weights, flat, inputs, spec, wrt, noise)
        return self._isolated(run, inputs, noise, bool(wrt))

    def backward(self, residuals: Residuals, cotangents: Sequence[Any], wrt: tuple[int, ...]) -> list[Any]:
        if not residuals.dtypes:
            self._refuse_no_output()
        step = partial(residuals.pull, self.framework, cotangents, wrt)
        return self._isolated(step, residuals.inputs, None, True, "the derivative of", residuals)

    def backward_merged(
        self, residuals: Residuals, cotangents: Sequence[Any], wrt: tuple[int, ...], left: Sequence[Any]
    ) -> list[Any]:
        """`backward`, with what recorded pullbacks of this call left at its boundary."""
        if not residuals.dtypes:
            self._refuse_no_output()
        step = partial(residuals.pull, self.framework, cotangents, wrt, False, left)
        return self._isolated(step, residuals.inputs, None, True, "the derivative of", residuals)

    def backward_many(
        self, residuals: Residuals, cotangents: Sequence[Any], wrt: tuple[int, ...]
    ) -> list[Any]:
        if self.refusal("backward_many"):
            raise Unsupported(self.refusal("backward_many"))
        if not residuals.dtypes:
            self._refuse_no_output()
        try:
            step = partial(residuals.pull, self.framework, cotangents, wrt, True)
            return self._isolated(step, residuals.inputs, None, True, "the derivative of", residuals)
        except Unsupported as error:
            self.refusals_met["backward_many"] = str(error)
            raise
        except GuestError as error:
            reason = f"{self.label} cannot be pulled back for many at once: {error}"
            self.refusals_met["backward_many"] = reason
            raise Unsupported(reason) from error

    def pullback(self, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        if not self.framework.traits.has_higher_orders:
            self.refuse_higher_order()
        shared = self._derivatives.get(
            (spec.structure, wrt),
            lambda: FunctionalAdapter(
                self.framework, PullbackModel(self.framework, self.source, spec.structure, wrt)
            ),
        )
        again = copy.copy(shared)
        again._noise = spec.noise if self._noise is None else self._noise
        if (
            not isinstance(residuals, Residuals)
            or not residuals.program.records
            or not set(wrt) <= set(residuals.wrt)
        ):
            if self._surroundings is not None and isinstance(residuals, Residuals):
                self._surroundings.require(residuals.program.state)
            return again
        return RecordedPullback(again, self.framework, wrt, residuals, self._isolated)

    def in_dtype(self, name: str) -> FunctionalAdapter:
        model = self.source.in_dtype(name)
        return self if model is self.source else FunctionalAdapter(self.framework, model)

    def fresh(self) -> FunctionalAdapter | None:
        model = self.source.fresh()
        return None if model is None else FunctionalAdapter(self.framework, model)

    def isolate_calls(self) -> bool:
        return self.source.isolate_calls()

    def strangers(self, residuals: Residuals | None) -> Sequence[Stranger]:
        if residuals is None:
            return ()
        return [self.source.stranger(native) for native in residuals.program.strangers(residuals.kept)]

    def _refuse_no_output(self) -> None:
        raise NotDifferentiableError(
            f"{self.label} returned no floating array, so it has no derivative; return probabilities rather than a "
            f"class, say"
        )

    def _isolated(
        self,
        step: Callable[[], T],
        inputs: Sequence[Any],
        noise: int | None,
        record: bool,
        doing: str = "",
        residuals: Residuals | None = None,
    ) -> T:
        """Run a step in the model's isolation, again where that is asked for, and its errors explained.

        Args:
            step: may be run twice.
            inputs, noise, record: for `Model.isolated`.
            doing: for `Model.explain`.
            residuals: of the call that is made again before; None where the step is all that there is.

        Raises:
            GradbridgeError: the model failed. What its framework raises to steer a program around us, and
                the model does not explain, goes on as it came.
        """
        model = self.source
        try:
            try:
                return model.isolated(step, inputs, noise, record)
            except RunAgain as request:
                if residuals is not None:
                    self._renew(residuals, request)
                return model.isolated(step, inputs, noise, record)
        except GradbridgeError:
            raise
        except Exception as error:
            explained = model.explain(error, inputs, doing)
            if explained is error:
                raise
            raise explained from error

    def _loaded(self, weights: Any, flat: bool, packed: bool) -> list[Any]:
        dtypes = self.source.dtypes
        if not flat:
            return [self.framework.asarray(w, d) for w, d in zip(weights, dtypes)]
        return [self.framework.asarray(weights, dtypes[0])] if packed else list(self.border.cut(weights))

    def _leaves(
        self, loaded: Sequence[Any], inputs: Sequence[Any], noise: int
    ) -> tuple[list[Any], dict[int, Any]]:
        framework, model = self.framework, self.source
        leaves: list[Any] = list(loaded)
        constants: dict[int, Any] = {}
        for index, leaf in enumerate(inputs):
            if type(leaf) is not np.ndarray and not framework.is_leaf(leaf):
                constants[index] = leaf
            elif self._has_own_leaf:
                leaves.append(model.leaf(framework, index, leaf, inputs))
            else:
                leaves.append(framework.asarray(leaf, model.dtype))
        if self._has_extras:
            leaves += model.extras(noise)
        return leaves, constants

    def _run(
        self,
        weights: Any,
        flat: bool | None,
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        noise: int,
    ) -> tuple[Any, Any]:
        framework = self.framework
        if flat is None:
            loaded = weights
        elif flat and not spec.packed:
            loaded = self.border.cut(weights)
        else:
            loaded = self._loaded(weights, flat, spec.packed)
        leaves, constants = self._leaves(loaded, inputs, noise)
        program = None
        if not constants and not spec.replay:
            state = self._surroundings and self._surroundings()
            program = self._programs.find(((), spec.structure, wrt, spec.packed, False, state))
        if program is None:
            program = self._program(spec, constants, wrt)
        if self._surroundings is None:
            floats, others, form, after, kept = program.run(leaves)
        else:  # a callback of the function may change what it reads
            before = self._surroundings.now
            floats, others, form, after, kept = program.run(leaves)
            self._surroundings.settle(before)
        if after and not spec.replay:
            self.source.move(after)
        if form.structure is None and floats:  # by far the most models return one floating array
            outputs = floats[0]
        else:
            outputs = form.assemble(form.merge(floats, others))
        if not wrt:
            return outputs, None
        is_complex = self._conjugates and any(map(framework.is_complex, (*floats, *leaves[len(loaded) :])))
        places = wrt if not constants else self._places(wrt, spec, constants)
        dtypes = list(map(_dtype_of, floats))
        return outputs, Residuals(
            program, kept, wrt, places, form.floating, dtypes, is_complex, leaves, inputs, noise, len(loaded)
        )

    def _renew(self, residuals: Residuals, request: RunAgain) -> None:
        """Make a call again, so that what its pull needs is there.

        Raises:
            GuestError: it gives something else than it gave.
        """
        self.source.keep_for_rerun()
        run = partial(residuals.program.run, list(residuals.leaves))
        floats, _, _, _, residuals.kept = self.source.isolated(run, residuals.inputs, residuals.noise, True)
        view = self.border.view
        for before, after in zip(request.outputs, floats):
            if not np.array_equal(view(before), view(after), equal_nan=True):
                raise GuestError(
                    f"{self.label} {request.reason or 'must be computed again for its backward'}, and gives other "
                    f"outputs the second time: it changes its input or some state; leave one of the two out"
                )

    def _computation(self, constants: dict[int, Any], spec: CallSpec) -> Computation:
        """leaves ↦ (floats, others, form, after): pure, and without an array of its own."""
        framework, model, label = self.framework, self.source, self.label
        unpacks = spec.packed and not isinstance(model, PullbackModel)
        spec = CallSpec(spec.structure, 0, spec.replay, spec.packed)
        k, count = 1 if spec.packed else len(self.layout), spec.count
        arrays = [i for i in range(count) if i not in constants]
        stop = k + len(arrays)
        surroundings = self._surroundings
        state = 0 if surroundings is None else surroundings()

        def compute(leaves: list[Any]) -> tuple[list[Any], list[Any], Form, Sequence[Any]]:
            inputs = list(leaves[k:stop])
            if constants:
                inputs = filled([constants.get(i) for i in range(count)], arrays, inputs)
            # As `pullbacks.called` does; in place, since it is a part of every call.
            weights = framework.unpacked(leaves[0], model.layout) if unpacks else leaves[:k]
            output, after = model.call(weights, inputs, spec, leaves[stop:])
            return *framework.split(output, label), after

        if surroundings is None:
            return compute

        def traced(leaves: list[Any]) -> tuple[list[Any], list[Any], Form, Sequence[Any]]:
            with surroundings.traced(state):
                return compute(leaves)

        return traced
