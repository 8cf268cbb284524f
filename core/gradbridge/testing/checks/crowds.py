"""Law 3 where many calls are made: in flight at once, differentiated twice at once."""

from __future__ import annotations

from gradbridge.testing import derivatives
from gradbridge.testing.checks.catalogue import check, refusable
from gradbridge.testing.checks.orders import floating, wide
from gradbridge.testing.checks.reentrant import at_once
from gradbridge.testing.compare import expect_close, expect_gradients, expect_outputs
from gradbridge.testing.points import drawn, forward, views
from gradbridge.testing.subject import Subject

_FLIGHTS, _THREADS, _ROUNDS = 40, 8, 4


@check(3, ("mlp", "energy"))
def many_in_flight(subject: Subject) -> None:
    """Forty calls may be in flight, their outputs unread: what an early one handed out or keeps, no later one uses."""
    adapter = subject.adapter()
    points = [subject.point(1500 + seed) for seed in range(_FLIGHTS)]
    flights = [subject.start(point) for point in points]
    wrt = subject.differentiable(points[0].inputs)
    leaves = subject.leaves(adapter, points[0], wrt)
    own = [forward(adapter, point, leaves) for point in points]
    pulled = [
        adapter.pull(residuals, list(point.cotangents), leaves) for (_, residuals), point in zip(own, points)
    ]
    for index, (flight, (outputs, _), natives) in enumerate(zip(flights, own, pulled)):
        point, when = flight.point, f"of call {index} of {_FLIGHTS}"
        flight.expect_right(when)
        expect_outputs(
            views(adapter, outputs), subject.outputs_at(point), subject.tolerance, f"{when}, read late"
        )
        got = subject.joined(adapter, point, natives, wrt)
        expect_gradients(got, subject.gradients_at(point), subject.tolerance, f"{when}, read late")


@check(3, ("mlp", "energy", "tied"))
@refusable
def second_order_in_threads(subject: Subject) -> None:
    """Eight threads that differentiate the gradient of one adapter at once get what each alone would get."""
    expected = []
    for seed in range(150, 150 + _THREADS):
        point = subject.point(seed)
        arguments = [*point.arguments, *point.cotangents]
        wrt = floating(arguments)
        directions = drawn(list(subject.gradients_at(point).values()), seed + 50)
        second = derivatives.pullback(subject.gradient_function(), arguments, directions, wrt)
        expected.append((point, arguments, wrt, directions, second))

    def work(index: int) -> None:
        point, arguments, wrt, directions, second = expected[index]
        for _ in range(_ROUNDS):
            evaluation = subject.start(point).differentiated().evaluate(arguments, wrt)
            for argument, got, right in zip(wrt, evaluation.pull(directions, wrt), second, strict=True):
                what = f"second derivative in one of eight threads, pulled back to {subject.named(argument)}"
                expect_close(got, right, what, wide(subject))

    work(0)  # whoever compiles does it here
    at_once(work, _THREADS)
