"""Complex numbers by the protocol's convention: what is not analytic shows how a guest conjugates."""

from __future__ import annotations

from contextlib import suppress

from gradbridge.call_spec import CallSpec
from gradbridge.errors import Unsupported
from gradbridge.layout import Array
from gradbridge.testing import waves
from gradbridge.testing.checks.catalogue import check, refusable
from gradbridge.testing.checks.orders import pushed_by_pullback
from gradbridge.testing.checks.structure import pushed_by_guest
from gradbridge.testing.compare import expect_close, expect_gradients, expect_outputs
from gradbridge.testing.points import drawn
from gradbridge.testing.subject import Subject


@check(1, ("wave",))
def complex_gradient(subject: Subject) -> None:
    """A cotangent c of a complex output pairs as Re Σ c dy: gradients are ∂/∂x - i ∂/∂y, real ones stay real."""
    point = subject.point(101)
    flight = subject.start(point)
    expect_outputs(flight.outputs, subject.outputs_at(point), subject.tolerance)
    pulled = flight.pull()
    expect_gradients(pulled, subject.gradients_at(point), subject.tolerance)
    for gradients in (pulled, subject.ask_adapter(point)):
        for argument, gradient in gradients.items():
            like = point.arguments[argument]
            assert gradient.dtype.kind == like.dtype.kind, (
                f"gradient of {gradients.name(argument)}, which is {like.dtype}: expected such numbers, "
                f"got {gradient.dtype}"
            )


@check(7, ("wave",))
@refusable
def complex_second_order(subject: Subject) -> None:
    """Pulling the pullback back keeps the convention, for complex arguments and complex cotangents."""
    point = subject.point(102)
    wrt = (0, 1, 2, 3, 4)
    gradient = subject.start(point).differentiated()
    evaluation = gradient.evaluate([*point.arguments, *point.cotangents], wrt)
    expected = list(subject.gradients_at(point).values())
    expect_outputs(evaluation.outputs, expected, subject.tolerance, "of the pullback")
    directions = drawn(evaluation.outputs, 103)
    scale, *rest = directions
    own = [_scale(subject, scale), *rest]
    expected = waves.pulled_again(_scale(subject, point.params), point.inputs, point.cotangents, own)
    expected[0] = expected[0][subject.order]
    for argument, got, right in zip(wrt, evaluation.pull(directions, wrt), expected, strict=True):
        what = f"second derivative, pulled back to {subject.named(argument)}"
        expect_close(got, right, what, 10 * subject.tolerance)


@check(1, ("wave",))
@refusable
def complex_tangent(subject: Subject) -> None:
    """A JVP moves complex outputs as they move, by forward mode and by the pullback of the pullback."""
    point = subject.point(104)
    tangents = drawn(point.arguments, 105)
    scale, *rest = tangents
    expected = waves.pushed(_scale(subject, point.params), point.inputs, [_scale(subject, scale), *rest])
    with suppress(Unsupported):
        _, pushed = pushed_by_guest(subject, point, dict(enumerate(tangents)), CallSpec.of_arrays(2))
        expect_outputs(pushed, expected, subject.tolerance, "as moved by forward mode")
    again = pushed_by_pullback(subject.start(point).evaluation, tangents)
    expect_outputs(again, expected, 10 * subject.tolerance, "as moved by the JVP")


def _scale(subject: Subject, params: Array) -> Array:
    array: Array = subject.by_name(params)["scale"]
    return array
