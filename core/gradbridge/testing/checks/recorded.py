"""Laws 3 and 8 for derivatives that start from a forward that was recorded."""

from __future__ import annotations

from collections.abc import Sequence

from gradbridge.layout import Array
from gradbridge.testing import derivatives
from gradbridge.testing.backend import NotOfferedError
from gradbridge.testing.checks.catalogue import check, refusable
from gradbridge.testing.checks.function import counted
from gradbridge.testing.checks.orders import floating, wide
from gradbridge.testing.compare import expect_close, expect_outputs
from gradbridge.testing.subject import Flight, Subject, drawn, overwrite
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
