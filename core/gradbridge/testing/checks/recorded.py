"""Laws 3 and 8 for derivatives that start from a forward that was recorded."""

from __future__ import annotations

from collections.abc import Sequence

from gradbridge.execution import batched
from gradbridge.layout import Array
from gradbridge.testing import derivatives
from gradbridge.testing.backend import NotOfferedError
from gradbridge.testing.checks.catalogue import check, optional, refusable
from gradbridge.testing.checks.function import counted
from gradbridge.testing.checks.orders import floating, wide
from gradbridge.testing.compare import expect_close, expect_gradients, expect_outputs
from gradbridge.testing.points import drawn, overwrite
from gradbridge.testing.subject import Flight, Subject
from gradbridge.tracing import trace


@check(8, ("mlp", "energy", "outputs", "tied"))
@refusable
def one_forward_of_any_order(subject: Subject) -> None:
    """A Hessian-vector product makes one forward: the derivative of the derivative starts from what was recorded."""
    native = subject.build(subject.initial())
    countable = subject.under_test.counted(native)
    model, evaluations = countable if countable is not None else (native, lambda: 0)
    adapter = subject.adapt(model, subject.precision)
    _product(subject, subject.start(subject.point(120), adapter=adapter))  # whoever compiles does it here
    forwards, before = counted(adapter, "forward"), evaluations()
    with trace(subject.under_test.registry) as t:
        flight = subject.start(subject.point(121), adapter=adapter)
        _product(subject, flight)
    assert t.counts["forward"] == 1, f"expected one forward for a Hessian-vector product, observed {t.counts}"
    assert forwards() == 1, f"expected one forward of the adapter, also by itself, counted {forwards()}"
    again = evaluations() - before
    assert again <= 1, (
        f"expected the model to be evaluated once for a Hessian-vector product, counted {again}"
    )


@check(8, ("mlp", "energy", "outputs", "tied", "column"))
@optional
def one_walk(subject: Subject) -> None:
    """What derivatives of a gradient leave at the boundary of its forward, that one's pull takes along: each once."""
    point = subject.point(125)
    flight = subject.start(point)
    arguments, wrt = [*point.arguments, *point.cotangents], flight.evaluation.wrt
    gradient = flight.differentiated()
    if not hasattr(gradient.adapter, "pull_to_boundary"):
        raise NotOfferedError(
            f"{subject.under_test.name}: its pullback walks through the forward once for each"
        )
    evaluation = gradient.evaluate(arguments, floating(arguments))
    first = len(point.arguments)
    of_cotangents = [i for i in floating(arguments) if i >= first]
    lefts, expected = [], subject.gradients_at(point)
    for seed in (126, 127):
        directions = drawn(evaluation.outputs, seed)
        found, left = batched.pull_to_boundary(evaluation, directions)
        right = derivatives.pullback(
            subject.gradient_function(), arguments, directions, (*wrt, *of_cotangents)
        )
        for i, expected_one in zip(of_cotangents, right[len(wrt) :], strict=True):
            assert i in found, f"{subject.named(i)}: expected its gradient at the boundary, got {list(found)}"
            expect_close(found[i], expected_one, f"at the boundary, of {subject.named(i)}", wide(subject))
        lefts.append(left)
        expected = subject.gradients(wrt, [a + b for a, b in zip(expected.values(), right)])
    pulled = flight.evaluation.pull(point.cotangents, wrt, lefts)
    expect_gradients(subject.gradients(wrt, pulled), expected, wide(subject), "with two derivatives' rests")
    expect_gradients(
        flight.pull(), subject.gradients_at(point), subject.tolerance, "without them, afterwards"
    )


@check(3)
@refusable
def arrays_changed_between_orders(subject: Subject) -> None:
    """The caller may overwrite its arrays before a derivative is differentiated; it is that of the call's values."""
    for recorded in (False, True):
        point = subject.point(122)
        arguments = [*point.arguments, *point.cotangents]
        wrt = floating(arguments)
        first = list(subject.gradients_at(point).values())
        directions = drawn(first, 123)
        second = derivatives.pullback(subject.gradient_function(), arguments, directions, wrt)
        gradient = subject.start(point).differentiated()
        if recorded:
            if gradient.adapter.step != "backward":
                break
            overwrite(point.arguments)
        evaluation = gradient.evaluate(arguments, wrt)
        overwrite(arguments)
        when = f"after arguments were overwritten {'before' if recorded else 'after'} it was computed"
        expect_outputs(evaluation.outputs, first, subject.tolerance, f"of the pullback, {when}")
        for argument, got, right in zip(wrt, evaluation.pull(directions, wrt), second, strict=True):
            what = f"second derivative, pulled back to {subject.named(argument)}, {when}"
            expect_close(got, right, what, wide(subject))


def _product(subject: Subject, flight: Flight) -> Sequence[Array]:
    """H v as hosts make it: pulled back to the arguments and the cotangents, and these to the arguments.

    Raises:
        NotOfferedError: the derivative makes a forward of its own.
    """
    point = flight.point
    gradient = flight.differentiated()
    if gradient.adapter.step != "backward":
        raise NotOfferedError(
            f"{subject.under_test.name}: a derivative of the derivative makes a forward of its own"
        )
    arguments = [*point.arguments, *point.cotangents]
    evaluation = gradient.evaluate(arguments, floating(arguments))
    pulled = evaluation.pull(drawn(evaluation.outputs, 124), evaluation.wrt)
    cotangents = pulled[len(pulled) - len(point.cotangents) :]
    flight.pull(cotangents)
    return pulled
