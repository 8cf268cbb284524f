"""`FunctionalAdapter`: a `Framework` and a `Model` make an `Adapter`, once for every framework."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.errors import GradbridgeError, GuestError
from gradbridge.execution.programs import LRUCache
from gradbridge.execution.pullbacks import PullbackModel
from gradbridge.execution.recorded import RecordedPullback
from gradbridge.execution.transforms import T, TransformingAdapter
from gradbridge.framework import Computation, Form, Framework, Model, Program, RunAgain, filled
from gradbridge.protocol import Adapter
from gradbridge.wording import unwritten

_dtype_of = attrgetter("dtype")


class FunctionalAdapter(TransformingAdapter):
    """A model of a framework, in terms of the framework's transforms.

    Args:
        framework: the autodiff primitives.
        model: how the native model is called.
    """

    def __init__(self, framework: Framework, model: Model) -> None:
        super().__init__(framework, model)
        self.layout, self.argument_names = model.layout, model.argument_names
        packs = len(set(model.dtypes)) == 1 and self.layout.size < framework.packs_below
        self.traits = replace(framework.traits, packs=packs)
        self.border = framework.border(self.layout, model.dtypes)
        self.label = self.border.label = model.label
        self._conjugates = framework.traits.conjugates
        # What most models leave as it is is not called for each input of each call.
        self._has_own_leaf = type(model).leaf is not Model.leaf
        self._has_extras = type(model).extras is not Model.extras
        self._surroundings = model.surroundings
        self._programs: LRUCache[Program] = LRUCache(is_shared=framework.traits.compiles)
        self._derivatives: LRUCache[FunctionalAdapter] = LRUCache()
        self._compiled: LRUCache[LRUCache[Program]] = LRUCache(is_shared=framework.traits.compiles)
        self.renews, self._refused, self.refusals_met = False, {}, {}
        self._noise = None  # of a pullback: that of the call whose derivative it is

    def forward(
        self, loaded: Sequence[Any], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        return self.evaluate(loaded, inputs, spec, wrt, None)

    def evaluate(
        self, weights: Any, inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...], flat: bool | None
    ) -> tuple[Any, Any]:
        # Both steps in one isolation: entering it costs as much as the forward of a small model.
        noise = spec.noise if self._noise is None else self._noise
        run = partial(self._run, weights, flat, inputs, spec, wrt, noise)
        if self.source.moves and not spec.replay:
            run = partial(self._moved.alone, run)
        return self._isolated(run, inputs, noise, bool(wrt))

    def backward(self, residuals: Residuals, cotangents: Sequence[Any], wrt: tuple[int, ...]) -> list[Any]:
        if not residuals.dtypes:
            self._refuse_no_output()
        if self.renews:
            if residuals.is_pulled:  # its graph gives a gradient once
                self._renew(residuals, RunAgain())
            residuals.is_pulled = True
        step = partial(residuals.pull, self.framework, cotangents, wrt)
        return self._isolated(step, residuals.inputs, None, True, "the derivative of", residuals)

    def backward_merged(
        self, residuals: Residuals, cotangents: Sequence[Any], wrt: tuple[int, ...], left: Sequence[Any]
    ) -> list[Any]:
        """`backward`, with what recorded pullbacks of this call left at its boundary."""
        step = partial(residuals.pull, self.framework, cotangents, wrt, False, left)
        return self._isolated(step, residuals.inputs, None, True, "the derivative of", residuals)

    def pullback(self, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        if not self.framework.traits.has_higher_orders:
            self.refuse_higher_order()
        key = spec.structure, wrt
        again = copy.copy(self._derivatives.get(key, lambda: self._derivative(*key)))
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

    def _derivative(self, structure: Any, wrt: tuple[int, ...]) -> FunctionalAdapter:
        derivative = FunctionalAdapter(
            self.framework, PullbackModel(self.framework, self.source, structure, wrt)
        )
        # Its own, but for what is compiled, which copies share.
        made = partial(LRUCache[Program], is_shared=self.traits.compiles)
        derivative._programs = self._compiled.get((structure, wrt), made)
        return derivative

    def _isolated(
        self,
        step: Callable[[], T],
        inputs: Sequence[Any],
        noise: int | None,
        record: bool,
        doing: str = "",
        residuals: Residuals | None = None,
        is_settled: bool = False,
    ) -> T:
        """Run a step in the model's isolation, again where that is asked for, and its errors explained.

        Args:
            step: may be run twice.
            inputs, noise, record: for `Model.isolated`.
            doing: for `Model.explain`.
            residuals: of the call that is made again before; None where the step is all that there is.
            is_settled: whether it is known that the framework can be used.

        Raises:
            GradbridgeError: the model failed, or its framework did not survive a fork (`ForkError`). What a
                framework raises to steer a program around us, and no model explains, goes on as it came.
        """
        if not is_settled and (runtime := self.traits.runtime) is not None and not runtime.is_settled:
            with runtime.settling():  # which other threads may keep as it is
                return self._isolated(step, inputs, noise, record, doing, residuals, True)
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
            explained = unwritten(error, self.framework) or model.explained(error, inputs, doing)
            if explained is error:
                raise
            raise explained from error

    def _loaded(self, weights: Any, flat: bool, packed: bool, lent: bool = False) -> list[Any]:
        if flat and not packed:
            return list(self.border.cut(weights))
        take = self.framework.take if lent else self.framework.asarray
        given = [weights] if flat else weights  # of integers, it may be
        floats = [w.astype(float) if type(w) is np.ndarray and w.dtype.kind in "iu" else w for w in given]
        return list(map(take, floats, self.source.dtypes))

    def _leaves(
        self, loaded: Sequence[Any], inputs: Sequence[Any], noise: int, lent: bool = False
    ) -> tuple[list[Any], dict[int, Any]]:
        framework, model = self.framework, self.source
        take = framework.take if lent else framework.asarray
        if self._moved.times != self._seen:
            self._follow()
        leaves, constants = list[Any](loaded), dict[int, Any]()
        for index, leaf in enumerate(inputs):
            if type(leaf) is not np.ndarray and not framework.is_leaf(leaf):
                constants[index] = leaf
            elif self._has_own_leaf:
                leaves.append(model.leaf(framework, index, leaf, inputs))
            else:
                leaves.append(take(leaf, model.dtype))
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
            loaded = self._loaded(weights, flat, spec.packed, spec.lent)
        leaves, constants = self._leaves(loaded, inputs, noise, spec.lent)
        program = None
        if not constants and not spec.replay:
            state = self._surroundings and self._surroundings()
            program = self._programs.find(((), spec.structure, wrt, spec.packed, state))
        if program is None:
            program = self._program(spec, constants, wrt)
        if self._surroundings is None:
            floats, others, form, after, kept = program.run(leaves)
        else:  # a callback of the function may change what it reads
            before = self._surroundings.now
            floats, others, form, after, kept = program.run(leaves)
            self._surroundings.settle(before)
        if after and not spec.replay:
            self._move(after)
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
        for before, after in zip(request.outputs, floats):
            if not np.array_equal(self.border.view(before), self.border.view(after), equal_nan=True):
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


@dataclass(eq=False, slots=True)
class Residuals:
    """The record of one run.

    Attributes:
        program: that was run.
        kept: what it needs for a pull.
        wrt: the arguments that it can be pulled back to.
        places: of these among the leaves.
        floating: for each output, whether it has a derivative.
        dtypes: of the floating outputs, the framework's.
        is_complex: whether complex numbers may be among outputs and leaves, and conjugates matter.
        leaves: natives that it was run at.
        inputs: of the call, as its host gave them.
        noise: of the call.
        weights: how many of the arguments are weights, before the inputs.
        is_pulled: whether it was pulled back, where calls are made again for that.
    """

    program: Program
    kept: Any
    wrt: tuple[int, ...]
    places: tuple[int, ...]
    floating: tuple[bool, ...]
    dtypes: list[Any]
    is_complex: bool
    leaves: list[Any]
    inputs: Sequence[Any]
    noise: int
    weights: int
    is_pulled: bool = False

    @property
    def merges_from(self) -> int | None:
        """From how many weights on the program is to walk once where a derivative of its gradient would twice."""
        return self.program.merges_from

    def pull(
        self,
        framework: Framework,
        cotangents: Sequence[Any],
        wrt: tuple[int, ...],
        many: bool = False,
        left: Sequence[Any] = (),
    ) -> list[Any]:
        """One cotangent per output → one gradient per argument, zeros where there is no influence.

        Args:
            framework: of the program.
            cotangents: NumPy's or DLPack arrays; with `many` each with a leading axis.
            wrt: arguments, some of those that it can be pulled back to.
            many: whether there are many.
            left: of recorded pullbacks, at the boundary of this run.
        """
        dtypes = self.dtypes
        if len(dtypes) != len(cotangents):
            cotangents = [c for c, yes in zip(cotangents, self.floating) if yes]
        if len(dtypes) == 1:
            pulled = [framework.lend(cotangents[0], dtypes[0])]
        else:
            pulled = list(map(framework.lend, cotangents, dtypes))
        if self.is_complex:
            pulled = list(map(framework.conj, pulled))
        wanted = range(len(wrt)) if wrt == self.wrt else tuple(map(self.wrt.index, wrt))
        if left:
            gradients = self.program.pull_merged(self.kept, pulled, wanted, left)
        else:
            gradients = self.program.pull(self.kept, pulled, wanted, many)
        if self.is_complex:
            gradients = [None if g is None else framework.conj(g) for g in gradients]
        for gradient in gradients:
            if gradient is None:
                lead = tuple(cotangents[0].shape[:1]) if many else ()
                return [self.or_zeros(framework, g, i, lead) for g, i in zip(gradients, wanted)]
        return list(gradients)

    def or_zeros(self, framework: Framework, gradient: Any, index: int, lead: tuple[int, ...] = ()) -> Any:
        """A gradient of one of the arguments, by its place in `wrt`; zeros for None."""
        if gradient is not None:
            return gradient
        leaf = self.leaves[self.places[index]]
        return framework.zeros((*lead, *leaf.shape), leaf)
