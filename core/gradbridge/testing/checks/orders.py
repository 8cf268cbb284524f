"""Law 7 for derivatives of derivatives: right, or refused with HigherOrderError; never zeros."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradbridge.borders import INEXACT
from gradbridge.execution.evaluation import Evaluation
from gradbridge.layout import Array
from gradbridge.testing import derivatives
from gradbridge.testing.checks.catalogue import PLAIN, SHAPED, check, refusable
from gradbridge.testing.compare import expect_close, expect_outputs
from gradbridge.testing.points import drawn
from gradbridge.testing.subject import Subject


@check(7, (*PLAIN, *SHAPED))
@refusable
def gradient_again(subject: Subject) -> None:
    """The pullback's adapter computes the same gradients as backward does."""
    point = subject.point(60)
    gradient = subject.start(point).differentiated()
    outputs = gradient.evaluate([*point.arguments, *point.cotangents], ()).outputs
    expected = list(subject.gradients_at(point).values())
    expect_outputs(outputs, expected, subject.tolerance, "of the pullback's adapter")


@check(7, (*PLAIN, *SHAPED))
@refusable
def second_order(subject: Subject) -> None:
    """Pulling the pullback back gives the closed-form second derivatives of all arguments and cotangents."""
    point = subject.point(61)
    arguments = [*point.arguments, *point.cotangents]
    wrt = floating(arguments)
    evaluation = subject.start(point).differentiated().evaluate(arguments, wrt)
    directions = drawn(evaluation.outputs, 62)
    expected = derivatives.pullback(subject.gradient_function(), arguments, directions, wrt)
    for argument, got, right in zip(wrt, evaluation.pull(directions, wrt), expected, strict=True):
        what = f"second derivative, pulled back to {subject.named(argument)}"
        expect_close(got, right, what, wide(subject))


@check(7, ("mlp", "energy", "tied"))
@refusable
def hessian_symmetric(subject: Subject) -> None:
    """⟨v, H w⟩ = ⟨w, H v⟩ for the Hessian H of any weighted sum of the outputs."""
    point = subject.point(63)
    wrt = subject.differentiable(point.inputs)
    gradient = subject.start(point).differentiated()
    evaluation = gradient.evaluate([*point.arguments, *point.cotangents], wrt)
    v, w = drawn(evaluation.outputs, 64), drawn(evaluation.outputs, 65)
    one, other = dot(v, evaluation.pull(w, wrt)), dot(w, evaluation.pull(v, wrt))
    expect_close(np.array(one), np.array(other), "⟨v, H w⟩, which is ⟨w, H v⟩", wide(subject))


@check(7, (*PLAIN, *SHAPED))
@refusable
def pushforward(subject: Subject) -> None:
    """The pullback of the pullback is the JVP: ⟨v, J w⟩ = ⟨Jᵀ v, w⟩, and J w is the closed form's."""
    point = subject.point(66)
    flight = subject.start(point)
    pulled = list(flight.pull().values())
    tangents = drawn(pulled, 67)
    pushed = pushed_by_pullback(flight.evaluation, tangents)
    expect_close(
        np.array(dot(point.cotangents, pushed)),
        np.array(dot(pulled, tangents)),
        "⟨v, J w⟩, which is ⟨Jᵀ v, w⟩",
        wide(subject),
    )
    full = [np.zeros(np.shape(a)) for a in point.arguments]
    for argument, tangent in zip(flight.evaluation.wrt, tangents):
        full[argument] = tangent
    expected = derivatives.pushforward(subject.value_function(), point.arguments, full)
    expect_outputs(pushed, expected, wide(subject), "as moved by the JVP")


@check(7, ("energy",))
@refusable
def third_order(subject: Subject) -> None:
    """A third derivative is right too: ∂³ Σ x² y along (u, v, w) is Σ 2 (uₓ vₓ w_y + uₓ v_y wₓ + u_y vₓ wₓ)."""
    point = subject.point(68)
    (ux, uy), (vx, vy), (wx, wy) = (drawn(point.inputs, seed) for seed in (69, 70, 71))
    arguments = [*point.inputs, np.ones(())]
    gradient = subject.start(point).differentiated().evaluate(arguments, (0, 1))
    product = gradient.differentiated((0, 1)).evaluate([*arguments, ux, uy], (0, 1))  # H u
    third = product.pull((vx, vy), (0, 1))
    expected = np.sum(2 * (ux * vx * wy + ux * vy * wx + uy * vx * wx))
    expect_close(np.array(dot(third, (wx, wy))), expected, "third derivative", wide(subject))


@check(7, ("mlp", "unused"))
@refusable
def third_order_by_params(subject: Subject) -> None:
    """A third derivative by the params is the change of their second one, H u, along a direction."""
    point = subject.point(72)
    (u,), (w,) = drawn([point.params], 73), drawn([point.params], 74)
    rest = [*point.inputs, *point.cotangents]
    gradient = subject.start(point, wrt=(0,)).differentiated().evaluate([point.params, *rest], (0,))
    product = gradient.differentiated((0,)).evaluate([point.params, *rest, u], (0,))  # H u
    got = product.pull((w,), (0,))[0]  # ∂ ⟨w, H u⟩

    def second(params: Array) -> Array:
        of_params = lambda arrays: subject.gradient_function()(arrays)[:1]  # noqa: E731
        return derivatives.pullback(of_params, [params, *rest], [u], (0,))[0]

    # ∂³ is symmetric: what is pulled back along w is how H u moves along it.
    expect_close(got, derivatives.slope(second, point.params, w), "third derivative", 1e3 * subject.tolerance)


def pushed_by_pullback(evaluation: Evaluation, tangents: Sequence[Array]) -> list[Array]:
    """Tangents of the outputs, where the arguments of an evaluation move: its pullback, pulled back at zero."""
    arguments, zeros = evaluation.values, evaluation.zero_cotangents()
    cotangents = tuple(range(len(arguments), len(arguments) + len(zeros)))
    gradient: Evaluation = evaluation.differentiated(evaluation.wrt).evaluate(
        [*arguments, *zeros], cotangents
    )
    return gradient.pull(tangents, cotangents)


def floating(arrays: Sequence[Array]) -> tuple[int, ...]:
    """Which of them have a derivative."""
    return tuple(i for i, a in enumerate(arrays) if a.dtype.kind in INEXACT)


def dot(a: Sequence[Array], b: Sequence[Array]) -> float:
    """Sum of all products."""
    return float(sum(np.sum(x * y) for x, y in zip(a, b)))


def wide(subject: Subject) -> float:
    """Tolerance of second derivatives: they sum over more terms than first ones."""
    return 10 * subject.tolerance
