"""The pullback of a call that was made: it starts from what its forward recorded, and makes none of its own."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.errors import GradbridgeError, Unsupported
from gradbridge.execution.transforms import TransformingAdapter
from gradbridge.framework import Framework, Program
from gradbridge.protocol import Adapter

T = TypeVar("T")


class Again(NamedTuple):
    """Residuals of a pullback that was computed anew."""

    residuals: Any


class RecordedPullback(Adapter):
    """The VJP at the point of one call.

    Its arguments are those of any pullback, ``(*weights, *inputs, *cotangents)``; the weights and
    inputs that a host hands in are those of the call, and are not read. Where the program keeps too
    little, or something is asked for that was not recorded, the derivative is computed anew.

    Args:
        again: the pullback that computes anew.
        framework: of the adapter whose call it was.
        wrt: the arguments whose gradients it returns; all of them recorded.
        residuals: of the call.
        isolated: of that adapter, runs a step.
        root: residuals of the call that all this is a derivative of; None where that is the same.
    """

    step = "backward"
    results_are_typed = True

    def __init__(
        self,
        again: TransformingAdapter,
        framework: Framework,
        wrt: tuple[int, ...],
        residuals: Any,
        isolated: Callable[..., Any],
        root: Any = None,
    ) -> None:
        self.label, self.layout, self.traits = again.label, again.layout, again.traits
        self.border = again.border
        self._again, self._framework, self._run = again, framework, isolated
        self._wrt, self._residuals = wrt, residuals
        self._root = residuals if root is None else root

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """As the model."""
        return self._again.stochastic

    @property
    def moves(self) -> bool:  # type: ignore[override]
        """As the model."""
        return self._again.moves

    def weights(self) -> Sequence[Any]:
        return self._again.weights()

    def model(self, weights: Sequence[Any]) -> Any:
        return self._again.model(weights)

    def update(self, weights: Sequence[Any]) -> Callable[[], Any]:
        # Nothing to load, as a rule.
        return partial(self._again.update, weights)

    def update_flat(self, vector: Any, packed: bool) -> Callable[[], Any]:
        return partial(self._again.update_flat, vector, packed)

    def forward(
        self, loaded: Callable[[], Any], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        residuals = self._residuals
        weights = 1 if spec.packed else len(self.layout)
        count = len(residuals.floating)
        first = weights + len(inputs) - count
        try:
            if any(p < first and p not in residuals.wrt for p in wrt):
                raise Unsupported("not all of what it is pulled back to was recorded")
            outputs, kept, cotangents = self._isolated(partial(self._pulled_again, inputs[-count:]))
        except Unsupported:
            return self._anew(inputs, spec, wrt)
        if not wrt:
            return outputs, None
        leaves = [*residuals.leaves, *cotangents]
        return outputs, type(residuals)(
            residuals.program,
            kept,
            (*residuals.wrt, *(first + i for i, yes in enumerate(residuals.floating) if yes)),
            (*residuals.places, *range(len(residuals.leaves), len(leaves))),
            (True,) * len(outputs),
            [y.dtype for y in outputs],
            residuals.is_complex,
            leaves,
            inputs,
            residuals.noise,
            residuals.weights,
        )

    def _anew(self, inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]) -> tuple[Any, Any]:
        """The derivative computed anew, at the arrays of the call: the caller may have changed its own since."""
        root, surroundings = self._root, self._again.source.surroundings
        if surroundings is not None:
            surroundings.require(root.program.state)
        leaves = iter(root.leaves)
        loaded = [next(leaves) for _ in range(root.weights)]
        own = [
            next(leaves) if type(x) is np.ndarray or self._framework.is_leaf(x) else x for x in root.inputs
        ]
        outputs, anew = self._again.forward(loaded, [*own, *inputs[len(own) :]], spec, wrt)
        return outputs, (None if anew is None else Again(anew))

    def backward(self, residuals: Any, cotangents: Sequence[Any], wrt: tuple[int, ...]) -> list[Any]:
        if isinstance(residuals, Again):
            return self._again.backward(residuals.residuals, cotangents, wrt)
        # The cotangent of an integer output has no influence, and was not recorded.
        recorded = tuple(p for p in wrt if p in residuals.wrt)
        gradients = dict(
            zip(
                recorded,
                self._isolated(partial(residuals.pull, self._framework, cotangents, recorded)),
            )
        )
        if len(recorded) == len(wrt):
            return list(gradients.values())
        return [
            gradients[p] if p in gradients else np.zeros(residuals.inputs[p - residuals.weights].shape)
            for p in wrt
        ]

    def pull_to_boundary(self, residuals: Any, cotangents: Sequence[Any]) -> tuple[dict[int, Any], Any]:
        """Pull back to the cotangents alone, and leave the walk through the call's own graph to its backward.

        Returns:
            ({argument: gradient} of the cotangents, what `FunctionalAdapter.backward_merged` takes).

        Raises:
            Unsupported: `backward` does both walks.
        """
        if isinstance(residuals, Again):
            raise Unsupported("it was computed anew")
        framework, outer = self._framework, self._residuals

        def run() -> tuple[dict[int, Any], Any]:
            lent = [framework.lend(c, d) for c, d in zip(cotangents, residuals.dtypes)]
            if residuals.is_complex:
                lent = [framework.conj(c) for c in lent]
            program: Program = residuals.program
            gradients, left = program.pull_to_boundary(outer.kept, residuals.kept, lent)
            if residuals.is_complex:
                gradients = [None if g is None else framework.conj(g) for g in gradients]
            count = len(outer.wrt)
            return {
                p: residuals.or_zeros(framework, g, count + i)
                for i, (p, g) in enumerate(zip(residuals.wrt[count:], gradients))
            }, left

        return self._isolated(run)

    def pushforward(
        self,
        loaded: Callable[[], Any],
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        tangents: Sequence[Any],
    ) -> tuple[Any, list[Any]]:
        return self._again.pushforward(loaded(), inputs, spec, wrt, tangents)

    def pushforward_many(
        self,
        loaded: Callable[[], Any],
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        tangents: Sequence[Any],
    ) -> list[Any]:
        return self._again.pushforward_many(loaded(), inputs, spec, wrt, tangents)

    def backward_many(self, residuals: Any, cotangents: Sequence[Any], wrt: tuple[int, ...]) -> list[Any]:
        if isinstance(residuals, Again):
            return self._again.backward_many(residuals.residuals, cotangents, wrt)
        if self.refusal("backward_many") or not set(wrt) <= set(residuals.wrt):
            raise Unsupported(self.refusal("backward_many") or f"{self.label}: not all of it was recorded")
        try:
            return self._isolated(partial(residuals.pull, self._framework, cotangents, wrt, True))
        except Unsupported:
            raise
        except GradbridgeError as error:
            raise Unsupported(f"{self.label} cannot be pulled back for many at once: {error}") from error

    def pullback(self, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        if isinstance(residuals, Again):
            return self._again.pullback(spec, wrt, residuals.residuals)
        again = self._again.pullback(spec, wrt)
        if residuals is None or not set(wrt) <= set(residuals.wrt):
            return again
        assert isinstance(again, TransformingAdapter)
        return RecordedPullback(again, self._framework, wrt, residuals, self._run, self._root)

    def operations(self, residuals: Any) -> Hashable:
        if isinstance(residuals, Again):
            return self._again.operations(residuals.residuals)
        return None if residuals is None else residuals.program.operations(residuals.kept)

    def output_spec(self, inputs: Sequence[Any], spec: CallSpec) -> Any:
        return self._again.output_spec(inputs, spec)

    def refusal(self, operation: str) -> str:
        return self._again.refusal(operation)

    def _pulled_again(self, cotangents: Sequence[Any]) -> tuple[tuple[Any, ...], Any, list[Any]]:
        residuals, framework = self._residuals, self._framework
        floating = [c for c, yes in zip(cotangents, residuals.floating) if yes]
        pulled = [framework.asarray(c, dtype) for c, dtype in zip(floating, residuals.dtypes)]
        wanted = [residuals.wrt.index(p) for p in self._wrt]
        gradients, kept = residuals.program.pull_recorded(residuals.kept, pulled, wanted)
        return tuple(residuals.or_zeros(framework, g, i) for g, i in zip(gradients, wanted)), kept, pulled

    def _isolated(self, step: Callable[[], T]) -> T:
        residuals = self._residuals
        doing = "the derivative of the gradient of"
        result: T = self._run(step, residuals.inputs, None, True, doing, residuals)
        return result
