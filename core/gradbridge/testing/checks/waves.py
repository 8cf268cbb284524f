"""Complex numbers by the protocol's convention: what is not analytic shows how a guest conjugates."""

from __future__ import annotations

import numpy as np

from gradbridge.protocol import Array, Signature
from gradbridge.testing import waves
from gradbridge.testing.checks.catalogue import check
from gradbridge.testing.checks.orders import refusable
from gradbridge.testing.compare import expect_close, expect_gradients, expect_outputs, named
from gradbridge.testing.subject import Point, Subject, drawn_like


@check(1, ("wave",))
def complex_gradient(subject: Subject) -> None:
    """A cotangent c of a complex output pairs as Re Σ c dy: gradients are ∂/∂x - i ∂/∂y, real ones stay real."""
    point = subject.point(101)
    flight = subject.start(point)
    expect_outputs(flight.outputs, subject.outputs_at(point), subject.tolerance)
    found = flight.pull()
    expect_gradients(found, subject.gradients_at(point), subject.tolerance)
    for position, gradient in (*found.items(), *subject.ask_adapter(point).items()):
        like = point.inputs[position - 1] if position else point.params
        assert gradient.dtype.kind == like.dtype.kind, (
            f"gradient of {named(position)}, which is {like.dtype}: expected such numbers, got {gradient.dtype}"
        )


@check(7, ("wave",))
@refusable
def complex_second_order(subject: Subject) -> None:
    """Pulling the pullback back keeps the convention, for complex arguments and complex cotangents."""
    point = subject.point(102)
    call = subject.start(point).call
    gradient = call.differentiated(call.wrt)
    gradient.wrt = (0, 1, 2, 3, 4)
    outputs = gradient.run(point.params, (*point.inputs, *point.cotangents))
    expect_outputs(outputs, list(subject.gradients_at(point).values()), subject.tolerance, "of the pullback")
    rng = np.random.default_rng(103)
    directions = [drawn_like(y, rng) for y in outputs]
    scale, *rest = directions
    mine = [_scale(subject, scale), *rest]
    expected = waves.pulled_again(_scale(subject, point.params), point.inputs, point.cotangents, mine)
    expected[0] = expected[0][subject.order]
    for position, got, right in zip(gradient.wrt, gradient.pull(directions, gradient.wrt), expected):
        what = named(position) if position < 3 else f"cotangent {position - 3}"
        expect_close(got, right, f"second derivative, pulled back to {what}", 10 * subject.tolerance)


@check(1, ("wave",))
@refusable
def complex_tangent(subject: Subject) -> None:
    """A JVP moves complex outputs as they move, by forward mode and by the pullback of the pullback."""
    point = subject.point(104)
    rng = np.random.default_rng(105)
    tangents = [drawn_like(a, rng) for a in (point.params, *point.inputs)]
    scale, *rest = tangents
    expected = waves.pushed(_scale(subject, point.params), point.inputs, [_scale(subject, scale), *rest])
    adapter = subject.adapter()
    loaded = adapter.update(point.params)
    found = adapter.pushforward(loaded, point.inputs, Signature.flat(2), (0, 1, 2), tangents)
    if found is not None:
        expect_outputs(found, expected, subject.tolerance, "as moved by forward mode")
    expect_outputs(_pushed(subject, point, tangents), expected, 10 * subject.tolerance, "as moved by the JVP")


def _pushed(subject: Subject, point: Point, tangents: list[Array]) -> list[Array]:
    call = subject.start(point).call
    gradient = call.differentiated(call.wrt)
    zeros = call.zero_cotangents()
    gradient.wrt = (3, 4)
    gradient.run(point.params, (*point.inputs, *zeros))
    return gradient.pull(tangents, gradient.wrt)


def _scale(subject: Subject, params: Array) -> Array:
    array: Array = subject.by_name(params)["scale"]
    return array
