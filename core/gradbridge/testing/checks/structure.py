"""Laws 1 and 9 for what a guest may do in one computation: many cotangents, rows apart, tangents.

All of it is optional: where the guest returns None the check is skipped, and core goes another way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.protocol import Array, Signature
from gradbridge.testing import derivatives
from gradbridge.testing.backend import NotOfferedError
from gradbridge.testing.checks.catalogue import check
from gradbridge.testing.compare import expect_close, expect_gradients, expect_outputs
from gradbridge.testing.subject import Point, Subject

_MANY = 3


@check(1)
def many_cotangents(subject: Subject) -> None:
    """Many cotangents pulled back at once give what the closed form gives for each."""
    point = subject.point(90)
    adapter, positions = subject.adapter(), subject.positions(point.inputs)
    signature = Signature.flat(len(point.inputs))
    _, residuals = adapter.forward(adapter.update(point.params), point.inputs, signature, positions)
    each = [subject.with_cotangents(point, seed) for seed in range(_MANY)]
    together = [np.stack(v) for v in zip(*(one.cotangents for one in each))]
    adapter.zero(residuals)
    found = _offered(adapter.backward_many(residuals, together, positions), "one cotangent at a time")
    assert len(found) == len(positions), f"expected {len(positions)} gradients, got {len(found)}"
    for index, one in enumerate(each):
        got = {position: gradient[index] for position, gradient in zip(positions, found)}
        expect_gradients(got, subject.gradients_at(one), subject.tolerance, f"for cotangent {index} of many")


@check(1, ("mlp", "embedding", "tied"))
def rows_apart(subject: Subject) -> None:
    """Jacobians of the rows apart are those of each row as a batch of its own."""
    point = subject.point(91)
    adapter = subject.adapter()
    signature, rowed = Signature.flat(len(point.inputs)), (True,) * len(point.inputs)
    loaded = adapter.update(point.params)
    found = _offered(adapter.row_jacobians(loaded, point.inputs, signature, (0,), rowed), "no rows apart")
    outputs = subject.outputs_at(point)
    assert len(found) == len(outputs), f"expected Jacobians of {len(outputs)} outputs, got {len(found)}"
    for index, ((got,), output) in enumerate(zip(found, outputs)):
        expected = np.zeros((*output.shape, subject.scenario.size))
        for place in np.ndindex(output.shape):
            row = Point(point.params, tuple(x[place[0] : place[0] + 1] for x in point.inputs), ())
            unit = [np.zeros((1, *y.shape[1:])) for y in outputs]
            unit[index][(0, *place[1:])] = 1.0
            alone = Point(row.params, row.inputs, tuple(unit))
            expected[place] = subject.gradients_at(alone)[0]
        expect_close(got, expected, f"Jacobian of output {index}, rows apart", subject.tolerance)


@check(1)
def forward_mode(subject: Subject) -> None:
    """The guest's own forward mode gives the closed form's J t, for all arguments and for each alone."""
    point = subject.point(92)
    adapter, positions = subject.adapter(), subject.positions(point.inputs)
    tangents = _tangents(point, positions, 93)
    for wrt in (positions, *((p,) for p in positions)):
        found = _offered(
            adapter.pushforward(
                adapter.update(point.params),
                point.inputs,
                Signature.flat(len(point.inputs)),
                wrt,
                [tangents[p] for p in wrt],
            ),
            "no forward mode",
        )
        expect_outputs(found, _pushed(subject, point, {p: tangents[p] for p in wrt}), subject.tolerance)


@check(1)
def forward_mode_many(subject: Subject) -> None:
    """Many tangents pushed at once give what the closed form gives for each."""
    point = subject.point(94)
    adapter, positions = subject.adapter(), subject.positions(point.inputs)
    each = [_tangents(point, positions, 95 + seed) for seed in range(_MANY)]
    found = _offered(
        adapter.pushforward_many(
            adapter.update(point.params),
            point.inputs,
            Signature.flat(len(point.inputs)),
            positions,
            [np.stack([one[p] for one in each]) for p in positions],
        ),
        "one tangent at a time",
    )
    for index, one in enumerate(each):
        expected = _pushed(subject, point, one)
        expect_outputs([y[index] for y in found], expected, subject.tolerance, f"for tangent {index} of many")


@check(9, ("dropout",), "train")
def forward_mode_mask(subject: Subject) -> None:
    """A JVP uses the mask of its call: J t is the output at t under the same noise."""
    point = subject.point(99)
    adapter = subject.adapter()
    tangent = _tangents(point, (1,), 100)[1]
    signature = Signature.flat(1, noise=7)
    loaded = adapter.update(point.params)
    masked, _ = adapter.forward(loaded, [tangent], signature, ())
    adapter.forward(loaded, point.inputs, Signature.flat(1, noise=8), ())
    found = _offered(
        adapter.pushforward(loaded, point.inputs, signature.replayed(), (1,), [tangent]), "no forward mode"
    )
    expect_close(found[0], np.asarray(masked), "J t through the mask of its call", 1e-6)


def _offered(found: list[Any] | None, what: str) -> list[Any]:
    if found is None:
        raise NotOfferedError(f"not offered, and another way is taken: {what}")
    return found


def _tangents(point: Point, positions: Sequence[int], seed: int) -> dict[int, Array]:
    rng = np.random.default_rng(seed)
    return {p: rng.normal(size=point.inputs[p - 1].shape if p else point.params.shape) for p in positions}


def _pushed(subject: Subject, point: Point, tangents: dict[int, Array]) -> list[Array]:
    arguments = [point.params, *point.inputs]
    moves = [tangents.get(p, np.zeros(np.shape(a))) for p, a in enumerate(arguments)]
    return derivatives.pushforward(subject.value_function(), arguments, moves)
