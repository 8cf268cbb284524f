"""Laws 3 and 4 of what is no argument: what a function reads from outside of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from gradbridge.errors import GradbridgeError
from gradbridge.testing.backend import NotOfferedError
from gradbridge.testing.checks.catalogue import check
from gradbridge.testing.compare import Gradients, expect_gradients, expect_outputs
from gradbridge.testing.outside import Outside
from gradbridge.testing.points import ScenarioPoint, forward
from gradbridge.testing.subject import Flight, Subject


@check(4, ("energy",))
def outside_is_fresh(subject: Subject) -> None:
    """What a function reads from outside is what is there when it is called: a changed value is seen, or refused."""
    for calls in _readers(subject, "outside_is_fresh"):
        calls.expect_right(calls.first, f"with {calls.kind.what} outside")
        calls.change()
        for wrt in ((0,), ()):  # where a framework compiles, these are two programs
            with suppress(GradbridgeError):  # a refusal is honest
                calls.expect_right(calls.start(wrt), f"after {calls.kind.what} outside was changed")


@check(3, ("energy",))
def outside_in_flight(subject: Subject) -> None:
    """A call is pulled back, any number of times, at what its function read from outside, or is refused."""
    for calls in _readers(subject, "outside_in_flight"):
        if calls.kind.is_in_place:
            continue  # a framework may keep the array itself, and most do
        at = calls.point()
        calls.change()
        for turn in ("", "again "):
            with suppress(GradbridgeError):
                calls.expect_right(
                    calls.first, f"pulled back {turn}after {calls.kind.what} outside was changed", at
                )


class _Kind(NamedTuple):
    """What y is, at first, a function that gives what it is changed to, and whether that is the same array."""

    what: str
    value: Any
    change: Callable[[], Any]
    is_in_place: bool = False


class _Calls:
    """Calls of Σ x² y as a function of x, with y from outside.

    Args:
        subject: the scenario.
        kind: of y.

    Attributes:
        first: a call, made at first.

    Raises:
        GradbridgeError: the function does not take such a y.
    """

    def __init__(self, subject: Subject, kind: _Kind) -> None:
        self._subject, self.kind, self._outside = subject, kind, Outside(kind.value)
        native = subject.under_test.reading(subject.build({}), self._outside)
        self._adapter, self._inputs = subject.adapt(native, subject.precision), subject.point(92).inputs
        self.start().pull()  # such a y is taken, and differentiated by x
        self.first = self.start()

    def start(self, wrt: tuple[int, ...] = (0,)) -> Flight:
        """A call, now."""
        point = self._subject.with_cotangents(self.point(), 92)
        return self._subject.start(replace(point, inputs=self._inputs[:1]), adapter=self._adapter, wrt=wrt)

    def change(self) -> None:
        """Change y."""
        self._outside.set(self.kind.change())

    def point(self) -> ScenarioPoint:
        """With the present y as the second input."""
        x, y = self._inputs[0], self._outside.read()
        y = self._subject.adapter().border.view(y) if hasattr(y, "shape") else y
        return ScenarioPoint(np.empty(0), (x, np.array(np.broadcast_to(y, x.shape), np.float64)), ())

    def expect_right(self, flight: Flight, when: str, at: ScenarioPoint | None = None) -> None:
        """Outputs and gradients are those at a point, by default with the present y."""
        subject = self._subject
        at = replace(at or self.point(), cotangents=flight.point.cotangents)
        expect_outputs(flight.outputs, subject.outputs_at(at), subject.tolerance, when)
        if flight.evaluation.wrt:
            of_x = Gradients([(0, subject.gradients_at(at)[0])], 0)
            expect_gradients(flight.pull(), of_x, subject.tolerance, when)


def _readers(subject: Subject, check: str) -> Iterator[_Calls]:
    """Calls for each kind of y that the function takes.

    Raises:
        NotOfferedError: it takes none, or the author has a reason.
    """
    under_test, count, why = subject.under_test, 0, ""
    if check in under_test.reasons:
        raise NotOfferedError(f"{under_test.name}: {under_test.reasons[check]}")
    for kind in _kinds(subject):
        try:
            calls = _Calls(subject, kind)
        except GradbridgeError as error:  # its arrays and such a y do not mix
            why = why or f": {error}"
            continue
        count += 1
        yield calls
    if not count:
        raise NotOfferedError(f"{under_test.name}: energy() takes no y from outside{why}")


def _kinds(subject: Subject) -> Iterator[_Kind]:
    yield _Kind("a number", 1.5, lambda: -2.5)
    array = subject.point(93).inputs[1]

    def in_place() -> Any:
        array[...] *= -2
        return array

    yield _Kind("a NumPy array", array, in_place, True)
    yield _Kind("another NumPy array", array, lambda: array + 1)
    # An array of the framework is what an adapter returned.
    one, two = (forward(subject.adapter(), subject.point(seed))[0] for seed in (94, 95))
    yield _Kind("an array of its framework", one, lambda: two)
