"""Laws 3, 4 and 8: calls in flight do not see each other, and a gradient costs one forward."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from gradbridge.layout import Array
from gradbridge.testing.backend import NotOfferedError
from gradbridge.testing.checks.reentrant import at_once
from gradbridge.testing.compare import expect_outputs
from gradbridge.testing.hosts.cell import TOLERANCES, HostCell
from gradbridge.testing.hosts.checks.catalogue import SMOOTH, check
from gradbridge.testing.points import ScenarioPoint, drawn
from gradbridge.testing.subject import Subject
from gradbridge.tracing import Trace, trace

_THREADS, _ROUNDS = 4, 3


@check(3)
def host_in_flight(cell: HostCell) -> None:
    """Calls in flight, at other values and of other lengths, are pulled back at their own in both orders."""
    one = cell.point(230)
    for other in (cell.point(231), cell.point(232, rows=6)):
        points = (one, other)
        for order in itertools.permutations(range(2)):
            flights = [cell.host.vjp(cell.floating(p), cell.arrays(p)) for p in points]
            for index in order:
                outputs, pull = flights[index]
                when = f"of call {index}, pulled back in the order {order}"
                cell.expect_outputs(outputs, points[index], when)
                cell.expect_pulled(pull, points[index], when)


@check(3, SMOOTH)
def host_two_calls_in_one_program(cell: HostCell) -> None:
    """f(a) + f(2a) in one program: each call is pulled back at its own arguments."""
    host, point = cell.host, cell.point(232)
    scalar = cell.scalar(point)

    def program(*arrays: Any) -> Any:
        return host.add(scalar(*arrays), scalar(*[host.add(a, a) for a in arrays]))

    arrays = cell.arrays(point)
    got = host.gradient(program, tuple(range(len(arrays))))(*arrays)
    doubled = cell.at(point, [2 * a for i, a in enumerate(point.arguments) if i in cell.wrt(point)])
    at_two = cell.gradients_at(doubled)
    both = [g + 2 * at_two[argument] for argument, g in cell.gradients_at(point).items()]
    cell.expect(got, cell.gradients(list(at_two), both), 1, "of f(a) + f(2a)")


@check(3, SMOOTH)
def host_threads(cell: HostCell) -> None:
    """Four threads that differentiate one bridge at once get what each alone would get."""
    expected = []
    for seed in range(240, 240 + _THREADS):
        point = cell.point(seed)
        expected.append((point, cell.gradients_at(point)))

    def work(index: int) -> None:
        point, gradients = expected[index]
        with cell.host.active():
            for _ in range(_ROUNDS):
                outputs, pull = cell.host.vjp(cell.floating(point), cell.arrays(point))
                cell.expect_outputs(outputs, point, "in one of four threads")
                cell.expect(pull(cell.cotangents(point)), gradients, 1, "in one of four threads")

    at_once(work, _THREADS)


@check(3, SMOOTH)
def host_changed_in_place(cell: HostCell) -> None:
    """Arguments that are changed in place before the pullback: the right gradient, or an error; never another number."""
    host, point = cell.host, cell.point(233)
    own = [host.changeable(point.arguments[i]) for i in cell.wrt(point)]
    _, pull = host.vjp(cell.floating(point), [value for value, _ in own])
    for _, change in own:
        change()
    try:
        got = cell.numpy(pull(cell.cotangents(point)))
    except Exception:  # without the change it is right, as other checks say: this is the system's word on it
        return
    cell.expect(got, cell.gradients_at(point), 1, "after arguments were changed in place")


@check(4, SMOOTH)
def host_fresh(cell: HostCell) -> None:
    """A call at other values sees these, also when it comes back to earlier ones."""
    one, two = cell.point(234), cell.point(235)
    two = replace(two, cotangents=one.cotangents)
    for point in (one, two, one):
        outputs, pull = cell.host.vjp(cell.floating(point), cell.arrays(point))
        cell.expect_outputs(outputs, point, "at new values")
        cell.expect_pulled(pull, point, "at new values")


@check(9, ("mlp",))
def host_first_call(cell: HostCell) -> None:
    """A bridge whose very first call is differentiated is right, in whichever way: what is looked at then hides nothing."""
    host, point = cell.host, cell.point(276)
    arrays = cell.arrays(point)
    new = cell.renewed()
    _, pull = host.vjp(new.floating(point), arrays)
    new.expect_pulled(pull, point, "of the first call")
    gradient = host.gradient(cell.renewed().scalar(point), tuple(range(len(arrays))))
    cell.expect(gradient(*arrays), cell.gradients_at(point), 1, "of the first call, as a gradient")
    u = cell.directions(point, 277)
    for operation, run in {"jvp": _first_tangents, "vmap": _first_map}.items():
        with suppress(NotOfferedError):
            got, expected = run(cell, point, u)
            expect_outputs(got, expected, TOLERANCES[1], f"of the first call, in {operation}")


def _first_tangents(
    cell: HostCell, point: ScenarioPoint, u: Sequence[Array]
) -> tuple[list[Array], list[Array]]:
    own = [cell.host.array(d) for d in u]
    _, tangents = cell.host.jvp(cell.renewed().floating(point), cell.arrays(point), own)
    moved = cell.moved(point, u)
    return cell.numpy(tangents), [moved[i] for i in cell.floating_outputs(point)]


def _first_map(cell: HostCell, point: ScenarioPoint, u: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    stacks = [cell.host.array(np.stack([a, a])) for a in map(np.asarray, point.arguments)]
    got = cell.numpy(cell.host.vmap(cell.renewed().floating(point))(*stacks))
    return got, [np.stack([y, y]) for y in cell.outputs_at(point)]


@check(8, SMOOTH)
def host_one_forward(cell: HostCell) -> None:
    """A value and its gradients by all arguments cost one forward of the guest, and one backward."""
    point = cell.point(236)

    def run() -> None:
        _, pull = cell.host.vjp(cell.floating(point), cell.arrays(point))
        cell.numpy(pull(cell.cotangents(point)))

    counted = _counted(cell, run)
    assert counted.counts["forward"] == counted.counts["backward"] == 1, (
        f"expected one forward and one backward for a value and its gradients, observed {counted.counts}"
    )


@check(8, SMOOTH, "second order")
def host_one_forward_of_second_order(cell: HostCell) -> None:
    """A Hessian-vector product makes no more forwards than the guest needs for one: it starts from what was recorded."""
    point = cell.point(237)
    u, arrays = cell.directions(point, 238), cell.arrays(point)
    product = cell.product(cell.scalar(point), u)

    def run() -> None:
        cell.numpy(cell.host.gradient(product, tuple(range(len(arrays))))(*arrays))

    counted, needed = _counted(cell, run), _needed(cell.subject)
    assert counted.counts["forward"] <= needed, (
        f"expected {needed} forward(s) for a Hessian-vector product, observed {counted.counts}:\n{counted}"
    )


@check(8, ("mlp",), "compiled")
def host_one_forward_compiled(cell: HostCell) -> None:
    """A compiled program that is differentiated makes one forward and one backward each time it runs."""
    point = cell.point(239)
    function = cell.host.compiled(cell.floating(point))

    def run() -> None:
        _, pull = cell.host.vjp(function, cell.arrays(point))
        cell.numpy(pull(cell.cotangents(point)))

    counted = _counted(cell, run)
    assert counted.counts["forward"] == counted.counts["backward"] == 1, (
        f"expected one forward and one backward of a compiled program, observed {counted.counts}"
    )


def _counted(cell: HostCell, run: Any) -> Trace:
    """Steps of a program that ran before: by then the model was looked at, and compiled.

    Raises:
        NotOfferedError: there are none to count.
    """
    registry = cell.bridge.made_with()[1]["registry"]
    run()
    with trace(registry) as counted:
        run()
    if not counted.steps:
        raise NotOfferedError(
            f"{cell.guest.name} in {cell.host.name}: the guest is a part of the host's own program, which makes no steps"
        )
    return counted


def _needed(subject: Subject) -> int:
    """Forwards that core makes for a Hessian-vector product of a guest, the model's own and those of its derivative."""
    point = subject.point(237)
    arguments = [*point.arguments, *point.cotangents]

    def run() -> None:
        flight = subject.start(point)
        evaluation = flight.differentiated().evaluate(arguments, flight.evaluation.wrt)
        evaluation.pull(drawn(evaluation.outputs, 238), flight.evaluation.wrt)

    run()
    with trace(subject.under_test.registry) as counted:
        run()
    return counted.counts["forward"]
