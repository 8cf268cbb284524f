"""What only Jacobians, JVPs and higher orders ask of an evaluation: many at once, rows, tangents, boundaries."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from gradbridge.audit import first_call
from gradbridge.errors import DerivativeError, GradientMismatchError
from gradbridge.execution import steps
from gradbridge.execution.cotangents import cotangents_to_guest, tangents_to_guest
from gradbridge.execution.evaluation import Call, Evaluation
from gradbridge.layout import Array
from gradbridge.wording import described


def evaluate_and_push(
    call: Call, values: Sequence[Any], wrt: tuple[int, ...], tangents: Sequence[Any]
) -> Evaluation:
    """An evaluation with the tangents of its outputs from the same forward, by the guest's own forward mode.

    Args:
        call: to evaluate.
        values, wrt: as for `Call.evaluate`.
        tangents: of the arguments `wrt`.

    Returns:
        An evaluation that has `tangents`, and cannot be pulled back.

    Raises:
        Unsupported: the guest has no forward mode here, or it was found to be wrong.
    """
    call, values = call.prepared(values, wrt)
    if call.settings.audit.awaits_call(call.dtype.name) and not call.order:
        with suppress(DerivativeError):  # a guest that cannot pull back has a forward mode all the same
            call = first_call.looked_at(call, values, wrt)
    arrays = tangents_to_guest(tangents, values, wrt, call.adapter.label)
    outputs, moved = steps.pushed(call, values, wrt, arrays)
    evaluation = call.given(outputs, None, values, wrt)
    return replace(evaluation, tangents=tuple(_tangents_to_host(evaluation, moved)))


def push(evaluation: Evaluation, wrt: tuple[int, ...], tangents: Sequence[Any]) -> list[Array]:
    """The tangents of the outputs, by the guest's own forward mode, at the values of the evaluation.

    Raises:
        Unsupported: the guest has no forward mode here.
    """
    evaluation.require_inexact_output()
    call = replace(evaluation.call, spec=evaluation.call.spec.replayed())
    arrays = tangents_to_guest(tangents, evaluation.values, wrt, evaluation.adapter.label)
    return _tangents_to_host(evaluation, steps.pushed(call, evaluation.values, wrt, arrays)[1])


def push_many(evaluation: Evaluation, wrt: tuple[int, ...], tangents: Sequence[Array]) -> list[Array]:
    """`push` of many tangents at once, each with one leading axis.

    Raises:
        Unsupported: the guest cannot.
    """
    evaluation.require_inexact_output()
    call = replace(evaluation.call, spec=evaluation.call.spec.replayed())
    lead = tuple(tangents[0].shape[:1])
    return _tangents_to_host(evaluation, steps.pushed_many(call, evaluation.values, wrt, tangents), lead)


def pull_many(
    evaluation: Evaluation, cotangents: Sequence[Array], wrt: tuple[int, ...], how: str
) -> list[Array]:
    """Many cotangents at once: `Adapter.backward_many`, and the zero before it.

    Args:
        cotangents: one per output leaf, each with one leading axis.
        wrt: arguments to pull back to.
        how: what observers are told of it.

    Returns:
        A gradient per argument with the leading axis.

    Raises:
        Unsupported: the guest cannot.
    """
    natives = steps.pulled_many(evaluation, cotangents, wrt, how)
    return evaluation.to_arguments(natives, wrt, (len(cotangents[0]),))


def row_jacobians(
    evaluation: Evaluation, values: Sequence[Any], wrt: tuple[int, ...], has_rows: tuple[bool, ...]
) -> list[list[Array]]:
    """`Adapter.row_jacobians` at these values, which may be some rows of the call's.

    Returns:
        For each floating output, one array per argument: (rows, *output of a row, *argument shape).

    Raises:
        Unsupported: the guest cannot.
    """
    jacobians = steps.row_jacobians(evaluation, values, wrt, has_rows)
    border = evaluation.adapter.border
    leaves = evaluation.call.arguments.leaves(wrt)
    shapes = evaluation.call.leaf_shapes(evaluation.values, wrt)
    rows = next(len(x) for x, yes in zip(values[evaluation.call.first_input :], has_rows) if yes)
    if not isinstance(jacobians, (list, tuple)):
        raise GradientMismatchError(
            f"{evaluation.adapter.label} returned {described(jacobians)} as per-example Jacobians; its backend must "
            f"return a list for each floating output"
        )
    for natives in jacobians:
        # The axes in between are those of an output's row.
        lead = [
            (rows, *np.shape(n)[1 : max(1, np.ndim(n) - len(s))], *s) if hasattr(n, "shape") else (rows, *s)
            for n, s in zip(natives if isinstance(natives, (list, tuple)) else (), shapes)
        ]
        steps.check_results(evaluation.adapter, natives, leaves, lead, "per-example Jacobian")
    return [
        [
            border.view(a)
            for a in evaluation.call.arguments.join(
                natives,
                wrt,
                border,
                tuple(natives[0].shape[: natives[0].ndim - len(_leaf_shape(evaluation, wrt[0]))]),
            )
        ]
        for natives in jacobians
    ]


def pull_to_boundary(evaluation: Evaluation, cotangents: Sequence[Any]) -> tuple[dict[int, Array], Any]:
    """Pull a recorded derivative back to its cotangents, and leave the rest to the `pull` of its origin.

    Returns:
        ({argument: gradient} of the cotangents, what that `pull` is to be given).
    """
    arrays = cotangents_to_guest(cotangents, evaluation.outputs, evaluation.call.adapter.label)
    gradients, left = steps.pulled_to_boundary(evaluation, arrays)
    arguments, values = evaluation.call.arguments, evaluation.values
    shapes = {
        leaf: shape
        for i in range(len(values))
        for leaf, shape in zip(arguments.leaves((i,)), evaluation.call.leaf_shapes(values, (i,)))
    }
    parent = evaluation.call.parent
    behind = [
        leaf
        for i in range(len(parent.arguments.vectors) if parent is not None else 0, len(values))
        for leaf in arguments.leaves((i,))
    ]
    if not isinstance(gradients, dict) or not set(gradients) <= set(behind):
        raise GradientMismatchError(
            f"the pull_to_boundary of {evaluation.adapter.label} returned no gradients by its cotangents, as "
            f"{{argument: gradient}}: its backend must return these"
        )
    steps.check_results(
        evaluation.adapter,
        list(gradients.values()),
        list(gradients),
        [shapes[leaf] for leaf in gradients],
        kinds=["fc"] * len(gradients),
    )
    return {
        i: evaluation.adapter.border.copy(gradients[leaf], evaluation.dtype)
        for i in range(len(evaluation.values))
        for leaf in arguments.leaves((i,))[:1]
        if leaf in gradients
    }, left


def _tangents_to_host(
    evaluation: Evaluation, natives: Sequence[Any], lead: tuple[int, ...] = ()
) -> list[Array]:
    """Natives, one per leaf of the outputs → tangents in the host's dtype; complex ones stay complex."""
    call, border = evaluation.call, evaluation.adapter.border
    results = call.results
    shapes = (
        [y.shape for y in evaluation.outputs]
        if results is None
        else call.leaf_shapes(evaluation.values, call.wrt)
    )
    expected = [(*lead, *shape) for shape in shapes]
    kinds = ["fc"] * len(shapes)
    steps.check_results(call.adapter, natives, range(len(shapes)), expected, "tangent", "output", kinds)
    if results is not None:
        natives = results.join(natives, range(len(results.vectors)), border, lead)
    return [border.copy(t, evaluation.dtype) for t in natives]


def _leaf_shape(evaluation: Evaluation, argument: int) -> tuple[int, ...]:
    """Of the first leaf of an argument."""
    if not evaluation.call.arguments.vectors[argument]:
        return evaluation.shape(argument)
    layout = evaluation.adapter.layout
    return (layout.size,) if evaluation.call.spec.packed else layout.shapes[0]
