"""Law 7 for derivatives of derivatives: right, or refused with HigherOrderError; never zeros."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from gradbridge.call import Call
from gradbridge.errors import HigherOrderError
from gradbridge.protocol import Array
from gradbridge.testing import derivatives
from gradbridge.testing.backend import NotOfferedError
from gradbridge.testing.checks.catalogue import CheckFunction, check
from gradbridge.testing.compare import expect_close, expect_outputs, named
from gradbridge.testing.subject import Point, Subject


def refusable(check: CheckFunction) -> CheckFunction:
    """A refusal is honest, wherever it comes, so the check is skipped with its reason."""

    @functools.wraps(check)
    def checked(subject: Subject) -> None:
        try:
            check(subject)
        except HigherOrderError as error:
            raise NotOfferedError(f"refused, as it should be: {error}") from error

    return checked


@check(7)
@refusable
def gradient_again(subject: Subject) -> None:
    """The pullback's adapter computes the same gradients as backward does."""
    point = subject.point(60)
    gradient, arguments = _differentiated(subject, point)
    gradient.wrt = ()
    got = gradient.run(arguments[0], arguments[1:])
    expect_outputs(
        got, list(subject.gradients_at(point).values()), subject.tolerance, "of the pullback's adapter"
    )


@check(7)
@refusable
def second_order(subject: Subject) -> None:
    """Pulling the pullback back gives the closed-form second derivatives of all arguments and cotangents."""
    point = subject.point(61)
    gradient, arguments = _differentiated(subject, point)
    wrt = _floating(arguments)
    gradient.wrt = wrt
    outputs = gradient.run(arguments[0], arguments[1:])
    directions = _directions(outputs, 62)
    expected = derivatives.pullback(subject.gradient_function(), arguments, directions, wrt)
    for position, got, right in zip(wrt, gradient.pull(directions, wrt), expected):
        expect_close(
            got, right, f"second derivative, pulled back to {_named(subject, position)}", _wide(subject)
        )


@check(7, ("mlp", "energy", "tied"))
@refusable
def hessian_symmetric(subject: Subject) -> None:
    """⟨v, H w⟩ = ⟨w, H v⟩ for the Hessian H of any weighted sum of the outputs."""
    point = subject.point(63)
    gradient, arguments = _differentiated(subject, point)
    wrt = subject.positions(point.inputs)
    gradient.wrt = wrt
    outputs = gradient.run(arguments[0], arguments[1:])
    v, w = _directions(outputs, 64), _directions(outputs, 65)
    one, other = _dot(v, gradient.pull(w, wrt)), _dot(w, gradient.pull(v, wrt))
    expect_close(np.array(one), np.array(other), "⟨v, H w⟩, which is ⟨w, H v⟩", _wide(subject))


@check(7)
@refusable
def pushforward(subject: Subject) -> None:
    """The pullback of the pullback is the JVP: ⟨v, J w⟩ = ⟨Jᵀ v, w⟩, and J w is the closed form's."""
    point = subject.point(66)
    flight = subject.start(point)
    pulled = list(flight.pull().values())
    tangents = _directions(pulled, 67)
    gradient = flight.call.differentiated(flight.call.wrt)
    zeros = flight.call.zero_cotangents()
    first = 1 + len(point.inputs)
    gradient.wrt = tuple(range(first, first + len(zeros)))
    gradient.run(point.params, (*point.inputs, *zeros))
    pushed = gradient.pull(tangents, gradient.wrt)
    expect_close(
        np.array(_dot(point.cotangents, pushed)),
        np.array(_dot(pulled, tangents)),
        "⟨v, J w⟩, which is ⟨Jᵀ v, w⟩",
        _wide(subject),
    )
    arguments = [point.params, *point.inputs]
    moves = [np.zeros(np.shape(a)) for a in arguments]
    for position, tangent in zip(flight.call.wrt, tangents):
        moves[position] = tangent
    expected = derivatives.pushforward(subject.value_function(), arguments, moves)
    expect_outputs(pushed, expected, _wide(subject), "as moved by the JVP")


@check(7, ("energy",))
@refusable
def third_order(subject: Subject) -> None:
    """A third derivative is right too: ∂³ Σ x² y along (u, v, w) is Σ 2 (uₓ vₓ w_y + uₓ v_y wₓ + u_y vₓ wₓ)."""
    point = subject.point(68)
    ones = (np.ones(()),)
    (ux, uy), (vx, vy), (wx, wy) = (_directions(point.inputs, seed) for seed in (69, 70, 71))
    call = subject.start(point).call
    first = call.differentiated((1, 2))
    first.run(point.params, (*point.inputs, *ones))
    second = first.differentiated((1, 2))
    second.wrt = (1, 2)
    second.run(point.params, (*point.inputs, *ones, ux, uy))  # H u
    third = second.pull((vx, vy), (1, 2))
    expected = np.sum(2 * (ux * vx * wy + ux * vy * wx + uy * vx * wx))
    expect_close(np.array(_dot(third, (wx, wy))), expected, "third derivative", _wide(subject))


def _differentiated(subject: Subject, point: Point) -> tuple[Call, list[Array]]:
    """A call of the pullback, not run yet, and its arguments: params, inputs and cotangents."""
    call = subject.start(point).call
    return call.differentiated(call.wrt), [point.params, *point.inputs, *point.cotangents]


def _floating(arrays: Sequence[Array]) -> tuple[int, ...]:
    return tuple(i for i, a in enumerate(arrays) if a.dtype.kind == "f" and (i or a.size))


def _directions(like: Sequence[Array], seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=array.shape) for array in like]


def _dot(a: Sequence[Array], b: Sequence[Array]) -> float:
    return float(sum(np.sum(x * y) for x, y in zip(a, b)))


def _wide(subject: Subject) -> float:
    """Second derivatives sum over more terms than first ones."""
    return 10 * subject.tolerance


def _named(subject: Subject, position: int) -> str:
    count = len(subject.point().inputs)
    return named(position) if position <= count else f"cotangent {position - count - 1}"
