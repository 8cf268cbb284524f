"""Laws 1 and 9 for what a guest may do in one computation: many cotangents, per-example Jacobians, tangents.

All of it is optional: where the guest raises `Unsupported` the check is skipped with its reason, and
core goes another way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.layout import Array
from gradbridge.testing import derivatives
from gradbridge.testing.checks.catalogue import PLAIN, SHAPED, check, optional
from gradbridge.testing.compare import expect_close, expect_gradients, expect_outputs
from gradbridge.testing.points import ScenarioPoint, drawn, forward, views
from gradbridge.testing.subject import Subject

#: How many at once: one alone, and more than any round number that a guest may have room for.
_MANY = (1, 33)


@check(1, (*PLAIN, *SHAPED))
@optional
def many_cotangents(subject: Subject) -> None:
    """Many cotangents pulled back at once, and a single one as many, give what the closed form gives for each."""
    point = subject.point(90)
    adapter, wrt = subject.adapter(), subject.differentiable(point.inputs)
    leaves = subject.leaves(adapter, point, wrt)
    _, residuals = forward(adapter, point, leaves)
    each = [subject.with_cotangents(point, seed) for seed in range(max(_MANY))]
    for many in _MANY:
        together = [np.stack(v) for v in zip(*(one.cotangents for one in each[:many]))]
        adapter.zero(residuals)
        natives = adapter.backward_many(residuals, together, leaves)
        gradients = subject.joined(adapter, point, natives, wrt, (many,))
        for index, one in enumerate(each[:many]):
            got = subject.gradients(wrt, [g[index] for g in gradients.values()])
            when = f"for cotangent {index} of {many}"
            expect_gradients(got, subject.gradients_at(one), subject.tolerance, when)


@check(1, ("mlp", "embedding", "tied", "column"))
@optional
def per_example_jacobians(subject: Subject) -> None:
    """Per-example Jacobians are those of each row as a batch of its own, be there one row or several."""
    for rows in (4, 1):
        _expect_rows_apart(subject, subject.point(91, rows))


def _expect_rows_apart(subject: Subject, point: ScenarioPoint) -> None:
    adapter = subject.adapter()
    spec, has_rows = CallSpec.of_arrays(len(point.inputs)), (True,) * len(point.inputs)
    loaded = adapter.update(adapter.layout.cut(point.params))
    leaves = subject.leaves(adapter, point, (0,))
    jacobians = adapter.row_jacobians(loaded, point.inputs, spec, leaves, has_rows)
    outputs = subject.outputs_at(point)
    assert len(jacobians) == len(outputs), (
        f"expected Jacobians of {len(outputs)} outputs, got {len(jacobians)}"
    )
    for index, (natives, output) in enumerate(zip(jacobians, outputs, strict=True)):
        jacobian = subject.joined(adapter, point, natives, (0,), output.shape)[0]
        expected = np.zeros((*output.shape, subject.scenario.size))
        for place in np.ndindex(output.shape):
            unit = [np.zeros((1, *y.shape[1:])) for y in outputs]
            unit[index][(0, *place[1:])] = 1.0
            row = tuple(x[place[0] : place[0] + 1] for x in point.inputs)
            expected[place] = subject.gradients_at(ScenarioPoint(point.params, row, tuple(unit)))[0]
        expect_close(jacobian, expected, f"Jacobian of output {index}, per example", subject.tolerance)


@check(1, (*PLAIN, *SHAPED))
@optional
def forward_mode(subject: Subject) -> None:
    """The guest's own forward mode gives the outputs and the closed form's J t, for all arguments and each alone."""
    point = subject.point(92)
    wrt = subject.differentiable(point.inputs)
    tangents = _tangents(point, wrt, 93)
    for some in (wrt, *((argument,) for argument in wrt)):
        chosen = {argument: tangents[argument] for argument in some}
        outputs, pushed = pushed_by_guest(subject, point, chosen, CallSpec.of_arrays(len(point.inputs)))
        expect_outputs(outputs, subject.outputs_at(point), subject.tolerance, "beside the tangents")
        expect_outputs(
            pushed, _expected(subject, point, chosen), subject.tolerance, "as moved by forward mode"
        )


@check(1, (*PLAIN, *SHAPED))
@optional
def forward_mode_many(subject: Subject) -> None:
    """Many tangents pushed at once, and a single one as many, give what the closed form gives for each."""
    point = subject.point(94)
    adapter, wrt = subject.adapter(), subject.differentiable(point.inputs)
    every = [_tangents(point, wrt, 95 + seed) for seed in range(max(_MANY))]
    for many in _MANY:
        each = every[:many]
        pushed = adapter.pushforward_many(
            adapter.update(adapter.layout.cut(point.params)),
            point.inputs,
            CallSpec.of_arrays(len(point.inputs)),
            subject.leaves(adapter, point, wrt),
            _cut(subject, {argument: np.stack([one[argument] for one in each]) for argument in wrt}),
        )
        arrays = [adapter.border.view(t) for t in pushed]
        for index, one in enumerate(each):
            expected = _expected(subject, point, one)
            got = [y[index] for y in arrays]
            expect_outputs(got, expected, subject.tolerance, f"for tangent {index} of {many}")


@check(9, ("dropout",), "train")
@optional
def forward_mode_mask(subject: Subject) -> None:
    """A JVP uses the mask of its call: J t is the output at t under the same noise."""
    point = subject.point(99)
    adapter = subject.adapter()
    tangents = _tangents(point, (0,), 100)
    outputs, _ = forward(adapter, ScenarioPoint(point.params, (tangents[0],), ()), noise=7)
    masked = views(adapter, outputs)[0].copy()
    forward(adapter, point, noise=8)
    _, (pushed,) = pushed_by_guest(subject, point, tangents, CallSpec.of_arrays(1, noise=7).replayed())
    expect_close(pushed, masked, "J t through the mask of its call", 1e-6)


def _tangents(point: ScenarioPoint, wrt: Sequence[int], seed: int) -> dict[int, Array]:
    return dict(zip(wrt, drawn([point.arguments[argument] for argument in wrt], seed)))


def pushed_by_guest(
    subject: Subject, point: ScenarioPoint, tangents: dict[int, Array], spec: CallSpec
) -> tuple[list[Array], list[Array]]:
    """(outputs, their tangents), by the adapter's forward mode."""
    adapter = subject.adapter()
    loaded = adapter.update(adapter.layout.cut(point.params))
    leaves = subject.leaves(adapter, point, tuple(tangents))
    outputs, pushed = adapter.pushforward(loaded, point.inputs, spec, leaves, _cut(subject, tangents))
    return views(adapter, outputs), [adapter.border.view(t) for t in pushed]


def _cut(subject: Subject, tangents: dict[int, Array]) -> list[Array]:
    """Tangents of arguments → those of leaves."""
    cut = subject.adapter().layout.cut
    return [
        leaf
        for argument, t in tangents.items()
        for leaf in (cut(t) if argument < subject.first_input else [t])
    ]


def _expected(subject: Subject, point: ScenarioPoint, tangents: dict[int, Array]) -> list[Array]:
    full = [tangents.get(i, np.zeros(np.shape(a))) for i, a in enumerate(point.arguments)]
    return derivatives.pushforward(subject.value_function(), point.arguments, full)
