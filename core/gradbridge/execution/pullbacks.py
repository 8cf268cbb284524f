"""The VJP of a model is a model: the recursion, once for all frameworks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import optree

from gradbridge.call_spec import CallSpec
from gradbridge.framework import Framework, Model, filled


class PullbackModel(Model):
    """``(*weights, *inputs, *cotangents) ↦ a gradient for each of wrt``, of another model.

    Args:
        framework: differentiates.
        parent: the model.
        structure: of the parent's inputs.
        wrt: the arguments, weights and input leaves, whose gradients it computes.
    """

    def __init__(
        self, framework: Framework, parent: Model, structure: optree.PyTreeSpec, wrt: tuple[int, ...]
    ) -> None:
        self._framework, self._parent, self._structure, self._wrt = framework, parent, structure, wrt
        self._count = structure.num_leaves
        self.label, self.layout = f"gradient of {parent.label}", parent.layout
        self.dtypes, self.dtype = parent.dtypes, parent.dtype
        self.any_rows = parent.any_rows
        self.surroundings = parent.surroundings

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """Whether the parent does."""
        return self._parent.draws

    def weights(self) -> Sequence[Any]:
        return self._parent.weights()

    def native(self, weights: Sequence[Any]) -> Any:
        return self._parent.native(weights)

    def leaf(self, framework: Framework, index: int, array: Any, inputs: Sequence[Any]) -> Any:
        if index < self._count:
            return self._parent.leaf(framework, index, array, inputs[: self._count])
        return framework.asarray(array, None)  # a cotangent is cast when its output's dtype is known

    def extras(self, noise: int) -> Sequence[Any]:
        return self._parent.extras(noise)

    def isolated(
        self, thunk: Callable[[], Any], inputs: Sequence[Any], noise: int | None, record: bool
    ) -> Any:
        return self._parent.isolated(thunk, inputs[: self._count], noise, True)

    def keep_for_rerun(self) -> bool:
        return self._parent.keep_for_rerun()

    def explain(self, error: Exception, inputs: Sequence[Any], doing: str = "") -> Exception:
        return self._parent.explain(error, inputs, f"{doing} the gradient of" if doing else "the gradient of")

    def call(
        self, weights: Sequence[Any], inputs: list[Any], spec: CallSpec, extras: Sequence[Any]
    ) -> tuple[Any, Sequence[Any]]:
        framework, count = self._framework, len(weights)
        every = [*weights, *inputs[: self._count]]
        parent_spec = CallSpec(self._structure, 0, True, spec.packed)
        floating: tuple[bool, ...] = ()

        def of(values: list[Any]) -> list[Any]:
            nonlocal floating
            leaves = filled(every, self._wrt, values)
            output, _ = called(framework, self._parent, leaves[:count], leaves[count:], parent_spec, extras)
            floats, _, form = framework.split(output, self._parent.label)
            floating = form.floating
            return floats

        primals = [every[i] for i in self._wrt]
        outputs, pull = framework.vjp(of, primals)
        cotangents = [c for c, yes in zip(inputs[self._count :], floating) if yes]
        conjugates = framework.traits.conjugates
        pulled = [framework.cast(c, y) for c, y in zip(cotangents, outputs)]
        gradients = pull([framework.conj(c) for c in pulled] if conjugates else pulled)
        return tuple(
            framework.zeros(tuple(x.shape), x) if g is None else framework.conj(g) if conjugates else g
            for g, x in zip(gradients, primals)
        ), ()

    def specs(self, arguments: Sequence[Any]) -> tuple[Any, ...]:
        """Of the gradients: those of the arguments that they belong to."""
        return tuple(arguments[i] for i in self._wrt)


def called(
    framework: Framework,
    model: Model,
    weights: Sequence[Any],
    inputs: list[Any],
    spec: CallSpec,
    extras: Sequence[Any],
) -> tuple[Any, Sequence[Any]]:
    """Call a model, its weights cut where they came as one leaf. A pullback hands them on as they came."""
    if spec.packed and not isinstance(model, PullbackModel):
        weights = framework.unpacked(weights[0], model.layout)
    return model.call(weights, inputs, spec, extras)
