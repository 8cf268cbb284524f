"""Law 1 under the host's transformations: mapped over rows, and compiled."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradbridge.layout import Array
from gradbridge.testing.compare import Gradients, expect_outputs
from gradbridge.testing.hosts.cell import TOLERANCES, HostCell
from gradbridge.testing.hosts.checks.catalogue import SMOOTH, check
from gradbridge.testing.points import ScenarioPoint

_MANY = 3


@check(1, (*SMOOTH, "outputs"), "vmap")
def host_vmap(cell: HostCell) -> None:
    """Mapped over a leading axis of params and inputs, a call gives for each what it gives alone."""
    points = [cell.point(seed) for seed in range(250, 250 + _MANY)]
    got = cell.numpy(cell.host.vmap(cell.floating(points[0]))(*_stacked(cell, points)))
    for index, point in enumerate(points):
        cell.expect_outputs([y[index] for y in got], point, f"at {index} of a map")


@check(1, SMOOTH, "vmap")
def host_vmap_of_gradients(cell: HostCell) -> None:
    """Gradients mapped over a leading axis, and over that of an input alone, are those of each."""
    points = _alike(cell, range(253, 253 + _MANY))
    arrays = cell.arrays(points[0])
    gradient = cell.host.gradient(cell.scalar(points[0]), tuple(range(len(arrays))))
    got = cell.numpy(cell.host.vmap(gradient)(*_stacked(cell, points)))
    for index, point in enumerate(points):
        _expect_row(cell, got, index, cell.gradients_at(point), "of a map of gradients")

    last = len(arrays) - 1
    alone = cell.host.vmap(lambda x: cell.host.gradient(cell.scalar(points[0]), (last,))(*arrays[:last], x))
    (of_last,) = cell.numpy(alone(_stacked(cell, points)[last]))
    for index, point in enumerate(points):
        own = [np.asarray(points[0].arguments[i]) for i in cell.wrt(point)]
        own[last] = np.asarray(point.arguments[cell.wrt(point)[last]])
        expected = cell.gradients_at(cell.at(points[0], own))
        argument = list(expected)[last]
        gradients = cell.gradients((argument,), [expected[argument]])
        cell.expect([of_last[index]], gradients, 1, f"at {index} of a map over one input")


@check(1, SMOOTH, "vmap")
def host_gradient_of_vmap(cell: HostCell) -> None:
    """What was mapped is pulled back: each row to its own arguments."""
    points = _alike(cell, range(256, 256 + _MANY))
    outputs, pull = cell.host.vjp(cell.host.vmap(cell.floating(points[0])), _stacked(cell, points))
    cotangents = [np.stack([c] * _MANY) for c in points[0].cotangents]
    got = cell.numpy(pull([cell.host.array(c) for c in cotangents]))
    for index, point in enumerate(points):
        cell.expect_outputs([y[index] for y in cell.numpy(outputs)], point, f"at {index} of a map")
        _expect_row(cell, got, index, cell.gradients_at(point), "pulled back through a map")


@check(1, (*SMOOTH, "outputs", "embedding"), "compiled")
def host_compiled(cell: HostCell) -> None:
    """A compiled call, differentiated from outside, is right at one set of values and at another."""
    points = _alike(cell, (260, 261))
    function = cell.host.compiled(cell.floating(points[0]))
    for index, point in enumerate(points):
        outputs, pull = cell.host.vjp(function, cell.arrays(point))
        cell.expect_outputs(outputs, point, f"of a compiled program, run {index + 1}")
        cell.expect_pulled(pull, point, f"of a compiled program, run {index + 1}")


@check(1, SMOOTH, "compiled")
def host_compiled_gradient(cell: HostCell) -> None:
    """A compiled gradient is right at one set of values and at another."""
    points = _alike(cell, (262, 263))
    arrays = cell.arrays(points[0])
    gradient = cell.host.compiled(cell.host.gradient(cell.scalar(points[0]), tuple(range(len(arrays)))))
    for index, point in enumerate(points):
        got = gradient(*cell.arrays(point))
        cell.expect(got, cell.gradients_at(point), 1, f"of a compiled gradient, run {index + 1}")


@check(9, ("mlp",), "compiled")
def host_first_call_compiled(cell: HostCell) -> None:
    """A bridge whose very first call is within a compiled program is right from then on."""
    new, point = cell.renewed(), cell.point(269)
    function = cell.host.compiled(new.floating(point))
    for when in ("the first", "the second"):
        outputs, pull = cell.host.vjp(function, new.arrays(point))
        new.expect_outputs(outputs, point, f"of {when} call, compiled")
        new.expect_pulled(pull, point, f"of {when} call, compiled")


@check(7, SMOOTH, "compiled second order")
def host_compiled_second_order(cell: HostCell) -> None:
    """A compiled Hessian-vector product is right at one set of values and at another."""
    points = _alike(cell, (264, 265))
    u, arrays = cell.directions(points[0], 266), cell.arrays(points[0])
    product = cell.product(cell.scalar(points[0]), u)
    gradient = cell.host.compiled(cell.host.gradient(product, tuple(range(len(arrays)))))
    for index, point in enumerate(points):
        got = gradient(*cell.arrays(point))
        cell.expect(got, cell.second(point, u), 2, f"of a compiled product, run {index + 1}")


@check(7, ("mlp",), "compiled forward mode")
def host_compiled_forward_mode(cell: HostCell) -> None:
    """Forward mode within a compiled program is right, or refused; never zeros."""
    host, point = cell.host, cell.point(267)
    t, arrays = cell.directions(point, 268), cell.arrays(point)
    own = [host.array(d) for d in t]
    floating = cell.floating(point)
    function = host.compiled(lambda *every: tuple(host.jvp(floating, every, own)[1]))
    tangents = cell.numpy(function(*arrays))
    moved = cell.moved(point, t)
    expected = [moved[i] for i in cell.floating_outputs(point)]
    expect_outputs(tangents, expected, TOLERANCES[1], "of compiled forward mode")


def _alike(cell: HostCell, seeds: Any) -> list[ScenarioPoint]:
    """Points with other values of what is differentiated, and the first one's constants and cotangents."""
    points = [cell.point(seed) for seed in seeds]
    wrt = cell.wrt(points[0])
    return [
        points[0],
        *(cell.at(points[0], [np.asarray(p.arguments[i]) for i in wrt]) for p in points[1:]),
    ]


def _stacked(cell: HostCell, points: list[ScenarioPoint]) -> list[Any]:
    """What is differentiated, along a new first axis, arrays of the host."""
    return [cell.host.array(np.stack([p.arguments[i] for p in points])) for i in cell.wrt(points[0])]


def _expect_row(cell: HostCell, got: list[Array], index: int, expected: Gradients, when: str) -> None:
    cell.expect([g[index] for g in got], expected, 1, f"{when}, at {index}")
