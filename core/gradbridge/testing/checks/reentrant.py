"""Laws 3 and 4: calls in flight do not see each other, and no call sees old parameters."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable
from dataclasses import replace

from gradbridge.call_spec import CallSpec
from gradbridge.testing.checks.catalogue import PLAIN, SHAPED, check
from gradbridge.testing.compare import expect_gradients, expect_outputs
from gradbridge.testing.points import views
from gradbridge.testing.subject import Flight, Subject

_THREADS, _ROUNDS = 8, 6


@check(3, ("mlp", "embedding", "outputs", "tied", "unused"))
def params_in_flight(subject: Subject) -> None:
    """f(θ) + f(2θ): two forwards at different params are each pulled back at their own."""
    one = subject.point(10)
    two = subject.with_cotangents(replace(one, params=2 * one.params), 11)
    first, second = subject.start(one), subject.start(two)
    _expect_right(first, "at θ, with f(2θ) in flight")
    _expect_right(second, "at 2θ, with f(θ) in flight")


@check(3, (*PLAIN, *SHAPED))
def inputs_in_flight(subject: Subject) -> None:
    """f(θ, x) + f(θ, y): two forwards at different inputs, of different lengths, are pulled back at their own."""
    one, other = subject.point(12), subject.point(13, rows=6)
    two = replace(other, params=one.params)
    two = subject.with_cotangents(two, 13)
    first, second = subject.start(one), subject.start(two)
    _expect_right(first, "at x, with f(y) in flight")
    _expect_right(second, "at y, with f(x) in flight")


@check(3)
def any_order(subject: Subject) -> None:
    """Three forwards in flight may be pulled back in every order, the reverse one too."""
    points = [subject.point(seed) for seed in (14, 15, 16)]
    for order in itertools.permutations(range(3)):
        flights = [subject.start(point) for point in points]
        for index in order:
            _expect_right(flights[index], f"of call {index}, pulled back in the order {order}")


@check(3)
def later_update(subject: Subject) -> None:
    """A later update changes nothing: neither about params loaded before, nor about residuals."""
    one, two = subject.point(17), subject.point(18)
    adapter, flight = subject.adapter(), subject.start(one)
    cut = adapter.layout.cut
    loaded, flat = adapter.update(cut(one.params)), adapter.update_flat(one.params, False)
    adapter.update(cut(two.params))
    adapter.update_flat(two.params, False)
    spec = CallSpec.of_arrays(len(one.inputs))
    for weights in (loaded, flat):
        late, _ = adapter.forward(weights, one.inputs, spec, ())
        expected, when = subject.outputs_at(one), "of params loaded before an update"
        expect_outputs(views(adapter, late), expected, subject.tolerance, when)
    _expect_right(flight, "after an update")


@check(3)
def results_stand(subject: Subject) -> None:
    """Outputs and gradients that were handed out stay as they are, whatever is computed later."""
    one, two = subject.point(23), subject.point(24)
    for wrt in (None, ()):
        flight = subject.start(one, wrt=wrt)
        gradients = flight.pull() if wrt is None else subject.gradients((), ())
        later = subject.start(two, wrt=wrt)
        if wrt is None:
            later.pull()
        expect_outputs(
            flight.outputs, subject.outputs_at(one), subject.tolerance, "of an earlier call, read later"
        )
        expect_gradients(
            gradients, subject.gradients_at(one), subject.tolerance, "of an earlier call, read later"
        )


@check(3, ("mlp", "energy", "outputs", "tied"))
def eight_threads(subject: Subject) -> None:
    """Eight threads that evaluate and pull back one adapter at once get what each alone would get."""
    expected = []
    for seed in range(100, 100 + _THREADS):
        point = subject.point(seed)
        expected.append((point, subject.outputs_at(point), subject.gradients_at(point)))

    def work(index: int) -> None:
        point, outputs, gradients = expected[index]
        for _ in range(_ROUNDS):
            flight = subject.start(point)
            expect_outputs(flight.outputs, outputs, subject.tolerance, "in one of eight threads")
            expect_gradients(
                flight.pull(), gradients, subject.tolerance, "pulled back in one of eight threads"
            )

    at_once(work, _THREADS)


@check(3, ("mlp", "energy"))
def another_thread(subject: Subject) -> None:
    """A call made in one thread may be pulled back in another."""
    point = subject.point(19)
    flight = subject.start(point)
    failures: list[BaseException | None] = []

    def work() -> None:
        try:
            _expect_right(flight, "pulled back in another thread")
            failures.append(None)
        except BaseException as error:  # handed to the caller's thread
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failures[0] is not None:
        raise failures[0]


@check(4, ("mlp", "embedding", "outputs", "tied", "unused"))
def fresh_params(subject: Subject) -> None:
    """A call at new params sees the new ones, also when it comes back to earlier ones."""
    one, two = subject.point(20), subject.point(21)
    for point in (one, two, one):
        flight = subject.start(point)
        expect_outputs(flight.outputs, subject.outputs_at(point), subject.tolerance)
        _expect_right(flight, "at new params")


@check(4, tuple(name for name in PLAIN if name != "energy"))
def params_changed_in_place(subject: Subject) -> None:
    """`theta -= step` is new params in the old array, and a call sees them."""
    point = subject.point(22)
    subject.start(point).pull()
    point.params[...] *= -0.5
    flight = subject.start(point)
    expect_outputs(
        flight.outputs, subject.outputs_at(point), subject.tolerance, "after params changed in place"
    )
    _expect_right(flight, "after params changed in place")


def at_once(work: Callable[[int], None], count: int) -> None:
    """Run ``work(0)``, ``work(1)`` … in threads that begin together; the first failure is the caller's."""
    failures: list[BaseException] = []
    start = threading.Barrier(count)

    def run(index: int) -> None:
        try:
            start.wait()
            work(index)
        except BaseException as error:  # handed to the caller's thread
            failures.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads change places often enough to meet each other
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    if failures:
        raise failures[0]


def _expect_right(flight: Flight, when: str) -> None:
    subject = flight.subject
    expect_gradients(flight.pull(), subject.gradients_at(flight.point), subject.tolerance, when)
